"""When tasks began and ended, from when a runtime says that arrays are ready."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from perseus_hooks.adapters import readiness
from perseus_hooks.adapters.readiness import Lane, Waiter, Work

PATIENCE_S = 20.0


class Array:
    """What a runtime gives back: ready, deleted, or neither yet."""

    def __init__(self, *, ready: bool = False) -> None:
        self.ready = ready
        self.deleted = False
        self.ready_ns = 0
        self.asked = 0

    def is_deleted(self) -> bool:
        return self.deleted

    def is_ready(self) -> bool:
        self.asked += 1
        if self.deleted:
            raise RuntimeError("Array has been deleted")
        return self.ready

    def done(self) -> None:
        self.ready_ns = time.monotonic_ns()
        self.ready = True


Told = list[tuple[str, int, int, bool]]


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    waiter = Waiter()
    yield waiter
    waiter.stop()


def work(
    told: Told, name: str, *results: Array, after: tuple[Array, ...] = (), dispatched_ns: int = 0
) -> Work:
    def report(start_ns: int, end_ns: int, known: bool) -> None:
        told.append((name, start_ns, end_ns, known))

    made = Work(report, name, dispatched_ns or time.monotonic_ns())
    made.results, made.after = results, after
    return made


def until(condition: Any) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_task_begins_when_the_one_before_it_ends(waiter: Waiter) -> None:
    """Tasks of one lane are told in their order, none before it was ready, and never overlap."""
    told: Told = []
    lane, first, second = Lane(), Array(), Array()
    one, two = work(told, "one", first), work(told, "two", second)
    assert waiter.put(lane, one)
    assert waiter.put(lane, two)
    second.done()  # a runtime may say so first: the order is the device's all the same
    until(lambda: first.asked)
    assert not told
    first.done()
    assert waiter.settle(PATIENCE_S)
    assert [(name, known) for name, _, _, known in told] == [("one", True), ("two", True)]
    assert told[0][1] == one.dispatched_ns
    assert told[0][2] >= first.ready_ns
    assert told[1][1] == told[0][2] <= told[1][2]


def test_waiting_for_an_input_is_no_part_of_a_task(waiter: Waiter) -> None:
    """What comes after another stage's output begins when that is there."""
    told: Told = []
    lane, came, result = Lane(), Array(), Array()
    waiter.put(lane, work(told, "late", result, after=(came,)))
    until(lambda: came.asked)
    came.done()
    until(lambda: result.asked)
    result.done()
    assert waiter.settle(PATIENCE_S)
    assert told[0][1] >= came.ready_ns
    assert told[0][2] >= result.ready_ns


def test_an_input_that_was_there_does_not_move_the_start(waiter: Waiter) -> None:
    """Found ready at the first look it came before, and the task began when it was dispatched."""
    told: Told = []
    sent = work(told, "soon", Array(ready=True), after=(Array(ready=True),))
    waiter.put(Lane(), sent)
    assert waiter.settle(PATIENCE_S)
    assert told[0][1] == sent.dispatched_ns


def test_what_was_deleted_first_is_told_as_not_known(waiter: Waiter) -> None:
    """Such a task has no end, nor the next a start; the one after that is known again."""
    told: Told = []
    lane, gone, blocker = Lane(), Array(), Array()
    gone.deleted = True
    waiter.put(lane, work(told, "before", blocker))
    for name, result in (("gone", gone), ("next", Array(ready=True)), ("then", Array(ready=True))):
        waiter.put(lane, work(told, name, result))
    blocker.done()
    assert waiter.settle(PATIENCE_S)
    known = [("before", True), ("gone", False), ("next", False), ("then", True)]
    assert [(name, known) for name, _, _, known in told] == known
    stamps = [stamp for _, start_ns, end_ns, _ in told for stamp in (start_ns, end_ns)]
    assert stamps == sorted(stamps)


def test_one_result_that_is_left_is_enough(waiter: Waiter) -> None:
    """A training state is donated to the next iteration and the loss is not."""
    told: Told = []
    gone, loss = Array(), Array()
    gone.deleted = True
    waiter.put(Lane(), work(told, "iteration", gone, loss))
    until(lambda: loss.asked)
    loss.done()
    assert waiter.settle(PATIENCE_S)
    assert told[0][2] >= loss.ready_ns
    assert told[0][3]


def test_a_deleted_input_leaves_the_start_unknown(waiter: Waiter) -> None:
    """Nobody can tell then when it came."""
    told: Told = []
    gone = Array()
    gone.deleted = True
    waiter.put(Lane(), work(told, "task", Array(ready=True), after=(gone,)))
    assert waiter.settle(PATIENCE_S)
    assert [known for *_, known in told] == [False]


