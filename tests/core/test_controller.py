"""All jobs of a node: leases on GPUs, refusals, hostile input, and the same actions every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_hooks.events import (
    INSTRUCTIONS,
    TIME_SOURCES,
    Goodbye,
    Hello,
    StageEnd,
    StageStart,
)
from perseus_hooks.wire import MAX_STRING_BYTES

from perseusd.core.actions import Action, Forget, Refuse, RequestPlan, SetClock
from perseusd.core.controller import Controller, job_name
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Computation, Plan, PlanResult
from perseusd.core.settings import Settings

NodeOf = Callable[..., Any]
FACTS = {f"GPU-{i}": GpuFacts(f"GPU-{i}", "A100", (900, 1200, 1410), i) for i in range(3)}
HELLO = Hello(
    job="job", rank=0, world_size=2, local_rank=0, stage=0, stages=2, replica=0, replicas=1,
    schedule=None, gpus=("GPU-0",), time_source="host", uses_cuda=False, slowdown_budget=None,
    hostname="here",
)  # fmt: skip


@pytest.fixture
def controller() -> Controller:
    return Controller(Settings(), FACTS)


def lower(controller: Controller, name: str = "me:job") -> None:
    """As if the job's clocks were lowered: what follows must put them back."""
    controller.jobs[name].state = next(iter(CLOCKS_MAY_BE_LOWERED))


# --- leases --------------------------------------------------------------------------------------


def test_a_gpu_of_another_job_is_refused_naming_the_holder(controller: Controller) -> None:
    """Until it ends; then the next one gets it."""
    assert controller.hello("a", "me", HELLO) == []
    (refusal,) = controller.hello("b", "you", replace(HELLO, job="other"))
    assert isinstance(refusal, Refuse)
    assert refusal.client == "b"
    assert refusal.code == "gpu_held"
    assert "'me:job'" in refusal.reason
    assert "wait for it to end, or choose other GPUs with PERSEUS_GPUS" in refusal.reason
    assert not controller.knows("b")
    assert controller.holder("GPU-0") == "me:job"
    controller.client_lost("a", "has ended")
    assert controller.hello("b", "you", replace(HELLO, job="other")) == []
    assert controller.holder("GPU-0") == "you:other"


def test_jobs_of_two_users_with_one_name_are_two_jobs(controller: Controller) -> None:
    """And the replicas of one job are one each."""
    assert job_name("me", HELLO) != job_name("you", HELLO)
    assert job_name("me", replace(HELLO, replica=1)) != job_name("me", HELLO)
    assert job_name("me", replace(HELLO, replica=None)) == job_name("me", HELLO)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"gpus": ("GPU-9",)}, "unknown_gpu"),
        ({"gpus": ("index:7",)}, "unknown_gpu"),
        ({"gpus": ("index:²",)}, "unknown_gpu"),
        ({"gpus": ("index:",)}, "unknown_gpu"),
        ({"gpus": ("cuda-index:7",)}, "unknown_gpu"),
        ({"stage": 2}, "bad_stage"),
    ],
)
def test_what_cannot_be_served_is_refused(
    controller: Controller, changes: dict[str, Any], code: str
) -> None:
    """With a reason that says what is known instead; nothing is left behind."""
    (refusal,) = controller.hello("a", "me", replace(HELLO, **changes))
    assert isinstance(refusal, Refuse)
    assert refusal.code == code
    assert controller.jobs == {}
    assert controller.holder("GPU-0") is None


@pytest.mark.parametrize(
    ("gpu", "named"),
    [
        ("index:9", "GPU index 9 is not"),
        ("cuda-index:9", "GPU cuda-index 9 is not"),
        ("GPU-nowhere", "GPU 'GPU-nowhere' is not"),
        ("index:" + "9" * 250, "GPU 'index:999"),
        ("x" * 256, "GPU 'xxx"),
    ],
)
def test_the_refusal_of_an_unknown_gpu_fits_into_a_message(gpu: str, named: str) -> None:
    """The remedy and the GPU that was named, whatever its length and however many there are."""
    uuids = [f"GPU-{n:08x}-aaaa-bbbb-cccc-dddddddddddd" for n in range(16)]
    controller = Controller(Settings(), {u: GpuFacts(u, "A100", (900, 1410)) for u in uuids})
    (refusal,) = controller.hello("a", "me", replace(HELLO, gpus=(gpu,)))
    assert isinstance(refusal, Refuse)
    fitting = refusal.reason.encode()[:MAX_STRING_BYTES].decode()
    assert "with PERSEUS_GPUS or configure(gpus=)" in fitting
    assert named in fitting
    assert uuids[0] in fitting
    assert uuids[2] not in refusal.reason


