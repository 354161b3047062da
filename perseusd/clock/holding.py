"""The driver is held open only while a daemon is served or a clock is to be put back.

A GPU cannot be reset while any process holds it. Opening may take seconds, or hang with one GPU, so
it is done on a thread, but for the first time, when no daemon waits yet, and clocks that an earlier
process left lowered do: each GPU is put back as soon as it is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from perseusd.clock.desks import Desks
from perseusd.errors import GpuError, PerseusError
from perseusd.gpus import OPEN_S
from perseusd.gpus.base import Gpu, GpuNode

LOOK_S = 3.0
"""Between looks for GPUs that could not be opened."""

TURN_S = 0.05
"""While GPUs are being opened, resets of others that have failed are looked at so often."""


class Holding:
    """Fills and empties the desks.

    Raises GpuError when it is made and there is no driver, ConfigurationError for a standing lock
    that a GPU does not support.
    """

    def __init__(
        self, open_node: Callable[[float], GpuNode], desks: Desks, log: Callable[[str], None]
    ) -> None:
        """open_node: takes how many seconds it may wait for GPUs that are slow to open."""
        self._open_node = open_node
        self._desks = desks
        self._log = log
        self._opening: threading.Thread | None = None
        self._look_s = 0.0
        self._found: GpuNode | GpuError | None = None
        self._node: GpuNode | None = None
        node = open_node(0.0)
        self._put_back(node)
        self._take(node)

    @property
    def held(self) -> bool:
        return self._node is not None

    def open(self, done: Callable[[], None]) -> None:
        """Begin to open the driver again; `done` is called on a thread when `opened` knows more."""
        if self._opening is None:
            self._opening = threading.Thread(target=self._run, args=(done,), daemon=True)
            self._opening.start()

    def opened(self) -> GpuError | None:
        """Takes what the thread has found; the error where there is no working driver."""
        found, self._found = self._found, None
        if found is None:
            return None
        self._opening = None
        if isinstance(found, GpuError):
            return found
        self._take(found)
        self._seat(found.gpus)
        return None

    def let_go(self) -> None:
        """Nothing may be locked, and no driver call under way. Harmless where it is not held."""
        if self._node is None or self._node.hanging:
            return
        node, self._node = self._node, None
        self._desks.clear()
        try:
            node.close()
        except GpuError as error:
            self._log(str(error))

    def close(self) -> None:
        """Before this process ends; a hanging call keeps the driver open until it has."""
        if self._node is not None and not self._node.hanging and not self._desks.busy:
            self._node.close()

    def arrivals(self) -> Sequence[Gpu]:
        """GPUs that could not be opened before, and now are at a desk; looks now and then."""
        if self._node is None or time.monotonic() < self._look_s:
            return ()
        self._look_s = time.monotonic() + LOOK_S
        return self._seat(self._node.look_again())

    def _put_back(self, node: GpuNode) -> None:
        """A desk for each GPU as it comes; its reset, if it is owed one, waits for no other GPU."""
        until_s = time.monotonic() + OPEN_S
        come, more = node.gpus, True
        while come or more:
            for gpu in come:
                self._desks.add(gpu)
            self._desks.take_outcomes()
            self._desks.begin()
            more = node.hanging and time.monotonic() < until_s
            come = node.await_some(TURN_S if more else 0.0)

    def _run(self, done: Callable[[], None]) -> None:
        try:
            self._found = self._open_node(OPEN_S)
        except GpuError as error:
            self._found = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the daemon is to hear of it
            self._found = GpuError(f"the driver cannot be opened: {error!r}")
        done()

    def _take(self, node: GpuNode) -> None:
        self._node = node
        self._look_s = time.monotonic() + LOOK_S
        for index, why in node.unavailable.items():
            self._log(f"GPU {index} is not served: {why}")

    def _seat(self, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
        seated = []
        for gpu in gpus:
            try:
                self._desks.add(gpu)
                seated.append(gpu)
            except PerseusError as error:
                self._log(str(error))
        return seated
