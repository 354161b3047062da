"""One job's way through its states, driven by a scripted training job in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perseusd.core.actions import Notice, RequestPlan, SetClock
from perseusd.core.model import Computation, Plan, PlanResult, Problem
from perseusd.core.settings import Settings

NodeOf = Callable[..., Any]


@pytest.fixture
def held(node: NodeOf) -> Any:
    """A job that is held under a plan with rank 0 at a lower clock."""
    made = node()
    made.join()
    made.until("hold")
    made.iterate(2)
    return made


def in_the_middle(node: Any, do: Callable[[], None], at: int = 10) -> None:
    """One iteration in which something happens after its `at`th event, with clocks lowered."""
    count = 0

    def hook(_: Any, rank: int, computation: Computation, starts: bool) -> bool:
        nonlocal count
        count += 1
        if count == at:
            assert node.lowered, "nothing is lowered: the test would prove nothing"
            do()
        return True

    node.iterate(1, hook)


def all_reset(node: Any, since: int) -> bool:
    """Whether every GPU of the job was asked to full clock at once, and none lowered after it."""
    writes = [(at, a) for at, a in node.log[since:] if isinstance(a, SetClock)]
    full = [(at, a.uuid) for at, a in writes if a.clock_mhz is None]
    last = max((i for i, (_, a) in enumerate(writes) if a.clock_mhz is not None), default=-1)
    moments = {at for at, _ in full}
    return any(
        {u for at, u in full if at == moment} >= {f"GPU-{r}" for r in range(node.stages)}
        and all(at <= moment for at, _ in writes[: last + 1])
        for moment in moments
    )


# --- the way to hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, False])
def test_a_job_is_measured_learned_and_held(node: NodeOf, said: bool) -> None:
    """In this order, whether or not the trainer tells iterations' numbers; clocks are lowered only
    in learn and hold; and each GPU is at full clock when the iteration has ended."""
    made = node(said=said)
    made.join()
    made.until("learn", 15)
    assert not [w for w in made.writes() if w.clock_mhz is not None]
    assert made.job.ledger.count("baseline") == made.settings.baseline_iterations
    made.until("hold", 30)
    for _ in range(5):
        before = len(made.log)
        made.iterate()
        assert [w for w in made.writes(before) if w.clock_mhz is not None]
        assert made.lowered == []
    assert [s.value for s, _ in made.job.states] == ["baseline", "learn", "hold"]
    assert made.job.reason == ""


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_job_without_all_its_ranks_stays_in_baseline(node: NodeOf, missing: int) -> None:
    """However long it trains, nothing is lowered, and the reason names the stage."""
    made = node()
    made.join(*({0, 1, 2} - {missing}))
    made.iterate(25)
    assert made.state == "baseline"
    assert made.writes() == []
    assert f"stage {missing}" in made.job.reason


def test_a_rank_that_never_speaks_keeps_the_job_in_baseline(node: NodeOf) -> None:
    """Present but unheard is not understood."""
    made = node(silent={1})
    made.join()
    made.iterate(25)
    assert made.state == "baseline"
    assert made.writes() == []


def test_an_order_that_changes_every_iteration_stays_in_baseline(node: NodeOf) -> None:
    """Two orders in turn (an evaluation every other iteration, say) are never understood."""
    made = node()
    made.join()

    def skip_last(n: Any, rank: int, c: Computation, starts: bool) -> bool:
        left_out = bool(n.iteration % 2) and c.microbatch == n.microbatches - 1
        if left_out:
            n.sequence[rank] -= 1
        return not left_out

    made.iterate(5, skip_last)
    assert made.job.reason == "the order of its computations is not understood yet"
    made.iterate(20, skip_last)
    assert made.state == "baseline"
    assert made.writes() == []
    assert made.job.reason == (
        "rank 0: its order does not recur: iteration 23 had backward of microbatch 1 at position 4 "
        "(from 0), where iteration 22 had forward of microbatch 3"
    )
    made.iterate(2)
    assert made.job.reason == "measuring the baseline: 2 of 5 iterations", "it recurs now"


def test_what_an_operator_wants_is_told_before_what_does_not_recur(node: NodeOf) -> None:
    """As long as clocks are withheld anyway."""
    made = node(numbers=lambda iteration: 10 * iteration)
    made.join()
    made.iterate(12)
    assert "iterations must count by one" in made.job.reason
    made.do(made.controller.withhold("me:job", "paused by an operator: for a test"))
    made.iterate(12)
    assert made.job.reason == "paused by an operator: for a test"


def test_a_warm_up_of_another_shape_is_no_obstacle(node: NodeOf) -> None:
    """The first iterations run fewer microbatches, then it settles: held all the same."""
    made = node()
    made.join()

    def fewer_at_first(n: Any, rank: int, c: Computation, starts: bool) -> bool:
        left_out = n.iteration < 2 and c.microbatch == n.microbatches - 1
        if left_out:
            n.sequence[rank] -= 1
        return not left_out

    made.iterate(4, fewer_at_first)
    made.until("hold", 40)


def test_observe_mode_never_writes_a_clock(node: NodeOf) -> None:
    """It watches through baseline for ever and says why."""
    made = node(settings=Settings(observe=True))
    made.join()
    made.iterate(40)
    made.do(made.controller.announce_straggler("me:job", 1.3))
    made.iterate(5)
    made.do(made.controller.client_lost("0", "has ended"))
    assert not [w for w in made.writes() if w.clock_mhz is not None]
    asked = [a for _, a in made.log if isinstance(a, RequestPlan)]
    assert all(a.request < 0 for a in asked), "what acting would save, and no plan to act by"
    made.join(0)
    made.iterate(10)
    assert made.state == "baseline"
    assert "observe-only" in made.job.reason


def test_counters_that_do_not_move_keep_full_clocks_while_planning(node: NodeOf) -> None:
    """Without energies there is no plan, and the reason says so."""
    made = node()
    made.controller.energy = lambda *_: None
    made.join()
    made.iterate(40)
    assert made.state in ("baseline", "learn")
    assert "energy" in made.job.reason
    assert len([n for n in made.notices() if "energy" in n]) == 1


def test_spans_of_no_length_do_not_break_anything(node: NodeOf) -> None:
    """All stamps alike: nothing can be known of such a job, and nothing is done to it."""
    made = node()
    made.join()
    stamp = made.now_ns

    def frozen(n: Any, rank: int, c: Computation, starts: bool) -> bool:
        n.now_ns, now = stamp, n.now_ns
        n.send(c, starts)
        n.now_ns = now
        return False

    made.iterate(30, frozen)
    assert made.state in ("baseline", "learn", "release")
    assert made.lowered == []


# --- trouble -------------------------------------------------------------------------------------


def test_a_rank_that_dies_means_full_clocks_at_once(held: Any) -> None:
    """All of the job's GPUs in one go, and nothing lowered while it is away."""
    before = len(held.log)
    in_the_middle(held, lambda: held.do(held.controller.client_lost("1", "has ended")))
    assert all_reset(held, before)
    assert held.state == "release"
    held.iterate(20)
    assert all_reset(held, before)
    assert "rank 1 has ended" in held.job.reason