def test_a_rank_whose_gpu_comes_later_joins_a_job_that_is_there(controller: Controller) -> None:
    """It was refused while its GPU could not be opened; the job began without it."""
    controller.hello("a", "me", HELLO)
    late = replace(HELLO, rank=1, stage=1, gpus=("GPU-9",))
    (refusal,) = controller.hello("b", "me", late)
    assert isinstance(refusal, Refuse)
    assert controller.gpu_here("GPU-9", "A100", (900, 1410), 9) == []
    assert controller.hello("b", "me", late) == []
    assert controller.jobs["me:job"].roster.all_gpus() == ["GPU-0", "GPU-9"]


def test_a_gpu_without_clocks_is_refused() -> None:
    """A virtual GPU names none: its job must not end the daemon."""
    controller = Controller(Settings(), {"GPU-0": GpuFacts("GPU-0", "vGPU", ())})
    (refusal,) = controller.hello("a", "me", HELLO)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "no_clocks"


def test_gpus_go_by_index_too(controller: Controller) -> None:
    """In the driver's order, which is CUDA's where all GPUs are alike and only there."""
    assert controller.hello("a", "me", replace(HELLO, gpus=("index:2", "cuda-index:1"))) == []
    assert controller.holder("GPU-2") == controller.holder("GPU-1") == "me:job"
    mixed = Controller(Settings(), {**FACTS, "GPU-3": GpuFacts("GPU-3", "H100", (900, 1980), 3)})
    (refusal,) = mixed.hello("a", "me", replace(HELLO, gpus=("cuda-index:1",)))
    assert isinstance(refusal, Refuse)


def test_a_rank_is_one_process(controller: Controller) -> None:
    """A second process that claims a rank which still runs is refused and changes nothing; the
    same process on another connection takes its own place."""
    controller.hello("a", "me", HELLO, 1)
    (refusal,) = controller.hello("b", "me", HELLO, 2)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "rank_taken"
    assert "set PERSEUS_RANK (or configure(rank=)), another for each process" in refusal.reason
    assert controller.holder("GPU-0") == "me:job"
    lower(controller)
    actions = controller.hello("c", "me", HELLO, 1)
    assert Forget("a") in actions
    assert SetClock("GPU-0", None) in actions
    assert not controller.knows("a")
    assert controller.knows("c")
    assert controller.holder("GPU-0") == "me:job"


def test_no_job_is_slowed_while_no_clock_can_be_written(node: NodeOf) -> None:
    """The clock process is not there: measured, and no more, until it is."""
    made = node()
    made.controller.writable = False
    made.join()
    made.iterate(20)
    assert made.state == "baseline"
    assert "no clock can be written" in made.job.reason
    made.controller.writable = True
    made.until("hold")


def test_a_client_that_changes_jobs_leaves_no_lowered_clock(controller: Controller) -> None:
    """Its old job is let go of, the GPU it had included, before the new one begins."""
    controller.hello("a", "me", HELLO)
    controller.hello("b", "me", replace(HELLO, rank=1, stage=1, gpus=("GPU-1",)))
    lower(controller)
    actions = controller.hello("a", "me", replace(HELLO, job="next", gpus=("GPU-2",)))
    assert {a.uuid for a in actions if isinstance(a, SetClock) and a.clock_mhz is None} == {
        "GPU-0",
        "GPU-1",
    }
    assert controller.jobs["me:job"].state not in CLOCKS_MAY_BE_LOWERED
    assert [controller.holder(f"GPU-{i}") for i in range(3)] == [None, "me:job", "me:next"]


def test_a_hello_that_gives_up_a_gpu_ends_its_lease(controller: Controller) -> None:
    """Another job can have it at once, at full clock."""
    controller.hello("a", "me", HELLO)
    actions = controller.hello("a", "me", replace(HELLO, gpus=("GPU-1",)))
    assert SetClock("GPU-0", None) in actions
    assert controller.holder("GPU-0") is None
    assert controller.hello("b", "you", HELLO) == []


def test_a_refused_second_hello_ends_the_first_ones_lease(controller: Controller) -> None:
    """The client is not listened to any more, so nothing of it may stay lowered."""
    controller.hello("a", "me", HELLO)
    lower(controller)
    actions = controller.hello("a", "me", replace(HELLO, gpus=("GPU-9",)))
    assert SetClock("GPU-0", None) in actions
    assert isinstance(actions[-1], Refuse)
    assert not controller.knows("a")
    assert controller.jobs == {}


def test_the_last_client_takes_its_job_with_it(controller: Controller) -> None:
    """Nothing is kept of a job that is over, and late answers and events find nothing."""
    controller.hello("a", "me", HELLO)
    assert SetClock("GPU-0", None) in controller.stage_event("a", Goodbye(5, 5), 5)
    assert controller.jobs == {}
    assert controller._clients == {}
    assert controller._holders == {}
    assert controller.client_lost("a", "again") == []
    assert controller.planned("me:job", 1, "late") == []
    assert controller.stage_event("a", StageEnd(1, 1, 1), 1) == []
    assert controller.release_gpu("GPU-0", "why") == []
    controller.energy("GPU-0", 1, 1.0)
    controller.written("GPU-0", 900, 1, 2)


