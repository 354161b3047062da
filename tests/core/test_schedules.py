"""Orders and the dependencies derived from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.graph import Graph
from perseusd.core.model import Computation
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline
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


@given(sizes, st.sampled_from([one_f_one_b, gpipe]))
def test_known_schedules_are_acyclic_pipelines(size: tuple[int, int], schedule) -> None:
    """Their edges are those of the rules, counted, and leave an order of execution."""
    stages, microbatches = size
    built = pipeline(schedule(stages, microbatches))
    assert len(built.edges) == 2 * (stages - 1) * microbatches
    assert len(Graph.from_pipeline(built)) == 2 * stages * microbatches


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
