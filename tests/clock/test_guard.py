"""The guard rails: what is refused, what is replaced, and that nothing is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.clock.guard import Answer, Ask, GpuDesk, Limits, RateLimit
from perseusd.clock.protocol import UNLOCKED, ResultCode
from perseusd.gpus.base import GpuInfo

NS = 10**9
GPU = GpuInfo("GPU-0", "A100", 0, tuple(range(210, 1411, 15)), False, True)
FREE = Limits(writes_per_s=1e9, burst=10**6)


def ask(request_id: int, clock_mhz: int) -> Ask:
    return Ask(1, request_id, clock_mhz)


@pytest.mark.parametrize(
    ("clock_mhz", "code"),
    [
        (1410, None),
        (705, None),
        (UNLOCKED, None),
        (690, ResultCode.BELOW_FLOOR),
        (1411, ResultCode.UNSUPPORTED_CLOCK),
        (7, ResultCode.UNSUPPORTED_CLOCK),
    ],
)
def test_clocks_within_the_rails(clock_mhz: int, code: ResultCode | None) -> None:
    """Only supported clocks from half the highest up, and resets, are allowed."""
    assert GpuDesk(GPU, Limits()).refusal(clock_mhz) is code


def test_floor_is_configurable() -> None:
    """The floor is the given part of the highest clock."""
    desk = GpuDesk(GPU, Limits(min_clock_fraction=0.75))
    assert desk.refusal(1065) is None
    assert desk.refusal(1050) is ResultCode.BELOW_FLOOR


def test_mig_is_refused_but_can_be_reset() -> None:
    """A GPU divided by MIG takes no lock, and its reset is never in the way."""
    mig = GpuInfo("GPU-0", "A100", 0, GPU.supported_clocks_mhz, True, True)
    assert GpuDesk(mig, Limits()).refusal(1005) is ResultCode.MIG
    assert GpuDesk(mig, Limits()).refusal(UNLOCKED) is None
    assert GpuDesk(mig, Limits(allow_mig=True)).refusal(1005) is None


def test_gpu_without_clocks_takes_no_lock() -> None:
    """Where the driver lists no clock (vGPU) nothing is supported."""
    vgpu = GpuInfo("GPU-0", "vGPU", 0, (), False, False)
    assert GpuDesk(vgpu, Limits()).refusal(1005) is ResultCode.UNSUPPORTED_CLOCK


def test_newest_replaces_the_waiting_one() -> None:
    """Behind a running write only the newest request waits; the replaced one is answered."""
    desk = GpuDesk(GPU, FREE)
    desk.ask(ask(1, 1005))
    assert desk.begin(0) == ask(1, 1005)
    assert desk.ask(ask(2, 900)) == []
    assert desk.begin(0) is None
    assert desk.ask(ask(3, 1200)) == [Answer(ask(2, 900), ResultCode.SUPERSEDED)]
    assert desk.finish(ResultCode.OK) == ask(1, 1005)
    assert desk.begin(0) == ask(3, 1200)


def test_no_op_needs_no_write() -> None:
    """What is installed already is answered at once; what is not known is written."""
    desk = GpuDesk(GPU, FREE)
    desk.ask(ask(1, 1005))
    desk.begin(0)
    desk.finish(ResultCode.OK)
    desk.ask(ask(2, 1005))
    assert desk.begin(0) == Answer(ask(2, 1005), ResultCode.OK)
    desk.ask(ask(3, 1200))
    desk.begin(0)
    desk.finish(ResultCode.FAILED)
    desk.ask(ask(4, 1005))
    assert desk.begin(0) == ask(4, 1005)


def test_locks_are_rate_limited_and_resets_never() -> None:
    """After a burst of locks the next is refused, and followed by a reset; time refills."""
    desk = GpuDesk(GPU, Limits(writes_per_s=20, burst=10))
    for number in range(10):
        desk.ask(ask(number, 1005 + 15 * number))
        assert isinstance(desk.begin(0), Ask)
        desk.finish(ResultCode.OK)
    desk.ask(ask(10, 1200))
    assert desk.begin(0) == Answer(ask(10, 1200), ResultCode.TOO_MANY_WRITES)
    assert desk.reset_due
    for number in range(20):
        desk.ask(ask(number, UNLOCKED))
        begun = desk.begin(0)
        assert begun is not None
        if isinstance(begun, Ask):
            desk.finish(ResultCode.FAILED)  # so that the next is no no-op
    desk.ask(ask(11, 1200))
    assert desk.begin(NS // 20) == ask(11, 1200)


@given(st.lists(st.integers(0, 3 * NS), max_size=200).map(sorted))
def test_rate_over_any_time(moments: list[int]) -> None:
    """In any span at most burst + rate × span are let through."""
    rate = RateLimit(20, 10)
    passed = [moment for moment in moments if rate.take(moment)]
    for i, begin in enumerate(passed):
        for j, end in enumerate(passed[i:], start=1):
            assert j <= 10 + 20 * (end - begin) / NS + 1e-6


def test_waiting_lock_is_withdrawn_and_a_waiting_reset_is_not() -> None:
    """When the daemon is not there its locks are dropped; what puts clocks back stays."""
    desk = GpuDesk(GPU, FREE)
    desk.ask(ask(1, 1005))
    assert desk.withdraw_locks() == [Answer(ask(1, 1005), ResultCode.NO_HEARTBEAT)]
    assert desk.begin(0) is None
    desk.ask(ask(2, UNLOCKED))
    assert desk.withdraw_locks() == []
    assert desk.begin(0) == ask(2, UNLOCKED)


def test_reset_is_owed_until_one_works() -> None:
    """A GPU said to be locked at the start is owed a reset, again after each that failed."""
    desk = GpuDesk(GPU, FREE, may_be_locked=True)
    for _ in range(3):
        assert desk.reset_due
        desk.ask(ask(0, UNLOCKED))
        desk.begin(0)
        assert not desk.reset_due
        desk.finish(ResultCode.FAILED)
    desk.ask(ask(0, UNLOCKED))
    desk.begin(0)
    desk.finish(ResultCode.OK)
    assert not desk.reset_due
    assert not desk.may_be_locked


def test_finishing_what_was_not_begun_is_an_error() -> None:
    """A result without a write is a fault of ours and said so."""
    with pytest.raises(RuntimeError):
        GpuDesk(GPU, FREE).finish(ResultCode.OK)


moves = st.lists(
    st.one_of(
        st.sampled_from([UNLOCKED, 705, 1005, 1410, 300, 1]).map(lambda mhz: ("ask", mhz)),
        st.just(("begin", 0)),
        st.sampled_from([ResultCode.OK, ResultCode.FAILED]).map(lambda code: ("finish", code)),
        st.just(("release", 0)),
    ),
    max_size=60,
)


@given(moves)
def test_each_request_is_answered_once_and_no_lock_is_forgotten(
    moves: list[tuple[str, int]],
) -> None:
    """Over any course of events: one answer per request, and may_be_locked whenever a lock was
    begun after the last reset that worked."""
    desk = GpuDesk(GPU, Limits(writes_per_s=5, burst=3))
    answered: list[int] = []
    asked = 0
    locked = False
    for now, (move, value) in enumerate(moves):
        if move == "ask":
            answered += [a.ask.request_id for a in desk.ask(ask(asked, value))]
            asked += 1
        elif move == "begin":
            begun = desk.begin(now * NS // 50)
            if isinstance(begun, Answer):
                answered.append(begun.ask.request_id)
            elif begun is not None:
                locked = locked or begun.clock_mhz != UNLOCKED
        elif move == "finish" and desk.running is not None:
            done = desk.finish(ResultCode(value))
            answered.append(done.request_id)
            locked = locked and not (done.clock_mhz == UNLOCKED and value == ResultCode.OK)
        elif move == "release":
            answered += [a.ask.request_id for a in desk.withdraw_locks()]
            desk.owe_reset()
        assert desk.may_be_locked == locked
    while desk.running is not None or (begun := desk.begin(10**12)) is not None:
        if desk.running is not None:
            answered.append(desk.finish(ResultCode.OK).request_id)
        elif isinstance(begun, Answer):
            answered.append(begun.ask.request_id)
    assert sorted(answered) == list(range(asked))