def test_the_state_of_one_job_is_nothing_to_another(node: NodeOf) -> None:
    """While one job is held, another one's trouble changes none of its clocks."""
    made = node()
    made.controller.gpus = {**made.controller.gpus, "GPU-9": GpuFacts("GPU-9", "A100", (900, 1410))}
    made.join()
    made.until("hold")
    hello = replace(made.hello(0), job="other", gpus=("GPU-9",), stages=1, world_size=1)
    made.do(made.controller.hello("z", "you", hello))
    before = len(made.log)
    made.do(made.controller.client_lost("z", "has ended"))
    assert {w.uuid for w in made.writes(before)} == {"GPU-9"}
    assert made.state == "hold"


def test_another_processs_claim_to_a_stage_does_not_time_it(node: NodeOf) -> None:
    """Two members of one stage: the lowest rank's events count, whatever the other one sends."""
    made = node()
    made.join()
    twin = replace(made.hello(1), rank=5, world_size=4)
    for rank in range(3):
        made.do(made.controller.hello(str(rank), "me", replace(made.hello(rank), world_size=4)))
    made.do(made.controller.hello("twin", "me", twin))

    def chatter(n: Any, rank: int, c: Computation, starts: bool) -> bool:
        event = StageStart(n.sequence[rank], n.now_ns, 1, "recompute", 3, 0, None, 99)
        n.do(n.controller.stage_event("twin", event, n.now_ns))
        return True

    for _ in range(30):
        made.iterate(1, chatter)
    assert made.state == "hold"


# --- hostile but well-formed ---------------------------------------------------------------------

counts = st.sampled_from((0, 1, 2, 3, 2**20 - 1))
integers = st.sampled_from((0, 1, 2, 3, 7, 10**12, 10**12 + 1, 2**63 - 1))
optional = st.none() | st.integers(0, 3)
hellos = st.builds(
    Hello,
    job=st.sampled_from(("job", "other", "a/1")),
    rank=counts,
    world_size=st.none() | counts,
    local_rank=optional,
    stage=st.none() | counts,
    stages=st.none() | counts,
    replica=optional,
    replicas=optional,
    schedule=st.none(),
    gpus=st.lists(
        st.sampled_from(("GPU-0", "GPU-1", "GPU-2", "GPU-9", "index:1", "index:²", "cuda-index:0")),
        max_size=3,
    ).map(tuple),
    time_source=st.sampled_from(TIME_SOURCES),
    uses_cuda=st.booleans(),
    slowdown_budget=st.none() | st.floats(0, 1),
    hostname=st.just("x"),
)
starts = st.builds(
    StageStart,
    sequence=integers,
    time_ns=integers,
    token=integers,
    instruction=st.sampled_from(INSTRUCTIONS),
    microbatch=counts,
    chunk=counts,
    stage=st.none() | counts,
    iteration=st.none() | integers,
)
events = st.one_of(
    starts,
    st.builds(StageEnd, sequence=integers, time_ns=integers, token=integers),
    st.builds(Goodbye, sequence=integers, time_ns=integers),
)
clients = st.sampled_from("abc")
calls = st.one_of(
    st.tuples(st.just("hello"), clients, st.sampled_from(("me", "you")), hellos),
    st.tuples(st.just("stage_event"), clients, events, integers),
    st.tuples(st.just("client_lost"), clients, st.just("has ended")),
    st.tuples(st.just("energy"), st.sampled_from(("GPU-0", "GPU-9")), integers, st.floats(0, 1e12)),
    st.tuples(st.just("written"), st.just("GPU-0"), st.none() | counts, integers, integers),
    st.tuples(st.just("tick"), integers),
    st.tuples(st.just("planned"), st.just("me:job"), integers, st.just("no")),
    st.tuples(st.just("release_all"), st.just("why")),
)


@given(st.lists(calls, max_size=40))
def test_no_messages_make_it_raise(stream: list[tuple[Any, ...]]) -> None:
    """Any messages in any order from anyone: actions, never an exception; and no clock is lowered
    by such noise."""
    controller = Controller(Settings(), FACTS)
    for name, *arguments in stream:
        for action in getattr(controller, name)(*arguments) or ():
            assert not (isinstance(action, SetClock) and action.clock_mhz is not None)
        for job in controller.jobs.values():
            assert isinstance(job.reason, str)
            assert job.deadline_s is None or job.deadline_s > 0
        controller.next_due_ns()
        assert set(controller._holders.values()) <= controller.jobs.keys()


