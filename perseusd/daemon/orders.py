"""What an operator may order on the control socket: pause, release a job or GPU, and resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from perseusd.core.actions import Action
from perseusd.core.controller import Controller
from perseusd.daemon.custody import Custody
from perseusd.daemon.grip import Grip, Hold

Act = Callable[[list[Action]], None]
Answer = dict[str, Any]


class Orders:
    """Commands for `Control`: clocks are asked to be full before the answer, the rest follows."""

    def __init__(self, controller: Controller, custody: Custody, grip: Grip, act: Act) -> None:
        self._controller = controller
        self._act = act
        self._custody = custody
        self._grip = grip

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], Answer]]:
        return {"pause": self._pause, "resume": self._resume, "release": self._release}

    def _pause(self, _request: Mapping[str, Any]) -> Answer:
        self._custody.paused = True
        self._act(self._custody.look(time.monotonic()))
        self._grip.let_go()
        return {"ok": True, "driver": self._grip.hold.value}

    def _resume(self, request: Mapping[str, Any]) -> Answer:
        """`changed`: whether there was anything to resume."""
        if (asked := request.get("name")) is not None:
            name = self._named(str(asked), self._custody.released)
            if name is None:
                return self._unknown(str(asked))
            changed = self._custody.resume(name)
            self._act(self._custody.look(time.monotonic()))
            driver = self._grip.hold.value
            return {"ok": True, "name": name, "changed": changed, "driver": driver}
        changed = self._grip.take_up()
        if self._grip.hold is Hold.LETTING_GO:
            trouble = self._grip.trouble or "it has just begun"
            error = f"the driver is still being let go of: {trouble}; try again"
            return {"ok": False, "code": "busy", "error": error}
        return {"ok": True, "driver": self._grip.hold.value, "changed": changed}

    def _release(self, request: Mapping[str, Any]) -> Answer:
        asked = str(request.get("name"))
        name = self._named(asked, ())
        if name is None:
            return self._unknown(asked)
        self._custody.release(name)
        self._act(self._custody.look(time.monotonic()))
        return {"ok": True, "name": name}

    def _named(self, asked: str, more: Collection[str]) -> str | None:
        """A job by its id or the part after the user's name; a GPU by UUID, its beginning, index.

        None where nothing has that name, or several have. Users choose their jobs' names, so an id
        comes before a GPU, and a GPU before what one of them happens to be called.
        """
        jobs = {*self._controller.jobs, *more}
        if asked in jobs:
            return asked
        gpus = [
            uuid
            for uuid, facts in self._controller.gpus.items()
            if asked == str(facts.index) or (uuid.startswith(asked) and len(asked) > len("GPU-"))
        ]
        found = gpus or [name for name in jobs if asked == name.split(":", 1)[-1]]
        return found[0] if len(found) == 1 else None

    def _unknown(self, asked: str) -> Answer:
        jobs = ", ".join(sorted(self._controller.jobs)) or "none"
        error = (
            f"no job or GPU is {asked!r}, or several are: jobs are {jobs}; a GPU goes by its index "
            "or UUID, as `perseusctl status --json` shows it"
        )
        return {"ok": False, "code": "unknown_job", "error": error}
