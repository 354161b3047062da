"""The daemon's hold on the driver, which an operator can have it let go of and take up again.

A GPU cannot be reset while any process holds the driver open. Letting go means: every clock full,
perseusd-clock gone from the driver, no thread of ours inside it, and then closing it. Each step may
take long or hang, so none is waited for; `look` takes the next one when it can be taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from perseusd.daemon.actuator import Actuator
from perseusd.daemon.ownership import Ownership
from perseusd.daemon.sampler import Sampler
from perseusd.errors import GpuError, PerseusError
from perseusd.gpus.base import Gpu, GpuNode

log = logging.getLogger(__name__)

LOOK_S = 3.0
"""Between looks for GPUs that could not be opened."""

REOPEN_S = 5.0
"""Between attempts to open a driver that does not open."""


class Hold(StrEnum):
    """In status, `daemon.driver`."""

    HELD = "held"
    LETTING_GO = "letting_go"
    FREE = "free"
    OPENING = "opening"


class Grip:
    """Owns the node. `arrived`: called with each GPU that has come or come back."""

    def __init__(
        self,
        open_node: Callable[[], GpuNode],
        readers: Callable[[], tuple[Sampler, Ownership]],
        actuator: Callable[[], Actuator],
        arrived: Callable[[Gpu], None],
    ) -> None:
        """Opens the driver, whatever that takes. Raises GpuError or ConfigurationError."""
        self.node: GpuNode = open_node()
        self.hold = Hold.HELD
        self.trouble: str | None = None
        self._open_node = open_node
        self._readers, self._actuator = readers, actuator
        self._arrived = arrived
        self._work: threading.Thread | None = None
        self._found: GpuNode | PerseusError | None = None
        self._next_s = time.monotonic() + LOOK_S

    @property
    def missing(self) -> Mapping[int, str]:
        """GPUs that could not be opened and are looked for, by index, and why."""
        return self.node.unavailable if self.hold is Hold.HELD else {}

    @property
    def blind(self) -> str | None:
        """Why the driver's word of who uses a GPU means nothing here; None where it does."""
        _, ownership = self._readers()
        return ownership.blind

    def let_go(self) -> None:
        """Begin to; harmless where that has begun. Clocks are to be full or asked to be."""
        if self.hold is Hold.HELD:
            self.hold = Hold.LETTING_GO
            self._actuator().let_go()
            sampler, ownership = self._readers()
            sampler.stop(patience_s=0)
            ownership.stop()

    def take_up(self) -> bool:
        """Begin to open the driver again; False where it is not free to be opened."""
        if self.hold is not Hold.FREE:
            return False
        self.hold, self._next_s = Hold.OPENING, 0.0
        return True

    def look(self, now_s: float) -> None:
        """The next step; to be called several times a second."""
        match self.hold:
            case Hold.HELD if self.node.unavailable and now_s >= self._next_s:
                self._next_s = now_s + LOOK_S
                self._welcome(self.node.look_again())
            case Hold.LETTING_GO:
                self._let_go()
            case Hold.OPENING:
                self._take_up(now_s)

    def close(self) -> None:
        """At the daemon's end; a hanging call keeps the driver open until the process has ended."""
        free = self.hold in (Hold.FREE, Hold.OPENING)
        if not (free or self.node.hanging or self._reading):
            self.node.close()

    @property
    def _reading(self) -> bool:
        return any(reader.reading for reader in self._readers())

    def _let_go(self) -> None:
        if self._work is not None:
            if not self._work.is_alive():
                self._work, self.hold, self.trouble = None, Hold.FREE, None
                log.info("paused: the driver is let go of; `perseusctl resume` takes it up again")
        elif not self._actuator().gone:
            self.trouble = "perseusd-clock has not let go of the driver yet"
        elif self._reading or self.node.hanging:
            self.trouble = "a driver call has not returned yet"
        else:
            self._start(self._close)

    def _take_up(self, now_s: float) -> None:
        if self._work is None:
            if now_s >= self._next_s:
                self._start(self._open)
            return
        if self._work.is_alive():
            return
        found, self._found, self._work = self._found, None, None
        if found is None or isinstance(found, PerseusError):
            if self.trouble is None:
                log.error("the driver cannot be opened: %s", found)
            self.trouble, self._next_s = str(found), now_s + REOPEN_S
            return
        self.node, self.hold, self.trouble = found, Hold.HELD, None
        self._next_s = now_s + LOOK_S
        sampler, _ = self._readers()
        sampler.gpus.clear()  # those that do not come back are not read any more
        self._welcome(found.gpus)
        sampler.start()
        self._actuator().take_up()
        log.info("resumed: the driver is held again, with %d GPUs", len(found.gpus))

    def _welcome(self, gpus: Sequence[Gpu]) -> None:
        for gpu in gpus:
            self._arrived(gpu)

    def _start(self, work: Callable[[], None]) -> None:
        self._work = threading.Thread(target=work, name="driver", daemon=True)
        self._work.start()

    def _close(self) -> None:
        try:
            self.node.close()
        except GpuError as error:
            log.warning("%s", error)

    def _open(self) -> None:
        try:
            self._found = self._open_node()
        except PerseusError as error:
            self._found = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            self._found = GpuError(repr(error))