@pytest.mark.parametrize("ranks", [{1}, {0, 1, 2}])
def test_a_rank_that_falls_silent_means_full_clocks(held: Any, ranks: set[int]) -> None:
    """Right after the silence limit, by the daemon's own time: stopped, not dead, so no lease
    ends."""
    before, stopped = len(held.log), []

    def stop() -> None:
        stopped.append(held.now_ns)
        held.silent = ranks

    in_the_middle(held, stop)
    limit_s = held.job.silence_limit_s()
    assert held.state == "hold"
    held.pass_time(stopped[0] + int((limit_s + 1) * 1e9))
    assert held.state == "release"
    assert held.lowered == []
    assert "silent" in held.job.reason
    assert all_reset(held, before)
    let_go = max(at for at, action in held.log[before:] if isinstance(action, Notice))
    assert limit_s - 0.2 <= (let_go - stopped[0]) * 1e-9 <= limit_s + 0.1


def test_lost_events_mean_full_clocks_at_once(held: Any) -> None:
    """A gap in a rank's numbering: something was not seen, so the position is not known."""
    before = len(held.log)

    def skip() -> None:
        held.sequence[2] += 1

    in_the_middle(held, skip)
    assert all_reset(held, before)
    assert "lost on the way" in held.notices()[-1]


