"""Reference windows are rare, random, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

from perseusd.core.savings.reference import EVERY, WINDOW_COST, due


def drawn(seed: int, asked: int) -> list[int]:
    return [number for number in range(asked) if due(seed, number)]


def test_every_stretch_of_hold_has_exactly_one_window() -> None:
    """So a window is never further away than two stretches, and never too many are paid for."""
    found = drawn(7, 50 * EVERY)
    assert [at // EVERY for at in found] == list(range(50))


def test_windows_cost_at_most_three_thousandths_of_the_saving() -> None:
    """Over many jobs that hold for any length of time, short ones too."""
    at = [number for seed in range(400) for number in drawn(seed, 5000)]
    for held in (200, 1000, 5000):
        windows = sum(number < held for number in at)
        assert WINDOW_COST * windows / (400 * held) <= 0.0031


def test_windows_keep_step_with_nothing() -> None:
    """Places in a period of any length are hit about equally often."""
    found = [at for seed in range(20) for at in drawn(seed, 100 * EVERY)]
    for period in (2, 7, 10, 48, 60):
        hits = Counter(at % period for at in found)
        expected = 2000 / period
        chi_squared = sum((hits[p] - expected) ** 2 / expected for p in range(period))
        assert chi_squared < period - 1 + 4 * (2 * period) ** 0.5


def test_the_seed_alone_decides() -> None:
    """A replay and every replica draw the same windows, two jobs beside each other their own."""
    assert drawn(3, 5 * EVERY) == drawn(3, 5 * EVERY)
    assert drawn(3, 5 * EVERY) != drawn(4, 5 * EVERY)
