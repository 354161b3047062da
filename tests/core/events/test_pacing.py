"""Clock writes are asked for at their moment: raises early, lowerings never, the end at full."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.events.paced import SHORTER, PacedPlan, Timeline
from perseusd.core.events.pacing import (
    EARLY_NS,
    FIRST_LATENCY_NS,
    LATENCY_JUMP,
    PACE_WEIGHT,
    SETTLE_NS,
    Pacer,
    Request,
)
from perseusd.core.jobs.following import LEAST_WAIT_NS, MOST_WAIT_NS
from perseusd.core.model import Plan

LEAD_NS = FIRST_LATENCY_NS + SETTLE_NS
MS = 1_000_000


def plan_of(*ranks: tuple[list[int | None], list[float]], waits: Sequence[float] = ()) -> PacedPlan:
    """Per rank: the clocks, and each computation's milliseconds, one right after the other, or
    after waits of so many milliseconds."""
    clocks, timelines = [], []
    for own, lengths in ranks:
        before = waits or [0.0] * len(lengths)
        both = itertools.accumulate(
            ms / 1000 for pair in zip(before, lengths, strict=True) for ms in pair
        )
        edges = tuple(both)
        clocks.append(tuple(own))
        timelines.append(Timeline(edges[::2], edges[1::2]))
    return PacedPlan(Plan(tuple(clocks)), tuple(timelines))


@dataclass
class Run:
    """Drives a pacer through iterations and writes down every request with its moment."""

    pacer: Pacer
    now: int = 10**9
    asked: list[tuple[int, Request]] = field(default_factory=list)

    def take(self, requests: list[Request]) -> None:
        self.asked += [(self.now, request) for request in requests]

    def wait(self, until: int) -> None:
        while (due := self.pacer.next_due_ns()) is not None and due <= until:
            self.now = max(self.now, due)
            self.take(self.pacer.due(self.now))
        self.now = until

    def iteration(self, number: int, lengths_ms: list[list[float]]) -> None:
        """Ranks run side by side, each its own lengths."""
        events = []
        for rank, lengths in enumerate(lengths_ms):
            at = self.now
            for position, length in enumerate(lengths):
                events.append((at, 1, rank, position))
                at += int(length * MS)
                events.append((at - 1, 0, rank, position))
        for at, starts, rank, position in sorted(events):
            self.wait(at)
            call = self.pacer.started if starts else self.pacer.ended
            self.take(call(rank, number, position, at))
        self.wait(self.now + 20 * MS)

    def changes(self, rank: int = 0) -> list[tuple[int, int | None]]:
        return [(at, r.clock_mhz) for at, r in self.asked if r.rank == rank]


clocks = st.sampled_from([None, 800, 1000, 1200])
computations = st.lists(st.tuples(clocks, st.integers(30, 90)), min_size=1, max_size=8)
ranks = st.lists(computations, min_size=1, max_size=3)


@given(ranks, st.integers(1, 3))
def test_every_boundary_finds_its_clock(
    shape: list[list[tuple[int | None, int]]], iterations: int
) -> None:
    """Where computations take as long as predicted: a raise is under way a write's latency before
    its boundary; a lowering is asked for no sooner than that; when the iteration ends the clock is
    full; and what a GPU has already is never asked for again."""
    plan = plan_of(*(([c for c, _ in own], [float(ms) for _, ms in own]) for own in shape))
    run = Run(Pacer(len(shape)))
    run.pacer.adopt(plan, 0)
    for number in range(iterations):
        begun, before = run.now, len(run.asked)
        run.iteration(number, [[float(ms) for _, ms in own] for own in shape])
        for rank, own in enumerate(shape):
            requests = [(at, r.clock_mhz) for at, r in run.asked[before:] if r.rank == rank]
            wanted = [c for c, _ in own] + [None]
            edges = [begun, *(begun + int(e * 1e9) for e in plan.timelines[rank].end_s)]
            runs = [
                (edge, before_mhz, after_mhz)
                for edge, (before_mhz, after_mhz) in zip(
                    edges, itertools.pairwise([None, *wanted]), strict=True
                )
                if before_mhz != after_mhz
            ]
            assert [clock for _, clock in requests] == [after for _, _, after in runs]
            for (at, _), (edge, was, now) in zip(requests, runs, strict=True):
                first = edge == begun and rank == 0  # nothing foretells the very first
                if was is not None and (now is None or now > was):
                    assert at <= edge - LEAD_NS - EARLY_NS + 2
                    assert at >= edge - LEAD_NS - EARLY_NS - len(shape) * FIRST_LATENCY_NS - 2
                else:
                    assert at >= edge - LEAD_NS - 2
                    assert at <= edge + 2 or first


@given(
    ranks,
    st.lists(st.floats(0.5, 2.0), min_size=24, max_size=24),
)
def test_lateness_is_corrected_at_the_next_event(
    shape: list[list[tuple[int | None, int]]], factors: list[float]
) -> None:
    """Whatever computations really take, a computation never starts with a lower clock asked for
    than its own, but for a boundary that came earlier than its raise was due; and then the raise is
    asked for at once."""
    plan = plan_of(*(([c for c, _ in own], [float(ms) for _, ms in own]) for own in shape))
    run = Run(Pacer(len(shape)))
    run.pacer.adopt(plan, 0)
    draws = itertools.cycle(factors)
    lengths = [[ms * next(draws) for _, ms in own] for own in shape]
    events = []
    for rank, own in enumerate(lengths):
        at = run.now
        for position, length in enumerate(own):
            events.append((at, 1, rank, position))
            at += int(length * MS)
            events.append((at - 1, 0, rank, position))
    state: dict[int, int | None] = dict.fromkeys(range(len(shape)))
    for at, starts, rank, position in sorted(events):
        run.wait(at)
        call = run.pacer.started if starts else run.pacer.ended
        run.take(call(rank, 0, position, at))
        state |= {r.rank: r.clock_mhz for _, r in run.asked}
        following = position if starts else position + 1
        own = [c for c, _ in shape[rank]] + [None]
        assert state[rank] == own[following]
    run.wait(run.now + 10**9)
    assert {r.rank: r.clock_mhz for _, r in run.asked}.get(0) is None
    assert run.pacer.next_due_ns() is None


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(("started", "ended")),
                st.integers(0, 2),
                st.integers(0, 2**63),
                st.integers(0, 3),
                st.integers(0, 2**63),
            ),
            st.tuples(st.just("adopt"), st.booleans(), st.integers(0, 2**63)),
            st.tuples(st.just("due"), st.integers(0, 2**63)),
            st.tuples(st.just("measured"), st.floats(0, 1e6)),
            st.tuples(st.just("reset")),
        ),
        max_size=40,
    )
)
def test_no_order_of_events_makes_it_raise(calls: list[tuple]) -> None:  # type: ignore[type-arg]
    """Hostile numbers and stamps: no exception, never a request for what was asked already, and
    after all that was due is done nothing is pending."""
    plan = plan_of(*[([1000, None, 800, 1200], [40.0] * 4)] * 3)
    pacer = Pacer(3)
    state: dict[int, int | None] = dict.fromkeys(range(3))
    for name, *arguments in calls:
        if name == "adopt":
            pacer.adopt(plan if arguments[0] else None, arguments[1])
            continue
        if name == "reset":
            pacer.reset()
            state = dict.fromkeys(range(3))
            assert pacer.next_due_ns() is None
            continue
        for request in getattr(pacer, name)(*arguments) or ():
            assert state[request.rank] != request.clock_mhz
            state[request.rank] = request.clock_mhz
    for _ in range(3):
        pacer.due(2**80)
    assert pacer.next_due_ns() is None


def test_one_pending_write_per_rank() -> None:
    """However many events come, what waits to be done does not grow, so neither does the work."""
    pacer = Pacer(2)
    pacer.adopt(plan_of(*[([800, 1000] * 500, [50.0] * 1000)] * 2), 0)
    for position in range(999):
        pacer.started(0, 0, position, position * 50 * MS)
        pacer.ended(0, 0, position, (position + 1) * 50 * MS - 1)
    assert len(pacer.due(2**62)) <= 2


def test_plans_are_swapped_at_iteration_boundaries_only() -> None:
    """A rank still in the old iteration keeps the old plan's clocks while another one is in the
    new iteration already, also when a third plan comes meanwhile."""
    first, second, third = (
        plan_of(*[([clock, clock], [50.0, 50.0])] * 2) for clock in (800, 1000, 1200)
    )
    pacer = Pacer(2)
    pacer.adopt(first, 0)
    assert pacer.started(0, 0, 0, 0) == [Request(0, 800)]
    pacer.adopt(second, 1)
    assert pacer.started(1, 0, 0, 0) == [Request(1, 800)]
    pacer.ended(0, 0, 0, 50 * MS)
    pacer.started(0, 0, 1, 50 * MS)
    pacer.ended(0, 0, 1, 100 * MS)
    assert pacer.started(0, 1, 0, 120 * MS) == [Request(0, 1000)]
    pacer.adopt(third, pacer.begun + 1)
    pacer.ended(1, 0, 0, 130 * MS)
    assert pacer.started(1, 0, 1, 130 * MS) == []  # still at 800
    assert pacer.plan_for(0) is first
    assert pacer.plan_for(1) is second
    assert pacer.plan_for(2) is third


def test_the_newest_adoption_wins_and_old_plans_are_dropped() -> None:
    """A plan never put in force leaves nothing behind, and memory does not grow with plans."""
    pacer = Pacer(1)
    plans = [plan_of(([800 + i], [50.0])) for i in range(100)]
    for i, plan in enumerate(plans):
        pacer.adopt(plans[0], i + 5)
        pacer.adopt(plan, i)
        pacer.started(0, i, 0, i * 100 * MS)
        assert pacer.plan_for(i) is plan
        assert pacer.plan_for(i + 50) is plan
    assert len(pacer._plans) <= 3


def test_a_first_clock_is_foretold_by_another_rank() -> None:
    """The last stage starts long after the first: its lowering is asked for ahead of its start, in
    the first iteration under a plan too."""
    plan = PacedPlan(Plan(((None,), (800,))), (Timeline((0.0,), (0.05,)), Timeline((0.1,), (0.2,))))
    pacer = Pacer(2)
    pacer.started(0, 0, 0, 0)
    pacer.ended(0, 0, 0, 50 * MS)
    pacer.started(1, 0, 0, 100 * MS)
    pacer.ended(1, 0, 0, 200 * MS)
    pacer.adopt(plan, 1)
    pacer.started(0, 1, 0, 1000 * MS)
    assert pacer.next_due_ns() == 1100 * MS - LEAD_NS
    assert pacer.due(1100 * MS - LEAD_NS) == [Request(1, 800)]


def test_a_first_clock_that_was_foretold_is_taken_back_at_once() -> None:
    """In a pacer's very first iteration the rank has not begun, and its clock is low already."""
    plan = PacedPlan(Plan(((None,), (800,))), (Timeline((0.0,), (0.05,)), Timeline((0.1,), (0.2,))))
    pacer = Pacer(2)
    pacer.adopt(plan, 0)
    pacer.started(0, 0, 0, 1000 * MS)
    assert pacer.due(1100 * MS) == [Request(1, 800)]
    pacer.adopt(None, 0)
    assert pacer.hasten() == [Request(1, None)]


