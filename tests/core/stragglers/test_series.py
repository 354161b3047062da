"""Jobs that tell nothing but how long their iterations take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perseusd.core.stragglers import Observation, Straggler, Watch


def watched(times: dict[int, float]) -> Watch:
    watch = Watch()
    for number, time_s in times.items():
        watch.observe(Observation(0, number, [], time_s=time_s))
    return watch


def megatron(folder: Path, gpu: str) -> list[Straggler]:
    path = folder / "megatron-iteration-times" / f"gpt3_tp2_pp2_{gpu}.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return watched({int(step): float(seconds) for step, seconds in rows}).history()


def test_a_slow_spell_is_named_iteration_and_nobody(  # who it was cannot be known
) -> None:
    """Replica, stage and rank stay null; the factor and the dates are right."""
    rng = np.random.default_rng(3)
    noise = np.exp(rng.normal(0, 0.01, 100))
    times = {n: (1.3 if 40 <= n < 60 else 1.0) * float(noise[n]) for n in range(100)}
    (spell,) = watched(times).history()
    assert (spell.replica, spell.stage, spell.rank, spell.cause) == (None, None, None, "iteration")
    assert (spell.since_iteration, spell.until_iteration) == (40, 59)
    assert spell.factor == pytest.approx(1.3, abs=0.02)


def test_replicas_that_wait_for_each_other_are_one_series() -> None:
    """Each tells the same slow iterations; one spell is reported."""
    watch = Watch()
    for number in range(80):
        for replica in range(3):
            seconds = (1.5 if number >= 40 else 1.0) * (1 + 0.01 * (number % 3))
            watch.observe(Observation(replica, number, [], time_s=seconds))
    assert len(watch.history()) == 1


def test_gb200_spells_are_dated(shared_data: Path) -> None:
    """Two thousand real iterations: both known spells, and at most one report more."""
    history = megatron(shared_data, "gb200")
    first = next(s for s in history if abs(s.since_iteration - 214) <= 3)
    second = next(s for s in history if abs(s.since_iteration - 1406) <= 3)
    assert abs((first.until_iteration or 0) - 244) <= 5
    assert abs((second.until_iteration or 0) - 1425) <= 5
    assert second.factor == pytest.approx(3.1, abs=0.3)
    assert len(history) <= 3


def test_h100_short_spells_are_transient_and_hiccups_nothing(shared_data: Path) -> None:
    """Fifty single iterations over 5 % slow; at most the two short spells and one more."""
    history = megatron(shared_data, "h100")
    known = [s for s in history if s.since_iteration in range(495, 501)]
    known += [s for s in history if s.since_iteration in range(924, 931)]
    assert all(s.transient for s in known)
    assert len(history) - len(known) <= 1
