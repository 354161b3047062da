"""After a breach: what was known is kept as far as computations at full clock bear it out."""

from __future__ import annotations

import random

import pytest

from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.jobs.doubt import Doubt
from perseusd.core.jobs.guard import Breach
from perseusd.core.model import Kind
from perseusd.core.savings.samples import Sample

USUAL_S = 0.1
NOISE = 0.01


def sample(mean: float, count: int = 5, seed: int = 0) -> Sample:
    rng = random.Random(seed)
    return Sample([mean * rng.gauss(1, 0.003) for _ in range(count)])


def doubted() -> Doubt:
    usual = {Kind(rank, 0, "forward"): USUAL_S for rank in range(3)}
    return Doubt(Breach.MEASURED, usual, (sample(1.02), sample(1.0)))


def feed(doubt: Doubt, factors: dict[int, float], iterations: int = 5) -> None:
    rng = random.Random(3)
    for number in range(iterations):
        ranks = []
        for rank in range(3):
            seconds = [USUAL_S * factors.get(rank, 1.0) * rng.gauss(1, NOISE) for _ in range(8)]
            spans = tuple(
                Span(Step(0, "forward", m), m * 10**9, m * 10**9 + int(s * 1e9))
                for m, s in enumerate(seconds)
            )
            ranks.append(RankIteration(number, spans))
        doubt.add(JobIteration(number, tuple(ranks)))


def test_computations_as_before_keep_what_is_known() -> None:
    """Noise of 1 % is no change, and nobody is slow."""
    doubt = doubted()
    feed(doubt, {})
    assert not doubt.changed(NOISE)
    assert doubt.slow_ranks(NOISE) == []


@pytest.mark.parametrize("factor", [0.9, 1.05, 1.5])
def test_one_ranks_other_pace_makes_it_another_job(factor: float) -> None:
    """Slower or faster; only slower may be a clock that was not put back."""
    doubt = doubted()
    feed(doubt, {1: factor})
    assert doubt.changed(NOISE)
    assert doubt.slow_ranks(NOISE) == ([1] if factor > 1 else [])


def test_our_own_doing_is_what_full_clocks_have_mended() -> None:
    """The baseline is again what it was: the plan was too slow; it is longer: something else."""
    doubt = doubted()
    assert doubt.ours(sample(1.021, seed=1))
    assert not doubt.ours(sample(1.06, seed=1))
    assert not doubt.ours(Sample([1.02]))


def test_the_same_computations_that_take_longer_together_are_linked_anew() -> None:
    """Communication has become slower: iterations at full clock to learn it from are kept."""
    doubt = doubted()
    feed(doubt, {}, iterations=9)
    assert not doubt.relinked(sample(1.001, seed=1))
    assert doubt.relinked(sample(1.05, seed=1))
    assert [i.number for i in doubt.iterations] == [4, 5, 6, 7, 8]