def test_a_first_clock_is_not_foretold_to_a_rank_still_at_work() -> None:
    """Its own last computations come first: their clocks and raises stay as they were."""
    plan = plan_of(([800, None], [50.0, 50.0]), ([900, 900], [50.0, 50.0]))
    pacer = Pacer(2)
    pacer.adopt(plan, 0)
    for rank in (0, 1):
        pacer.started(rank, 0, 0, 0)
    pacer.ended(0, 0, 0, 50 * MS)
    pacer.started(0, 0, 1, 50 * MS)
    pacer.ended(0, 0, 1, 100 * MS)
    before = pacer.next_due_ns()
    assert before is not None
    pacer.started(0, 1, 0, 110 * MS)
    assert pacer.due(before) == [Request(1, None)]


def test_reset_forgets_plans_and_what_was_scheduled() -> None:
    """After trouble nothing old may lower a clock."""
    pacer = Pacer(1)
    pacer.adopt(plan_of(([None, 800], [50.0, 50.0])), 0)
    pacer.started(0, 0, 0, 0)
    assert pacer.next_due_ns() is not None
    pacer.reset()
    assert pacer.next_due_ns() is None
    assert pacer.started(0, 0, 1, 50 * MS) == []


def test_ranks_whose_raises_coincide_ask_earlier() -> None:
    """The GPUs of a node take turns at the driver, so the second in the queue asks sooner."""
    pacer = Pacer(4)
    pacer.adopt(plan_of(*[([800, None], [100.0, 50.0])] * 4), 0)
    dues = []
    for rank in range(4):
        pacer.started(rank, 0, 0, 0)
        due = pacer._pace[rank].due
        assert due is not None
        dues.append(due.due_ns)
    assert dues[0] == 100 * MS - LEAD_NS - EARLY_NS
    assert dues[-1] <= dues[0] - FIRST_LATENCY_NS


