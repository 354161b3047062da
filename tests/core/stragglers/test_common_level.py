"""What the ranks of a replica have in common, and what a rank is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.stragglers.compute import BIAS, Common, Ranks, common_level
from perseusd.core.stragglers.peers import ALIKE, shared_reference
from perseusd.core.stragglers.replica import Replica

from .conftest import Job


def common(ranks: int, lengths_variance: float) -> Common:
    alike = Ranks(np.zeros((1, ranks)), np.full((1, ranks), 1e-6), np.ones(ranks, dtype=bool))
    return common_level(alike, np.zeros(1), np.full(1, lengths_variance), slow=False)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_level_that_ranks_alone_make_bears_their_corrections_errors(ranks: int) -> None:
    """Where lengths tell nothing, n ranks' independent errors leave 1 / √n of one's; where they
    tell the level, the ranks' errors hardly move it."""
    assert common(ranks, 1.0).borne == pytest.approx(1 / np.sqrt(ranks), rel=0.01)
    assert common(ranks, 0.0).borne < 0.1


def test_the_fewer_ranks_make_the_level_the_more_may_be_our_own_error() -> None:
    """Two ranks and lengths unknown: both errors count. Eight: little more than the rank's own. One
    alone is compared with nobody; and a whole replica with no rank."""
    found = {}
    for ranks in (1, 2, 8):
        job, replica = Job(ranks=ranks), Replica()
        job.lengths = 0.5
        for number in range(12):
            replica.add(job.iteration(number, 0))
            excess = replica.judge([])
            replica.learn(excess)
        assert excess is not None
        found[ranks] = excess.bias[0, 0]
        assert excess.bias[0, replica.whole] == pytest.approx(BIAS)
    assert found[1] == pytest.approx(BIAS)
    assert found[2] == pytest.approx(BIAS * (1 + 1 / np.sqrt(2)), rel=0.05)
    assert BIAS < found[8] < 1.5 * BIAS


def test_kinds_that_scatter_are_not_slow_from_the_start() -> None:
    """Two peers without scatter: what a replica's kinds have in common is their middle, so none of
    them is apart from it by more than it is."""
    own = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, ALIKE - 0.002])
    peers = [np.zeros(6), np.zeros(6)]
    assert shared_reference(own, peers) == pytest.approx(own)
    slow = own + np.array([0, 0, 0, 0, 0, 0.2])
    assert shared_reference(slow, peers)[-1] == pytest.approx(0.0)


def test_a_reference_from_peers_proves_less_than_ones_own() -> None:
    """A rank that was 1.2× from the start is compared with its peers, who may be that much faster
    by nature; the other ranks are compared with their own past."""
    job = Job(replicas=3, ranks=4)
    replicas = [Replica() for _ in range(3)]
    for number in range(12):
        for which, own in enumerate(replicas):
            others = [r for r in replicas if r is not own]
            own.add(
                job.iteration(number, which, lambda _, r, rank: 1.2 if (r, rank) == (0, 1) else 1)
            )
            own.learn(own.judge(others))
    excess = replicas[0].last
    assert excess is not None
    assert excess.mean[-1, 1] == pytest.approx(np.log(1.2), abs=0.02)
    assert excess.bias[-1, 1] >= ALIKE
    assert excess.bias[-1, [0, 2, 3]].max() < ALIKE
