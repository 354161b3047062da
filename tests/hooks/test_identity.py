"""Who a process is, from every launcher, from variables and from what it was told."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from perseus_hooks.events import Hello
from perseus_hooks.identity import (
    Arguments,
    Found,
    identify,
    is_enabled,
    runtime_dir_of,
    uses_cuda,
)
from perseus_hooks.wire import decode, encode

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "run7"}
SLURM = {
    "SLURM_JOB_ID": "99",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "2",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "4",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "PMIX_NAMESPACE": "prterun-node1-77@1",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "PMI_JOBID": "kvs_7"}
JAX = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_PROCESS_ID": "2",
    "JAX_NUM_PROCESSES": "4",
}


def who(environ: dict[str, str], **told: Any) -> Hello:
    """The hello; fails on any complaint, and where the wire would not take it."""

    def fail(message: str) -> None:
        pytest.fail(message)

    hello = identify(Arguments(**told), environ, fail)
    assert decode(encode(hello)) == hello
    return hello


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, ("run7", 5, 16, 1)),
        (SLURM, ("99.0", 6, 8, 2)),
        (OPENMPI, ("prterun-node1-77@1", 4, 8, 0)),
        (HYDRA, ("kvs_7", 3, 4, 1)),
        (JAX, ("10.0.0.1:1234", 2, 4, None)),
        ({**SLURM, **TORCHRUN}, ("run7", 5, 16, 1)),
        ({**SLURM, **OPENMPI}, ("prterun-node1-77@1", 4, 8, 0)),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "n:1"}, ("99.0", 6, 8, 2)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "7"}, ("99.0", 6, 7, 2)),
    ],
)
def test_launchers_are_read(environ: dict[str, str], expected: tuple[object, ...]) -> None:
    """Job, rank, world size and local rank come from each launcher, the inner one first."""
    hello = who(environ)
    assert (hello.job, hello.rank, hello.world_size, hello.local_rank) == expected


def test_a_batch_script_is_no_rank() -> None:
    """sbatch sets SLURM_PROCID and SLURM_NTASKS for the script itself, which is one process."""
    environ = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    hello = who(environ)
    assert (hello.rank, hello.world_size) == (0, None)
    assert hello.job == f"pid-{os.getpid()}"


def test_torchrun_without_a_run_id_names_the_job_by_its_rendezvous() -> None:
    """Two torchruns on one node both have the run id "none"; their ports differ."""
    environ = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "n1", "MASTER_PORT": "29"}
    assert who(environ).job == "n1:29"
    nothing = {"RANK": "0", "WORLD_SIZE": "2"}
    assert who(nothing).job == f"torchrun-{os.getppid()}"


def test_what_is_told_beats_variables_and_variables_beat_launchers() -> None:
    """configure() first, PERSEUS_* second, the launcher last."""
    environ = {
        **TORCHRUN,
        "PERSEUS_JOB": "named",
        "PERSEUS_RANK": "9",
        "PERSEUS_STAGE": "1",
        "PERSEUS_STAGES": "4",
        "PERSEUS_REPLICA": "0",
        "PERSEUS_REPLICAS": "2",
        "PERSEUS_SCHEDULE": "gpipe",
        "PERSEUS_GPUS": "GPU-a, 3",
    }
    hello = who(environ)
    assert (hello.job, hello.rank, hello.schedule) == ("named", 9, "gpipe")
    assert (hello.stage, hello.stages, hello.replica, hello.replicas) == (1, 4, 0, 2)
    assert hello.gpus == ("GPU-a", "index:3")
    told = who(environ, job="told", rank=2, stage=3, schedule="1f1b", gpus=["GPU-b"])
    assert (told.job, told.rank, told.stage, told.schedule) == ("told", 2, 3, "1f1b")
    assert told.gpus == ("GPU-b",)
    assert told.stages == 4


def test_nothing_known_is_said_as_unknown() -> None:
    """Without launcher and variables nothing is invented but a name for the process itself."""
    hello = who({})
    assert (hello.rank, hello.world_size, hello.local_rank) == (0, None, None)
    assert (hello.stage, hello.stages, hello.replica, hello.schedule) == (None,) * 4
    assert hello.gpus == ()
    assert hello.job == f"pid-{os.getpid()}"


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, ("GPU-a",)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a"}, ("MIG-a",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", **TORCHRUN}, ("GPU-b",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a", **TORCHRUN}, ("GPU-a",)),
        ({"CUDA_VISIBLE_DEVICES": "6,7", **TORCHRUN}, ("cuda-index:7",)),
        (
            {"CUDA_VISIBLE_DEVICES": "6,7", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **TORCHRUN},
            ("index:7",),
        ),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6", **TORCHRUN, "LOCAL_RANK": "3"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,3", **TORCHRUN}, ("cuda-index:2",)),
        ({"CUDA_VISIBLE_DEVICES": "", **TORCHRUN}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1", **TORCHRUN}, ()),
        (TORCHRUN, ("cuda-index:1",)),
        ({**TORCHRUN, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ("index:1",)),
        ({"CUDA_VISIBLE_DEVICES": "3", "PERSEUS_GPUS": ""}, ()),
    ],
)
def test_gpus_come_from_what_cuda_shows(environ: dict[str, str], gpus: tuple[str, ...]) -> None:
    """UUIDs pass, indices say in whose order they count, and what is not known is left out."""
    assert who(environ).gpus == gpus


def test_gpus_can_be_told_in_several_ways() -> None:
    """One UUID, one index or a list of either."""
    assert who({}, gpus="GPU-a").gpus == ("GPU-a",)
    assert who({}, gpus=3).gpus == ("index:3",)
    assert who({}, gpus=[0, "GPU-b"]).gpus == ("index:0", "GPU-b")
    assert who({"PERSEUS_GPUS": "GPU-a"}, gpus=[]).gpus == ()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"stage": "1"}, "stage is '1'"),
        ({"stage": -1}, "stage is -1"),
        ({"stage": True}, "stage is True"),
        ({"stage": 4, "stages": 4}, "stage is 4: pass less than stages"),
        ({"stages": 0}, "stages is 0"),
        ({"replica": 2, "replicas": 2}, "replica is 2"),
        ({"rank": 2**20}, "rank is 1048576"),
        ({"schedule": ""}, "schedule is ''"),
        ({"job": "a\nb"}, "job is"),
        ({"job": "j" * 300}, "job is"),
        ({"gpus": ["GPU-a", None]}, "gpus is"),
        ({"gpus": [-1]}, "gpus is"),
        ({"gpus": ["g"] * 65}, "gpus is"),
        ({"gpus": {"GPU-a"}}, "gpus is"),
        ({"slowdown_budget": 5}, "slowdown_budget is 5"),
        ({"slowdown_budget": float("nan")}, "slowdown_budget is nan"),
        ({"time_source": "sundial"}, "time_source is 'sundial'"),
    ],
)
def test_wrong_arguments_raise_and_say_what_to_pass(told: dict[str, Any], named: str) -> None:
    """configure() is the one place that may raise, and it names thing, value and fix."""
    with pytest.raises(ValueError, match=named) as caught:
        who({}, **told)
    assert "pass" in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PERSEUS_STAGE": "one"}, "PERSEUS_STAGE is 'one'"),
        ({"PERSEUS_RANK": "-3"}, "PERSEUS_RANK is '-3'"),
        ({"PERSEUS_RANK": "9" * 30}, "PERSEUS_RANK is '999"),
        ({"PERSEUS_STAGE": "4", "PERSEUS_STAGES": "4"}, "stage is 4 of 4 stages"),
        ({"RANK": "8", "WORLD_SIZE": "4"}, "rank is 8 of 4 world_size"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK is 'x'"),
    ],
)
def test_wrong_variables_are_reported_and_passed_over(
    environ: dict[str, str], complaint: str
) -> None:
    """A training is never stopped over an environment variable, and the wire takes the rest."""
    complaints: list[str] = []
    hello = identify(Arguments(), environ, complaints.append)
    assert len(complaints) == 1
    assert complaints[0].startswith(complaint)
    assert decode(encode(hello)) == hello


def test_an_adapter_may_say_whose_times_it_tells() -> None:
    """What configure was told wins over it, `host` is what is left, and no other word passes."""
    complaints: list[str] = []

    def source(told: str | None, found: str | None) -> str:
        arguments = Arguments(time_source=told)
        hello = identify(arguments, {}, complaints.append, Found(time_source=found))
        return hello.time_source

    assert source(None, "ready") == "ready"
    assert source("emulated", "ready") == "emulated"
    assert source(None, None) == "host"
    assert not complaints
    assert source(None, "sundial") == "host"
    assert "'sundial'" in complaints[0]


def test_unprintable_variables_are_cleaned() -> None:
    """A variable with control characters, bad bytes or great length still makes a valid hello."""
    for job in ("a\x1b[2Jb", "bad\udcff", "é" * 400, "  padded  "):
        hello = who({"PERSEUS_JOB": job})
        assert hello.job
        assert hello.job.isprintable()
    assert who({"PERSEUS_JOB": "\x00"}).job == f"pid-{os.getpid()}"


def test_enabled_and_runtime_dir_variables() -> None:
    """PERSEUS_ENABLED switches off by the usual words; the folder has a default."""
    assert all(not is_enabled({"PERSEUS_ENABLED": word}) for word in ("0", "no", "False", "OFF"))
    assert all(is_enabled({"PERSEUS_ENABLED": word}) for word in ("1", "yes", ""))
    assert is_enabled({})
    assert runtime_dir_of({}) == "/run/perseusd"
    assert runtime_dir_of({"PERSEUS_RUNTIME_DIR": "/tmp/x"}) == "/tmp/x"  # noqa: S108  only a name


def test_cuda_is_looked_for_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework that is loaded and has CUDA running is seen; a broken one counts as none."""
    monkeypatch.setitem(sys.modules, "torch.cuda", None)
    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", None)
    assert not uses_cuda()
    torch_cuda: Any = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch.cuda", torch_cuda)
    assert not uses_cuda()
    torch_cuda.is_initialized = lambda: True
    assert uses_cuda()
    torch_cuda.is_initialized = lambda: 1 / 0
    assert not uses_cuda()
    monkeypatch.setitem(sys.modules, "torch.cuda", None)
    bridge: Any = SimpleNamespace(_backends={"cpu": 1, "cuda": 2})
    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", bridge)
    assert uses_cuda()