@pytest.mark.parametrize("hang_s", [0.2, 30.0])
def test_one_write_that_hung_does_not_move_the_lead_far(hang_s: float) -> None:
    """A lowering is asked for a latency before its boundary; believing that writes take seconds
    would lower clocks seconds early."""
    pacer = Pacer(1)
    pacer.measured(hang_s)
    assert pacer.latency_ns <= FIRST_LATENCY_NS * (1 + 0.1 * LATENCY_JUMP)


def test_writes_that_hung_say_nothing() -> None:
    """A clock process that hung for five seconds under writes of eight GPUs is no slow driver."""
    pacer = Pacer(1)
    for _ in range(8):
        pacer.measured(5.0)
    assert pacer.latency_ns == FIRST_LATENCY_NS


def test_without_writes_the_latency_is_trusted_again_slowly() -> None:
    """From above alone: a driver that is fast stays known for it."""
    slow, fast = Pacer(1, 60 * MS), Pacer(1, 2 * MS)
    for _ in range(30):
        slow.unmeasured()
        fast.unmeasured()
    assert 30 * MS < slow.latency_ns < 40 * MS
    assert fast.latency_ns == 2 * MS


def test_latency_is_learned_all_the_same() -> None:
    """A driver that is always slow is known for it after some writes."""
    pacer = Pacer(1)
    for _ in range(60):
        pacer.measured(0.046)
    assert pacer.latency_ns == pytest.approx(46 * MS, rel=0.02)