def test_disorder_means_full_clocks_and_then_hold_again(held: Any) -> None:
    """An unknown computation at once releases; understood again, the job is held again without
    being learned anew."""
    before = len(held.log)

    def stray() -> None:
        held.sequence[1] += 1
        held.send(Computation(1, 0, "recompute", 9), True)

    in_the_middle(held, stray)
    assert all_reset(held, before)
    began = held.iteration
    held.until("hold", 15)
    assert held.iteration - began <= 10
    held.iterate(2)
    assert [w for w in held.writes(len(held.log) - 8) if w.clock_mhz is not None]


@pytest.mark.parametrize("while_held", [True, False])
def test_a_rank_that_joins_late_means_learning_anew(
    held: Any, node: NodeOf, while_held: bool
) -> None:
    """Another process says hello for a stage: the pipeline is not the one that was known."""
    made = held
    if not while_held:
        made = node()
        made.join()
        made.iterate(4)
    before = len(made.log)
    hello = made.hello(0)
    late = hello.__class__(**{**vars(hello), "rank": 7, "gpus": ("GPU-0",)})

    def join() -> None:
        made.do(made.controller.hello("late", "me", late))

    if while_held:
        in_the_middle(made, join)
        assert all_reset(made, before)
    else:
        join()
    assert made.lowered == []
    assert made.job._known is None


def test_a_repeated_hello_changes_nothing(held: Any) -> None:
    """Clients say hello again when asked; the same hello is not a new member."""
    before = held.state, held.job._known, len(held.log)
    held.do(held.controller.hello("1", "me", held.hello(1)))
    assert (held.state, held.job._known, len(held.log)) == before


def test_a_new_epoch_goes_on_under_its_plan(held: Any) -> None:
    """Numbers that start again from 0 after a whole iteration: held all the same."""
    offset, plan = held.iteration, held.job.plan_in_force
    held.numbers = lambda i: i - offset
    held.iterate(5)
    assert held.state == "hold"
    assert held.job.plan_in_force is plan
    before = len(held.log)
    held.iterate(1)
    assert [w for w in held.writes(before) if w.clock_mhz is not None]
    assert held.job.ledger.last.number == held.iteration - 2


def test_one_rank_in_another_epoch_means_release_and_then_hold(held: Any) -> None:
    """Ranks that disagree about the number are not understood until they agree again."""
    offset = held.iteration
    held.numbers = lambda i: i - offset if held.rank_sending == 1 and i < offset + 3 else i
    held.until("release", 8)
    held.until("hold", 40)


def test_iterations_slower_than_allowed_mean_release(held: Any) -> None:
    """Three iterations 5 % long under the plan: let go, and the baseline is measured anew."""
    held.stretch = 1.05
    held.until("release", 10)
    assert held.lowered == []
    assert "longer than allowed" in held.job.reason
    assert held.job.ledger.sample("baseline") is None
    held.until("hold", 40)
    sample = held.job.ledger.sample("baseline")
    assert sample.mean == pytest.approx(held.job.ledger.last.time_s, rel=0.01)


def test_a_breach_is_seen_while_a_plan_is_awaited(held: Any) -> None:
    """A planner that hangs must not switch the guard off."""
    held.answering = False
    for _ in range(40):
        if held.asked:
            break
        held.iterate()
    assert held.asked
    held.stretch = 1.05
    held.until("release", 10)


def test_release_by_the_shell_means_full_clocks(held: Any) -> None:
    """A clock write failed: all clocks of the job that holds that GPU, and of no other state."""
    before = len(held.log)
    in_the_middle(held, lambda: held.do(held.controller.release_gpu("GPU-2", "it hangs")))
    assert all_reset(held, before)
    assert held.state == "release"
    held.until("hold", 15)
    before = len(held.log)
    in_the_middle(held, lambda: held.do(held.controller.release_all("the clock process went away")))
    assert all_reset(held, before)


# --- the planner ---------------------------------------------------------------------------------


def test_a_planner_that_cannot_is_asked_again_without_flooding(node: NodeOf) -> None:
    """Its error is told once, clocks stay full, and the next iteration asks again."""
    made = node(answering=False)
    made.join()
    made.until("learn")
    while not made.asked:
        made.iterate()
    for _ in range(5):
        made.answer("no clocks to choose from")
        assert made.state == "learn"
        assert "no clocks to choose from" in made.job.reason
        made.iterate()
        assert made.lowered == []
        assert made.asked
    assert len([n for n in made.notices() if "no clocks" in n]) == 1
    made.answer()
    assert made.state == "hold"


