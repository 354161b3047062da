"""A lease is worth something only on GPUs that its process uses, by the driver's word."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from nvml_faults import GpuControls, gpu_controls, set_gpu
from perseus_hooks.events import Refusal, Welcome

from perseusd.core.jobs.why import WhyCode, code_of
from perseusd.daemon.access import Caller
from perseusd.daemon.ownership import STALE_S, Found, Holder, Ownership
from perseusd.daemon.processes import MPS_SERVER, Process, in_host_namespace, look_up
from perseusd.errors import GpuError
from perseusd.gpus.base import GpuInfo

INFO = GpuInfo("GPU-0", "A100", 0, (1200, 1410), mig_enabled=False, emulated=False)
ALICE, BOB = 64_001, 64_002
OTHER_UID = 64_000


class ListedGpu:
    """A GPU whose processes are what a test says."""

    def __init__(self, info: GpuInfo = INFO) -> None:
        self.info, self.listed = info, list[int]()
        self.error: Exception | None = None
        self.calls = 0

    def process_ids(self) -> list[int]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.listed


class Node:
    """One GPU, the processes of a machine, and who holds leases."""

    def __init__(self, check: str = "process", host: bool = True, info: GpuInfo = INFO) -> None:
        self.gpu = ListedGpu(info)
        self.table = {
            10: Process(10, frozenset({ALICE}), "python", (5, 2)),
            11: Process(11, frozenset({ALICE}), "python", (10, 5, 2)),
            5: Process(5, frozenset({ALICE}), "launcher", (2,)),
            12: Process(12, frozenset({ALICE}), "notebook", (2,)),
            20: Process(20, frozenset({BOB}), "python", (2,)),
            30: Process(30, frozenset({0}), MPS_SERVER, ()),
            40: Process(40),  # that /proc hides
        }
        self.ownership = Ownership([self.gpu], check, lambda: host, self.table.get)  # type: ignore[list-item]
        self.ownership.start()
        self.holders = [self.holder(10)]

    @staticmethod
    def holder(pid: int, uid: int = ALICE, rank: int = 0) -> Holder:
        return Holder(f"{pid}:a", Caller(uid, uid, pid), rank, "GPU-0")

    def found(self, *listed: int, after_s: float = 0.0) -> Found:
        """What is found once the GPU has been looked at again."""
        self.gpu.listed = list(listed)
        self.ownership.look([], time.monotonic())
        began_s = time.monotonic()
        while True:
            self.ownership.look(self.holders, time.monotonic() + after_s)
            use = self.ownership._readers["GPU-0"].use if self.expects_calls else None
            if not self.expects_calls or (use is not None and use.time_s >= began_s):
                return self.ownership.look(self.holders, time.monotonic() + after_s)
            assert time.monotonic() < began_s + 20
            time.sleep(0.001)

    expects_calls = True


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**options: Any) -> Node:
        made.append(Node(**options))
        return made[-1]

    yield make
    for node in made:
        node.ownership.stop()


def test_seen_by_itself_a_child_or_an_ancestor(make_node: Callable[..., Node]) -> None:
    """The process of the hello, one that it started, or one that started it; of the same user."""
    node = make_node()
    for listed in ((10,), (11,), (5,), (10, 12), (10, 30)):
        assert node.found(*listed) == Found({}, {})


@pytest.mark.parametrize("listed", [(), (12,), (30,), (12, 30)])
def test_not_seen_is_kept_at_full_clock(make_node: Callable[..., Node], listed: Any) -> None:
    """Nobody there, or only another process of the user's or MPS's server: its lease stays."""
    found = make_node().found(*listed)
    assert found.ended == {}
    assert "process 10 of rank 0 was not seen on GPU GPU-0" in found.kept_full["GPU-0"]
    assert ("MPS's server was" in found.kept_full["GPU-0"]) == (30 in listed)
    assert code_of(found.kept_full["GPU-0"]) is WhyCode.GPU_NOT_SEEN


def test_any_process_of_the_user_where_that_will_do(make_node: Callable[..., Node]) -> None:
    """gpu_check = "user": but not another user's, and not nobody."""
    node = make_node(check="user")
    assert node.found(12) == Found({}, {})
    assert node.found().kept_full
    assert node.found(20).ended


@pytest.mark.parametrize("other", [20, 40])
def test_a_lease_on_what_somebody_else_uses_ends(
    make_node: Callable[..., Node], other: int
) -> None:
    """The reason names the process that is there, and its user where that can be seen."""
    found = make_node().found(other)
    assert found.kept_full == {}
    reason = found.ended["10:a"]
    assert f"GPU GPU-0 is used by process {other}" in reason
    assert (f"of {BOB}" in reason) == (other == 20)
    assert "PERSEUS_GPUS" in reason
    assert len(reason) < 256


def test_what_both_use_is_kept_at_full_clock(make_node: Callable[..., Node]) -> None:
    """The holder keeps its lease, and nobody is slowed for it."""
    found = make_node().found(10, 20)
    assert found.ended == {}
    assert f"is used by process 20 of {BOB} as well" in found.kept_full["GPU-0"]
    assert code_of(found.kept_full["GPU-0"]) is WhyCode.GPU_USED_BY_OTHERS


def test_who_squats_on_a_gpu_loses_it_to_who_uses_it(make_node: Callable[..., Node]) -> None:
    """Of two who name it, the one whose process is not there."""
    node = make_node()
    node.holders = [node.holder(20, BOB)]
    assert set(node.found(10).ended) == {"20:a"}