Asked = list[tuple[int, int]]
"""Moments, and the clock that is asked for from then on; FULL where that is none."""

FULL = 9999


def asked_for(
    plan: PacedPlan, later: PacedPlan, events: list[tuple[int, bool, int, int]], *, wait: bool
) -> Asked:
    """Of one rank, whose events are heard at once, or wait for as long as they may.

    later: the plan from iteration 1 on, which is there after the very first event.
    """
    pacer, now, events = Pacer(1), 0, list(events)
    pacer.adopt(plan, 0)
    asked = [(0, FULL)]
    while events:
        may_wait = min(pacer.patience_ns(now), MOST_WAIT_NS) if wait else 0
        woken = now + int(may_wait) if may_wait >= LEAST_WAIT_NS else events[0][0]
        due = pacer.next_due_ns()
        now = max(now, woken if due is None else min(woken, due))
        requests = []
        while events and events[0][0] <= now:
            stamp, starts, number, position = events.pop(0)
            requests += (pacer.started if starts else pacer.ended)(0, number, position, stamp)
            if starts and number == position == 0:
                pacer.adopt(later, 1)
        for request in requests + pacer.due(now):
            asked.append((now, request.clock_mhz or FULL))
    return asked


def at(asked: Asked, moment: int) -> int:
    return next(clock for since, clock in reversed(asked) if since <= moment)


