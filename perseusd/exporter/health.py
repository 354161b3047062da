"""Whether the daemon lives, and whether it can do its work: what is wrong, in words.

`alive` is what a supervisor restarts it for, `ready` what an operator is told of. Neither says that
all is well because this process answers.
"""

from __future__ import annotations

from typing import Any

from perseusd.ctl.telling import missing_gpu
from perseusd.exporter.metric import Status
from perseusd.exporter.snapshot import Snapshot


def alive(snapshot: Snapshot) -> list[str]:
    """Nothing, or why the daemon's loop does not answer. Its loop itself answers the question."""
    return [] if snapshot.error is None else [snapshot.error]


def ready(snapshot: Snapshot) -> list[str]:
    """Nothing, or all that keeps it from its work."""
    if snapshot.status is None:
        return alive(snapshot)
    status = snapshot.status
    try:
        return [*_processes(status), *_gpus(status)]
    except (KeyError, TypeError, AttributeError) as error:
        return [
            f"the daemon's status cannot be read ({type(error).__name__}: {error}); install daemon "
            "and exporter from one release"
        ]


def _processes(status: Status) -> list[str]:
    daemon, wrong = status["daemon"], []
    held = daemon["driver"] == "held"
    if daemon["mode"] != "observe" and held and daemon["clock_process"] != "alive":
        wrong.append(
            "perseusd-clock is dead: no clock can be written, every job stays at full clock; see "
            "`systemctl status perseusd-clock`"
        )
    if daemon["driver"] == "opening":
        trouble = daemon["driver_trouble"] or "that takes a moment"
        wrong.append(f"the driver is being opened again after a pause: {trouble}")
    elif not held:
        wrong.append(
            f"the driver is not held ({daemon['driver']}): an operator has paused the daemon; "
            "`perseusctl resume` ends it"
        )
    if daemon["planner"] != "ready":
        wrong.append(
            "the planner is starting: no plan can be made yet (on a machine's first start its "
            "kernels are compiled, which takes a minute)"
        )
    return wrong


def _gpus(status: Status) -> list[str]:
    missing = [missing_gpu(gpu) for gpu in status["daemon"]["missing_gpus"]]
    if not status["gpus"] and not missing:
        return ["there is no GPU"]
    return missing + [_unreadable(gpu) for gpu in status["gpus"] if gpu["state"] != "ok"]


def _unreadable(gpu: dict[str, Any]) -> str:
    why = gpu["error"] or "no reading for a while: a driver call may hang"
    return f"GPU {gpu['index']} ({gpu['uuid']}) is {gpu['state']}: {why}"