@st.composite
def regular_orders(draw: st.DrawFn) -> list[list[tuple[str, int, int]]]:
    """Per rank an order that it keeps: sensible, senseless or hostile."""
    sensible = [("forward", m, 0) for m in range(3)] + [("backward", m, 0) for m in range(3)]
    ranks = draw(st.integers(1, 3))
    step = st.tuples(
        st.sampled_from(INSTRUCTIONS),
        st.sampled_from((0, 1, 2, 2**20 - 1)),
        st.sampled_from((0, 1, 2**20 - 1)),
    )
    order = st.one_of(
        st.just(sensible), st.just([("iteration", 0, 0)]), st.lists(step, min_size=1, max_size=8)
    )
    return [draw(order) for _ in range(ranks)]


@settings(deadline=None, max_examples=60)
@given(
    regular_orders(),
    st.lists(st.sampled_from((0, 1, 1000, 10**6, 10**8, 10**15)), min_size=1, max_size=7),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_jobs_of_any_regular_order_and_length_do_not_break_it(
    orders: list[list[tuple[str, int, int]]],
    lengths: list[int],
    said: bool,
    metered: bool,
    every: int,
) -> None:
    """Twenty-five iterations of each, computations of no length and of eleven days among them, so
    that learning, planning and holding are reached: no exception, whatever is answered."""
    facts = {f"GPU-{r}": GpuFacts(f"GPU-{r}", "A100", (900, 1065, 1200, 1410)) for r in range(3)}
    controller = Controller(Settings(baseline_iterations=every), facts)
    stages = len(orders)
    for rank in range(stages):
        hello = replace(
            HELLO, rank=rank, stage=rank, stages=stages, world_size=stages, gpus=(f"GPU-{rank}",)
        )
        controller.hello(str(rank), "me", hello)
    now, sequence, drawn = 10**12, [0] * stages, 0
    for iteration in range(25):
        for step in range(max(map(len, orders))):
            for rank, order in enumerate(orders):
                if step >= len(order):
                    continue
                instruction, microbatch, chunk = order[step]
                number = iteration if said else None
                sequence[rank] += 2
                controller.stage_event(
                    str(rank),
                    StageStart(
                        sequence[rank] - 1, now, 1, instruction, microbatch, chunk, None, number
                    ),
                    now,
                )
                now += lengths[drawn % len(lengths)]
                drawn += 1
                if metered:
                    controller.energy(f"GPU-{rank}", now, now * 1e-7)
                asked = controller.stage_event(str(rank), StageEnd(sequence[rank], now, 1), now)
                asked += controller.tick(now)
                for action in asked:
                    if isinstance(action, RequestPlan):
                        clocks = tuple((1065,) * len(o) for o in action.problem.pipeline.orders)
                        plan = PlanResult(Plan(clocks), 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)
                        answer = "cannot" if iteration % 5 == 0 else plan
                        asked += controller.planned(action.job, action.request, answer)
                    if isinstance(action, SetClock):
                        controller.written(action.uuid, action.clock_mhz, now, now + 5_000_000)
            now += lengths[drawn % len(lengths)]
        for job in controller.jobs.values():
            assert job.reason is not None
            job.critical_path()


# --- the same again ------------------------------------------------------------------------------


def _recorded(node: NodeOf, seed: int) -> list[tuple[int, Action]]:
    made = node(said=bool(seed % 2))
    made.join()
    made.until("hold")
    made.do(made.controller.announce_straggler("me:job", 1.1))
    made.iterate(3)
    made.do(made.controller.announce_straggler("me:job", None))
    made.iterate(3)
    made.do(made.controller.client_lost("2", "has ended"))
    made.iterate(3)
    made.join(2)
    made.iterate(12)
    log: list[tuple[int, Action]] = made.log
    return log


@pytest.mark.parametrize("seed", [0, 1])
def test_a_replayed_stream_gives_the_same_actions(node: NodeOf, seed: int) -> None:
    """Events and times in, actions out, and nothing else: no clock, no chance."""
    first, second = _recorded(node, seed), _recorded(node, seed)
    assert len(first) > 50
    assert [repr(a) for a in first] == [repr(b) for b in second]


def test_an_answer_for_a_job_of_the_same_name_before_is_not_taken(node: NodeOf) -> None:
    """A job that restarts while the planner works: the plan was for another order, perhaps."""
    made = node(answering=False)
    made.join()
    for _ in range(60):
        if made.asked:
            break
        made.iterate()
    before = made.asked[-1]
    for rank in range(made.stages):
        made.do(made.controller.client_lost(str(rank), "has ended"))
    made.join()
    made.asked.clear()
    for _ in range(60):
        if made.asked:
            break
        made.iterate()
    assert made.asked[-1].request != before.request
    made.asked.append(before)
    made.answer()
    assert made.state != "hold"
