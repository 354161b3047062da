"""What a user who may not read everything is shown: its own jobs, GPUs without their holders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perseusd.daemon.access import Access, Caller, user_name

NOT_YOURS = "another user's job"

NO_READER: Mapping[str, Any] = {
    "ok": False,
    "code": "not_permitted",
    "error": "root, the daemon's own user, the admin group and the groups of [access] "
    "status_readers may read this",
}


def readable(status: Mapping[str, Any], access: Access, caller: Caller) -> Mapping[str, Any]:
    """The status object as this caller may see it."""
    if access.may_read_all(caller):
        return status
    prefix = f"{user_name(caller.uid)}:"
    return {
        **status,
        "daemon": {
            **status["daemon"],
            "refused": _own_refusals(status, caller.uid),
            "released": _own_releases(status["daemon"]["released"], prefix),
            "configuration": None,
        },
        "gpus": [_without_others(gpu, prefix) for gpu in status["gpus"]],
        "jobs": [job for job in status["jobs"] if job["id"].startswith(prefix)],
        "ended": [job for job in status["ended"] if job["id"].startswith(prefix)],
    }


def _own_refusals(status: Mapping[str, Any], uid: int) -> list[Mapping[str, Any]]:
    return [refused for refused in status["daemon"]["refused"] if refused["uid"] == uid]


def _own_releases(released: Mapping[str, str], prefix: str) -> Mapping[str, str]:
    """Of GPUs, and of one's own jobs: the others' names are not for everybody."""
    return {
        name: why for name, why in released.items() if ":" not in name or name.startswith(prefix)
    }


def _without_others(gpu: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """What the driver tells every user of a GPU; of what we do to it, only what is one's own."""
    holder = gpu["holder"]
    if holder is None or holder.startswith(prefix):
        return gpu
    return {**gpu, "holder": NOT_YOURS, "requested_mhz": None, "follows_request": None}
