"""All that is known of a job's computations: durations, powers, and the curves made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from perseusd.core.energy.attribution import (
    FEWEST_TICKS,
    TAIL_NS,
    Activities,
    Column,
    EnergyLedger,
    Equations,
    Power,
)
from perseusd.core.energy.powers import BEND as POWER_BEND
from perseusd.core.energy.powers import PowerModel, fit_powers
from perseusd.core.energy.sensor import CounterTicks, Tick
from perseusd.core.learned.curves import BEND as TIME_BEND
from perseusd.core.learned.curves import TimeModel, fit_times, group_name
from perseusd.core.learned.durations import Durations
from perseusd.core.learned.family import KNOTS, Array, Belief
from perseusd.core.learned.priors import prior_for
from perseusd.core.learned.recollection import Recollected, recollect, snapshot_of
from perseusd.core.model import Curve, Kind
from perseusd.errors import PlanningError

MOST_CLOCKS = 40
"""Clocks offered to the planner per kind; finer steps than 2–3 % of the range change nothing."""

MOST_JOINED = 20_000
"""Activities that wait for ticks: where the counter does not move, they are dropped."""

MOST_UNREAD = 32
"""Iterations of a rank that may wait; where more do, several are read at a time."""

REACH_ROUNDING = 1e-4
"""Clocks are rounded about this much; the lowest clock explored is still one of the curve's."""

TIME_WANDER, POWER_WANDER = 0.008, 0.015
"""Of a published shape: it is a formula, and a GPU is not."""

FULLY_SEEN_S = 1.0
"""Running time above which a measured power is not replaced by a remembered one."""


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


class Uncertainty(NamedTuple):
    """Relative standard errors of one curve's points, aligned with its clocks."""

    time: Array
    energy: Array


