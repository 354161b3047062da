"""What nothing waits for is worked out a piece at each tick, and comes to the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from perseusd.core.controller import OWN_ERROR

NodeOf = Callable[..., Any]

MS = 1_000_000
ENOUGH = 200
"""Ticks that finish any iteration's thoughts."""


def held(node: NodeOf, *, patient: bool) -> Any:
    made = node()
    made.controller.patient = patient
    made.join()
    made.until("hold")
    made.iterate(3)
    return made


def think(made: Any, ticks: int = ENOUGH) -> int:
    """Tick without letting time pass; how many ticks there was something to think about."""
    for tick in range(ticks):
        if made.controller.next_due_ns() != 0:
            return tick
        made.do(made.controller.tick(made.now_ns))
    return ticks


def iterate_without_ticks(made: Any, times: int = 1) -> None:
    """Nothing is thought about but what an event, or the next iteration, brings with it."""
    made.ticking = False
    made.iterate(times)
    made.ticking = True


def test_an_iteration_in_hold_is_thought_about_over_many_ticks(node: NodeOf) -> None:
    """Its last event only begins that; until it is finished, a tick is due at once."""
    made = held(node, patient=True)
    think(made)
    records = made.job.ledger.count("hold")
    made.iterate()
    assert made.job.thinking
    assert think(made) > 5
    assert not made.job.thinking
    assert made.job.ledger.count("hold") == records + 1


def test_it_comes_to_the_same(node: NodeOf) -> None:
    """Piece by piece or at once: the same samples, state and aim, and curves as near as fits go."""
    told, curves = [], []
    for patient in (False, True):
        made = held(node, patient=patient)
        for _ in range(25):
            made.iterate()
            think(made)
        told.append((made.state, made.job.ledger.sample("hold").values, made.job.deadline_s))
        known = made.job._known
        found, blocking_w = known.knowledge.curves(known.graph.kinds)
        curves.append(
            {
                **{kind: curve.time_s for kind, curve in found.items()},
                **{(kind, "J"): curve.energy_j for kind, curve in found.items()},
                **{rank: (watts,) for rank, watts in blocking_w.items()},
            }
        )
    assert told[0] == told[1]
    assert curves[0].keys() == curves[1].keys()
    for key, points in curves[0].items():
        assert curves[1][key] == pytest.approx(points, rel=2e-3)


def test_what_was_begun_is_finished_before_the_next_iteration(node: NodeOf) -> None:
    """Where ticks are too few, every iteration is learned from all the same, in its order."""
    made = held(node, patient=True)
    count = made.job.ledger.count("hold")
    iterate_without_ticks(made, 6)
    assert made.job.ledger.count("hold") >= count + 4
    assert made.state == "hold"


def test_letting_go_before_the_first_piece(node: NodeOf) -> None:
    """A rank ends in the same turn of the loop in which its last event was heard."""
    made = held(node, patient=True)
    think(made)
    iterate_without_ticks(made)
    assert made.job.thinking
    made.do(made.controller.client_lost("1", "has ended"))
    think(made)
    made.iterate(2)
    made.join(1)
    made.until("hold")


def iterations_until_hold(made: Any, pieces: int) -> int:
    """After a release in the middle of its thoughts."""
    made.iterate()
    think(made, pieces)
    made.do(made.controller.release_gpu("GPU-1", "could not be set"))
    for count in range(1, 60):
        made.iterate()
        think(made)
        if made.state == "hold":
            return count
    raise AssertionError("it is not held again")


@pytest.mark.parametrize("pieces", [1, 4, 9, 14, ENOUGH])
def test_a_release_lasts_as_long_in_the_middle_of_thoughts(node: NodeOf, pieces: int) -> None:
    """What the iteration before it tells, later, is no clear iteration."""
    expected = iterations_until_hold(held(node, patient=False), 0)
    assert iterations_until_hold(held(node, patient=True), pieces) == expected


@pytest.mark.parametrize("pieces", [3, 9, 12, 16])
def test_what_was_forgotten_meanwhile_joins_nothing_new(node: NodeOf, pieces: int) -> None:
    """The job is another one now: its ledger holds no iteration of the old one."""
    made = held(node, patient=True)
    made.iterate()
    think(made, pieces)
    made.do(made.controller.relearn_all("slept"))
    think(made)
    assert not made.job.thinking
    assert not made.job.observations
    assert made.job.ledger.count("hold") == made.job.ledger.count("release") == 0


def test_the_guard_looks_before_the_ledger(node: NodeOf) -> None:
    """A breach has clocks up while what iterations used is still to be read from the counters."""
    made = held(node, patient=True)
    think(made)
    iterate_without_ticks(made)
    guarded, looked = made.job._guarded, list[int]()
    ticks = 0

    def looking() -> bool:
        looked.append(ticks)
        return bool(guarded())

    made.job._guarded = looking
    while made.controller.next_due_ns() == 0:
        made.do(made.controller.tick(made.now_ns))
        ticks += 1
    assert len(looked) == 2  # and again once waiting at the iteration's end is known
    assert looked[0] < ticks - made.stages
    assert looked[1] > looked[0]


def test_an_error_over_one_job_is_no_other_jobs(node: NodeOf) -> None:
    """That one is learned anew; what it was is told once to whoever asks."""
    made = held(node, patient=True)
    other = Mock(name="other", observations=[], renewed=False, actions=[], thinking=False)
    other.tick.side_effect = ZeroDivisionError("a surprise")
    made.controller.jobs = {"me:other": other, **made.controller.jobs}
    made.controller.tick(made.now_ns)
    other.relearn.assert_called_once_with(OWN_ERROR)
    assert [str(error) for error in made.controller.errors] == ["a surprise"]
    assert made.state == "hold"


@pytest.mark.parametrize("pieces", [0, 1, 2, 5, 9, 14])
@pytest.mark.parametrize("what", ["goodbye", "release", "relearn", "join", "withhold"])
def test_letting_go_between_two_pieces(node: NodeOf, what: str, pieces: int) -> None:
    """Full clocks at once; what is left of the thoughts does no harm, and the job is held again."""
    made = held(node, patient=True)
    made.iterate()
    think(made, pieces)
    controller = made.controller
    if what == "goodbye":
        made.do(controller.client_lost("1", "has ended"))
    elif what == "release":
        made.do(controller.release_gpu("GPU-1", "could not be set"))
    elif what == "relearn":
        made.do(controller.relearn_all("slept"))
    elif what == "withhold":
        made.do(controller.withhold("GPU-1", "stuck"))
    else:
        made.join(1, local_rank=1, slowdown_budget=0.01)
    assert not made.lowered
    think(made)
    made.iterate(2)
    assert not made.lowered
    if what == "goodbye":
        made.join(1)
    made.do(controller.withhold("GPU-1", None))
    made.until("hold")
    made.iterate(3)
    assert made.state == "hold"
