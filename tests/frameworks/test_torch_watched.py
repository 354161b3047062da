"""Real torch pipelines under a real daemon: it learns their orders and finds who is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perseusd.emulation.daemon import ask
from tests.frameworks.processes import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_pipeline.py"
ALL = ("1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
Said = dict[str, list[dict[str, Any]]]


def train(
    tmp_path: Path, folder: Path, names: str, slow_rank: int, wanted: str, ranks: int = 2
) -> Said:
    """What the daemon said of each schedule's job."""
    told = run_ranks(
        "pipeline_watched.py",
        tmp_path,
        names,
        str(slow_rank),
        wanted,
        ranks=ranks,
        PERSEUS_RUNTIME_DIR=str(folder),
    )
    said: Said = told[0]
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, observed_folder: Path) -> Said:
    """Of two ranks that run one schedule after the other, the second 1.5 times as slow."""
    folder = tmp_path_factory.mktemp("one")
    return train(folder, observed_folder, ",".join(ALL), 1, "critical_path")


@pytest.mark.parametrize("name", ALL)
def test_the_daemon_understands_the_order_and_names_the_slow_stage_critical(
    said: Said, name: str
) -> None:
    """Nobody told it the order; the declared schedule is advice, and is not even needed."""
    (job,) = said[name]
    assert (job["ranks"], job["missing_ranks"]) == (2, [])
    assert job["iteration_time_s"] > 0
    first = job["critical_path"][0]
    assert first["stage"] == 1, job
    assert first["share"] > 0.5


def test_of_two_replicas_the_slow_ones_stage_is_named_a_straggler(
    tmp_path: Path, observed_folder: Path
) -> None:
    """Stage 1 of replica 1 takes 1.5 times as long as the same stage of replica 0."""
    jobs = train(tmp_path, observed_folder, "1F1B", 3, "stragglers", ranks=4)["1F1B"]
    assert len(jobs) == 2
    for job in jobs:
        (straggler,) = job["stragglers"]
        assert (straggler["replica"], straggler["stage"]) == (1, 1)
        assert 1.3 < straggler["factor"] < 1.7


def test_the_example_is_one_job_of_two_stages(observed_folder: Path) -> None:
    """Under torchrun, with nothing told but its one line."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", str(EXAMPLE), "--iterations", "8"]
    environ = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environ |= {"PERSEUS_RUNTIME_DIR": str(observed_folder)}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as training:
        seen = []
        while training.poll() is None:
            request = {"command": "status"}
            seen += ask(observed_folder / "status.sock", request, timeout_s=20)["jobs"]
            time.sleep(0.2)
        assert training.stderr is not None
        assert training.returncode == 0, training.stderr.read()
    understood = [job for job in seen if job["ranks"] == 2 and job["critical_path"]]
    assert understood
    assert understood[-1]["critical_path"][0]["stage"] == 0  # it has twice the layers