@given(
    st.lists(
        st.tuples(clocks, clocks, st.integers(5, 90), st.sampled_from([0, 0, 0, 5, 60])),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.tuples(st.floats(1, 1.2), st.floats(0, 2)), min_size=24, max_size=24),
)
def test_events_that_wait_make_nothing_slower(
    shape: list[tuple[int | None, int | None, int, int]], real: list[tuple[float, float]]
) -> None:
    """However waits turn out, and with computations as long as predicted, or longer: never is a
    lower clock asked for than if events were heard at once, unless it is what is wanted now and
    once a write has landed. The second iteration has another plan."""
    first, second, lengths, waits = map(list, zip(*shape, strict=True))
    plans = [plan_of((own, lengths), waits=waits) for own in (first, second)]
    events, wanted, now = [], [(0, FULL)], 10**9
    for nth, (length, wait) in enumerate(real[: 3 * len(shape)]):
        number, position = divmod(nth, len(shape))
        *own, length_ms, wait_ms = shape[position]
        clock = own[min(number, 1)]
        begin = now + int(wait * wait_ms * MS)
        now = begin + int(length * length_ms * MS)
        events += [(begin, True, number, position), (now, False, number, position)]
        wanted.append((begin, clock or FULL))
        if position == len(shape) - 1:
            wanted.append((now, FULL))
            now += 20 * MS
    at_once, waiting = (asked_for(*plans, events, wait=wait) for wait in (False, True))
    for moment in sorted({when for told in (at_once, waiting) for when, _ in told}):
        needed = max(at(wanted, moment), at(wanted, moment + LEAD_NS))
        assert at(waiting, moment) >= min(at(at_once, moment), needed)


def test_no_event_may_wait_where_a_lowered_run_is_short() -> None:
    pacer = Pacer(1)
    pacer.adopt(plan_of(([900, None], [10.0, 80.0])), 0)
    pacer.started(0, 0, 0, 0)
    pacer.ended(0, 0, 0, 10 * MS)
    assert pacer.patience_ns(10 * MS) > 25 * MS
    pacer.ended(0, 0, 1, 90 * MS)
    assert pacer.patience_ns(90 * MS) == 0


def test_no_event_waits_for_a_plan_that_no_rank_was_heard_of_under() -> None:
    pacer = Pacer(1)
    pacer.started(0, 0, 0, 0)
    assert pacer.patience_ns(0) == float("inf")
    pacer.adopt(plan_of(([900, None], [100.0, 80.0])), 1)
    assert pacer.patience_ns(0) == 0
    pacer.ended(0, 0, 0, 80 * MS)
    assert pacer.patience_ns(80 * MS) > 25 * MS


@pytest.mark.parametrize("clocks", [[None, None], [900, 900]])
def test_events_wait_for_no_raise_of_the_plan_to_come(clocks: list[int | None]) -> None:
    """However late the plan in force has its own."""
    pacer = Pacer(1)
    pacer.adopt(plan_of((clocks, [400.0, 400.0])), 0)
    pacer.adopt(plan_of(([900, None], [40.0, 400.0])), 1)
    pacer.started(0, 0, 0, 0)
    pacer.ended(0, 0, 0, 400 * MS)
    assert pacer.patience_ns(400 * MS) < 40 * MS


def test_events_wait_less_of_a_rank_that_is_faster_than_predicted() -> None:
    pacer = Pacer(1)
    pacer.adopt(plan_of(([900, 900, None], [100.0, 100.0, 100.0])), 0)
    pacer.started(0, 0, 0, 0)
    pacer.ended(0, 0, 0, 20 * MS)
    lead_ns = 2 * pacer.latency_ns + SETTLE_NS + EARLY_NS
    assert pacer.patience_ns(20 * MS) + lead_ns == pytest.approx(
        SHORTER * 100 * MS * (1 - PACE_WEIGHT * 0.8)
    )
