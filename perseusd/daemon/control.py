"""Control commands, for root, this daemon's own user and the admin group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from perseusd.core.actions import Action
from perseusd.core.controller import Controller
from perseusd.daemon.access import Access, Caller

LARGEST_FACTOR = 100.0

LONGEST_NOTICE_S = 86_400.0
"""Of a straggler that is announced beforehand."""

Act = Callable[[list[Action]], None]

Command = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A request → its answer."""


class Control:
    """Checks who asks and what, and carries it out."""

    def __init__(
        self,
        controller: Controller,
        act: Act,
        access: Access,
        more: Mapping[str, Command] | None = None,
    ) -> None:
        """more: commands that other parts of the daemon answer."""
        self._controller = controller
        self._act = act
        self.access = access
        self._commands: dict[str, Command] = {
            "straggler_announce": self._announce,
            "straggler_end": self._end,
            **(more or {}),
        }

    def answer(self, caller: Caller, request: object) -> dict[str, Any]:
        """The answer to one request: `ok`, or a code and an error that names the fix."""
        if not self.access.may_control(caller):
            return _refused(
                "not_permitted",
                f"uid {caller.uid} may not control this daemon: root, its own user and members "
                f"of the group {self.access.admin_group!r} may",
            )
        command = request.get("command") if isinstance(request, Mapping) else None
        handler = self._commands.get(str(command))
        if handler is None or not isinstance(request, Mapping):
            known = ", ".join(sorted(self._commands))
            return _refused("bad_request", f"unknown command {command!r}: known are {known}")
        return handler(request)

    def _announce(self, request: Mapping[str, Any]) -> dict[str, Any]:
        factor: Any = request.get("factor")
        in_s: Any = request.get("in_s", 0)
        if not _within(factor, 1, LARGEST_FACTOR):
            return _refused(
                "bad_request",
                f"factor {factor!r}: give how many times longer the straggler's iteration takes, "
                f"from 1 to {LARGEST_FACTOR:g}",
            )
        if not _within(in_s, 0, LONGEST_NOTICE_S):
            return _refused(
                "bad_request",
                f"in_s {in_s!r}: give in how many seconds it begins, from 0 to "
                f"{LONGEST_NOTICE_S:g}",
            )
        starts_ns = time.monotonic_ns() + int(in_s * 1e9) if in_s else None
        name = self._named(request)
        if name is None:
            return self._unknown(request)
        self._act(self._controller.announce_straggler(name, float(factor), starts_ns))
        return {"ok": True}

    def _end(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`changed`: whether one was announced."""
        name = self._named(request)
        if name is None:
            return self._unknown(request)
        said = self._controller.jobs[name].reaction.announced.said
        self._act(self._controller.announce_straggler(name, None))
        return {"ok": True, "changed": said}

    def _named(self, request: Mapping[str, Any]) -> str | None:
        """`job` is its id as in status; the part after the user's name will do if it is unique."""
        asked = str(request.get("job"))
        jobs = self._controller.jobs
        short = [name for name in jobs if asked == name.split(":", 1)[-1]]
        named = [asked] if asked in jobs else short  # whatever others call their jobs
        return named[0] if len(named) == 1 else None

    def _unknown(self, request: Mapping[str, Any]) -> dict[str, Any]:
        running = ", ".join(sorted(self._controller.jobs)) or "none"
        error = f"no job {str(request.get('job'))!r} here: running are {running}"
        return _refused("unknown_job", error)


def _refused(code: str, error: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "error": error}


def _within(value: Any, low: float, high: float) -> bool:
    """A number in this range; compared as it is, since an integer may not fit into a float."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and low <= value <= high
