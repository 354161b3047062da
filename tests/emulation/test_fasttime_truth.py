"""What an iteration in virtual time truly took, and what full clocks would have."""

from __future__ import annotations

import random

import numpy as np
import pytest

from perseusd.core.graph import Graph
from perseusd.core.settings import Settings
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.fasttime import Conditions, FastTime, Slow, counted
from perseusd.emulation.fasttime.gpu import FastGpu
from perseusd.emulation.workloads import Workload
from perseusd.gpus.physics import ClockChange, ClockHistory, run_work

from .conftest import BLOCKING_W, work

OBSERVE = Settings(observe=True)
SYNCHRONISATION_S = SYNCHRONISATION_NS * 1e-9


def observed(workload: Workload, conditions: Conditions, iterations: int = 8) -> FastTime:
    """No clock is ever written."""
    run = FastTime(workload, counted, conditions, OBSERVE)
    run.run(iterations)
    return run


@pytest.mark.parametrize("seed", range(20))
def test_a_gpu_runs_work_as_the_physics_says(seed: int) -> None:
    """With clock changes at random times during the work, its end is run_work's to a microsecond
    and its energy is the same; before and after, it waits."""
    draw = random.Random(seed)
    curve, factor = work(draw.uniform(0.02, 0.5)), draw.uniform(0.9, 1.5)
    clocks = tuple(range(210, 1411, 15))
    gpu = FastGpu(clocks, BLOCKING_W)
    start, changes = 1_000_000, [ClockChange(0, len(clocks) - 1)]
    end = gpu.start(start, curve, factor)
    at = start
    for _ in range(draw.randint(0, 6)):
        at += draw.randint(1, 100_000_000)
        if at >= end:
            break
        changes.append(ClockChange(at, draw.randrange(40, len(clocks))))
        changed = gpu.set_clock(at, changes[-1].clock_index)
        assert changed is not None
        end = changed
    gpu.stop(end)
    want = run_work(curve, ClockHistory(tuple(changes)), start, None, factor)
    assert want.end_ns == pytest.approx(end, abs=1000)
    assert gpu.energy(end) - gpu.energy(start) == pytest.approx(want.energy_j, rel=1e-6)
    assert gpu.energy(start) == pytest.approx(BLOCKING_W * start * 1e-9)
    assert gpu.energy(end + 10**9) - gpu.energy(end) == pytest.approx(BLOCKING_W)


def test_without_noise_an_iteration_is_the_longest_path(small: Workload) -> None:
    """Its time is the graph's makespan plus the synchronisation; its energy that of the curves and
    of waiting."""
    done = observed(small, Conditions(noise=0.0)).run(3)
    graph = Graph(small.pipeline())
    seconds = np.array([small.curves[c.rank, c.instruction].time_s[-1] for c in graph.nodes])
    joules = sum(small.curves[c.rank, c.instruction].energy_j[-1] for c in graph.nodes)
    want_s = float(graph.makespan(seconds)) + SYNCHRONISATION_S
    for iteration in done:
        assert iteration.time_s == pytest.approx(want_s, abs=1e-6)
        waiting_s = small.stages * want_s - seconds.sum()
        assert iteration.energy_j == pytest.approx(joules + waiting_s * BLOCKING_W, rel=1e-6)


def test_where_no_clock_was_written_full_clocks_would_have_done_the_same(small: Workload) -> None:
    """With noise, slow ranks, uneven sequences, several replicas and another node's straggler,
    nothing was lost to us and no joule was saved, to the rounding of nanoseconds."""
    conditions = Conditions(
        noise=0.03,
        replicas=3,
        lengths=0.2,
        slow=(Slow(1, 2, 1.5, 2, 6, ramp=2), Slow(2, None, 30.0, 3, where="communication")),
        straggler=Straggler(1.8, 5, 7),
    )
    for iteration in observed(small, conditions, 10).run(10):
        assert iteration.writes == 0
        assert iteration.time_s == pytest.approx(iteration.full_time_s, abs=1e-7)
        assert iteration.energy_j == pytest.approx(iteration.full_energy_j, rel=1e-7)


def test_lowered_clocks_show_as_lost_time_and_saved_energy(small: Workload) -> None:
    """A GPU locked to half its clock: what full clocks would have taken and used stays as before;
    the iteration takes longer, and uses what the curves say at that clock and waiting."""
    run = observed(small, Conditions(noise=0.0), 4)
    before = run.done[3]
    run.shell.clocks.request(0, 1, 705)
    after = run.run(8)[7]
    assert before.slowdown == pytest.approx(0.0, abs=1e-7)
    assert after.slowdown > 0.5
    assert after.full_time_s == pytest.approx(before.time_s)
    assert after.full_energy_j == pytest.approx(before.energy_j)
    lowered = small.clocks_mhz.index(705)
    computed = [(c.rank, c.instruction) for order in small.pipeline().orders for c in order]
    at = [(small.curves[key], lowered if key[0] == 1 else -1) for key in computed]
    waiting_s = small.stages * after.time_s - sum(curve.time_s[i] for curve, i in at)
    joules = sum(curve.energy_j[i] for curve, i in at) + waiting_s * BLOCKING_W
    assert after.energy_j == pytest.approx(joules)


