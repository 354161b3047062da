"""What a whole iteration teaches, and what of it is our own slowing."""

from __future__ import annotations

import pytest

from perseusd.core.events.clocklog import ClockLog
from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.pacing import SETTLE_NS
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Kind
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.core.settings import Settings

TOP, LOW = 1410, 1050
MS = 1_000_000
STAGES, MICROBATCHES = 3, 4
PIPELINE = pipeline(one_f_one_b(STAGES, MICROBATCHES), 0.0)
GPUS = {r: GpuFacts(f"GPU-{r}", "A100", tuple(range(900, TOP + 1, 15)), r) for r in range(STAGES)}
TOOK_MS = {"forward": 40, "backward": 80}
LONGER = {"forward": 1.2, "backward": 1.3}
"""At LOW."""


def understood() -> Understanding:
    return Understanding(PIPELINE, GPUS, Settings())


def iterate(
    known: Understanding,
    number: int,
    logs: dict[str, ClockLog],
    factors: dict[int, float] | None = None,
    ill: tuple[int, ...] = (),
) -> dict[tuple[Kind, int], float]:
    """One iteration whose ranks follow one another; returns what is told of each computation."""
    at_ns = number * 10_000 * MS
    ranks = []
    for rank, order in enumerate(PIPELINE.orders):
        spans = []
        for computation in order:
            clock = next(c for _, _, c in logs[f"GPU-{rank}"].pieces(at_ns, at_ns + 1))
            took_ms = TOOK_MS[computation.instruction] * (factors or {}).get(rank, 1.0)
            took_ms *= LONGER[computation.instruction] if clock == LOW else 1.0
            step = Step(0, computation.instruction, computation.microbatch)
            spans.append(Span(step, at_ns, at_ns + round(took_ms * MS)))
            at_ns = spans[-1].end_ns
        ranks.append(RankIteration(number, tuple(spans)))
    told = known.learn_from(JobIteration(number, tuple(ranks)), {}, logs, ill)
    return {(computation.kind, computation.microbatch): seconds for computation, seconds in told}


def logs_of(lowered: dict[int, int] | None = None) -> dict[str, ClockLog]:
    """Every GPU at full clock but those lowered from a moment on (rank → ns)."""
    logs = {gpu.uuid: ClockLog(TOP) for gpu in GPUS.values()}
    for rank, at_ns in (lowered or {}).items():
        logs[f"GPU-{rank}"].written(at_ns - SETTLE_NS, LOW)
    return logs


def test_our_own_slowing_is_taken_out_of_what_is_told() -> None:
    """Once the lower clock's times are known, a rank that we slowed is told as at full clock, so
    that nobody takes it for a straggler."""
    known = understood()
    for number in range(4):
        iterate(known, number, logs_of())
    for number in range(4, 10):
        iterate(known, number, logs_of({1: 0}))
    told = iterate(known, 10, logs_of({1: 0}))
    for (kind, _), seconds in told.items():
        assert seconds == pytest.approx(TOOK_MS[kind.instruction] * 1e-3, rel=0.03)
    assert known.pace(1) == pytest.approx(1.0, abs=0.03)


def test_nothing_is_learned_of_a_straggling_rank() -> None:
    """Its durations are told, for the watch, but join no curve; its pace says how slow it is."""
    known = understood()
    for number in range(4):
        iterate(known, number, logs_of())
    before = known.knowledge.time_model().top_s
    for number in range(4, 8):
        told = iterate(known, number, logs_of(), {2: 1.5}, ill=(2,))
    assert known.knowledge.time_model().top_s == before
    assert told[Kind(2, 0, "forward"), 0] == pytest.approx(0.060)
    assert known.pace(2) == pytest.approx(1.5)
    assert known.pace(0) == pytest.approx(1.0)


def test_a_slow_rank_lengthens_the_pipeline_by_what_the_longest_path_says() -> None:
    """The last of three equal stages: all its computations, with one way there and back."""
    known = understood()
    for number in range(4):
        iterate(known, number, logs_of())
    assert known.inflation({}) == 1.0
    usual_ms = 2 * 40 + 4 * 120 + 2 * 80
    slow_ms = 2 * 40 + 4 * 120 * 2 + 2 * 80
    assert known.inflation({2: 2.0}) == pytest.approx(slow_ms / usual_ms)


def test_the_observed_critical_path_names_the_stage_that_takes_longest() -> None:
    """From durations and order alone: the ranks' stamps here do not even overlap."""
    known = understood()
    for number in range(4):
        iterate(known, number, logs_of(), {2: 2.0})
    rank, share = known.observed.shares()[0]
    assert rank == 2
    assert share > 0.7
    assert known.observed.slack()[2] < 0.1 < known.observed.slack()[0]
