"""Which GPUs and jobs are kept at full clock whatever their plans say, and why.

Several parts of the daemon know reasons of their own: a driver that does not answer, a lock that
another tool has set, an operator's word, a machine that has slept. Here they come together, are
told to the controller as they come and go, and are logged once each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from perseusd.core.actions import Action
from perseusd.core.controller import Controller
from perseusd.core.foreign import ForeignWatch, Reading
from perseusd.daemon.actuator import Actuator
from perseusd.daemon.sampler import GpuState, Sampler

log = logging.getLogger(__name__)

PAUSED = "paused by an operator: `perseusctl resume` ends it"


LATE_S = 1.0
"""Between two looks: after longer, nothing of what has come since was heard yet."""


class Custody:
    """Looks after GPUs, beside the plans for them.

    paused: an operator has paused everything. slept_s: for how long the machine has slept since
    the last call.
    """

    def __init__(
        self,
        controller: Controller,
        sampler: Sampler,
        actuator: Actuator,
        slept_s: Callable[[], float],
    ) -> None:
        self._controller = controller
        self._sampler = sampler
        self._actuator = actuator
        self._slept_s = slept_s
        self._watches: dict[str, ForeignWatch] = {}
        self._released: dict[str, str] = {}
        self._foreign: dict[str, str] = {}
        self._more: Mapping[str, str] = {}
        self._looked_s = time.monotonic()
        self.paused = False

    def look(self, now_s: float, more: Mapping[str, str] | None = None) -> list[Action]:
        """What has changed since the last look; to be called several times a second.

        more: reasons of others, by GPU or job, which give way to those that are known here; None:
        the last ones still hold.
        """
        self._more = self._more if more is None else more
        late, self._looked_s = now_s - self._looked_s > LATE_S, now_s
        if late:  # this process was stopped itself: what it waits for may have come meanwhile
            return []
        actions: list[Action] = []
        if slept_s := self._slept_s():
            why = f"this machine has slept for {slept_s:.0f} s: everything is learned anew"
            log.warning("%s", why)
            actions += self._controller.relearn_all(why)
        self._sampler.look_after()
        self._respect()
        now, known = self._reasons(now_s), self._controller.withheld
        for name in known.keys() - now.keys():
            log.info("no longer kept at full clock: %s", _with_name(name, known[name]))
            actions += self._controller.withhold(name, None)
        for name, why in now.items():
            if known.get(name) != why:
                log.warning("kept at full clock: %s", _with_name(name, why))
                actions += self._controller.withhold(name, why)
        return actions

    def read(self, state: GpuState) -> None:
        """A GPU's clock was read."""
        if "idle" in state.reasons:
            return
        facts = self._controller.gpus.get(state.uuid)
        if facts is None or not facts.supported_mhz:
            return
        watch = self._watches.setdefault(state.uuid, ForeignWatch(facts.top_mhz))
        watch.full_mhz = facts.top_mhz
        reading = Reading(state.time_ns, state.clock_mhz, state.limited)
        watch.read(reading, self._actuator.intent(state.uuid))

    def release(self, name: str) -> None:
        """Keep this GPU (UUID) or job (id) at full clock until `resume`, by an operator's word."""
        self._released[name] = f"{name} was released by an operator: `perseusctl resume {name}`"
        self._reclaim(name)

    def resume(self, name: str) -> bool:
        """No longer, and a clock that another tool has set there is put to full, too.

        Whether there was either.
        """
        kept = name in self._released or name in self._foreign
        self._released.pop(name, None)
        self._reclaim(name)
        return kept

    def state_of(self, uuid: str) -> str:
        """Of a GPU, as status shows it."""
        now_s, view = time.monotonic(), self._sampler.views[uuid]
        if view.stuck_s(now_s) or uuid in self._actuator.stuck(now_s):
            return "stuck"
        if view.lost:
            return "lost"
        if view.error is not None or (view.trouble(now_s) and not self.paused):
            return "failed"
        return "foreign" if uuid in self._foreign else "ok"

    def agrees(self, uuid: str) -> bool | None:
        """Whether a GPU's clock is what was written; None: nothing tells now."""
        if uuid in self._actuator.unreset() or self.state_of(uuid) != "ok":
            return False
        watch = self._watches.get(uuid)
        return None if watch is None or self.paused else watch.agrees(time.monotonic_ns())

    @property
    def released(self) -> Mapping[str, str]:
        """By GPU or job, in words."""
        return self._released

    def _respect(self) -> None:
        """Keep hands off GPUs whose clock another tool has set, before anything is released."""
        for uuid, watch in self._watches.items():
            theirs_mhz = watch.suspected_mhz
            if theirs_mhz is not None and uuid not in self._foreign:
                self._foreign[uuid] = (
                    f"another tool has set the clock of GPU {uuid} ({theirs_mhz} MHz); it stays as "
                    f"it is until that is gone, or `perseusctl resume {uuid}`"
                )
                self._actuator.respect(uuid)
            elif theirs_mhz is None and self._foreign.pop(uuid, None) is not None:
                self._actuator.reclaim(uuid, reset=False)

    def _reclaim(self, name: str) -> None:
        if self._foreign.pop(name, None) is not None:
            self._watches[name].forgive()
            self._actuator.reclaim(name, reset=True)

    def _reasons(self, now_s: float) -> dict[str, str]:
        """By GPU or job; of several reasons the last here."""
        if self.paused:
            return {**self._more, **dict.fromkeys(self._sampler.views, PAUSED)}
        troubles = {uuid: view.trouble(now_s) for uuid, view in self._sampler.views.items()}
        read = {uuid: why for uuid, why in troubles.items() if why is not None}
        own = {**self._foreign, **self._actuator.stuck(now_s), **read, **self._released}
        return {**self._more, **own}


def _with_name(name: str, why: str) -> str:
    """Of which GPU or job, where the reason does not say."""
    return why if name in why else f"{name}: {why}"
