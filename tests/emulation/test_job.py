"""The emulated job against the graph's longest path; no daemon, so clocks move only by the test.

Times are those of the ideal timeline, so a busy machine does not change them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perseusd.core.graph import Graph
from perseusd.emulation.coordinator import SYNCHRONISATION_NS, Straggler
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.records import IterationRecord
from perseusd.emulation.workloads import Workload
from perseusd.errors import PerseusError
from perseusd.gpus.simulated import SimulatedNode

WAIT_S = 20.0
SYNCHRONISATION_S = SYNCHRONISATION_NS / 1e9


def job_of(small: Workload, node: SimulatedNode, **options: object) -> EmulatedJob:
    chosen = replace(JobOptions(microbatches=small.microbatches), **options)  # type: ignore[arg-type]
    return EmulatedJob(small, node.path, node.path.parent, chosen)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def run(job: EmulatedJob, iterations: int) -> tuple[IterationRecord, ...]:
    with job:
        wait_for(lambda: len(job.iterations()) >= iterations)
        job.check()
    return job.iterations()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_iteration_takes_the_longest_path(small: Workload, node: SimulatedNode) -> None:
    """Without noise at full clock: longest path and synchronisation, to the microsecond."""
    for record in run(job_of(small, node), 3):
        assert record.time_s == pytest.approx(
            small.full_clock_time_s() + SYNCHRONISATION_S, abs=1e-5
        )


def test_computations_start_when_their_input_is_there(small: Workload, node: SimulatedNode) -> None:
    """Every start of every rank is the graph's earliest start for the durations that were drawn."""
    record = run(job_of(small, node, noise=0.05), 2)[1]
    graph = Graph(small.pipeline())
    spans = {span.computation: span for rank in record.spans for span in rank}
    durations = np.array([spans[node].time_s for node in graph.nodes])
    starts = graph.earliest(durations)
    for computation, start_s in zip(graph.nodes, starts, strict=True):
        ran_s = (spans[computation].start_ns - record.start_ns) / 1e9
        assert ran_s == pytest.approx(start_s, abs=1e-6)


def test_the_same_seed_gives_the_same_noise(small: Workload, node: SimulatedNode) -> None:
    """Runs can be compared: iteration times depend on the seed and on nothing else."""
    first = run(job_of(small, node, noise=0.05, seed=7), 2)
    again = run(job_of(small, node, noise=0.05, seed=7), 2)
    other = run(job_of(small, node, noise=0.05, seed=8), 2)
    assert first[1].time_s == pytest.approx(again[1].time_s, abs=1e-6)
    assert first[1].time_s != pytest.approx(other[1].time_s, abs=1e-4)


def test_a_lowered_clock_slows_the_job(small: Workload, node: SimulatedNode) -> None:
    """A lock in the middle of training counts: time ∝ 1/f here, on the heaviest stage."""
    with (job := job_of(small, node)):
        wait_for(lambda: len(job.iterations()) >= 1)
        for gpu in node.gpus:
            gpu.lock_clock(705)
        done = len(job.iterations())
        wait_for(lambda: len(job.iterations()) >= done + 3)
    last = job.iterations()[-1]
    slow_s = 2 * (small.full_clock_time_s() - 4 * small.communication_s)
    assert last.time_s == pytest.approx(slow_s, rel=0.03)
    assert last.spans[1][0].clock_mhz == 705
    assert last.clock_writes == (1, 1, 1)


def test_energy_counters_grow_by_what_was_computed(small: Workload, node: SimulatedNode) -> None:
    """Computations at their curve's energy, blocking power in between; within a counter tick."""
    records = run(job_of(small, node), 4)
    first, last = records[0], records[-1]
    computing = [s for r in records[1:] for rank in r.spans for s in rank]
    work_j = sum(span.energy_j for span in computing)
    waited_s = 3 * (last.end_ns - first.end_ns) / 1e9 - sum(span.time_s for span in computing)
    expected_j = work_j + waited_s * node.spec.blocking_power_w
    tick_j = 3 * 390 * node.spec.counter_tick_s
    assert last.total_energy_j - first.total_energy_j == pytest.approx(expected_j, abs=tick_j)
    full = small.curves[0, "forward"]
    assert last.spans[0][0].energy_j == pytest.approx(full.energy_j[-1], rel=1e-3)


def test_a_straggler_holds_up_its_iterations_and_no_others(
    small: Workload, node: SimulatedNode
) -> None:
    """Another replica, twice as slow from iteration 2 until 4; onset and end are told once."""
    told: list[bool] = []
    job = job_of(small, node, straggler=Straggler(2.0, 2, 4), on_straggler=told.append)
    records = run(job, 6)
    full_s = small.full_clock_time_s()
    for record in records[:6]:
        factor = 2.0 if record.iteration in (2, 3) else 1.0
        assert record.time_s == pytest.approx(factor * full_s + SYNCHRONISATION_S, abs=1e-4)
        assert record.straggling == (factor > 1)
    assert told == [True, False]


def test_a_dead_worker_is_told_and_the_others_wait(small: Workload, node: SimulatedNode) -> None:
    """The other ranks wait for the dead one, as a collective does, until the job is stopped."""
    job = job_of(small, node)
    with job:
        wait_for(lambda: len(job.iterations()) >= 1)
        os.kill(job.pids[1], signal.SIGKILL)

        def noticed() -> bool:
            try:
                job.check()
            except PerseusError as error:
                return "stage 1" in str(error) and str(job.pids[1]) in str(error)
            return False

        wait_for(noticed)
        done = len(job.iterations())
        time.sleep(0.5)
        assert len(job.iterations()) == done
        assert not gone(job.pids[0])
        assert not gone(job.pids[2])
    assert all(gone(pid) for pid in job.pids)


def test_a_stopped_worker_does_not_keep_the_job_from_ending(
    small: Workload, node: SimulatedNode
) -> None:
    """A worker under SIGSTOP cannot end by itself; it is killed."""
    with (job := job_of(small, node)):
        wait_for(lambda: len(job.iterations()) >= 1)
        os.kill(job.pids[2], signal.SIGSTOP)
    assert all(gone(pid) for pid in job.pids)


def test_no_worker_outlives_a_killed_launcher(tmp_path: Path) -> None:
    """Even SIGKILL of the launcher leaves no orphan: its sockets close."""
    script = f"""
import time
from pathlib import Path
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.workloads import load_workload
from perseusd.gpus.simulated import SPECS, create_node
workload = load_workload("bert-1.3b", "a100-pcie")
folder = Path({str(tmp_path)!r})
create_node(folder / "node", SPECS[workload.gpu], 4)
job = EmulatedJob(workload, folder / "node", folder, JobOptions(microbatches=2))
job.start()
print(*job.pids, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        launcher.kill()
    assert len(pids) == 4
    wait_for(lambda: all(gone(pid) for pid in pids))


def test_a_worker_that_cannot_start_is_an_error(small: Workload, node: SimulatedNode) -> None:
    """A GPU that is in use already: the job says which stage failed, and leaves nothing behind."""
    engine = node.gpus[1].engine()
    job = job_of(small, node)
    try:
        with pytest.raises(PerseusError, match="stage 1"):
            job.start()
    finally:
        engine.close()
    assert all(gone(pid) for pid in job.pids)
