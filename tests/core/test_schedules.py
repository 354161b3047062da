"""Orders and the dependencies derived from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Computation
from perseusd.core.schedules import (
    data_parallel,
    early_recompute_one_f_one_b,
    gpipe,
    interleaved_one_f_one_b,
    one_f_one_b,
    pipeline,
    pipelines,
    virtual_stage,
    zb_h1,
)
from perseusd.errors import PlanningError

sizes = st.tuples(st.integers(1, 6), st.integers(1, 9))


@given(sizes)
def test_1f1b_runs_everything_once_and_bounds_what_is_in_flight(size: tuple[int, int]) -> None:
    """Every microbatch passes forward and backward once, p − s in flight at most on stage s."""
    stages, microbatches = size
    for s, order in enumerate(one_f_one_b(stages, microbatches)):
        assert len(set(order)) == 2 * microbatches
        flying = most = 0
        for c in order:
            flying += 1 if c.instruction == "forward" else -1
            most = max(most, flying)
        assert flying == 0
        assert most == min(stages - s, microbatches)


@given(sizes, st.integers(2, 3), st.integers(1, 3))
def test_every_schedule_runs_everything_once(
    size: tuple[int, int], chunks: int, groups: int
) -> None:
    """Every microbatch passes every virtual stage once with each instruction; the edges are those
    of the rules, counted, and leave an order of execution."""
    p, m = size
    whole, split = {"forward", "backward"}, {"forward", "input_gradient", "weight_gradient"}
    for orders, instructions, own_chunks, passes in (
        (one_f_one_b(p, m), whole, 1, m),
        (gpipe(p, m), whole, 1, m),
        (early_recompute_one_f_one_b(p, m), {"recompute", *whole}, 1, m),
        (zb_h1(p, m), split, 1, m),
        (interleaved_one_f_one_b(p, groups * p, chunks), whole, chunks, groups * p),
    ):
        for rank, order in enumerate(orders):
            assert sorted(order) == sorted(
                Computation(rank, chunk, i, n)
                for chunk in range(own_chunks)
                for i in instructions
                for n in range(passes)
            )
        built = pipeline(orders)
        assert len(built.edges) == (2 * (p * own_chunks - 1) * passes if p > 1 else 0)
        assert len(Graph.from_pipeline(built)) == p * own_chunks * len(instructions) * passes


@given(sizes)
def test_recomputing_comes_right_before_its_backward_and_awaits_no_gradient(
    size: tuple[int, int],
) -> None:
    """Without it the order is 1F1B's, and no edge enters it."""
    orders = early_recompute_one_f_one_b(*size)
    bare = tuple(tuple(c for c in o if c.instruction != "recompute") for o in orders)
    assert bare == one_f_one_b(*size)
    for order in orders:
        for i, c in enumerate(order):
            if c.instruction == "recompute":
                assert order[i + 1] == c._replace(instruction="backward")
    assert all(e.after.instruction != "recompute" for e in pipeline(orders).edges)


@given(sizes)
def test_zb_h1_holds_no_more_than_the_first_rank_of_1f1b(size: tuple[int, int]) -> None:
    """From a forward to its weight gradient, at most p microbatches on any rank; upstream goes the
    gradient in 1F1B's order."""
    stages, microbatches = size
    for order, known in zip(zb_h1(*size), one_f_one_b(*size), strict=True):
        held = most = 0
        for c in order:
            held += {"forward": 1, "weight_gradient": -1}.get(c.instruction, 0)
            most = max(most, held)
        assert (held, most) == (0, min(stages, microbatches))
        bare = [c for c in order if c.instruction != "weight_gradient"]
        assert [(c.instruction == "forward", c.microbatch) for c in bare] == [
            (c.instruction == "forward", c.microbatch) for c in known
        ]


def test_zb_h1_ends_sooner_than_1f1b() -> None:
    """With equal thirds the bubble is a third of 1F1B's: (p − 1) instead of 3(p − 1)."""
    for orders, longest in ((one_f_one_b(4, 8), 3 * 8 + 9), (zb_h1(4, 8), 3 * 8 + 3)):
        graph = Graph.from_pipeline(pipeline(orders))
        lengths = np.array([2.0 if c.instruction == "backward" else 1.0 for c in graph.nodes])
        assert graph.makespan(lengths) == longest


