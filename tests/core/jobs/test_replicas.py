"""Replicas of one job: what one of them takes is what the others may take."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from perseusd.core.jobs.job import Job
from perseusd.core.jobs.reaction import NOBODY, Others
from perseusd.core.jobs.replicas import Replicas
from perseusd.core.model import Computation
from perseusd.core.settings import Settings
from perseusd.core.stragglers import Observation


class Heard(Job):
    """A job that keeps what it is told."""

    expected: tuple[float | None, float] = (None, 0.0)
    ill_ranks: tuple[int, ...] = ()

    def expect(self, elsewhere_s: float | None, noise: float, others: Others = NOBODY) -> None:
        self.expected = elsewhere_s, others.usual_s

    def slowed(self, ill: object) -> None:
        self.ill_ranks = tuple(ill)  # type: ignore[arg-type]


class Together:
    """Replicas of four stages that take 1 s, and iterations of them."""

    def __init__(self, count: int = 3, noise: float = 0.003) -> None:
        self.replicas = Replicas()
        self.jobs = [Heard(f"job/{r}", Settings(), {}, r) for r in range(count)]
        for job in self.jobs:
            self.replicas.add(job)
        self.rng, self.noise, self.number = random.Random(0), noise, 0

    def iterate(self, factors: dict[int, float], times: int = 1, only: Sequence[int] = ()) -> None:
        heard = only or range(len(self.jobs))
        for _ in range(times):
            for r in heard:
                factor = factors.get(r, 1.0)
                computations = [
                    (Computation(s, 0, "forward", m), 0.05 * factor * self.rng.gauss(1, 0.01))
                    for s in range(4)
                    for m in range(8)
                ]
                makespan_s = factor * self.rng.gauss(1, self.noise)
                seen = Observation(r, self.number, computations, time_s=max(1.0, makespan_s))
                self.replicas.observe(seen, makespan_s)
            self.number += 1

    def expected(self) -> list[float | None]:
        return [job.expected[0] for job in self.jobs]


def test_a_slow_replica_is_what_the_others_may_take_and_not_itself() -> None:
    """T′ within 1 % of its makespan for both others, nothing for itself, and soon after onset."""
    made = Together()
    made.iterate({}, 12)
    assert made.expected() == [None] * 3
    made.iterate({1: 1.4}, 4)
    zero, one, two = made.expected()
    assert zero == two == pytest.approx(1.4, rel=0.01)
    assert one is None
    assert made.jobs[0].ill_ranks == ()


def test_its_recovery_is_told_with_its_first_faster_iteration() -> None:
    """Whatever the watch still thinks: what it took last is what the others may take."""
    made = Together()
    made.iterate({}, 12)
    made.iterate({1: 1.4}, 8)
    made.iterate({1: 1.0}, 1)
    zero = made.jobs[0].expected[0]
    assert zero is None or zero < 1.02


def test_of_two_slow_replicas_each_may_take_the_others_time() -> None:
    """The third one has the slower of both to wait for."""
    made = Together()
    made.iterate({}, 12)
    made.iterate({1: 1.4, 2: 1.2}, 6)
    zero, one, two = made.expected()
    assert zero == two == pytest.approx(1.4, rel=0.01)
    assert one == pytest.approx(1.2, rel=0.01)


def test_a_slow_replica_that_leaves_is_waited_for_no_longer() -> None:
    """At once, before anybody's next iteration."""
    made = Together()
    made.iterate({}, 12)
    made.iterate({1: 1.4}, 6)
    assert made.jobs[0].expected[0] is not None
    made.replicas.remove(made.jobs[1])
    assert made.jobs[0].expected[0] is None


def test_a_slow_replica_that_is_not_heard_of_is_not_waited_for_on_its_old_word() -> None:
    """Its events are out of order, say: it may have recovered meanwhile."""
    made = Together()
    made.iterate({}, 12)
    made.iterate({1: 1.4}, 6)
    made.iterate({}, 5, only=(0, 2))
    assert made.jobs[0].expected[0] is None


def test_what_the_others_take_is_told_whether_or_not_they_straggle() -> None:
    """For a baseline that is measured behind a replica that was always slower."""
    made = Together()
    made.iterate({2: 1.3}, 8)
    assert made.jobs[0].expected[1] == pytest.approx(1.3, rel=0.01)
    assert made.jobs[2].expected[1] == pytest.approx(1.0, rel=0.01)
