"""Control commands as the daemon answers them: done, or refused with a code and a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perseusd.config import Config
from perseusd.ctl.connection import ask
from perseusd.ctl.output import safe
from perseusd.errors import NotPermittedError, PerseusError, ProtocolError, UsageError

_REFUSALS: dict[str, type[PerseusError]] = {
    "not_permitted": NotPermittedError,
    "unknown_job": UsageError,
    "bad_request": UsageError,
}


def command(config: Config, request: Mapping[str, object]) -> dict[str, Any]:
    """The daemon's answer to a control command; what it refuses is raised."""
    answer = ask(config.control_socket, request)
    if answer.get("ok") is True:
        return answer
    if answer.get("ok") is not False:
        raise ProtocolError(
            "perseusd's answer says neither yes nor no; is it of this version? "
            "Compare `perseusd --version`"
        )
    raise refusal(answer)


def changed_by(answer: Mapping[str, Any]) -> bool:
    """Whether what was ordered was not so already; a daemon that does not say has done it."""
    return answer.get("changed") is not False


def refusal(answer: Mapping[str, Any]) -> PerseusError:
    """What an answer that is not `ok` says, as an error of whoever has to do something about it."""
    kind = _REFUSALS.get(str(answer.get("code")), PerseusError)
    return kind(
        safe(answer.get("error") or answer.get("code") or "perseusd refused without a reason")
    )