def test_a_data_parallel_job_is_one_computation_per_rank() -> None:
    """Whatever the microbatches in it; nothing waits for anything."""
    assert data_parallel(2) == ((c(0, "iteration"),), (c(1, "iteration"),))
    assert pipeline(data_parallel(3)).edges == ()


@pytest.mark.parametrize(
    ("stages", "microbatches", "chunks", "message"),
    [
        (4, 9, 2, "9 microbatches cannot be split into 2 equal groups.*take 8 or 12"),
        (4, 8, 1, "at least 2 chunks"),
        (4, 8, 0, "chunks is 0"),
        (4, 0, 2, "microbatches is 0"),
    ],
)
def test_interleaving_what_does_not_fit_is_refused(
    stages: int, microbatches: int, chunks: int, message: str
) -> None:
    """The error says what would fit."""
    with pytest.raises(PlanningError, match=message):
        interleaved_one_f_one_b(stages, microbatches, chunks)


def test_1f1b_of_two_stages_is_written_out() -> None:
    """The order on both ranks, as executed by the usual frameworks."""
    names = [[f"{c.instruction[0]}{c.microbatch}" for c in order] for order in one_f_one_b(2, 3)]
    assert names == [
        ["f0", "f1", "b0", "f2", "b1", "b2"],
        ["f0", "b0", "f1", "b1", "f2", "b2"],
    ]


def c(rank: int, instruction: str, microbatch: int = 0, chunk: int = 0) -> Computation:
    return Computation(rank, chunk, instruction, microbatch)


def test_chunks_go_round_the_ranks() -> None:
    """With two chunks the last rank's chunk 0 feeds the first rank's chunk 1, and back."""
    built = pipeline(
        [
            [
                c(0, "forward"),
                c(0, "forward", chunk=1),
                c(0, "backward", chunk=1),
                c(0, "backward"),
            ],
            [
                c(1, "forward"),
                c(1, "forward", chunk=1),
                c(1, "backward", chunk=1),
                c(1, "backward"),
            ],
        ],
        lag_s=0.5,
    )
    pairs = {(e.before, e.after) for e in built.edges}
    assert (c(1, "forward"), c(0, "forward", chunk=1)) in pairs
    assert (c(0, "backward", chunk=1), c(1, "backward")) in pairs
    assert len(pairs) == 6
    assert {e.lag_s for e in built.edges} == {0.5}


def test_v_shaped_chunks_go_there_and_back() -> None:
    """The last rank holds two neighbours, the first rank both ends; told or found out."""
    at = [[virtual_stage(c(r, "forward", chunk=k), 3, "v") for k in range(4)] for r in range(3)]
    assert at == [[0, 5, 6, 11], [1, 4, 7, 10], [2, 3, 8, 9]]
    there, back = ("forward", 0), ("backward", 0)
    orders = [
        [c(r, i, m, k) for (i, m), k in ((there, 0), (there, 1), (back, 1), (back, 0))]
        for r in range(2)
    ]
    built = pipeline(orders, layout="v")
    assert {(e.before, e.after) for e in built.edges} == {
        (c(0, "forward"), c(1, "forward")),
        (c(1, "forward", chunk=1), c(0, "forward", chunk=1)),
        (c(0, "backward", chunk=1), c(1, "backward", chunk=1)),
        (c(1, "backward"), c(0, "backward")),
    }


def test_of_two_layouts_the_one_that_can_run_is_meant() -> None:
    """Where both can, looped is, unless the order's declared name says otherwise."""
    both = [
        [
            c(r, i, 0, k)
            for i, k in (("forward", 0), ("forward", 1), ("backward", 1), ("backward", 0))
        ]
        for r in range(2)
    ]
    looped, v = (pipeline(both, layout=layout) for layout in ("looped", "v"))
    assert list(pipelines(both)) == [looped, v]
    assert pipeline(both) == pipeline(both, schedule="Interleaved1F1B") == looped
    assert pipeline(both, schedule="ScheduleZBVZeroBubble") == v
    assert pipeline(both, schedule="zb_v") == pipeline(both, schedule="DualPipe-V") == v
    interleaved = interleaved_one_f_one_b(2, 4, 2)
    assert list(pipelines(interleaved, schedule="zbv")) == [pipeline(interleaved, layout="looped")]


