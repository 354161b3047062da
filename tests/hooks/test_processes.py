"""Whole processes: how they exit, fork and carry on, whatever the daemon does."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from perseus_hooks.events import Goodbye, Hello, StageStart

TRAIN = """
import sys, time
import perseus_hooks
from perseus_hooks import stage_start, stage_end
perseus_hooks.configure(job="job", rank=0)
for microbatch in range(int(sys.argv[1])):
    stage_start("forward", microbatch=microbatch % 8)
    stage_end()
print("done", flush=True)
"""


@pytest.mark.parametrize("folder", ["/nonexistent", ""])
def test_it_exits_without_a_daemon(scripts: Any, folder: str) -> None:
    """No daemon, with or without a folder: the trainer runs and ends, and writes no warning."""
    variables = {"PERSEUS_RUNTIME_DIR": folder} if folder else {}
    assert scripts.run(TRAIN, "2000", **variables) == "done\n"


def test_it_exits_over_a_dead_daemons_socket(scripts: Any) -> None:
    """A socket file that nobody listens on is as good as none."""
    peer = scripts.peer()
    peer.kill()
    peer.wait()
    assert scripts.run(TRAIN, "2000") == "done\n"


def test_a_clean_exit_says_goodbye(scripts: Any, daemon: Any) -> None:
    """The last event of a process that ends by itself is its goodbye."""
    assert scripts.run(TRAIN, "10", patient=True) == "done\n"
    received = daemon.receive()
    assert isinstance(received[0], Hello)
    assert isinstance(received[-1], Goodbye)
    assert received[-1].sequence == 21


def test_a_stopped_daemon_stops_nobody(scripts: Any) -> None:
    """A daemon under SIGSTOP takes no connection: the trainer drops everything and exits."""
    scripts.peer().send_signal(signal.SIGSTOP)
    assert scripts.run(TRAIN, "50000") == "done\n"


def test_a_daemon_stopped_midway_stops_nobody(scripts: Any) -> None:
    """With an open connection every queue fills; the trainer drops the rest and exits.

    When the daemon goes on it finds what was queued and no more.
    """
    peer = scripts.peer()
    code = TRAIN.replace("for microbatch", "print('up', input())\nfor microbatch")
    code = "import perseus_hooks.calls\nperseus_hooks.calls.CONNECT_MS = 5000\n" + code
    process = scripts.start(code, "50000")
    assert peer.stdout.readline() == "1\n"  # the hello
    peer.send_signal(signal.SIGSTOP)
    output, errors = process.communicate("go\n", timeout=20)
    assert (process.returncode, output) == (0, "up go\ndone\n"), errors
    peer.send_signal(signal.SIGCONT)
    assert 0 < int(peer.stdout.readline()) < 50_000


FORK = """
import os, sys
import perseus_hooks
from perseus_hooks import configure, stage, stage_start, stage_end
configure(job="job", rank=0)
with stage("forward", microbatch=1):
    child = os.fork()
    if child == 0:
        stage_end()
        with stage("backward", microbatch=2):
            pass
        {child}
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
with stage("forward", microbatch=3):
    pass
"""


def test_a_forked_child_is_silent(scripts: Any, daemon: Any) -> None:
    """A data-loader worker's calls reach nobody, its exit disturbs nothing, the parent goes on."""
    scripts.run(FORK.format(child="pass"), patient=True)
    received = daemon.receive()
    starts = [event for event in received if isinstance(event, StageStart)]
    assert [start.microbatch for start in starts] == [1, 3]
    assert [type(event).__name__ for event in received[1:]] == [
        "StageStart",
        "StageEnd",
        "StageStart",
        "StageEnd",
        "Goodbye",
    ]
    assert [event.sequence for event in received[1:]] == [1, 2, 3, 4, 5]


