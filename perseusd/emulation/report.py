"""From iterations as they ran to what the demo reports. Pure arithmetic.

Energy is what the GPUs' own counters grew by. An iteration belongs to the state in which the daemon
held the job when it began. Iteration 0 starts the job up and is left out of every mean.

A straggler's *episode* runs from its onset until the clocks are back after its end. Baseline, hold
and learning means leave episodes out; the episode has a saving of its own, against full clock and
then blocking power until the same iteration ends. Those means leave out, too, the iterations during
which the daemon was told of a straggler by somebody else: the job keeps another deadline then.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.records import IterationRecord

SCHEMA_VERSION = 1
_SETTLED_SHARE = 1 / 3  # of a straggler's iterations, the last ones: clocks have settled by then
_LEAST_CLOCK_CHANGE = 0.005  # relative; less than this is no reaction

States = Sequence[tuple[str, int]]
"""(state, the iteration it began with), in order."""


@dataclass(frozen=True)
class Phase:
    """Consecutive iterations in one state; means per iteration, over all GPUs.

    straggler: whether the daemon took a replica to be slower meanwhile.
    """

    state: str
    iterations: int
    iteration_time_s: float
    energy_j: float
    straggler: bool = False


@dataclass(frozen=True)
class StragglerReport:
    """reacted, recovered: iterations from onset, and from end, until the clocks had followed."""

    onset_iteration: int
    reacted_after_iterations: int | None
    recovered_after_iterations: int | None
    saving: float | None


@dataclass(frozen=True)
class Bounds:
    """What any plan could save on the true curves in the baseline's time, without noise."""

    saving: float
    saving_writes: float | None


@dataclass(frozen=True)
class Setting:
    """What was run. profile: the file that the workload was read from, if any."""

    workload: str
    gpu: str
    stages: int
    microbatches: int
    blocking_power_w: float
    straggler: Straggler | None = None
    profile: str | None = None


@dataclass(frozen=True)
class DemoReport:
    """The demo's contract. None: the job never got as far.

    bound_saving, bound_saving_writes: at the baseline's own time, the latter for the clock changes
        of the last plan seen. bound_saving_as_run: in the time that held iterations really took,
        which is a little longer; what the saving is fairly compared with.
    """

    workload: str
    gpu: str
    stages: int
    microbatches: int
    phases: tuple[Phase, ...]
    saving: float | None
    slowdown: float | None
    bound_saving: float | None
    bound_saving_writes: float | None
    clock_writes_per_iteration: float | None
    learning_iterations: int | None
    learning_slowdown: float | None
    straggler: StragglerReport | None
    profile: str | None = None
    bound_saving_as_run: float | None = None

    @property
    def title(self) -> str:
        """What ran on what, in words."""
        job = job_title(self.workload, self.gpu, self.stages, self.profile)
        return f"{job}, {self.microbatches} microbatches"

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "emulated": True, **_rounded(asdict(self))}


@dataclass(frozen=True)
class _Iteration:
    """An iteration with what it used, by differences of counters."""

    record: IterationRecord
    state: str
    energy_j: float
    clock_writes: int
    in_episode: bool
    announced: bool

    @property
    def time_s(self) -> float:
        return self.record.time_s

    @property
    def calm(self) -> bool:
        return not (self.in_episode or self.announced)


def report(
    setting: Setting,
    records: Sequence[IterationRecord],
    states: States,
    bounds: Bounds | None,
    announced: Collection[int] = (),
) -> DemoReport:
    """records: consecutive, from iteration 0 on.

    announced: iterations during which the daemon was told of a straggler, by whomever.
    """
    recovered = _recovered(setting.straggler, records)
    iterations = tuple(
        replace(i, announced=i.record.iteration in announced)
        for i in _iterations(records, states, setting.straggler, recovered)
    )
    calm = [i for i in iterations if i.calm]
    baseline = _mean("baseline", [i for i in calm if i.state == "baseline"])
    hold = _mean("hold", [i for i in calm if i.state == "hold"])
    learn = _mean("learn", [i for i in calm if i.state == "learn"])
    return DemoReport(
        workload=setting.workload,
        gpu=setting.gpu,
        stages=setting.stages,
        microbatches=setting.microbatches,
        phases=_phases(iterations),
        saving=1 - hold.energy_j / baseline.energy_j if hold and baseline else None,
        slowdown=_slowdown(hold, baseline),
        bound_saving=bounds.saving if bounds else None,
        bound_saving_writes=bounds.saving_writes if bounds else None,
        clock_writes_per_iteration=_clock_writes(calm, setting.stages),
        learning_iterations=next((since for state, since in states if state == "hold"), None),
        learning_slowdown=_slowdown(learn, baseline),
        straggler=_straggler(setting, iterations, recovered, baseline),
        profile=setting.profile,
    )


def job_title(workload: str, gpu: str, stages: int, profile: str | None) -> str:
    """A profile's own GPU is not known: only the clocks of the emulated one are named."""
    if profile is None:
        return f"{workload} on {stages} emulated {gpu} GPUs"
    return f"{profile} (measured profile) on {stages} emulated GPUs with the clocks of {gpu}"