def test_what_waits_for_ever_is_refused() -> None:
    """Ranks whose orders contradict each other, in every layout: the cycle is named."""
    first = [c(0, "forward", 0), c(0, "backward", 0), c(0, "forward", 1), c(0, "backward", 1)]
    second = [c(1, "forward", 1), c(1, "backward", 1), c(1, "forward", 0), c(1, "backward", 0)]
    with pytest.raises(PlanningError, match=r"form a cycle: .*forward"):
        pipeline([first, second])


def test_a_chunk_that_cannot_be_is_refused_at_once() -> None:
    """What a client claims may be huge; nothing is as long as the largest chunk's number."""
    claimed = [[c(r, i, 0, 2**40) for i in ("forward", "backward")] for r in range(2)]
    with pytest.raises(PlanningError, match="is missing on rank 0, chunk 0"):
        pipeline(claimed)


def test_input_gradients_pass_upstream_and_weight_gradients_wait_for_them() -> None:
    """A split backward's input gradient takes the backward's place between stages."""
    built = pipeline(
        [
            [c(0, "forward"), c(0, "input_gradient"), c(0, "weight_gradient")],
            [c(1, "forward"), c(1, "backward")],
        ]
    )
    assert (c(1, "backward"), c(0, "input_gradient")) in {(e.before, e.after) for e in built.edges}
    with pytest.raises(PlanningError, match=r"weight_gradient.*comes before input_gradient"):
        pipeline([[c(0, "forward"), c(0, "weight_gradient"), c(0, "input_gradient")]])


def test_lags_may_depend_on_the_edge() -> None:
    """A function of (before, after) gives every edge its own communication time."""
    built = pipeline(one_f_one_b(3, 1), lambda before, after: before.rank + 0.1 * after.rank)
    assert {e.lag_s for e in built.edges} == {0.1, 1.2, 2.1, 1.0}


def test_whole_iterations_depend_on_nothing() -> None:
    """A data-parallel job has no edges, and neither has what is called `other`."""
    assert pipeline([[c(0, "iteration")], [c(1, "iteration"), c(1, "other")]]).edges == ()
    with_other = pipeline([[c(0, "forward"), c(0, "backward"), c(0, "other")]])
    assert with_other.edges == ()


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (
            [[c(0, "forward"), c(0, "backward")], [c(1, "backward")]],
            "forward of microbatch 0 is mi",
        ),
        ([[c(0, "forward"), c(0, "backward")], [c(1, "forward")]], "backward or input_gradient of"),
        ([[c(0, "backward"), c(0, "forward")]], "comes before forward of microbatch 0"),
        ([[c(0, "forward"), c(0, "forward")]], "twice"),
        ([[c(1, "forward")]], "in the order of rank 0"),
        ([[c(0, "forward")], []], "rank 1 has no computations"),
        ([[c(0, "fwd")]], "unknown instruction, known are backward"),
        (
            [[c(0, "forward"), c(0, "backward"), c(0, "input_gradient")]],
            "both backward and input_gradient on rank 0",
        ),
        ([[c(0, "recompute"), c(0, "forward"), c(0, "backward")]], "recompute.*comes before forw"),
        (
            [
                [c(0, "forward", 0, 1), c(0, "backward", 0, 1)],
                [c(1, "forward", 0, 1), c(1, "backward", 0, 1)],
            ],
            "forward of microbatch 0 is missing on rank 0, chunk 0",
        ),
        ([[c(0, "iteration"), c(0, "forward"), c(0, "backward")]], "mixed"),
    ],
)
def test_what_is_no_pipeline_is_refused(orders, message: str) -> None:
    """The error names the computation that is missing, misplaced, unknown or doubled."""
    with pytest.raises(PlanningError, match=message):
        pipeline(orders)


def test_sizes_below_one_are_refused() -> None:
    """No stages or no microbatches is a mistake, named."""
    with pytest.raises(PlanningError, match="microbatches is 0"):
        one_f_one_b(4, 0)
    with pytest.raises(PlanningError, match="stages is 0"):
        gpipe(0, 4)
