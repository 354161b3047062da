"""A sample of the benchmark's seeded cases, and NVIDIA's own."""

from __future__ import annotations

from types import ModuleType

import pytest

SAMPLE = range(500_000, 500_015)


def test_a_sample_of_seeded_cases(cases: ModuleType) -> None:
    """From 1.1× on, what can be known is found, nobody else is named, and 1.2× within three."""
    for seed in SAMPLE:
        case = cases.draw(seed)
        outcome = cases.run(case)
        assert outcome.wrong == (), case
        if case.factor >= 1.1 and case.knowable_at_all():
            assert outcome.detected is not None, case
        if case.factor >= 1.2 and case.knowable_at_once():
            assert outcome.delay is not None, case
            assert outcome.delay <= 3, case


@pytest.mark.parametrize("seed", [100_176, 100_323, 100_792])
def test_nobody_else_is_named_where_somebody_once_was(cases: ModuleType, seed: int) -> None:
    """Lengths that scatter more than two dozen iterations had shown, and ranks a few per cent
    slower than their peers by nature, on which an error of our own came to lie."""
    assert cases.run(cases.draw(seed)).wrong == ()


def test_a_reference_does_not_take_over_what_shows_only_slowly(cases: ModuleType) -> None:
    """A replica 1.2× slow under lengths that vary by 23 %: it takes dozens of iterations to tell,
    in which the reference must not come to meet it."""
    outcome = cases.run(cases.draw(200_174))
    assert outcome.detected is not None
    assert outcome.wrong == ()


@pytest.mark.parametrize("when", ["always", "later"])
@pytest.mark.parametrize("slow", [[(0, 0)], [(0, 0), (0, 1)], [(0, 0), (1, 1)], []])
def test_nvidia_section_scenarios(
    cases: ModuleType, when: str, slow: list[tuple[int, int]]
) -> None:
    """Four ranks, three sections of N(10, 3) ms, a straggler's N(15, 3): exactly those named."""
    assert cases._nvidia_one((0, 0), when, slow)
