"""Work at a changing clock: progress and energy add up, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.errors import GpuError
from perseusd.gpus.physics import (
    ClockChange,
    ClockHistory,
    WorkCurve,
    capped_index,
    predict_end_ns,
    run_work,
)

MS = 1_000_000
CURVE = WorkCurve((0.2, 0.1), (10.0, 30.0))  # 50 W at clock 0, 300 W at clock 1

times = st.floats(1e-4, 2.0)
energies = st.floats(0.0, 500.0)
curves = st.lists(st.tuples(times, energies), min_size=4, max_size=4).map(
    lambda points: WorkCurve(tuple(t for t, _ in points), tuple(e for _, e in points))
)
histories = st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 3)), min_size=1).map(
    lambda changes: ClockHistory(tuple(ClockChange(*change) for change in sorted(changes)))
)
moments = st.integers(0, 10**10)


def test_steady_clock_takes_the_curves_time_and_energy() -> None:
    """Without a change a computation takes exactly its time and energy, times its factor."""
    history = ClockHistory((ClockChange(0, 1),))
    progress = run_work(CURVE, history, 5 * MS, 1000 * MS, factor=1.5)
    assert progress.end_ns == 155 * MS
    assert progress.energy_j == pytest.approx(45.0)
    assert progress.fraction == 1.0


def test_change_in_the_middle_counts_from_then_on() -> None:
    """Half the work at 0.1 s, the other half at 0.2 s: 150 ms, half of each clock's energy."""
    history = ClockHistory((ClockChange(0, 1), ClockChange(50 * MS, 0)))
    progress = run_work(CURVE, history, 0, 10**9)
    assert progress.end_ns == 150 * MS
    assert progress.energy_j == pytest.approx(15.0 + 5.0)
    half_way = run_work(CURVE, history, 0, 100 * MS)
    assert half_way.end_ns is None
    assert half_way.fraction == pytest.approx(0.75)


def test_first_clock_also_holds_before_its_time() -> None:
    """A computation older than the history runs at the first known clock."""
    history = ClockHistory((ClockChange(10**9, 0),))
    assert run_work(CURVE, history, 0, 10**9).end_ns == 200 * MS


def test_power_cap_bounds_the_clock() -> None:
    """Above the cap a higher clock changes nothing."""
    cap_index = capped_index(CURVE, 100.0)
    assert cap_index == 0
    assert capped_index(CURVE, 300.0) == 1
    assert capped_index(CURVE, 1.0) == 0
    history = ClockHistory((ClockChange(0, 1),))
    assert run_work(CURVE, history, 0, None, cap_index=cap_index).end_ns == 200 * MS


@given(curves, histories, moments, moments, st.floats(0.5, 2.0))
def test_progress_and_energy_are_additive(
    curve: WorkCurve, history: ClockHistory, start_ns: int, length_ns: int, factor: float
) -> None:
    """Two parts of a span make the whole: energy and fraction over any split add up."""
    until_ns = start_ns + length_ns
    whole = run_work(curve, history, start_ns, until_ns, factor)
    middle_ns = start_ns + length_ns // 3
    first = run_work(curve, history, start_ns, middle_ns, factor)
    if first.end_ns is not None:
        assert (whole.end_ns, whole.fraction) == (first.end_ns, 1.0)
        assert whole.energy_j == pytest.approx(first.energy_j)
        return
    left = 1.0 - first.fraction
    rest_curve = WorkCurve(
        tuple(t * left for t in curve.time_s), tuple(e * left for e in curve.energy_j)
    )
    second = run_work(rest_curve, history, middle_ns, until_ns, factor)
    assert whole.fraction == pytest.approx(first.fraction + left * second.fraction, abs=1e-6)
    assert whole.energy_j == pytest.approx(first.energy_j + second.energy_j, rel=1e-5, abs=1e-3)


@given(curves, histories, moments, moments, moments)
def test_progress_and_energy_never_go_back(
    curve: WorkCurve, history: ClockHistory, start_ns: int, one_ns: int, other_ns: int
) -> None:
    """At a later time there is at least as much progress and energy, and an end stays the end."""
    early, late = (
        run_work(curve, history, start_ns, until) for until in sorted((one_ns, other_ns))
    )
    assert early.fraction <= late.fraction
    assert early.energy_j <= late.energy_j * (1 + 1e-12)
    if early.end_ns is not None:
        assert late.end_ns == early.end_ns


@given(curves, histories, moments)
def test_prediction_is_the_end_it_comes_to(
    curve: WorkCurve, history: ClockHistory, start_ns: int
) -> None:
    """If no further change comes, the predicted end is the end, and not a nanosecond before."""
    end_ns = predict_end_ns(curve, history, start_ns)
    assert run_work(curve, history, start_ns, end_ns).end_ns == end_ns
    assert run_work(curve, history, start_ns, end_ns - 1).end_ns is None


@pytest.mark.parametrize(
    ("times", "energies"),
    [((), ()), ((1.0,), ()), ((0.0,), (1.0,)), ((float("nan"),), (1.0,)), ((1.0,), (-1.0,))],
)
def test_impossible_curve_is_refused(times: tuple[float, ...], energies: tuple[float, ...]) -> None:
    """Missing, zero, negative or undefined times and energies never become a curve."""
    with pytest.raises(GpuError):
        WorkCurve(times, energies)


def test_history_must_ascend_and_begin() -> None:
    """An empty or unordered history is refused."""
    with pytest.raises(GpuError):
        ClockHistory(())
    with pytest.raises(GpuError):
        ClockHistory((ClockChange(2, 0), ClockChange(1, 0)))
