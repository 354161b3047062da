"""What acting would save, foretold: a prior's shapes on measured curves, and an interval."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest

from perseusd.core.jobs.forecast import TILTS, Measured, foretold, share_of_iteration
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.learned.priors import prior_for
from perseusd.core.model import Curve, Plan, PlanResult, Problem
from perseusd.core.planner import solve
from perseusd.emulation.workloads import load_workload
from perseusd.gpus.simulated import SPECS

A100 = GpuFacts("GPU-0", "NVIDIA A100-SXM4-80GB", tuple(range(210, 1411, 15)))
TOP = Curve((1410,), (0.05,), (18.0,))


@pytest.fixture
def prior():
    found = prior_for(A100.model)
    assert found is not None
    return found


def test_a_foretold_curve_begins_at_what_was_measured(prior) -> None:
    """At the top clock nothing is foretold; below, time grows and power falls, within the limit."""
    curve = foretold(TOP, prior, A100, 0.6)
    assert (curve.clock_mhz[-1], curve.time_s[-1], curve.energy_j[-1]) == (1410, 0.05, 18.0)
    assert 0.6 * 1410 <= curve.clock_mhz[0] < 0.65 * 1410
    assert all(a > b for a, b in itertools.pairwise(curve.time_s))
    powers = [e / t for e, t in zip(curve.energy_j, curve.time_s, strict=True)]
    assert all(a < b for a, b in itertools.pairwise(powers))


def test_a_better_gpu_is_faster_and_thriftier_at_every_clock(prior) -> None:
    """The tilts that make the interval are on both sides of the prior, clock by clock."""
    usual, worse, better = (foretold(TOP, prior, A100, 0.6, tilt) for tilt in TILTS)
    for n in range(len(usual.clock_mhz) - 1):
        assert better.time_s[n] < usual.time_s[n] < worse.time_s[n]
        assert better.energy_j[n] < usual.energy_j[n] < worse.energy_j[n]


def answer(saving: float, energy_j: float) -> PlanResult:
    return PlanResult(Plan(((None,),)), 1, 1, energy_j, 1, 1, 1, 1, saving, 2, 0, 0)


@pytest.mark.parametrize(
    ("measured_j", "gpus", "share"),
    [
        (1000.0, 4, 0.1),  # the pipeline is all there is
        (1250.0, 4, 0.08),  # a fifth of the iteration is not the pipeline's
        (2500.0, 8, 0.08),  # two GPUs a rank
        (900.0, 4, 0.1),  # never more than of the pipeline itself
        (None, 4, 0.1),
    ],
)
def test_the_share_is_of_the_whole_iteration(measured_j, gpus, share) -> None:
    """Joules saved in the pipeline over joules measured from start to start."""
    measured = Measured(20, 2.0, 1.8, measured_j, gpus, 6)
    assert share_of_iteration(answer(0.1, 900.0), measured, 4) == pytest.approx(share)


@pytest.mark.parametrize(("name", "gpu"), [("gpt3-1.3b", "a100-pcie"), ("bloom-3b", "a40")])
def test_the_interval_holds_what_the_true_curves_allow(name: str, gpu: str) -> None:
    """Of emulated workloads: forecast without a lower clock tried, against a plan on the truth.

    The prior stands on a few points that were published with these workloads, so this shows that
    the way from it to a saving is right, not that another GPU behaves as the prior says.
    """
    workload = load_workload(name, gpu)
    facts = GpuFacts("GPU-0", SPECS[gpu].name, workload.clocks_mhz)
    prior, true = prior_for(facts.model), workload.problem_curves()
    assert prior is not None
    blocking = (workload.blocking_power_w,) * workload.stages
    problem = Problem(workload.pipeline(), true, blocking, 1.002, max_writes=6, time_budget_s=0.5)
    possible = solve(problem, clock=time.monotonic).saving
    top = {
        kind: Curve(c.clock_mhz[-1:], c.time_s[-1:], c.energy_j[-1:]) for kind, c in true.items()
    }
    usual, worse, better = (
        solve(
            dataclasses.replace(
                problem, curves={k: foretold(c, prior, facts, 0.5, tilt) for k, c in top.items()}
            ),
            clock=time.monotonic,
        ).saving
        for tilt in TILTS
    )
    assert worse < possible < better
    assert usual == pytest.approx(possible, abs=0.03)
