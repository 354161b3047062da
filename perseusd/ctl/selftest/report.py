"""What a self-test found: what is verified by it, what is not, and the times of writing clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perseusd.ctl.output import number
from perseusd.ctl.selftest.measure import Measured, spread

_NEVER = (
    "that a clock is put back after this node loses power or its driver is reloaded",
    "how writes behave while every GPU of the node is written at once",
)


def answer(measured: Sequence[Measured], through: str) -> dict[str, Any]:
    """The report; `ok` where nothing that was tried went wrong."""
    ok = all(
        not found.errors and found.restored and (found.obeyed or found.under == "idle")
        for found in measured
    )
    return {
        "ok": ok,
        "through": through,
        "gpus": [_gpu(found) for found in measured],
        "verified": _verified(measured),
        "not_verified": _not_verified(measured),
    }


def text(report: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"Clocks written through {report['through']}", ""]
    for gpu in report["gpus"]:
        lines += [f"GPU {gpu['index']}  {gpu['name']}  ({gpu['uuid']}), {gpu['under']}"]
        tried = ", ".join(str(mhz) for mhz in gpu["clocks_mhz"])
        lines += [f"  locks      {gpu['locks_done']} of {gpu['locks']} taken, to {tried} MHz"]
        lines += [f"  followed   {gpu['followed']}, kept lower by power or heat {gpu['limited']}"]
        for name in ("lock_s", "reset_s", "follow_s"):
            lines += [f"  {name.removesuffix('_s'):<10} {_times(gpu[name])}"]
        lines += [f"  clock      {gpu['before_mhz']} MHz before, {gpu['after_mhz']} MHz after"]
        lines += [f"  ERROR      {error}" for error in gpu["errors"]]
    for title, key in (("Verified here:", "verified"), ("Not verified:", "not_verified")):
        lines += ["", title, *(f"  - {item}" for item in report[key] or ["nothing"])]
    return "\n".join([*lines, "", "ok" if report["ok"] else "FAILED"])


def _gpu(found: Measured) -> dict[str, Any]:
    info = found.gpu.info
    return {
        "uuid": info.uuid,
        "index": info.index,
        "name": info.name,
        "under": found.under,
        "clocks_mhz": list(found.clocks_mhz),
        "locks": found.locks,
        "locks_done": len(found.lock_s),
        "followed": len(found.followed_s),
        "limited": found.limited,
        "lock_s": spread(found.lock_s),
        "asked_s": spread(found.asked_s),
        "reset_s": spread(found.reset_s),
        "follow_s": spread(found.followed_s),
        "before_mhz": found.before_mhz,
        "after_mhz": found.after_mhz,
        "restored": found.restored,
        "errors": list(found.errors),
    }


def _verified(measured: Sequence[Measured]) -> list[str]:
    """Of all GPUs, or not said."""
    items = []
    if all(found.lock_s and not found.errors for found in measured):
        items.append("the driver takes locks and resets from perseusd-clock")
    for under in ("load", "idle"):
        those = [found for found in measured if found.under == under]
        if those and all(found.obeyed for found in those):
            items.append(f"the observed clock follows a lock, under {under}: {_names(those)}")
    if all(found.restored for found in measured):
        items.append("the observed clock comes back after a reset")
    return items


def _not_verified(measured: Sequence[Measured]) -> list[str]:
    items = []
    if idle := [found for found in measured if found.under == "idle"]:
        items.append(
            f"that a lock is followed under load: {_names(idle)} idled; name a load with --load PID"
        )
    if those := [found for found in measured if not found.obeyed]:
        items.append(f"that {_names(those)} runs at the clock that is locked: it was not seen to")
    return [*items, *_NEVER]


def _names(measured: Sequence[Measured]) -> str:
    return ", ".join(f"GPU {found.gpu.info.index}" for found in measured)


def _times(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "–"
    return ", ".join(f"{name} {number(value * 1e3, '.2f')} ms" for name, value in values.items())
