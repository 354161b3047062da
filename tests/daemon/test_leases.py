"""A lease ends with its process, by the kernel's word."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from perseusd.daemon.leases import Leases, ProcessGoneError


@pytest.fixture
def leases() -> Iterator[Leases]:
    made = Leases()
    yield made
    made.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def readable(leases: Leases, patience_s: float) -> bool:
    return bool(select.select([leases.fileno()], [], [], patience_s)[0])


def test_all_clients_of_a_killed_process_are_told_once(
    leases: Leases, sleeper: subprocess.Popen[bytes]
) -> None:
    """The descriptor wakes the loop at once, before anyone has waited for the process."""
    leases.add("a", sleeper.pid)
    leases.add("b", sleeper.pid)
    leases.add("self", os.getpid())
    assert leases.died() == []
    assert not readable(leases, 0)
    killed_s = time.monotonic()
    sleeper.kill()
    assert readable(leases, 5)
    assert time.monotonic() - killed_s < 1
    assert sorted(leases.died()) == ["a", "b"]
    assert leases.died() == []
    assert not readable(leases, 0)


def test_no_lease_for_a_process_that_is_gone(
    leases: Leases, sleeper: subprocess.Popen[bytes]
) -> None:
    """Nor for one of another pid namespace, which the kernel calls 0."""
    sleeper.kill()
    sleeper.wait()
    for pid in (sleeper.pid, 0, -1, 2**40):
        with pytest.raises(ProcessGoneError):
            leases.add("a", pid)
    assert leases.died() == []


def test_a_client_that_let_go_is_not_told_dead(
    leases: Leases, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its process's other clients are; with the last one the descriptor is closed."""
    leases.add("a", sleeper.pid)
    leases.add("b", sleeper.pid)
    leases.remove("a", sleeper.pid)
    leases.remove("never leased", sleeper.pid)
    leases.add("c", os.getpid())
    leases.remove("c", os.getpid())
    leases.remove("c", os.getpid())
    sleeper.kill()
    assert readable(leases, 5)
    assert leases.died() == ["b"]


def test_clients_that_come_and_go_leave_nothing_open(leases: Leases) -> None:
    """A process that says hello and goodbye all day costs no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        leases.add(str(number), os.getpid())
        leases.remove(str(number), os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before
