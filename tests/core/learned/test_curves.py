"""Curves over the clock are recovered from a few noisy durations at a few clocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.learned.curves import TimeModel, fit_times
from perseusd.core.learned.durations import KEPT_SAMPLES, Durations
from perseusd.core.model import Kind

TOP = 1410
LADDER = (1290, 1185, 1065, 975, 870)
Form = Callable[[float], float]


def bound(share: float) -> Form:
    """`share` of the time scales with the clock, the rest does not."""
    return lambda x: 1 - share + share * x


def capped(x: float) -> float:
    """At a power cap the highest clocks change nothing; below them time grows."""
    return 1 + 0.7 * max(0.0, x - 1.19)


def measured(
    forms: dict[Kind, Form],
    samples: int,
    rng: np.random.Generator,
) -> Durations:
    durations = Durations()
    for kind, form in forms.items():
        for clock in (TOP, *LADDER):
            for _ in range(40 if clock == TOP else samples):
                durations.add(kind, clock, 0.05 * form(TOP / clock) * rng.lognormal(0, 0.01))
    return durations


def fitted(durations: Durations, ranks: int) -> TimeModel:
    return fit_times(durations, dict.fromkeys(range(ranks), TOP), dict.fromkeys(range(ranks), "A"))


@pytest.mark.parametrize("form", [bound(0.9), bound(0.5), bound(0.05), capped, lambda x: x**1.5])
def test_known_shapes_are_recovered(form: Form) -> None:
    """Compute-bound, memory-bound, power-capped and none of these: three samples a clock on each of
    six stages give every clock between the explored ones within 1.5 %."""
    rng = np.random.default_rng(3)
    kinds = [Kind(r, 0, "forward") for r in range(6)]
    model = fitted(measured(dict.fromkeys(kinds, form), 3, rng), 6)
    for kind in kinds:
        for clock in range(LADDER[-1], TOP + 1, 15):
            x = TOP / clock
            assert float(model.ratio(kind, x)) == pytest.approx(form(x), rel=0.015)


def test_stages_that_differ_keep_their_own_slope() -> None:
    """One shape per group, and γ for what is each stage's own: within 2 % for shares of 0.6–0.9."""
    rng = np.random.default_rng(4)
    forms = {Kind(r, 0, "forward"): bound(0.6 + 0.1 * r) for r in range(4)}
    model = fitted(measured(forms, 6, rng), 4)
    for kind, form in forms.items():
        for clock in LADDER:
            assert float(model.ratio(kind, TOP / clock)) == pytest.approx(
                form(TOP / clock), rel=0.02
            )


def test_a_kind_hardly_seen_follows_its_group() -> None:
    """Never seen below the top clock, its curve is the group's; a single sample that says twice the
    slope moves it, but less than all the way."""
    rng = np.random.default_rng(5)
    kinds = [Kind(r, 0, "backward") for r in range(5)]
    durations = measured(dict.fromkeys(kinds[:4], bound(0.4)), 6, rng)
    for _ in range(40):
        durations.add(kinds[4], TOP, 0.05 * rng.lognormal(0, 0.01))
    group = bound(0.4)(TOP / 870)
    assert float(fitted(durations, 5).ratio(kinds[4], TOP / 870)) == pytest.approx(group, rel=0.02)
    durations.add(kinds[4], LADDER[0], 0.05 * bound(0.8)(TOP / LADDER[0]))
    moved = float(fitted(durations, 5).ratio(kinds[4], TOP / 870))
    assert group * 1.02 < moved < (group + bound(0.8)(TOP / 870)) / 2


def test_instructions_do_not_share_a_shape() -> None:
    """Forward may be at a power cap where backward is not."""
    rng = np.random.default_rng(6)
    forward, backward = Kind(0, 0, "forward"), Kind(0, 0, "backward")
    model = fitted(measured({forward: bound(0.05), backward: bound(0.9)}, 6, rng), 1)
    assert float(model.ratio(forward, 1.5)) < 1.05
    assert float(model.ratio(backward, 1.5)) > 1.4


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from((TOP, *LADDER, 1395)),
            st.floats(1e-9, 1e3),
        ),
        max_size=60,
    )
)
def test_any_durations_give_a_monotone_curve(seen: list[tuple[int, int, float]]) -> None:
    """However noisy: never faster at a lower clock, 1 at the top clock, and no exception."""
    durations = Durations()
    for rank, clock, seconds in seen:
        durations.add(Kind(rank, 0, "forward"), clock, seconds)
    model = fitted(durations, 3)
    assert set(model.top_s) == {k for k in durations.seen if durations.count(k, TOP)}
    x = np.linspace(1, 2, 50)
    for kind in model.top_s:
        ratio = model.ratio(kind, x)
        assert ratio[0] == 1
        assert np.isfinite(ratio).all()
        assert (np.diff(ratio) >= 0).all()


def test_a_computation_across_a_clock_change() -> None:
    """Mostly at one clock: counted there, its other part converted; cut in halves: not at all."""
    rng = np.random.default_rng(7)
    kind = Kind(0, 0, "forward")
    model = fitted(measured({kind: bound(0.8)}, 10, rng), 1)
    whole = 0.05 * bound(0.8)(TOP / 1065)
    early = 0.1 * 0.05  # a tenth of the work at the top clock
    at_clock = model.at_one_clock(kind, [(early, TOP), (0.9 * whole, 1065)], TOP, 0.2)
    assert at_clock is not None
    assert at_clock[0] == 1065
    assert at_clock[1] == pytest.approx(whole, rel=0.01)
    assert model.at_one_clock(kind, [(0.02, TOP), (0.02, 1065)], TOP, 0.2) is None
    assert model.at_one_clock(kind, [(0.05, 870)], TOP, 0.2) == (870, 0.05)


def test_samples_are_bounded_and_the_newest_count() -> None:
    """A job that drifts is followed, in bounded memory."""
    durations, kind = Durations(), Kind(0, 0, "forward")
    for i in range(1000):
        durations.add(kind, TOP, 1.0 if i < 900 else 2.0)
    assert durations.count(kind, TOP) == KEPT_SAMPLES
    assert durations.typical(kind, TOP) == pytest.approx(2.0)


def test_a_straggling_iteration_is_not_noise() -> None:
    """One sample in ten is three times as long: noise stays that of the others."""
    rng = np.random.default_rng(8)
    durations = Durations()
    for i in range(50):
        durations.add(
            Kind(0, 0, "forward"), TOP, rng.lognormal(0, 0.02) * (3 if i % 10 == 0 else 1)
        )
    assert durations.relative_noise({0: TOP}) == pytest.approx(0.02, rel=0.5)