@pytest.mark.parametrize("iterations_later", [0, 3, 5])
def test_an_answer_after_trouble_is_not_taken(node: NodeOf, iterations_later: int) -> None:
    """The plan was made for a job that is no more: nothing is lowered by it, also when the job is
    understood again already."""
    made = node(answering=False)
    made.join()
    made.until("learn")
    while not made.asked:
        made.iterate()
    request = made.asked.pop()
    made.do(made.controller.release_all("trouble"))
    made.iterate(iterations_later)
    state, before = made.state, len(made.log)
    answer = PlanResult(Plan(((900,) * 8,) * 3), 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)
    made.do(made.controller.planned("me:job", request.request, answer))
    assert made.state == state
    assert made.since(before) == []
    made.iterate(1)
    assert not [w for w in made.writes(before) if w.clock_mhz is not None]


@pytest.mark.parametrize(
    ("answered", "taken_mhz"), [((0,), 900), ((0, 1), 800), ((1,), 800), ((1, 0), 800)]
)
def test_a_plan_for_less_time_than_there_is_now_is_taken_until_the_newer_one_comes(
    held: Any, answered: tuple[int, ...], taken_mhz: int
) -> None:
    """A straggler that grows with every iteration would else never be planned for."""
    held.answering = False
    held.do(held.controller.announce_straggler("me:job", 1.2))
    held.do(held.controller.announce_straggler("me:job", 1.4))
    assert held.asked[0].problem.deadline_ratio < held.asked[1].problem.deadline_ratio
    for number in answered:
        plan = Plan((((900, 800)[number],) * 8,) * 3)
        answer = PlanResult(plan, 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)
        held.do(held.controller.planned("me:job", held.asked[number].request, answer))
    held.iterate(1)
    assert {mhz for rank in held.job.plan_in_force.plan.clocks for mhz in rank} == {taken_mhz}


def test_a_plan_for_more_time_than_there_is_now_is_dropped(held: Any) -> None:
    """A straggler that recovers in part while it is planned for is not held up."""
    held.answering = False
    held.do(held.controller.announce_straggler("me:job", 1.4))
    held.do(held.controller.announce_straggler("me:job", 1.2))
    first, second = held.asked
    plan = held.job.plan_in_force
    answer = PlanResult(Plan(((900,) * 8,) * 3), 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)
    held.do(held.controller.planned("me:job", first.request, answer))
    held.iterate(2)
    assert held.job.plan_in_force is plan
    held.do(held.controller.planned("me:job", second.request, answer))
    held.iterate(1)
    assert held.job.plan_in_force is not plan


@pytest.mark.parametrize("counted", [False, True])
def test_a_plan_is_taken_up_by_all_ranks_at_one_iteration(node: NodeOf, counted: bool) -> None:
    """An answer in the middle of an iteration waits for its end on every rank, also where ranks
    count iterations for themselves and one of them has counted for longer."""
    held = node(said=not counted)
    held.join(1)
    held.iterate(4)
    held.join(0, 2)
    held.until("hold")
    held.iterate(2)
    answer = PlanResult(Plan(((900,) * 8,) * 3), 1, 1, 1, 1, 1, 1, 1, 0.1, 2, 0, 0)
    held.answering = False
    before = len(held.log)

    def replan() -> None:
        held.do(held.controller.announce_straggler("me:job", 1.2))
        held.answer(answer)

    in_the_middle(held, replan)
    assert 900 not in {w.clock_mhz for w in held.writes(before)}
    before = len(held.log)
    held.iterate(1)
    wrote = {w.uuid for w in held.writes(before) if w.clock_mhz == 900}
    assert wrote == {"GPU-0", "GPU-1", "GPU-2"}
    assert 1200 not in {w.clock_mhz for w in held.writes(before)}


def test_one_plan_is_awaited_at_a_time(held: Any) -> None:
    """A slow planner is not flooded with the same question at every iteration."""
    held.answering = False
    held.iterate(20)
    assert len(held.asked) == 1


# --- stragglers ----------------------------------------------------------------------------------


