"""Learning works on arrays; what it learns is what a plain loop over the computations does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.events.clocklog import ClockLog
from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.durations import Durations
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Kind
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.settings import Settings
from tests.core.jobs.plain_learning import Plain, PlainDurations

TOP, CLOCKS = 1410, (900, 1050, 1200, 1410)
MS = 1_000_000
RANKS = 2
PIPELINE = pipeline(one_f_one_b(RANKS, 7), 0.001)
GPUS = {r: GpuFacts(f"GPU-{r}", "A100", tuple(range(900, TOP + 1, 15)), r) for r in range(RANKS)}
EXACT = {"rel": 1e-9, "abs": 1e-15}


def a_run(
    random: np.random.Generator, number: int, logs: dict[str, ClockLog], lowest: int
) -> JobIteration:
    """One iteration of ranks whose clocks change at any time; some computations take no time, some
    hang, and now and then all of a rank's are slow."""
    ranks = []
    for rank, order in enumerate(PIPELINE.orders):
        now_ns, spans, log = number * 10_000 * MS, [], logs[f"GPU-{rank}"]
        slow = 1.5 if random.random() < 0.1 else 1.0
        for c in order:
            if random.random() < 0.2:
                mhz = int(random.choice(CLOCKS[lowest:]))
                log.written(now_ns - SETTLE_NS + int(random.integers(0, 90)) * MS, mhz)
            took_ms = {"forward": 40, "backward": 80}[c.instruction] * random.lognormal(0, 0.02)
            took_ms *= random.choice([0.0, 1.0, 3.0], p=[0.02, 0.96, 0.02]) * slow
            now_ns += int(random.integers(0, 3)) * MS
            end_ns = now_ns + round(took_ms * MS)
            spans.append(Span(Step(0, c.instruction, c.microbatch), now_ns, end_ns))
            now_ns = max(end_ns, log._at_ns[-1] if log._at_ns else 0)
        ranks.append(RankIteration(number, tuple(spans)))
    return JobIteration(number, tuple(ranks))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.floats(0, 1))
def test_arrays_teach_what_a_plain_loop_does(seed: int, lowest: int, ill: float) -> None:
    """Of computations at full clock, at lower ones and across a change, of ranks that are ill, are
    taken for it or have never been seen at full clock: the same durations, and the same is told."""
    random = np.random.default_rng(seed)
    known = Understanding(PIPELINE, GPUS, Settings())
    plain = Plain(known)
    logs = {gpu.uuid: ClockLog(TOP) for gpu in GPUS.values()}
    for number in range(6):
        iteration = a_run(random, number, logs, lowest if number else 3)
        sick = [r for r in range(RANKS) if random.random() < ill / 2]
        wary = bool(random.random() < 0.7)
        told = known.learn_from(iteration, {}, logs, sick, wary)
        expected = plain.learn_from(iteration, logs, sick, wary)
        assert [c for c, _ in told] == [c for c, _ in expected]
        assert [s for _, s in told] == pytest.approx([s for _, s in expected], **EXACT)
        assert known.ours_s == pytest.approx(plain.ours_s, rel=1e-9, abs=1e-12)
        paces = [known.newest_pace(r) for r in range(RANKS)]
        assert paces == pytest.approx(plain.paces.tolist(), **EXACT)
        same(known.knowledge.durations, plain.knowledge.durations)


def same(one: Durations, other: Durations) -> None:
    assert one.version == other.version
    assert {k: list(own) for k, own in one.seen.items()} == {
        k: list(own) for k, own in other.seen.items()
    }
    for kind, clocks in other.seen.items():
        for clock, samples in clocks.items():
            assert one.seen[kind][clock] == pytest.approx(samples, **EXACT)
            assert one.mean(kind, clock) == pytest.approx(other.mean(kind, clock), rel=1e-9)
    top_mhz = dict.fromkeys(range(RANKS), TOP)
    assert one.relative_noise(top_mhz) == pytest.approx(other.relative_noise(top_mhz), rel=1e-6)


@given(
    st.lists(
        st.tuples(
            st.sampled_from((900, 1410)),
            st.lists(st.sampled_from((0.0, 0.09, 0.099, 0.1, 0.101, 0.12)), max_size=30),
        ),
        max_size=12,
    )
)
def test_durations_join_many_at_a_time_as_one_by_one(runs: list[tuple[int, list[float]]]) -> None:
    """The filters of level and drift, what others take along, and what is typical afterwards."""
    together, apart = Durations(), PlainDurations()
    kind = Kind(0, 0, "forward")
    for clock, seconds in runs:
        together.add(kind, clock, *seconds)
        apart.add(kind, clock, *seconds)
        for other in {c for c, some in runs if some and c in together.seen.get(kind, {})}:
            together.mean(kind, other)
    assert together.version == apart.version
    for clock, samples in apart.seen.get(kind, {}).items():
        assert together.seen[kind][clock] == pytest.approx(samples, **EXACT)
        assert together.mean(kind, clock) == pytest.approx(apart.mean(kind, clock), rel=1e-9)
    assert together._level == pytest.approx(apart._level, rel=1e-9)