@dataclass
class Knowledge:
    """Learned behaviour of the ranks of one job; `gpus` by rank."""

    gpus: Mapping[int, GpuFacts]
    durations: Durations = field(default_factory=Durations)
    counters: dict[int, CounterTicks] = field(default_factory=dict)
    _ledgers: dict[int, EnergyLedger] = field(default_factory=dict)
    _unread: deque[tuple[int, Activities, list[Tick]]] = field(default_factory=deque)
    """Iterations of a rank that its ledger has not seen yet: nobody has to wait for that."""
    _joined: dict[int, Activities] = field(default_factory=dict)
    """By rank, iterations too short to hold enough ticks, which the next ones join."""
    _recollected: Recollected = field(default_factory=Recollected)
    _times: tuple[int, TimeModel] | None = None
    """The last fit and the version of the durations that it was made of."""
    _powers: tuple[int, PowerModel] | None = None
    _energy_version: int = 0
    _reaches: tuple[int, dict[str, float]] | None = None

    def __post_init__(self) -> None:
        self._time_beliefs: dict[str, Belief] = {}
        self._power_beliefs: dict[str, Belief] = {}

    @property
    def top_mhz(self) -> dict[int, int]:
        return {rank: gpu.top_mhz for rank, gpu in self.gpus.items()}

    @property
    def gpu_model(self) -> dict[int, str]:
        return {rank: gpu.model for rank, gpu in self.gpus.items()}

    # --- what comes in ----------------------------------------------------------------------

    def poll_counter(self, rank: int, time_ns: int, energy_j: float) -> None:
        self.counters.setdefault(rank, CounterTicks()).poll(time_ns, energy_j)

    def add_activities(self, rank: int, activities: Activities) -> None:
        """One iteration of one rank; joins the counter's ticks to it."""
        if not len(activities):
            return
        joined = self._joined.pop(rank, None)
        if joined is None or joined.end_ns != activities.start_ns:
            joined = activities
        else:
            joined = joined.then(activities)
        start_ns, end_ns = joined.start_ns, joined.end_ns
        counter = self.counters.setdefault(rank, CounterTicks())
        if counter.count(start_ns, end_ns) < FEWEST_TICKS and len(joined) < MOST_JOINED:
            self._joined[rank] = joined
            return
        # A tick just before the last iteration's end may have been polled after it.
        self._unread.append((rank, joined, counter.take(start_ns - TAIL_NS, end_ns)))
        self._energy_version += 1

    def work_on(self) -> None:
        """Do a part, a millisecond or two, of what learning has left to do.

        It can be done at any time: who asks for what is known waits for the rest.
        """
        if self._unread:
            for _ in range(1 + len(self._unread) // MOST_UNREAD):
                self._read_next()
        elif self.has_work:
            self.time_model()

    @property
    def has_work(self) -> bool:
        """Whether learning has anything left to do."""
        if self._unread:
            return True
        return self._times is not None and self._times[0] != self.durations.version

    @property
    def ledgers(self) -> dict[int, EnergyLedger]:
        """By rank; they know all that was added."""
        while self._unread:
            self._read_next()
        return self._ledgers

    def _read_next(self) -> None:
        rank, activities, ticks = self._unread.popleft()
        ledger = self._ledgers.get(rank)
        if ledger is None:
            ledger = self._ledgers[rank] = EnergyLedger()
            if (sensing := self._recollected.sensing.get(rank)) is not None:
                ledger.sensing = sensing
        ledger.add_iteration(activities, ticks)
        if ledger.wants_calibration:
            ledger.calibrate()

    # --- what is believed -------------------------------------------------------------------

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever something was learned."""
        return self.durations.version, self._energy_version

    def time_model(self) -> TimeModel:
        if self._times is None or self._times[0] != self.durations.version:
            model = fit_times(
                self.durations,
                self.top_mhz,
                self.gpu_model,
                self._beliefs_of_times(),
                self._recollected.times,
                self._times[1].fitted if self._times is not None else None,
            )
            self._times = self.durations.version, model
        return self._times[1]

    def power_model(self) -> PowerModel:
        if self._powers is None or self._powers[0] != self._energy_version:
            model = fit_powers(
                self._equations(),
                self.top_mhz,
                self.gpu_model,
                self._beliefs_of_powers(),
                self._powers[1] if self._powers is not None else None,
                self._recollected.power_bends,
            )
            self._powers = self._energy_version, model
        return self._powers[1]

    @property
    def last_fits(self) -> tuple[TimeModel | None, PowerModel | None]:
        """As of when they were last asked for: for who must not wait for a fit."""
        times = self._times[1] if self._times is not None else None
        return times, self._powers[1] if self._powers is not None else None

    def _equations(self) -> dict[int, Equations]:
        found = ((rank, ledger.equations()) for rank, ledger in self.ledgers.items())
        return {rank: equations for rank, equations in found if equations is not None}

    def _groups(self) -> dict[str, str]:
        """GPU model by group, of every instruction seen or remembered."""
        kinds = [*self.durations.seen, *self._recollected.times.top_log_s]
        models = self.gpu_model
        return {group_name(kind, models): models[kind.rank] for kind in kinds}

    def _beliefs_of_times(self) -> dict[str, Belief]:
        for group, gpu_model in self._groups().items():
            if group in self._time_beliefs:
                continue
            if group in self._recollected.time_beliefs:
                self._time_beliefs[group] = self._recollected.time_beliefs[group]
            elif (prior := prior_for(gpu_model)) is not None:
                mean = np.log(prior.time.at(KNOTS))
                belief = Belief(mean, prior.time_spread, TIME_WANDER, TIME_BEND)
                self._time_beliefs[group] = belief
        return self._time_beliefs

    def _beliefs_of_powers(self) -> dict[str, Belief]:
        for group, gpu_model in self._groups().items():
            if group in self._power_beliefs:
                continue
            if group in self._recollected.power_beliefs:
                self._power_beliefs[group] = self._recollected.power_beliefs[group]
            elif (prior := prior_for(gpu_model)) is not None:
                mean = np.log(prior.power.at(KNOTS))
                belief = Belief(mean, prior.power_spread, POWER_WANDER, POWER_BEND)
                self._power_beliefs[group] = belief
        return self._power_beliefs

    def noise(self) -> float:
        return self.durations.relative_noise(self.top_mhz)

    def powers(self) -> dict[int, dict[Column | None, Power]]:
        """By rank and column, each GPU by itself; what was not measured yet as remembered."""
        found = {rank: ledger.solve() for rank, ledger in self.ledgers.items()}
        for rank, columns in self._recollected.powers.items():
            own = found.setdefault(rank, {})
            for column, power in columns.items():
                if column not in own or own[column].seconds < FULLY_SEEN_S:
                    own[column] = power
        return found

    # --- what goes out ----------------------------------------------------------------------

    def curves(self, kinds: Iterable[Kind]) -> tuple[dict[Kind, Curve], dict[int, float]]:
        """Curve per kind on supported clocks within what was explored; blocking power by rank.

        Raises PlanningError where a kind was never timed at its GPU's top clock, or a GPU's energy
        counter told nothing.
        """
        model, powers = self.time_model(), self.power_model()
        curves = {}
        for kind in kinds:
            if kind not in model.top_s:
                raise PlanningError(
                    f"{kind.instruction} of stage {kind.rank} was never timed at full clock: it "
                    "takes no time, or the GPU's clock is still being put back"
                )
            if not powers.knows(kind):
                raise PlanningError(
                    f"no energy was seen for {kind.instruction} of stage {kind.rank}: the energy "
                    f"counter of GPU {self.gpus[kind.rank].uuid} does not move or cannot be read"
                )
            curves[kind] = self._curve(kind, model, powers)
        return curves, self.blocking_power()

    def uncertainty(self, kinds: Iterable[Kind]) -> dict[Kind, Uncertainty]:
        """Relative standard errors of the points of `curves`, aligned with their clocks.

        Raises PlanningError as `curves` does.
        """
        curves, _ = self.curves(kinds)
        model, powers = self.time_model(), self.power_model()
        found = {}
        for kind, curve in curves.items():
            x = self.gpus[kind.rank].top_mhz / np.array(curve.clock_mhz, dtype=float)
            time = model.error(kind, x)
            found[kind] = Uncertainty(time, np.hypot(time, powers.error(kind, x)))
        return found

    def blocking_power(self) -> dict[int, float]:
        """By rank; a rank that hardly waits takes the typical value of its GPU model."""
        known = self.power_model().blocking_w
        typical = float(np.median(list(known.values()))) if known else 0.0
        return {rank: known.get(rank, typical) for rank in self.gpus}

    def _curve(self, kind: Kind, model: TimeModel, powers: PowerModel) -> Curve:
        gpu = self.gpus[kind.rank]
        reach = min(model.reach(kind), self._power_reach(model.group[kind]))
        usable = [c for c in gpu.supported_mhz if c * reach >= gpu.top_mhz * (1 - REACH_ROUNDING)]
        step = max(1, -(-len(usable) // MOST_CLOCKS))
        clocks = usable[::-1][::step][::-1]
        x = gpu.top_mhz / np.array(clocks, dtype=float)
        seconds = model.top_s[kind] * model.ratio(kind, x)
        joules = powers.watts(kind, x) * seconds
        return Curve(tuple(clocks), tuple(seconds.tolist()), tuple(joules.tolist()))

    def explored(self, group: str) -> float:
        """The largest f_top / f at which powers and times of this group were ever measured."""
        shape = self.time_model().shapes.get(group)
        return 1.0 if shape is None else min(shape.reach, self._power_reach(group))

    def _power_reach(self, group: str) -> float:
        if self._reaches is None or self._reaches[0] != self._energy_version:
            self._reaches = self._energy_version, self._found_reaches()
        return self._reaches[1].get(group, 1.0)

    def _found_reaches(self) -> dict[str, float]:
        models, reaches = self.gpu_model, dict(self._recollected.times.reach)
        for rank, equations in self._equations().items():
            lowest: dict[Kind, int] = {}
            for column in equations.columns:
                if column is not None:
                    least_mhz = lowest.get(column.kind, column.clock_mhz)
                    lowest[column.kind] = min(least_mhz, column.clock_mhz)
            for kind, clock_mhz in lowest.items():
                group = group_name(kind, models)
                x = self.gpus[rank].top_mhz / clock_mhz
                reaches[group] = max(reaches.get(group, 1.0), x)
        return reaches

    # --- memory -----------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """What was learned, JSON-able; `recall` reads it."""
        return snapshot_of(self)

    def recall(self, snapshot: Mapping[str, object]) -> None:
        """Believe what was remembered until measurements say otherwise.

        It takes the place of what is published of the GPU's model: shapes over the clock a few
        percent wide. Raises KeyError, TypeError or ValueError where it is not a snapshot.
        """
        while self._unread:
            self._read_next()
        self._recollected = recollect(snapshot, self.gpus)
        self._time_beliefs.clear()
        self._power_beliefs.clear()
        self._times = self._powers = self._reaches = None
        self._energy_version += 1