def test_a_straggler_moves_the_deadline_and_its_end_moves_it_back(held: Any) -> None:
    """Announced: a plan for its time is asked for at once; ended: the plan before is back at the
    next iteration, without asking."""
    held.answering = False
    normal = held.job.plan_in_force
    assert normal is not None
    held.do(held.controller.announce_straggler("me:job", 1.25))
    (request,) = held.asked
    problem: Problem = request.problem
    baseline = held.job.ledger.sample("baseline").mean
    makespan = held.job.ledger.makespan_s("baseline")
    assert problem.deadline_ratio == pytest.approx(1 + 0.245 * baseline / makespan, rel=0.001)
    assert held.job.deadline_s == pytest.approx(1.245 * baseline, rel=0.001)
    held.answer()
    held.iterate(1)
    slow = held.job.plan_in_force
    assert slow is not normal
    held.do(held.controller.announce_straggler("me:job", None))
    held.iterate(1)
    assert held.job.plan_in_force is normal
    assert held.job.deadline_s == pytest.approx(baseline * (1 + held.job._hold.command))


def test_a_plan_for_a_straggler_that_has_gone_is_not_adopted(held: Any) -> None:
    """The answer comes after the end: the normal plan stays."""
    held.answering = False
    normal = held.job.plan_in_force
    held.do(held.controller.announce_straggler("me:job", 1.25))
    held.do(held.controller.announce_straggler("me:job", None))
    held.answer()
    held.iterate(2)
    assert held.job.plan_in_force is normal


def test_iterations_behind_a_straggler_are_no_breach_and_no_measure(held: Any) -> None:
    """They are long because of the other: neither the guard nor the saving counts them."""
    counted = held.job.ledger.count("hold")
    held.do(held.controller.announce_straggler("me:job", 1.3))
    held.iterate(2)
    held.stretch = 1.3
    held.iterate(8)
    assert held.state == "hold"
    assert held.job.ledger.count("hold") <= counted + 2


def test_a_straggler_announced_while_learning_is_planned_for(node: NodeOf) -> None:
    """The plan that was asked for before it is in time for it, and the next is for its time."""
    made = node(answering=False)
    made.join()
    made.until("learn")
    while not made.asked:
        made.iterate()
    made.do(made.controller.announce_straggler("me:job", 1.2))
    assert made.asked[-1].problem.deadline_ratio < 1.05
    made.answer()
    assert made.state == "hold"
    made.iterate()
    assert made.asked[-1].problem.deadline_ratio > 1.15


def test_a_straggler_announced_for_later_is_planned_for_then(held: Any) -> None:
    """Nothing changes until it begins, and the loop is told when that is."""
    held.answering = False
    starts_ns = held.now_ns + 4 * 10**9
    held.do(held.controller.announce_straggler("me:job", 1.25, starts_ns))
    assert held.controller.next_due_ns() <= starts_ns
    held.iterate(2)
    assert not held.asked
    assert held.job.reaction.announced.factor is None
    held.pass_time(starts_ns - 1)
    assert not held.asked
    held.pass_time(starts_ns + 1)
    assert len(held.asked) == 1
    assert held.job.reaction.announced.factor == 1.25


def test_a_straggler_that_is_not_there_slows_three_iterations_at_most(held: Any) -> None:
    """Announced and never waited for: the normal plan is back, and the operator's word is out."""
    held.answering = False
    normal = held.job.plan_in_force
    held.do(held.controller.announce_straggler("me:job", 1.3))
    held.answer()
    slowed = 0
    for _ in range(8):
        held.iterate(1)
        slowed += held.job.plan_in_force is not normal
    assert slowed <= 3
    assert held.job.reaction.announced.factor is None
    assert any("nobody is waited for" in n for n in held.notices())
    assert held.state == "hold"


def test_a_failed_write_does_not_lose_the_ranks(held: Any) -> None:
    """Full clocks at once; the order is still known, so the same plan goes on soon."""
    plan = held.job.plan_in_force
    before = len(held.log)
    in_the_middle(held, lambda: held.do(held.controller.release_gpu("GPU-1", "it hangs")))
    assert all_reset(held, before)
    began = held.iteration
    held.until("hold", 6)
    assert held.iteration - began <= 4
    held.iterate(1)
    assert held.job.plan_in_force is plan


def test_trouble_again_and_again_is_waited_out_for_longer(held: Any) -> None:
    """A driver that fails at each plan: every time more iterations at full clock."""
    waits = []
    for _ in range(4):
        held.do(held.controller.release_gpu("GPU-1", "it hangs"))
        began = held.iteration
        held.until("hold", 80)
        waits.append(held.iteration - began)
        held.iterate(1)
    assert waits == sorted(waits)
    assert waits[-1] >= 3 * waits[0]