def test_noise_is_the_same_whatever_the_daemon_does(small: Workload) -> None:
    """Runs of one seed can be compared iteration by iteration: full clocks would have taken the
    same with and without a clock that is lowered on the way."""
    free, lowered = observed(small, Conditions(seed=5), 2), observed(small, Conditions(seed=5), 2)
    lowered.shell.clocks.request(0, 0, 900)
    for one, other in zip(free.run(8), lowered.run(8), strict=True):
        assert one.full_time_s == pytest.approx(other.full_time_s, abs=1e-7)
    assert lowered.done[-1].time_s > free.done[-1].time_s


# --- replicas and slow ranks ------------------------------------------------------------------


def test_replicas_wait_for_the_slowest(small: Workload) -> None:
    """Each has GPUs, a job and a makespan of its own; the iteration ends with the slowest one's,
    and the others' GPUs draw blocking power until then."""
    run = observed(small, Conditions(noise=0.0, replicas=3, slow=(Slow(1, None, 1.4),)), 4)
    assert len(run.controller.jobs) == 3
    assert run.job_of(2) is not run.job_of(1)
    for iteration in run.done[1:]:
        first, slow, other = iteration.replicas
        assert slow.makespan_s == pytest.approx(1.4 * first.makespan_s, rel=0.01)
        assert iteration.time_s == pytest.approx(slow.makespan_s + SYNCHRONISATION_S, abs=1e-6)
        assert first.energy_j == pytest.approx(other.energy_j)
        waits_s = iteration.time_s - first.makespan_s
        assert waits_s > 0.1
        assert sum(r.energy_j for r in iteration.replicas) == pytest.approx(iteration.energy_j)


def test_one_replica_is_one_job_on_gpus_of_its_stages(small: Workload) -> None:
    """As without data parallelism: world of as many ranks as stages."""
    run = observed(small, Conditions(), 2)
    assert list(run.controller.jobs) == ["fast:job"]
    assert [rank.uuid for rank in run.ranks] == ["GPU-0", "GPU-1", "GPU-2"]
    assert [rank.hello.world_size for rank in run.ranks] == [3, 3, 3]


def test_a_slow_rank_is_slow_from_its_start_to_its_end() -> None:
    """At once or growing linearly, for its rank and replica alone, in what it is said to."""
    slow = Slow(replica=1, rank=2, factor=1.6, start=10, end=20, ramp=3)
    told = [round(slow.factor_at(i), 6) for i in (9, 10, 11, 12, 19, 20)]
    assert told == [1.0, 1.2, 1.4, 1.6, 1.6, 1.0]
    conditions = Conditions(slow=(slow, Slow(1, None, 1.5, 19)))
    assert conditions.slowdown("compute", 15, 1, 2) == pytest.approx(1.6)
    assert conditions.slowdown("compute", 19, 1, 2) == pytest.approx(2.4)
    assert conditions.slowdown("compute", 19, 1, 0) == pytest.approx(1.5)
    assert conditions.slowdown("compute", 15, 0, 2) == 1.0
    assert conditions.slowdown("communication", 15, 1, 2) == 1.0


def test_slow_computing_lasts_longer_at_the_same_power(small: Workload) -> None:
    """The slow rank's computations: by the factor; its GPU draws while it computes what it did."""
    slow = Conditions(noise=0.0, slow=(Slow(0, 1, 1.5, 4),))
    run = observed(small, slow, 8)
    usual, slowed = run.done[2], run.done[6]
    longer_s = 0.5 * sum(small.curves[1, i].time_s[-1] * 4 for i in ("forward", "backward"))
    power_w = [small.curves[1, i].power_w(-1) for i in ("forward", "backward")]
    assert power_w[0] == pytest.approx(power_w[1])
    grown_s = slowed.time_s - usual.time_s
    want_j = longer_s * (power_w[0] - BLOCKING_W) + small.stages * grown_s * BLOCKING_W
    assert slowed.energy_j - usual.energy_j == pytest.approx(want_j, rel=1e-4)


def test_slow_communication_delays_what_a_rank_receives(small: Workload) -> None:
    """Iterations take longer, computations do not."""
    slow = (Slow(0, 1, 100.0, 4, where="communication"),)
    run = observed(small, Conditions(noise=0.0, slow=slow), 8)
    usual, slowed = run.done[2], run.done[6]
    grown_s = slowed.time_s - usual.time_s
    assert grown_s > 99 * small.communication_s
    want_j = small.stages * grown_s * BLOCKING_W
    assert slowed.energy_j - usual.energy_j == pytest.approx(want_j, rel=1e-4)


def test_sequences_of_different_lengths_vary_by_microbatch(small: Workload) -> None:
    """One microbatch's length is the same on every stage, and drawn anew for every iteration."""
    even = observed(small, Conditions(noise=0.0), 20).done
    uneven = observed(small, Conditions(noise=0.0, lengths=0.2), 20).done
    assert np.std([i.time_s for i in even[1:]]) < 1e-6
    assert np.std([i.time_s for i in uneven[1:]]) > 0.02 * even[1].time_s


def test_a_slow_gpu_tells_its_reason(small: Workload) -> None:
    """As long as it is slow, and only it."""
    conditions = Conditions(slow=(Slow(0, 1, 1.5, 3, 6, reason="sw_thermal"),))
    assert conditions.reasons(4, 0, 1) == {"sw_thermal"}
    assert conditions.reasons(4, 0, 0) == frozenset()
    assert conditions.reasons(6, 0, 1) == frozenset()
