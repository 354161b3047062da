"""Our own recordings as runs: the iterations of every job that is in one.

Events become iterations by the daemon's own means (`heard`). The seconds of a computation are those
it would have taken at full clock, by curves learned from the whole recording; where a kind of
computation was never seen at full clock, they are as they were, and its rank counts as uncertain.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perseusd.core.jobs.understanding import IMPURE
from perseusd.core.learned.curves import TimeModel, fit_times
from perseusd.core.learned.durations import KEPT_SAMPLES, Durations
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Kind
from perseusd.core.stragglers import Observation, Watch
from perseusd.traces.heard import Cut, Follower, Heard, HeardIteration
from perseusd.traces.recording import read_recording
from perseusd.traces.trace import Run, Trace

ROUNDS = 2
"""Of learning curves and finding who was slow."""

PURE = 0.98
"""Share of a computation at one clock above which it counts as one at that clock."""

_Sample = tuple[Kind, int, float]  # at a clock in MHz, seconds
_Ill = tuple[int | None, int | None, int]  # replica, stage (None: all of them), iteration


def read(path: Path) -> Trace:
    """Raises TraceError for what is no recording, or damaged."""
    header, inputs = read_recording(path)
    follower = Follower(header)
    for told in inputs:
        follower.follow(told)
    kind = f"a recording by perseusd {header.perseusd}"
    kind += " on emulated GPUs" if header.emulated else ""
    return Trace(path, kind, list(_runs(follower.jobs)), list(_notes(follower)))


def _notes(follower: Follower) -> Iterator[str]:
    if follower.dropped:
        yield f"{follower.dropped} inputs are missing: the recorder could not keep up"
    silent = [job.name for job in follower.jobs if not job.heard]
    for name in silent:
        yield f"job {name}: no iteration was recorded whole, or its order could not be understood"


def _runs(jobs: Iterable[Heard]) -> Iterator[Run]:
    """One for each job that had whole iterations, its replicas together."""
    starts: Counter[str] = Counter()
    by_job: dict[str, list[Heard]] = defaultdict(list)
    for job in jobs:
        starts[job.name] += 1
        again = f", start {starts[job.name]}" if starts[job.name] > 1 else ""
        if job.heard:
            by_job[job.first_replica + again].append(job)
    for name, replicas in by_job.items():
        yield Run(
            name if len(by_job) > 1 else None,
            _observed(replicas),
            ranks={(own.replica, s): rank for own in replicas for s, rank in own.ranks.items()},
            replicas_told=True,
        )


def _observed(replicas: Sequence[Heard]) -> list[Observation]:
    """All replicas' iterations in the order of their starts.

    Curves are learned twice: what was slow the first time must not look like what is usual.
    """
    ill: frozenset[_Ill] = frozenset()
    for _ in range(ROUNDS):
        told = [item for own in replicas for item in _observations(own, ill)]
        observations = [own for _, own in sorted(told, key=lambda item: item[0])]
        ill = frozenset(_straggling(observations))
    return observations


def _straggling(observations: Iterable[Observation]) -> Iterator[_Ill]:
    """Who was slow in which iteration."""
    watch = Watch()
    last = 0
    for own in observations:
        watch.observe(own)
        last = max(last, own.number)
    for straggler in watch.history():
        until = last if straggler.until_iteration is None else straggler.until_iteration
        for number in range(straggler.since_iteration, until + 1):
            yield straggler.replica, straggler.stage, number


def _observations(job: Heard, ill: Collection[_Ill]) -> list[tuple[tuple[int, int], Observation]]:
    """With where they belong: (start in ns, replica). ill: of whom nothing is learned when."""
    facts = job.facts
    healthy = [
        cut
        for own in job.heard
        for cut in own.computations
        if (job.replica, cut.computation.rank, own.number) not in ill
        and (job.replica, None, own.number) not in ill
    ]
    model = _learned(healthy, facts)
    times = _times(job.heard)
    return [
        ((own.start_ns, job.replica), _observation(job, own, _Full(model, facts), time_s))
        for own, time_s in zip(job.heard, times, strict=True)
    ]


@dataclass
class _Full:
    """Seconds at full clock, by learned curves."""

    model: TimeModel
    facts: Mapping[int, GpuFacts]

    def seconds(self, cut: Cut) -> tuple[float, bool]:
        """And whether that is certain."""
        kind = cut.computation.kind
        top_mhz = self.facts[kind.rank].top_mhz
        if all(clock == top_mhz for _, clock in cut.pieces):
            return sum(seconds for seconds, _ in cut.pieces), True
        if kind not in self.model.top_s:
            return sum(seconds for seconds, _ in cut.pieces), False
        model = self.model
        return sum(s / float(model.ratio(kind, top_mhz / mhz)) for s, mhz in cut.pieces), True


def _observation(job: Heard, own: HeardIteration, full: _Full, time_s: float | None) -> Observation:
    seconds = [(cut.computation, *full.seconds(cut)) for cut in own.computations]
    return Observation(
        replica=job.replica,
        number=own.number,
        computations=tuple((computation, taken) for computation, taken, _ in seconds),
        lags=own.lags,
        time_s=time_s,
        uncertain=frozenset(c.rank for c, _, certain in seconds if not certain),
        reasons=own.reasons,
    )


def _times(heard: Sequence[HeardIteration]) -> list[float | None]:
    """From one's start to the next one's, where the next was followed too."""
    times: list[float | None] = []
    for own, after in zip(heard, [*heard[1:], None], strict=True):
        known = after is not None and (after.number, after.episode) == (own.number + 1, own.episode)
        times.append((after.start_ns - own.start_ns) * 1e-9 if known and after else None)
    return times


def _learned(cuts: Sequence[Cut], facts: Mapping[int, GpuFacts]) -> TimeModel:
    """Time as a function of the clock, from samples spread over all of what was heard.

    First from computations that ran at one clock; by what these tell also from those whose clock
    changed early or late.
    """
    model = _fitted(map(_main, cuts), facts)
    top_mhz = {rank: gpu.top_mhz for rank, gpu in facts.items()}

    def at_one_clock(cut: Cut) -> _Sample | None:
        kind = cut.computation.kind
        if not cut.pieces:
            return None
        found = model.at_one_clock(kind, cut.pieces, top_mhz[kind.rank], IMPURE)
        return None if found is None else (kind, *found)

    return _fitted(map(at_one_clock, cuts), facts)


def _fitted(samples: Iterable[_Sample | None], facts: Mapping[int, GpuFacts]) -> TimeModel:
    seen: dict[tuple[Kind, int], list[float]] = defaultdict(list)
    for sample in samples:
        if sample is not None:
            seen[sample[0], sample[1]].append(sample[2])
    durations = Durations()
    for (kind, clock), own in seen.items():
        for seconds in own[:: -(-len(own) // KEPT_SAMPLES)]:
            durations.add(kind, clock, seconds)
    top_mhz = {rank: gpu.top_mhz for rank, gpu in facts.items()}
    return fit_times(durations, top_mhz, {rank: gpu.model for rank, gpu in facts.items()})


def _main(cut: Cut) -> _Sample | None:
    """A computation that ran at one clock; None for one that ran at several, or took no time."""
    total = sum(seconds for seconds, _ in cut.pieces)
    longest = max(cut.pieces, default=None)
    if longest is None or longest[0] < PURE * total:
        return None
    return cut.computation.kind, longest[1], total