def test_a_forked_child_may_speak_for_itself(scripts: Any, daemon: Any) -> None:
    """A launcher that forks its ranks: each configures itself and has a connection of its own."""
    scripts.run(
        FORK.format(
            child="configure(job='job', rank=1); stage_start('recompute', microbatch=5);"
            " stage_end()"
        ),
        patient=True,
    )
    received = daemon.receive()
    assert [event.rank for event in received if isinstance(event, Hello)] == [0, 1]
    starts = [event for event in received if isinstance(event, StageStart)]
    assert sorted((start.instruction, start.microbatch) for start in starts) == [
        ("forward", 1),
        ("forward", 3),
        ("recompute", 5),
    ]
    assert len([event for event in received if isinstance(event, Goodbye)]) == 2


def test_multiprocessing_workers_are_silent(scripts: Any, daemon: Any) -> None:
    """Workers as frameworks fork them: through multiprocessing, many, while threads are busy."""
    code = """
import multiprocessing, threading, warnings
from perseus_hooks import configure, stage
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: what is tested
configure(job="job", rank=0)
stop = threading.Event()
def busy():
    while not stop.is_set():
        with stage("forward"):
            pass
def work(number):
    with stage("backward", microbatch=number):
        return number
if __name__ == "__main__":
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads: thread.start()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(8)) == list(range(8))
    stop.set()
    for thread in threads: thread.join()
"""
    scripts.run(code, patient=True)
    starts = [event for event in daemon.receive() if isinstance(event, StageStart)]
    assert starts
    assert {start.instruction for start in starts} == {"forward"}


def test_a_child_forked_while_the_lock_is_held_is_not_stuck(scripts: Any) -> None:
    """Another thread is in a call at the fork: in the child its lock is never released."""
    code = """
import os, sys
import perseus_hooks.calls
from perseus_hooks import Client, configure, stage
configure(job="job", rank=0)
process = perseus_hooks.calls._process
process.client._outlet._lock.acquire()
process.lock.acquire()
child = os.fork()
if child == 0:
    with stage("forward"):
        configure(job="job", rank=1)
        with stage("forward"):
            pass
    perseus_hooks.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
process.lock.release()
process.client._outlet._lock.release()
"""
    scripts.run(code)


def test_running_out_of_descriptors_hurts_nobody(scripts: Any, daemon: Any) -> None:
    """libzmq aborts the process when it cannot open its own; the hooks do not let it try."""
    code = """
import os, resource
from perseus_hooks import configure, stage
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for spare in range(20):
    configure(job="job", rank=0, runtime_dir=os.environ["PERSEUS_RUNTIME_DIR"])
    with stage("forward"):
        pass
    configure(job="job", rank=0, runtime_dir="/nonexistent")
    os.close(taken.pop())
"""
    process = scripts.start(code)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Too many open files" in errors  # said once, as a log line
    assert errors.count("\n") < 20  # once for each client, of which there was one in a round
    assert daemon.receive()  # with enough of them left it did connect


def test_importing_starts_nothing(scripts: Any) -> None:
    """No thread, no socket and no framework comes with the import."""
    code = """
import os, sys
before = set(os.listdir("/proc/self/fd"))
import perseus_hooks, perseus_hooks.testing
assert set(os.listdir("/proc/self/fd")) == before
assert len(os.listdir("/proc/self/task")) == 1
assert not {"torch", "jax", "numpy", "perseusd", "asyncio"} & set(sys.modules), sys.modules
"""
    scripts.run(code)


def test_a_killed_trainer_leaves_the_daemon_receiving(scripts: Any, daemon: Any) -> None:
    """kill -9 in mid-call: what was sent arrives, and nothing that cannot be decoded."""
    slow = TRAIN.replace("stage_end()", "time.sleep(0.0001); stage_end()")
    process = scripts.start(slow, "100000000")
    while len(daemon.events) < 100:
        assert process.poll() is None, process.communicate()
        daemon.receive(0.05, most=100)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    daemon.receive()
    assert isinstance(daemon.events[0], Hello)
    assert not any(isinstance(event, Goodbye) for event in daemon.events)
