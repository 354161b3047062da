"""A daemon that only observes, on simulated GPUs: what it tells, and that it writes no clock."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from perseus_hooks.events import StageEnd, StageStart

from perseusd.core.critical import slack_of_ranks
from perseusd.core.graph import Graph
from perseusd.core.schedules import one_f_one_b, pipeline

STAGES, MICROBATCHES = 2, 4
SLOW_FROM, SLOW_FACTOR = 25, 1.5


def perseusctl(rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from perseusd.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *arguments, "--runtime-dir", str(rig.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def observed(make_module_rig, helpers):
    """A daemon started with --observe, and a job whose saving it has predicted."""
    rig = make_module_rig(gpus=helpers.STAGES + STAGES)
    rig.start("--observe")
    rig.start_job()
    helpers.until(lambda: (job := rig.job_status()) and job["predicted_saving"], poll_s=0.1)
    return rig


def test_it_predicts_and_writes_nothing(observed, helpers) -> None:
    """A saving with its interval and source, of a job in baseline; not one clock was written."""
    job = observed.job_status()
    forecast = job["predicted_saving"]
    assert 0 < forecast["saving_low"] < forecast["saving"] < forecast["saving_high"] < 1
    assert "A100" in forecast["source"]
    assert job["no_prediction"] is None
    assert (job["state"], job["plan"], job["deadline_s"]) == ("baseline", None, None)
    assert job["why_code"] == "observing"
    assert (job["saving"], job["energy_saved_j"], job["reference_iterations"]) == (None, 0.0, 0)
    assert [gpu.clock_writes() for gpu in observed.node.gpus] == [0] * observed.gpus
    assert all(gpu["requested_mhz"] is None for gpu in observed.status()["gpus"])
    assert "perseusd.clock" not in observed.children()


def test_it_measures_path_slack_and_iterations(observed, helpers) -> None:
    """Slack is what the workload's own times give; shares add up; nothing lower was tried."""

    def all_slacks() -> list[float] | None:
        slack = [part["share"] for part in observed.job_status()["slack"]]
        return None if None in slack else slack

    workload = observed.job.workload
    graph = Graph(workload.pipeline(4))
    true_s = np.array([workload.curves[c.rank, c.instruction].time_s[-1] for c in graph.nodes])
    found = helpers.until(all_slacks, poll_s=0.05)
    assert found == pytest.approx(slack_of_ranks(graph, true_s), abs=0.08)
    job = observed.job_status()
    assert sum(part["share"] for part in job["critical_path"]) == pytest.approx(1, abs=0.01)
    assert job["iteration_time_s"] == pytest.approx(workload.full_clock_time_s(4), rel=0.2)
    assert {doubt["stage"] for doubt in job["learning"]["uncertain"]} == set(range(helpers.STAGES))
    assert (job["learning"]["iterations"], job["learning"]["lowest_mhz"]) == (0, None)


def test_people_are_told_what_is_predicted(observed, helpers) -> None:
    """status and doctor call the prediction one, name its source, and nothing is wrong."""

    def told() -> bool:  # a busy machine may make a job look changed: then it is predicted anew
        words = " ".join(perseusctl(observed, "status").stdout.split())
        assert "observe-only: no clock is ever written, emulated GPUs" in words
        doctor = perseusctl(observed, "doctor", "--json")
        assert doctor.returncode == 0
        found = [finding["text"] for finding in json.loads(doctor.stdout)["findings"]]
        predicted = any("is predicted to save" in text for text in found)
        return predicted and "not measured, from a prior (" in words

    helpers.until(told)


class Scripted:
    """Ranks that say what a pipeline would, stamped as if it had run a while ago."""

    def __init__(self, peers, helpers, gpus) -> None:
        self.graph = Graph.from_pipeline(pipeline(one_f_one_b(STAGES, MICROBATCHES), 0.0005))
        self.peers = peers
        self.sequence = [1] * STAGES
        self.now_ns = time.monotonic_ns()
        for rank, peer in enumerate(peers):
            peer.send(helpers.hello("scripted", rank=rank, stage=rank, gpus=[gpus[rank]]))

    def iterate(self, number: int, slowed: dict[int, float]) -> None:
        nodes = self.graph.nodes
        seconds = [(0.04 if c.instruction == "forward" else 0.08) for c in nodes]
        taken = self.graph.earliest(durations := self._durations(seconds, slowed))
        for rank in range(STAGES):
            for node in self.graph.order[rank]:
                start_ns = self.now_ns + int(taken[node] * 1e9)
                self._say(rank, number, nodes[node], start_ns, int(durations[node] * 1e9) - 1)
        self.now_ns += int(float(self.graph.makespan(durations)) * 1e9) + 20_000_000
        time.sleep(0.004)  # the ranks of a job do not run away from each other

    def _durations(self, seconds, slowed):
        factors = [slowed.get(c.rank, 1.0) for c in self.graph.nodes]
        return np.array(seconds) * factors

    def _say(self, rank, number, computation, start_ns: int, length_ns: int) -> None:
        token = self.sequence[rank]
        what = computation.instruction, computation.microbatch, computation.chunk
        self.peers[rank].send(StageStart(token, start_ns, token, *what, None, number))
        self.peers[rank].send(StageEnd(token + 1, start_ns + length_ns, token))
        self.sequence[rank] += 2


def test_a_straggler_is_told_and_its_end_too(observed, make_peer, helpers) -> None:
    """A stage that becomes 1.5 times slower, and later well again: when, which, how much."""
    gpus = [gpu.info.uuid for gpu in observed.node.gpus[helpers.STAGES :]]
    script = Scripted([make_peer(observed) for _ in range(STAGES)], helpers, gpus)

    def job():
        jobs = observed.status()["jobs"]
        return next((job for job in jobs if job["id"].endswith(":scripted")), None)

    helpers.until(lambda: (found := job()) and found["ranks"] == STAGES)
    for number in range(SLOW_FROM + 15):
        script.iterate(number, {1: SLOW_FACTOR} if number >= SLOW_FROM else {})
    (straggler,) = helpers.until(lambda: job()["stragglers"])
    assert straggler["stage"] == 1
    assert straggler["factor"] == pytest.approx(SLOW_FACTOR, rel=0.1)
    assert SLOW_FROM <= straggler["since_iteration"] <= SLOW_FROM + 3
    assert (straggler["until_iteration"], straggler["transient"]) == (None, False)
    listed = perseusctl(observed, "straggler", "list", "--job", "scripted").stdout
    assert "now: replica 0 stage 1: 1.5" in listed
    assert perseusctl(observed, "doctor").returncode == 1
    for number in range(SLOW_FROM + 15, SLOW_FROM + 35):
        script.iterate(number, {})
    helpers.until(lambda: not job()["stragglers"])
    (over,) = job()["straggler_history"]
    assert over["stage"] == 1
    assert SLOW_FROM + 14 <= over["until_iteration"] <= SLOW_FROM + 20
    assert [gpu.clock_writes() for gpu in observed.node.gpus] == [0] * observed.gpus