def state_of(iteration: int, states: States) -> str:
    """The state in which the daemon held the job; it begins in baseline."""
    return next((s for s, since in reversed(states) if since <= iteration), "baseline")


def mean_clock_mhz(record: IterationRecord) -> float:
    """Over all computations of an iteration, of the clock each one started with."""
    return statistics.fmean(span.clock_mhz for rank in record.spans for span in rank)


def _iterations(
    records: Sequence[IterationRecord],
    states: States,
    straggler: Straggler | None,
    recovered: int | None,
) -> Iterable[_Iteration]:
    for before, record in itertools.pairwise(records):
        in_episode = straggler is not None and record.iteration >= straggler.start
        if recovered is not None and record.iteration >= recovered:
            in_episode = False
        yield _Iteration(
            record,
            state_of(record.iteration, states),
            record.total_energy_j - before.total_energy_j,
            sum(record.clock_writes) - sum(before.clock_writes),
            in_episode,
            announced=False,
        )


def _phases(iterations: Iterable[_Iteration]) -> tuple[Phase, ...]:
    """Iterations with a straggler make a phase of their own, whatever the state."""
    groups = itertools.groupby(iterations, key=lambda i: (i.state, i.calm))
    found = (_mean(state, list(group)) for (state, _), group in groups)
    return tuple(phase for phase in found if phase is not None)


def _mean(state: str, iterations: Sequence[_Iteration]) -> Phase | None:
    if not iterations:
        return None
    return Phase(
        state,
        len(iterations),
        statistics.fmean(i.time_s for i in iterations),
        statistics.fmean(i.energy_j for i in iterations),
        not iterations[0].calm,
    )


def _slowdown(phase: Phase | None, baseline: Phase | None) -> float | None:
    if phase is None or baseline is None:
        return None
    return phase.iteration_time_s / baseline.iteration_time_s - 1


def _clock_writes(calm: Iterable[_Iteration], gpus: int) -> float | None:
    changes = [i.clock_writes for i in calm if i.state == "hold"]
    return statistics.fmean(changes) / gpus if changes else None


def _straggler(
    setting: Setting,
    iterations: Sequence[_Iteration],
    recovered: int | None,
    baseline: Phase | None,
) -> StragglerReport | None:
    straggler = setting.straggler
    if straggler is None:
        return None
    episode = [i for i in iterations if i.in_episode]
    reacted = _reacted(straggler, [i.record for i in iterations])
    followed = reacted is not None and recovered is not None
    return StragglerReport(
        onset_iteration=straggler.start,
        reacted_after_iterations=None if reacted is None else reacted - straggler.start,
        recovered_after_iterations=(recovered or 0) - straggler.end if followed else None,
        saving=_episode_saving(setting, episode, baseline),
    )


def _episode_saving(
    setting: Setting, episode: Sequence[_Iteration], baseline: Phase | None
) -> float | None:
    if not episode or baseline is None:
        return None
    blocking_w = setting.stages * setting.blocking_power_w
    # Only behind the straggler would full clocks have waited; what its end finds slow is our doing.
    behind = (i.time_s for i in episode if i.record.straggling)
    waited = (max(time_s - baseline.iteration_time_s, 0.0) for time_s in behind)
    full = len(episode) * baseline.energy_j + blocking_w * sum(waited)
    return 1 - sum(i.energy_j for i in episode) / full


def _midpoint(straggler: Straggler, records: Sequence[IterationRecord]) -> float | None:
    """Halfway between the clocks before the onset and those that a straggler settles at.

    None where the straggler made no difference to the clocks, or has not been seen.
    """
    during = [mean_clock_mhz(r) for r in records if r.straggling]
    before = [mean_clock_mhz(r) for r in records if 0 < r.iteration < straggler.start]
    if not during or not before:
        return None
    settled = statistics.median(during[-max(1, round(len(during) * _SETTLED_SHARE)) :])
    usual = statistics.median(before[-max(1, len(during)) :])
    if settled > usual * (1 - _LEAST_CLOCK_CHANGE):
        return None
    return (settled + usual) / 2


def _reacted(straggler: Straggler, records: Sequence[IterationRecord]) -> int | None:
    """The first iteration whose clocks have followed the onset."""
    middle = _midpoint(straggler, records)
    if middle is None:
        return None
    during = (r for r in records if r.straggling)
    return next((r.iteration for r in during if mean_clock_mhz(r) < middle), None)


def _recovered(straggler: Straggler | None, records: Sequence[IterationRecord]) -> int | None:
    """The first iteration whose clocks have followed the straggler's end."""
    if straggler is None:
        return None
    after = [r for r in records if r.iteration >= straggler.end]
    middle = _midpoint(straggler, records)
    if middle is None:
        return after[0].iteration if after else None
    return next((r.iteration for r in after if mean_clock_mhz(r) > middle), None)


def _rounded(value: Any) -> Any:
    """Six digits after the point: finer than anything measured here."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