def test_an_order_that_comes_back_is_held_again_after_one_whole_iteration(held: Any) -> None:
    """An evaluation of forwards only, and then training as before, under the plan before."""
    plan = held.job.plan_in_force

    def forwards(n: Any, rank: int, c: Computation, starts: bool) -> bool:
        if c.instruction != "forward":
            n.sequence[rank] -= 1
            return False
        return True

    held.iterate(3, forwards)
    assert held.state == "release"
    held.iterate(3)
    assert held.state == "hold"
    assert held.job.plan_in_force is plan


def test_a_rank_left_behind_is_noticed_before_it_counts_as_silent(held: Any) -> None:
    """Its events have stopped and the others go on: its clock must not stay as it was."""
    held.silent = {1}
    held.iterate(3)
    assert held.state == "release"
    assert held.lowered == []
    assert "silent" in held.job.reason


def test_a_baseline_with_a_checkpoint_in_it_is_not_believed(node: NodeOf) -> None:
    """A pause among its iterations would let everything after it pass for fast."""
    made = node()
    made.join()
    made.iterate(5)
    made.pass_time(made.now_ns + 4 * 10**9)
    made.until("hold", 40)
    times = made.job.ledger.sample("baseline").values
    assert max(times) < 1.05 * min(times)


@pytest.mark.parametrize(("budget", "spent"), [(None, 0.01), (0.05, 0.05), (0.001, 0.01)])
def test_learning_may_spend_the_budget_that_a_job_told(
    node: NodeOf, budget: float | None, spent: float
) -> None:
    """A job without slack that may be slowed has something to learn with; none has less."""
    made = node()
    made.join(slowdown_budget=budget)
    made.until("learn")
    assert made.job._known.explorer.slowdown == spent


@pytest.mark.parametrize("max_writes_per_s", [1.0, Settings().max_writes_per_s])
def test_a_job_of_one_stage_is_told_that_it_has_nothing_to_wait_for(node, max_writes_per_s) -> None:
    """Whether its iterations have room for clock writes or not: it is measured, at full clock."""
    alone = node(stages=1, settings=Settings(max_writes_per_s=max_writes_per_s))
    alone.join()
    alone.iterate(12)
    assert "a job of one stage has nothing to wait for" in alone.job.reason
    assert alone.job.ledger.count("baseline") >= 5
    assert alone.lowered == []


def test_a_budget_is_something_to_use_for_a_job_of_one_stage(node) -> None:
    """What then stands in its way is named: too little room for clock writes."""
    alone = node(stages=1, settings=Settings(max_writes_per_s=1.0))
    alone.join(slowdown_budget=0.05)
    alone.iterate(12)
    assert "iterations are too short" in alone.job.reason


@pytest.mark.parametrize("took_s", [1.5, 8.0])
def test_writes_that_took_long_for_a_while_are_tried_again(held: Any, took_s: float) -> None:
    """The clock process was stopped, and went on: the resets that had waited for it, one for each
    GPU again and again, are no reason never to hold the job again."""
    held.do(held.controller.release_all("perseusd-clock does not answer"))
    for _ in range(10):
        for rank in range(held.stages):
            asked_ns = held.now_ns - round(took_s * 1e9)
            held.controller.written(f"GPU-{rank}", None, asked_ns, held.now_ns)
    if took_s < 2:
        held.iterate(12)
        assert "iterations are too short" in held.job.reason
    held.until("hold", 200)


def test_every_way_into_release_has_its_reason_in_the_log(node) -> None:
    """An ordinary end in baseline, too; and each is one line."""
    made = node()
    made.join()
    made.iterate(2)
    made.do(made.controller.client_lost("1", "has said goodbye"))
    told = [text for text in made.notices() if "→ release" in text]
    assert told == ["baseline → release: rank 1 has said goodbye"]


def test_a_job_that_became_faster_is_told_so(held) -> None:
    """Nothing was lost to lowered clocks, so no share of it is told."""
    held.stretch = 0.7
    held.iterate(8)
    (told,) = [text for text in held.notices() if "→ release" in text]
    assert told.startswith("hold → release: iterations became shorter than they were at full clock")
    assert told.endswith("the job has become faster, so its baseline is measured anew")
