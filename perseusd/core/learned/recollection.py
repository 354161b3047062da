"""Knowledge as it outlives a job: made JSON-able, and read again as beliefs of limited weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from perseusd.core.energy.attribution import Column, Power
from perseusd.core.energy.sensor import Sensing
from perseusd.core.learned.curves import Remembered
from perseusd.core.learned.family import KNOTS, Array, Belief, Fitted
from perseusd.core.model import Kind

if TYPE_CHECKING:
    from perseusd.core.learned.knowledge import GpuFacts, Knowledge

VERSION = 1

DIGITS = 6

TIME_SPREAD, TIME_WANDER = 0.03, 0.001
"""Of a remembered shape, besides the error it had: where time has risen by a quarter, 0.7 %."""

POWER_SPREAD, POWER_WANDER = 0.02, 0.001
"""The same of power: where it has fallen to 0.6, 1 %."""

BEND = 0.03
"""Of a remembered kind's bend: where time has risen by a quarter it may be off by 0.7 %."""


@dataclass(frozen=True)
class Recollected:
    """What a snapshot says, as the fits take it; empty: nothing is remembered."""

    times: Remembered = field(default_factory=Remembered)
    time_beliefs: Mapping[str, Belief] = field(default_factory=dict)
    power_beliefs: Mapping[str, Belief] = field(default_factory=dict)
    powers: Mapping[int, Mapping[Column | None, Power]] = field(default_factory=dict)
    power_bends: Mapping[Kind, float] = field(default_factory=dict)
    sensing: Mapping[int, Sensing] = field(default_factory=dict)


def snapshot_of(knowledge: Knowledge) -> dict[str, object]:
    """JSON-able: groups' shapes with their errors, kinds' levels and durations, GPUs' powers."""
    model, powers = knowledge.time_model(), knowledge.power_model()
    columns = knowledge.powers()
    groups: dict[str, object] = {}
    for name, shape in model.shapes.items():
        groups[name] = {"reach": shape.reach, **_fitted("time", model.fitted, name)}
        if powers.fitted is not None and name in powers.fitted.layout.groups:
            groups[name].update(_fitted("power", powers.fitted, name))  # type: ignore[attr-defined]
    kinds = [
        {
            "rank": kind.rank,
            "chunk": kind.chunk,
            "instruction": kind.instruction,
            "top_s": _rounded(seconds),
            "time_bend": _rounded(model.bend[kind]),
            "power_bend": _rounded(powers.bend(kind)),
            "clocks": _clocks(knowledge, kind),
            "powers": {
                str(c.clock_mhz): [_rounded(p.watts), _rounded(p.seconds)]
                for c, p in columns.get(kind.rank, {}).items()
                if c is not None and c.kind == kind
            },
        }
        for kind, seconds in sorted(model.top_s.items())
    ]
    gpus = {str(rank): _gpu(knowledge, rank, columns.get(rank, {})) for rank in knowledge.gpus}
    return {"version": VERSION, "groups": groups, "kinds": kinds, "gpus": gpus}


def _fitted(what: str, fitted: Fitted | None, group: str) -> dict[str, list[float]]:
    if fitted is None:
        return {}
    shape, error = fitted.shape(group), fitted.ratio_error(group, KNOTS)
    return {what: [_rounded(v) for v in shape], f"{what}_error": [_rounded(v) for v in error]}


def _clocks(knowledge: Knowledge, kind: Kind) -> dict[str, list[float]]:
    """Clock → count, mean, standard deviation of durations."""
    seen = knowledge.durations.seen.get(kind, {})
    return {
        str(clock): [len(s), _rounded(fmean(s)), _rounded(stdev(s) if len(s) > 1 else 0.0)]
        for clock, s in sorted(seen.items())
        if s
    }


def _gpu(
    knowledge: Knowledge, rank: int, columns: Mapping[Column | None, Power]
) -> dict[str, object]:
    ledger, blocking = knowledge.ledgers.get(rank), columns.get(None)
    return {
        "model": knowledge.gpus[rank].model,
        "blocking": None if blocking is None else [_rounded(v) for v in blocking],
        "sensing": None if ledger is None else list(ledger.sensing),
    }


def _rounded(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def recollect(snapshot: Mapping[str, Any], gpus: Mapping[int, GpuFacts]) -> Recollected:
    """Raises KeyError, TypeError or ValueError where it is not a snapshot of such a job."""
    if snapshot["version"] != VERSION:
        raise ValueError(f"a snapshot of version {snapshot['version']!r}, not {VERSION}")
    kinds = {_kind(entry): entry for entry in snapshot["kinds"]}
    for kind in kinds:
        if kind.rank not in gpus:
            raise ValueError(f"there is no rank {kind.rank} in this job")
    groups: Mapping[str, Any] = snapshot["groups"]
    times = Remembered(
        {kind: math.log(_positive(k["top_s"])) for kind, k in kinds.items()},
        {kind: _positive(k["time_bend"]) for kind, k in kinds.items()},
        {name: max(_positive(g["reach"]), 1.0) for name, g in groups.items()},
    )
    return Recollected(
        times,
        {
            name: _belief(g["time"], g["time_error"], TIME_SPREAD, TIME_WANDER)
            for name, g in groups.items()
        },
        {
            name: _belief(g["power"], g["power_error"], POWER_SPREAD, POWER_WANDER)
            for name, g in groups.items()
            if "power" in g
        },
        _powers(kinds, snapshot["gpus"]),
        {kind: _positive(k["power_bend"]) for kind, k in kinds.items()},
        {
            int(rank): Sensing(_positive(g["sensing"][0]), _finite(g["sensing"][1]))
            for rank, g in snapshot["gpus"].items()
            if g["sensing"] is not None
        },
    )


def _kind(entry: Mapping[str, Any]) -> Kind:
    return Kind(int(entry["rank"]), int(entry["chunk"]), str(entry["instruction"]))


def _belief(mean: Any, error: Any, spread: float, wander: float) -> Belief:
    return Belief(_array(mean), spread, wander, BEND, _array(error))


def _powers(
    kinds: Mapping[Kind, Any], gpus: Mapping[str, Any]
) -> dict[int, dict[Column | None, Power]]:
    found: dict[int, dict[Column | None, Power]] = {}
    for kind, k in kinds.items():
        for clock, (watts, seconds) in k["powers"].items():
            power = Power(_finite(watts), _finite(seconds))
            found.setdefault(kind.rank, {})[Column(kind, int(clock))] = power
    for rank, gpu in gpus.items():
        if gpu["blocking"] is not None:
            found.setdefault(int(rank), {})[None] = Power(*map(_finite, gpu["blocking"]))
    return found


def _array(values: Any) -> Array:
    array = np.array([_finite(v) for v in values])
    if array.shape != KNOTS.shape:
        raise ValueError(f"a shape has {len(KNOTS)} values, not {len(array)}")
    return array


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    return number


def _positive(value: Any) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError(f"{number} is not above 0")
    return number
