"""The driver is held open only while a daemon is served or a clock is to be put back.

A GPU cannot be reset while any process holds it. Opening may take seconds, or hang with one GPU, so
it is done on a thread, but for the first time, when no daemon waits yet, and clocks that an earlier
process left lowered do: each GPU is put back as soon as it is open.

A GPU that may be lowered and could not be opened is looked for, daemon or not: without one the
driver is opened for a moment now and then, and let go of again, so that a GPU can be reset in
between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from perseusd.clock.desks import Desks
from perseusd.clock.intent import OTHERS
from perseusd.errors import GpuError, PerseusError
from perseusd.gpus import OPEN_S
from perseusd.gpus.base import Gpu, GpuNode

LOOK_S = 3.0
"""Between looks for GPUs that could not be opened."""

LAST_LOOK_S = 30.0
"""Without a daemon looks become rarer, down to this: each may keep the driver busy for seconds."""

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
        self._look_s, self._pause_s = 0.0, LOOK_S
        self._found: GpuNode | GpuError | None = None
        self._node: GpuNode | None = None
        self._told: Sequence[str] = ()
        try:
            node = open_node(0.0)
        except GpuError as error:
            desks.unavailable = (str(error),)
            raise
        self._put_back(node)
        self._take(node)

    @property
    def held(self) -> bool:
        return self._node is not None

    def open(self, done: Callable[[], None]) -> None:
        """Begin to open the driver again; `done` is called on a thread when `opened` knows more."""
        self._pause_s = LOOK_S
        if self._opening is None:
            self._opening = threading.Thread(target=self._run, args=(done,), daemon=True)
            self._opening.start()

    def seek(self, done: Callable[[], None]) -> None:
        """`open`, if it is time to look for a GPU that may be lowered and is not here."""
        idle = self._node is None and self._opening is None
        if idle and self._desks.missing and time.monotonic() >= self._look_s:
            pause_s = min(2 * self._pause_s, LAST_LOOK_S)
            self.open(done)
            self._pause_s = pause_s

    def look_in_s(self, served: bool) -> float | None:
        """How long nothing is to be done about GPUs that may be lowered and are not here; None: for
        ever, or until `done` is called. served: as in `arrivals`."""
        if not self._desks.missing or self._opening is not None:
            return None
        if self._node is not None and not served:  # kept by a call that hangs, which tells nobody
            return LOOK_S
        return max(0.0, self._look_s - time.monotonic())

    def opened(self) -> GpuError | None:
        """Takes what the thread has found; the error where there is no working driver."""
        found, self._found = self._found, None
        if found is None:
            return None
        self._opening = None
        if isinstance(found, GpuError):
            self._look_s = time.monotonic() + self._pause_s
            self._desks.unavailable = (str(found),)
            self._tell(self._desks.unavailable)
            return found
        missing = self._desks.missing
        self._take(found)
        self._seat(found.gpus)
        self._say_come(missing)
        return None

    def let_go(self) -> None:
        """Nothing may be locked, and no driver call under way. Harmless where it is not held."""
        if self._node is None or self._node.hanging:
            return
        node, self._node = self._node, None
        self._look_s = time.monotonic() + self._pause_s
        self._desks.clear()
        try:
            node.close()
        except GpuError as error:
            self._log(str(error))

    def close(self) -> None:
        """Before this process ends; a hanging call keeps the driver open until it has."""
        if self._node is not None and not self._node.hanging and not self._desks.busy:
            self._node.close()

    def arrivals(self, served: bool) -> Sequence[Gpu]:
        """GPUs that could not be opened before, and now are at a desk.

        served: a daemon is there, so those that have failed are tried again, now and then; without
        one the driver is let go of first, and `seek` tries them; but where a call that hangs keeps
        it, they are tried here.
        """
        if self._node is None:
            return ()
        if not (served or self._node.hanging):
            come = self._node.await_some(0.0)
        elif time.monotonic() < self._look_s:
            return ()
        else:
            self._look_s = time.monotonic() + LOOK_S
            come = self._node.look_again()
        self._desks.unavailable = tuple(self._node.unavailable.values())
        return self._seat(come)

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
        self._tell([f"GPU {index} is not served: {why}" for index, why in node.unavailable.items()])
        self._desks.unavailable = tuple(node.unavailable.values())

    def _tell(self, troubles: Sequence[str]) -> None:
        """Log what was not so when the driver was opened last."""
        for trouble in troubles:
            if trouble not in self._told:
                self._log(trouble)
        self._told = troubles

    def _say_come(self, missing: frozenset[str]) -> None:
        for uuid in sorted(missing - self._desks.missing - {OTHERS}):
            self._log(f"{uuid} is here now: it may be locked, and is put back")

    def _seat(self, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
        seated = []
        for gpu in gpus:
            try:
                self._desks.add(gpu)
                seated.append(gpu)
            except PerseusError as error:
                self._log(str(error))
        return seated