def test_lanes_do_not_wait_for_each_other(waiter: Waiter) -> None:
    """A stage that hangs holds up no other stage's report."""
    told: Told = []
    stuck = Array()
    waiter.put(Lane(), work(told, "stuck", stuck))
    waiter.put(Lane(), work(told, "free", Array(ready=True)))
    until(lambda: told)
    assert [name for name, *_ in told] == ["free"]
    stuck.done()
    assert waiter.settle(PATIENCE_S)


def test_arrays_are_let_go_of_when_they_are_ready(waiter: Waiter) -> None:
    """An input when it has come, a result when it is there: memory is not ours to keep."""
    told: Told = []
    arrays = {"input": Array(), "result": Array()}
    held = {name: weakref.ref(array) for name, array in arrays.items()}
    waiter.put(Lane(), work(told, "task", arrays["result"], after=(arrays["input"],)))
    arrays.pop("input").done()
    until(lambda: held["input"]() is None)
    arrays.pop("result").done()
    until(lambda: held["result"]() is None)
    until(lambda: told)


def test_no_more_than_so_many_tasks_are_kept(
    waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes above that is dropped, and there is room again afterwards."""
    monkeypatch.setattr(readiness, "MOST_PENDING", 3)
    told: Told = []
    lane, stuck = Lane(), Array()
    kept = [waiter.put(lane, work(told, str(number), stuck)) for number in range(5)]
    assert kept == [True, True, True, False, False]
    stuck.done()
    assert waiter.settle(PATIENCE_S)
    assert waiter.put(lane, work(told, "more", stuck))
    assert waiter.settle(PATIENCE_S)
    assert [name for name, *_ in told] == ["0", "1", "2", "more"]


def test_stopped_it_ends_though_work_is_left_and_takes_none() -> None:
    """The interpreter's exit does not wait for a device, and nothing of a runtime is held then."""
    waiter, told, arrays = Waiter(), Told(), [Array()]
    waiter.put(Lane(), work(told, "stuck", arrays[0]))
    until(lambda: arrays[0].asked)
    held = weakref.ref(arrays[0])
    threads = [t for t in threading.enumerate() if t is waiter._thread]
    waiter.stop()
    until(lambda: not threads[0].is_alive())
    assert not waiter.put(Lane(), work(told, "late", Array(ready=True)))
    arrays.clear()
    until(lambda: held() is None)
    assert not told


def test_a_report_that_raises_costs_only_itself(waiter: Waiter) -> None:
    """The next task is told."""
    told: Told = []
    lane = Lane()
    bad = work(told, "bad", Array(ready=True))

    def broken(start_ns: int, end_ns: int, known: bool) -> None:
        raise RuntimeError

    bad.report = broken
    waiter.put(lane, bad)
    waiter.put(lane, work(told, "good", Array(ready=True)))
    assert waiter.settle(PATIENCE_S)
    assert [name for name, *_ in told] == ["good"]


def test_a_mistake_of_ours_holds_no_memory(
    waiter: Waiter, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread says that it ends; what was put before is let go of, and nothing more is taken."""
    told: Told = []
    lane, other, stuck = Lane(), Lane(), Array()
    held = weakref.ref(stuck)
    waiter.put(lane, work(told, "stuck", stuck))
    until(lambda: lane._asked)
    del stuck
    broken = work(told, "broken", Array(ready=True))
    broken.key = []  # cannot be looked up
    waiter.put(other, broken)
    until(lambda: held() is None)
    assert "hears no more" in caplog.text
    assert not waiter.put(lane, work(told, "late", Array(ready=True)))


def test_a_task_is_asked_for_when_it_may_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking takes the interpreter's lock for a moment: often only near the expected end."""
    now_ns = 10**9
    monkeypatch.setattr(readiness.time, "monotonic_ns", lambda: now_ns)
    told: Told = []
    lane = Lane()

    def looked(at_ns: int) -> int:
        """How long after this look the next is due."""
        nonlocal now_ns
        now_ns = at_ns
        lane.look()
        return lane.due_ns - now_ns

    first, second, third = Array(), Array(), Array()
    for array in (first, second, third):
        made = work(told, "task", array, dispatched_ns=10**9)
        made.key = "task"
        lane.add(made)
    assert looked(10**9) == readiness.SHORTEST_NS
    assert looked(10**9 + 64 * 10**6) == 10**6  # nothing is known of it: by what was waited
    assert looked(10**9 + 10**10) == readiness.LONGEST_NS
    lane._since_ns = now_ns  # as if it had lasted 100 ms
    lane._start_ns, first.ready = now_ns - 100 * 10**6, True
    assert looked(now_ns) == -now_ns  # the next one at once
    assert looked(now_ns) == 85 * 10**6
    assert looked(now_ns + 85 * 10**6) == 100 * 10**6 // 64
    second.ready = third.ready = True
    lane.look()
    lane.look()
    assert [end_ns - start_ns for _, start_ns, end_ns, _ in told] == [10**8, 85 * 10**6, 0]
    assert not lane
