"""Which GPUs and jobs are kept at full clock whatever their plans say, and why.

Several parts of the daemon know reasons of their own; here they come together, are told to the
controller as they come and go, and are logged once each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from perseusd.core.actions import Action
from perseusd.core.controller import Controller
from perseusd.daemon.actuator import Actuator
from perseusd.daemon.sampler import Sampler

log = logging.getLogger(__name__)


class Custody:
    """Looks after GPUs that do not answer."""

    def __init__(self, controller: Controller, sampler: Sampler, actuator: Actuator) -> None:
        self._controller = controller
        self._sampler = sampler
        self._actuator = actuator

    def look(self, now_s: float, more: Mapping[str, str] | None = None) -> list[Action]:
        """What has changed since the last look; to be called several times a second.

        more: reasons of others, by GPU or job, which give way to those that are known here.
        """
        self._sampler.look_after()
        now = {**(more or {}), **self._reasons(now_s)}
        known = self._controller.withheld
        actions: list[Action] = []
        for name in known.keys() - now.keys():
            log.info("no longer kept at full clock: %s", known[name])
            actions += self._controller.withhold(name, None)
        for name, why in now.items():
            if known.get(name) != why:
                log.warning("kept at full clock: %s", why)
                actions += self._controller.withhold(name, why)
        return actions

    def state_of(self, uuid: str) -> str:
        """Of a GPU, as status shows it."""
        now_s, view = time.monotonic(), self._sampler.views[uuid]
        if view.stuck_s(now_s) or uuid in self._actuator.stuck(now_s):
            return "stuck"
        if view.lost:
            return "lost"
        return "failed" if view.error is not None or view.trouble(now_s) else "ok"

    def _reasons(self, now_s: float) -> dict[str, str]:
        """By GPU; the first reason that applies."""
        troubles = {uuid: view.trouble(now_s) for uuid, view in self._sampler.views.items()}
        read = {uuid: why for uuid, why in troubles.items() if why is not None}
        return {**self._actuator.stuck(now_s), **read}