def test_what_an_adapter_found_is_between_the_variables_and_the_launcher() -> None:
    """The framework knows better than the launcher; whoever runs the job knows better than both."""
    found = Found(job="theirs", rank=2, stage=1, stages=4, replica=0, replicas=2, schedule="1F1B")
    environ = {**TORCHRUN, "PERSEUS_STAGE": "3"}
    hello = identify(Arguments(replica=1), environ, pytest.fail, found)
    assert (hello.job, hello.rank, hello.schedule) == ("theirs", 2, "1F1B")
    assert (hello.stage, hello.stages) == (3, 4)
    assert (hello.replica, hello.replicas) == (1, 2)
    assert hello.world_size == 16


def test_the_device_that_a_framework_uses_is_one_of_those_that_cuda_shows() -> None:
    """A trainer told to use the third device computes on the third, whatever its local rank."""
    found = Found(device=2)
    shown = {**TORCHRUN, "CUDA_VISIBLE_DEVICES": "4,5,6"}
    assert identify(Arguments(), shown, pytest.fail, found).gpus == ("cuda-index:6",)
    assert identify(Arguments(), {}, pytest.fail, found).gpus == ("cuda-index:2",)
    assert identify(Arguments(gpus=[0]), shown, pytest.fail, found).gpus == ("index:0",)
