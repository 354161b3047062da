"""Powers come out of a counter that ticks about as rarely as a computation lasts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.attribution import KEPT_TICKS, Activity, Column, CounterTicks, EnergyLedger
from perseusd.core.model import Kind

MS = 1_000_000
FORWARD, BACKWARD = Kind(0, 0, "forward"), Kind(0, 0, "backward")
TRUE_W = {
    Column(FORWARD, 1410): 310.0,
    Column(BACKWARD, 1410): 365.0,
    Column(FORWARD, 1200): 225.0,
    Column(BACKWARD, 1200): 260.0,
    None: 75.0,
}


def iteration(rng: np.random.Generator, begin_ns: int) -> list[Activity]:
    """Eight forwards, eight backwards and waits between; some of them at the lower clock."""
    activities: list[Activity] = []
    at = begin_ns
    for i in range(16):
        kind, base = (FORWARD, 55) if i % 2 else (BACKWARD, 110)
        clock = 1200 if rng.random() < 0.3 else 1410
        for what, length in ((kind, base * rng.normal(1, 0.02)), (None, rng.uniform(5, 40))):
            until = at + int(length * MS)
            activities.append(Activity(at, until, what, clock if what else 0))
            at = until
    return activities


def poll_through(
    counter: CounterTicks, activities: list[Activity], tick_ms: int, poll_ms: int, phase_ns: int
) -> None:
    """A counter that holds its value between ticks, polled at its own pace and phase."""
    edges = [activities[0].start_ns, *(a.end_ns for a in activities)]
    watts = [TRUE_W[None if a.kind is None else Column(a.kind, a.clock_mhz)] for a in activities]
    joules = np.cumsum(
        [0.0, *((b - a) * 1e-9 * w for a, b, w in zip(edges, edges[1:], watts, strict=False))]
    )
    for now in range(edges[0] - 200 * MS + phase_ns, edges[-1] + 200 * MS, poll_ms * MS):
        ticked = now // (tick_ms * MS) * tick_ms * MS
        counter.poll(now, 1e6 + float(np.interp(ticked, edges, joules)))


@pytest.mark.parametrize(("tick_ms", "poll_ms"), [(20, 10), (50, 20), (100, 20)])
@pytest.mark.parametrize("seed", [0, 1])
def test_known_powers_are_recovered(tick_ms: int, poll_ms: int, seed: int) -> None:
    """Thirty iterations give every power within 5 %, blocking power within 6 W, at any tick."""
    rng = np.random.default_rng(seed)
    ledger = EnergyLedger()
    at = 10**12
    for _ in range(30):
        activities, counter = iteration(rng, at), CounterTicks()
        poll_through(counter, activities, tick_ms, poll_ms, int(rng.integers(poll_ms * MS)))
        # The counter runs on flat outside the iteration, so nothing but the iteration is taken.
        start_ns, end_ns = activities[0].start_ns, activities[-1].end_ns
        ledger.add_iteration(activities, counter.take(start_ns, end_ns))
        at += 10**10
    found = ledger.solve()
    assert found.keys() == TRUE_W.keys()
    for column, watts in TRUE_W.items():
        assert found[column].watts == pytest.approx(watts, rel=0.05, abs=6), column


def test_a_tick_lies_between_the_polls_that_saw_it() -> None:
    """The moment taken is the middle; ticks are taken once, and what lies before is dropped."""
    counter = CounterTicks()
    for at, joules in ((0, 5.0), (10, 5.0), (20, 6.0), (30, 6.0), (40, 8.0), (90, 9.0)):
        counter.poll(at, joules)
    assert counter.ticks == [(15, 6.0), (35, 8.0), (65, 9.0)]
    assert counter.count(20, 65) == 1
    assert counter.take(20, 65) == [(35, 8.0)]
    assert counter.ticks == [(65, 9.0)]


def test_a_counter_that_goes_back_starts_afresh() -> None:
    """A driver reload sets it to zero: nothing is inferred across that."""
    counter = CounterTicks()
    for at, joules in ((0, 50.0), (10, 60.0), (20, 1.0), (30, 2.0)):
        counter.poll(at, joules)
    assert counter.ticks == [(25, 2.0)]


def test_ticks_nobody_takes_are_bounded() -> None:
    """A job that is not followed for days must not fill the memory; the newest are kept."""
    counter = CounterTicks()
    for i in range(3 * KEPT_TICKS):
        counter.poll(i, float(i))
    assert len(counter.ticks) <= KEPT_TICKS
    assert counter.ticks[-1][1] == 3 * KEPT_TICKS - 1


def test_a_counter_that_stalls_teaches_nothing() -> None:
    """No ticks in an iteration: no columns, rather than columns of zero watts."""
    activities = iteration(np.random.default_rng(0), 10**12)
    counter, ledger = CounterTicks(), EnergyLedger()
    for now in range(activities[0].start_ns, activities[-1].end_ns, 20 * MS):
        counter.poll(now, 7.0)
    ledger.add_iteration(activities, counter.take(0, 2**62))
    assert ledger.solve() == {}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**62),
            st.sampled_from((FORWARD, BACKWARD, None)),
            st.sampled_from((0, 1200, 1410)),
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(0, 2**63), st.floats(0, 1e12)), min_size=3, max_size=20),
)
def test_powers_are_finite_and_never_negative(
    pieces: list[tuple[int, Kind | None, int]], ticks: list[tuple[int, float]]
) -> None:
    """Whatever lengths and ticks: a number a planner can take, no exception."""
    activities, at = [], 0
    for length, kind, clock in pieces:
        activities.append(Activity(at, at + length, kind, clock))
        at += length
    ledger = EnergyLedger()
    ledger.add_iteration(activities, sorted(ticks))
    for power in ledger.solve().values():
        assert np.isfinite(power.watts)
        assert power.watts >= 0
