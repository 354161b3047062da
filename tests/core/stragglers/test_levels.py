"""One iteration's computations, reduced to one level per kind."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.model import Computation, Kind
from perseusd.core.stragglers.levels import layout_of, levels

STAGES, MICROBATCHES = 3, 5
NAMES = [
    Computation(stage, 0, instruction, microbatch)
    for stage in range(STAGES)
    for instruction in ("forward", "backward")
    for microbatch in range(MICROBATCHES)
]
BASE = {"forward": 1.0, "backward": 2.0}


def seconds(length: list[float]) -> dict[Computation, float]:
    return {c: BASE[c.instruction] * (1 + c.rank) * length[c.microbatch] for c in NAMES}


def test_levels_are_the_kinds_times_at_the_iterations_mean_length() -> None:
    """Lengths move all levels alike, by their mean log, and leave no noise."""
    length = [0.5, 1.0, 1.5, 0.8, 3.0]
    layout = layout_of(NAMES)
    found = levels(layout, list(seconds(length).values()))
    for kind, level in zip(layout.kinds, found.level, strict=True):
        wanted = np.log(BASE[kind.instruction] * (1 + kind.rank)) + np.mean(np.log(length))
        assert level == pytest.approx(wanted)
    assert found.noise == pytest.approx(0.0, abs=1e-12)


def test_one_computations_hiccup_hardly_shows() -> None:
    """Thirty times as long once, among a little noise: its kind's level moves by under 3 %."""
    rng = np.random.default_rng(1)
    noisy = {c: s * float(np.exp(rng.normal(0, 0.01))) for c, s in seconds([1.0] * 5).items()}
    layout = layout_of(NAMES)
    calm = levels(layout, list(noisy.values())).level
    noisy[Computation(1, 0, "forward", 2)] *= 30
    moved = levels(layout, list(noisy.values())).level - calm
    assert np.abs(moved).max() < 0.03


def test_a_microbatch_that_a_stage_does_not_run_leaves_a_hole_only() -> None:
    """Levels of the others, and of the stage itself, are as with it."""
    kept = {c: s for c, s in seconds([1.0] * 5).items() if (c.rank, c.microbatch) != (1, 4)}
    layout = layout_of(list(kept))
    found = levels(layout, list(kept.values()))
    place = layout.kinds.index(Kind(1, 0, "backward"))
    assert found.level[place] == pytest.approx(np.log(4.0))


def test_what_recurs_every_iteration_is_no_scatter() -> None:
    """A microbatch that is always longer counts as varying length once, and never again."""
    layout = layout_of(NAMES)
    values = list(seconds([1.0, 1.0, 1.0, 1.0, 2.0]).values())
    first = levels(layout, values)
    again = levels(layout, values, first)
    assert first.length > 0.01
    assert again.length == 0.0


def test_senseless_durations_do_no_harm() -> None:
    """Zero, negative, infinite and NaN seconds give finite levels."""
    values = list(seconds([1.0] * 5).values())
    values[:4] = [0.0, -1.0, float("inf"), float("nan")]
    assert np.isfinite(levels(layout_of(NAMES), values).level).all()
