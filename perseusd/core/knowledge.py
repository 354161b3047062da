"""All that is known of a job's computations: durations, powers, and the curves made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from perseusd.core.attribution import (
    FEWEST_TICKS,
    Activity,
    Column,
    CounterTicks,
    EnergyLedger,
    Power,
)
from perseusd.core.curves import Durations, Shape, TimeModel, fit_piecewise, fit_times
from perseusd.core.model import Curve, Kind
from perseusd.errors import PlanningError

MOST_CLOCKS = 40
"""Clocks offered to the planner per kind; finer steps than 2–3 % of the range change nothing."""

MOST_JOINED = 20_000
"""Activities that wait for ticks: where the counter does not move, they are dropped."""

REACH_ROUNDING = 1e-4
"""Shapes' knots are rounded about this much; the lowest clock explored is still one of them."""

SECONDS_PER_SAMPLE = 0.1
"""Running time that counts as one sample when powers are pooled."""


@dataclass(frozen=True)
class GpuFacts:
    """What planning needs of a GPU. Clocks ascend; `index` counts in the driver's order."""

    uuid: str
    model: str
    supported_mhz: tuple[int, ...]
    index: int = -1

    @property
    def top_mhz(self) -> int:
        return self.supported_mhz[-1]


@dataclass
class Knowledge:
    """Learned behaviour of the ranks of one job; `gpus` by rank."""

    gpus: Mapping[int, GpuFacts]
    durations: Durations = field(default_factory=Durations)
    ledgers: dict[int, EnergyLedger] = field(default_factory=dict)
    counters: dict[int, CounterTicks] = field(default_factory=dict)
    _joined: dict[int, list[Activity]] = field(default_factory=dict)
    """By rank, iterations too short to hold enough ticks, which the next ones join."""

    @property
    def top_mhz(self) -> dict[int, int]:
        return {rank: gpu.top_mhz for rank, gpu in self.gpus.items()}

    def poll_counter(self, rank: int, time_ns: int, energy_j: float) -> None:
        self.counters.setdefault(rank, CounterTicks()).poll(time_ns, energy_j)

    def add_activities(self, rank: int, activities: Sequence[Activity]) -> None:
        """One iteration of one rank: activities without gaps; joins the counter's ticks to it."""
        if not activities:
            return
        joined = self._joined.pop(rank, [])
        if joined and joined[-1].end_ns != activities[0].start_ns:
            joined = []
        joined += activities
        start_ns, end_ns = joined[0].start_ns, joined[-1].end_ns
        counter = self.counters.setdefault(rank, CounterTicks())
        if counter.count(start_ns, end_ns) < FEWEST_TICKS and len(joined) < MOST_JOINED:
            self._joined[rank] = joined
            return
        ticks = counter.take(start_ns, end_ns)
        self.ledgers.setdefault(rank, EnergyLedger()).add_iteration(joined, ticks)

    def time_model(self) -> TimeModel:
        return fit_times(
            self.durations,
            self.top_mhz,
            {rank: gpu.model for rank, gpu in self.gpus.items()},
        )

    def noise(self) -> float:
        return self.durations.relative_noise(self.top_mhz)

    def powers(self) -> dict[int, dict[Column | None, Power]]:
        return {rank: ledger.solve() for rank, ledger in self.ledgers.items()}

    def blocking_power(
        self, powers: Mapping[int, Mapping[Column | None, Power]]
    ) -> dict[int, float]:
        """Per rank; a rank that hardly waits takes the typical value of its GPU model."""
        result = {}
        for rank, gpu in self.gpus.items():
            alike = [
                powers[r][None]
                for r, other in self.gpus.items()
                if other.model == gpu.model and None in powers.get(r, {})
            ]
            weight = sum(p.seconds for p in alike)
            typical = sum(p.watts * p.seconds for p in alike) / weight if weight else 0.0
            own = powers.get(rank, {}).get(None, Power(typical, 0.0))
            trust = own.seconds / (own.seconds + 2.0)
            result[rank] = trust * own.watts + (1 - trust) * typical
        return result

    def power_shapes(
        self, powers: Mapping[int, Mapping[Column | None, Power]], model: TimeModel
    ) -> dict[str, Shape]:
        """Per group: power relative to the top clock's, over x = f_top / f, never rising."""
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for rank, columns in powers.items():
            top_mhz = self.gpus[rank].top_mhz
            for column, power in columns.items():
                if column is None or column.kind not in model.group:
                    continue
                top = columns.get(Column(column.kind, top_mhz))
                if top is None or top.watts <= 0 or column.clock_mhz >= top_mhz:
                    continue
                row = (top_mhz / column.clock_mhz, power.watts / top.watts, power.seconds)
                rows.setdefault(model.group[column.kind], []).append(row)
        shapes = {}
        for group, seen in rows.items():
            x, y, seconds = (np.array(c) for c in zip(*seen, strict=True))
            weight = seconds / SECONDS_PER_SAMPLE
            shapes[group] = fit_piecewise(x, y, weight, anchor=1.0, rising=False)
        return shapes

    def curves(self, kinds: Iterable[Kind]) -> tuple[dict[Kind, Curve], dict[int, float]]:
        """Curve per kind on supported clocks within what was explored; blocking power by rank.

        Raises PlanningError where a kind was never timed at its GPU's top clock, or a GPU's energy
        counter told nothing.
        """
        model, powers = self.time_model(), self.powers()
        shapes = self.power_shapes(powers, model)
        curves = {}
        for kind in kinds:
            if kind not in model.top_s:
                raise PlanningError(
                    f"{kind.instruction} of stage {kind.rank} was never timed at full clock: it "
                    "takes no time, or the GPU's clock is still being put back"
                )
            top = powers.get(kind.rank, {}).get(Column(kind, self.gpus[kind.rank].top_mhz))
            if top is None or top.watts <= 0:
                raise PlanningError(
                    f"no energy was seen for {kind.instruction} of stage {kind.rank}: the energy "
                    f"counter of GPU {self.gpus[kind.rank].uuid} does not move or cannot be read"
                )
            top_w = top.watts
            shape = shapes.get(model.group[kind], Shape((1.0,), (1.0,)))
            curves[kind] = self._curve(kind, model, top_w, shape)
        return curves, self.blocking_power(powers)

    def _curve(self, kind: Kind, model: TimeModel, top_w: float, shape: Shape) -> Curve:
        gpu = self.gpus[kind.rank]
        reach = min(model.reach(kind), shape.reach)
        usable = [c for c in gpu.supported_mhz if c * reach >= gpu.top_mhz * (1 - REACH_ROUNDING)]
        step = max(1, -(-len(usable) // MOST_CLOCKS))
        clocks = usable[::-1][::step][::-1]
        x = gpu.top_mhz / np.array(clocks, dtype=float)
        seconds = model.top_s[kind] * model.ratio(kind, x)
        joules = top_w * shape.at(x) * seconds
        return Curve(tuple(clocks), tuple(seconds.tolist()), tuple(joules.tolist()))