def test_what_cannot_be_told(make_node: Callable[..., Node]) -> None:
    """An error of the driver's, no answer for long, and pids of another namespace."""
    node = make_node()
    node.gpu.error = GpuError("GPU 0: no permission")
    assert node.found().kept_full == {
        "GPU-0": "what uses GPU GPU-0 cannot be told: GPU 0: no permission"
    }
    node.gpu.error = ZeroDivisionError("a driver's surprise")
    assert "a driver's surprise" in node.found().kept_full["GPU-0"]
    node.gpu.error = None
    assert "does not answer" in node.found(10, after_s=STALE_S + 1).kept_full["GPU-0"]
    inside = make_node(host=False)
    inside.expects_calls = False
    told = inside.found(10).kept_full["GPU-0"]
    assert "host's process namespace (hostPID)" in told
    assert code_of(told) is WhyCode.GPU_USE_UNKNOWN


def test_a_daemon_that_can_never_tell_says_so_before_any_job(
    make_node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """At its start in the log, and in its status for as long as it checks real GPUs."""
    node = make_node(host=False)
    assert "no clock will be lowered" in caplog.text
    assert 'gpu_check = "off"' in caplog.text
    assert "host's process namespace (hostPID)" in (node.ownership.blind or "")
    node.ownership.check = "off"  # by a reload
    assert node.ownership.blind is None
    for sees in ({}, {"host": False, "check": "off"}):
        assert make_node(**sees).ownership.blind is None
    assert make_node(host=False, info=replace(INFO, emulated=True)).ownership.blind is None


def test_nobody_is_looked_at_where_nothing_is_to_be_checked(make_node: Callable[..., Node]) -> None:
    """gpu_check = "off", emulated GPUs, and GPUs that nobody holds: the driver is not asked."""
    off = make_node(check="off")
    emulated = make_node(info=replace(INFO, emulated=True))
    unheld = make_node()
    unheld.holders = []
    for node in (off, emulated, unheld):
        node.expects_calls = False
        assert node.found(20) == Found({}, {})
    time.sleep(0.05)
    assert [node.gpu.calls for node in (off, emulated, unheld)] == [0, 0, 0]


def test_parts_of_a_divided_gpu(make_node: Callable[..., Node]) -> None:
    """Where MIG is allowed: one clock for all parts, so the job's own processes and no others."""
    node = make_node(info=replace(INFO, mig_enabled=True))
    assert node.found(10, 11) == Found({}, {})
    assert "process 12" in node.found(10, 12).kept_full["GPU-0"]
    node.holders.append(node.holder(12, rank=1))
    assert node.found(10, 12) == Found({}, {})


def test_what_proc_tells() -> None:
    """Users, name and lineage of a process that runs; None for one that does not."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        found = look_up(child.pid)
        assert found is not None
        assert found.uids == {os.getuid()}
        assert found.lineage[0] == os.getpid()
        child.kill()
    assert look_up(child.pid) is None
    assert look_up(2**22 + 1) is None
    assert in_host_namespace() == (os.readlink("/proc/self/ns/pid") == "pid:[4026531836]")


_SLEEP_AS = "import os, sys, time; os.setuid(int(sys.argv[1])); print(flush=True); time.sleep(600)"


@pytest.fixture
def other_process() -> Iterator[int]:
    """One of another user: of an unused uid, or where that cannot be made, the system's first."""
    if os.getuid() != 0:
        yield 1
        return
    command = [sys.executable, "-c", _SLEEP_AS, str(OTHER_UID)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_through_the_drivers_library(
    make_rig: Any, make_peer: Any, helpers: Any, nvml_library: Any, other_process: int
) -> None:
    """A daemon on real pynvml: unseen is full clock, seen lifts that, and a lease on a GPU that
    somebody else computes on ends with a reason."""
    rig = make_rig(nvml=nvml_library, gpus=2)
    controls = GpuControls(processes=())
    set_gpu(rig.node.path, 0, controls)
    rig.start()
    uuid = rig.node.gpus[0].info.uuid

    def job() -> Any:
        return next(iter(rig.status()["jobs"]), None)

    peer = make_peer(rig)
    peer.send(helpers.hello(gpus=[uuid]))
    assert isinstance(peer.hear(), Welcome)
    whose = "cannot be told" if not in_host_namespace() else "was not seen"
    helpers.until(lambda: job() and whose in rig.log.read_text())
    if not in_host_namespace():
        return
    log = len(rig.log.read_text())
    set_gpu(rig.node.path, 0, replace(controls, processes=[os.getpid()]))
    helpers.until(lambda: "no longer kept at full clock" in rig.log.read_text()[log:])
    set_gpu(rig.node.path, 0, replace(controls, processes=[os.getpid(), other_process]))
    shared = f"is used by process {other_process} of"
    helpers.until(lambda: shared in rig.log.read_text())
    assert job()["ranks"] == 1
    set_gpu(rig.node.path, 0, replace(controls, processes=[other_process]))
    refusal = peer.hear(10)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "gpu_used_by_others"
    assert f"{uuid} {shared}" in refusal.reason
    helpers.until(lambda: rig.status()["jobs"] == [])
    assert rig.status()["gpus"][0]["holder"] is None
    assert gpu_controls(rig.node.path, 0).set_calls == 0
