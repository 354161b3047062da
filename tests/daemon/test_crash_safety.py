"""Whatever dies or hangs while clocks are lowered, they go back to full, read from the GPUs.

The daemon and its clock process use unmodified pynvml on the fake NVML library, a face of the GPUs
on which the emulated job computes: so this is the whole loop on NVML, too. One daemon and one job
serve all tests; each brings what the one before it killed back to hold.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

DEATH_S = 1.0
HANG_S = 2.0
SILENCE_S = 1.0  # as configured: two iterations are shorter


def kill(*pids: int, number: signal.Signals = signal.SIGKILL) -> float:
    """Returns when the signal was sent."""
    sent_s = time.monotonic()
    for pid in pids:
        os.kill(pid, number)
    return sent_s


@pytest.fixture(scope="module")
def rig(make_module_rig, nvml_library):
    return make_module_rig(nvml=nvml_library)


@pytest.fixture
def held(rig):
    """In hold, clocks lowered at this moment."""
    rig.hold()
    return rig


def released(rig) -> bool:
    """Whether the job (if the daemon still knows it) is let go, with every clock unlocked."""
    return rig.state() in (None, "release", "baseline") and not rig.locked()


def test_a_killed_training_process(held) -> None:
    """kill -9 of one rank: full clocks within 1 s, and the job is let go, by name of the rank."""
    sent_s = kill(held.job.pids[1])
    assert held.seconds_locked(sent_s, DEATH_S) < DEATH_S
    job = held.job_status()
    assert job["state"] == "release"
    assert "rank 1 has ended" in job["why"]
    assert job["missing_ranks"] == [1]


def test_a_terminated_job(held) -> None:
    """SIGTERM of every rank: full clocks within 1 s, and the daemon forgets the job."""
    sent_s = kill(*held.job.pids, number=signal.SIGTERM)
    assert held.seconds_locked(sent_s, DEATH_S) < DEATH_S
    assert held.job_status() is None
    assert all(gpu["holder"] is None for gpu in held.status()["gpus"])


def test_a_stopped_training_process(held, helpers) -> None:
    """SIGSTOP of one rank: full clocks after the silence limit, held again once it speaks."""
    silence_s = max(2 * held.job_status()["iteration_time_s"], SILENCE_S)
    helpers.until(lambda: len(held.locked()) >= 2)
    pid = held.job.pids[2]
    sent_s = kill(pid, number=signal.SIGSTOP)
    try:
        assert held.seconds_locked(sent_s, silence_s + 1) < silence_s + 1
        job = held.job_status()
        assert job["state"] == "release"
        assert "silent" in job["why"]
    finally:
        kill(pid, number=signal.SIGCONT)
    helpers.until(lambda: held.state() == "hold", poll_s=0.05)


def test_a_stopped_daemon(held, helpers) -> None:
    """SIGSTOP of perseusd: full clocks within 2 s; once it goes on it lets go, and serves again."""
    known = held.lowered()
    sent_s = kill(held.daemon.pid, number=signal.SIGSTOP)
    try:
        assert held.seconds_locked(sent_s, HANG_S) < HANG_S
    finally:
        kill(held.daemon.pid, number=signal.SIGCONT)
    assert held.held_again(known)[0] == "release"
    helpers.until(held.locked)


def test_a_killed_clock_process(held, helpers) -> None:
    """kill -9 of perseusd-clock: the daemon's next one restores from the intent on disk.

    The job is let go meanwhile and held again later, by the new clock process.
    """
    known, clock = held.lowered(), held.clock_pid()
    sent_s = kill(clock)
    helpers.until(lambda: not held.locked(), 5)  # nobody else writes clocks: the next one did
    sys.stdout.write(f"unlocked after {time.monotonic() - sent_s:.3f} s\n")
    assert held.clock_pid() != clock
    assert held.status()["daemon"]["clock_process"] == "alive"
    assert held.held_again(known)[0] == "release"
    helpers.until(held.locked)


def test_a_killed_daemon(held, helpers) -> None:
    """kill -9 of perseusd: full clocks within 1 s, no process of it stays, training goes on."""
    done = len(held.job.iterations())
    sent_s = kill(held.daemon.pid)
    held.daemon.wait()
    assert held.seconds_locked(sent_s, DEATH_S) < DEATH_S
    helpers.until(lambda: not held.left_behind(), 10)
    helpers.until(lambda: len(held.job.iterations()) >= done + 3)


def test_a_killed_daemon_and_training_process(held, helpers) -> None:
    """kill -9 of both at once: full clocks within 1 s, none of the daemon's processes stays."""
    sent_s = kill(held.daemon.pid, held.job.pids[3])
    held.daemon.wait()
    assert held.seconds_locked(sent_s, DEATH_S) < DEATH_S
    helpers.until(lambda: not held.left_behind(), 10)


def test_a_terminated_daemon(held) -> None:
    """SIGTERM of perseusd: full clocks within 1 s, exit 0 soon, none of its processes stays."""
    sent_s = kill(held.daemon.pid, number=signal.SIGTERM)
    assert held.seconds_locked(sent_s, DEATH_S) < DEATH_S
    assert held.daemon.wait(5) == 0
    assert held.left_behind() == []


def test_a_killed_daemon_and_clock_process(held) -> None:
    """kill -9 of both at once leaves locks that nobody sees to; the next start undoes them."""
    os.kill(held.daemon.pid, signal.SIGSTOP)  # so that the clocks stay as they are till both die
    assert held.locked()
    kill(held.clock_pid(), held.daemon.pid)
    held.daemon.wait()
    left = held.locked()
    assert left
    assert held.seconds_locked(time.monotonic(), 0.5) > 0.5
    held.start()
    assert held.seconds_locked(time.monotonic(), DEATH_S) < DEATH_S
