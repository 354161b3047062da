"""The systemd units: what systemd itself says of them, and that the privileges are where they
should be."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
READ_GPUS = ("perseusd.service", "perseusd-clock.service")
SERVICES = (*READ_GPUS, "perseusd-exporter.service")


class Unit(configparser.RawConfigParser):
    """A unit file, the last value of a repeated key winning; enough for what is asked here."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None, comment_prefixes=("#",))
        self.read(UNITS / name)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def values(name: str, key: str) -> list[str]:
    """All values of a repeated key, in their order."""
    lines = (UNITS / name).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_daemon_has_no_capability_and_a_watchdog() -> None:
    """perseusd runs as its own user without any capability, notifies, and is watched."""
    service = Unit("perseusd.service")["Service"]
    assert service["User"] == "perseusd"
    assert service["CapabilityBoundingSet"] == ""
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0


def test_restarts_are_bounded_where_a_restart_could_do_harm() -> None:
    """A daemon that fails again and again is left alone, at full clocks; perseusd-clock, which puts
    them back, is always started again. Neither makes a stop wait for long."""
    daemon, clock = (Unit(name) for name in READ_GPUS)
    assert int(daemon["Unit"]["StartLimitBurst"]) > 0
    assert "78" in daemon["Service"]["RestartPreventExitStatus"].split()
    assert clock["Unit"]["StartLimitIntervalSec"] == "0"
    assert clock["Service"]["Restart"] == "always"
    for unit in (daemon, clock):
        assert 0 < int(unit["Service"]["TimeoutStopSec"]) <= 15
        assert "nvidia-persistenced.service" in unit["Unit"]["After"].split()


@pytest.mark.parametrize(("name", "pause"), [("perseusd", "1"), ("perseusd-clock", "2")])
@pytest.mark.parametrize(
    ("result", "pauses"),
    [("watchdog", False), ("success", False), ("exit-code", True), ("signal", True)],
)
def test_only_a_hang_is_followed_by_a_start_at_once(
    name: str, pause: str, result: str, pauses: bool, tmp_path: Path
) -> None:
    """Who crashes at once would spin, so that a crash has a pause before the next start; a hang has
    had the watchdog's interval, and nobody is to wait for a stop."""
    sleep = tmp_path / "sleep"
    sleep.write_text("#!/bin/sh\necho $1\n")
    sleep.chmod(0o755)
    done = subprocess.run(
        shlex.split(values(f"{name}.service", "ExecStopPost")[-1]),
        env={"PATH": str(tmp_path), "SERVICE_RESULT": result},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ([pause] if pauses else [])


def test_a_watchdog_leaves_time_for_a_late_loop_and_for_a_start() -> None:
    """Of the 5 s that docs/operating.md promises, 3 are the loop's, which a sign of life every 1 s
    (the most that heartbeat_s may be) does not use up; the others are the next start's."""
    for name in READ_GPUS:
        service = Unit(name)["Service"]
        assert service["WatchdogSec"] == "3"
        assert service["RestartSec"] == "100ms"
        assert int(service["TimeoutAbortSec"]) <= 1


@pytest.mark.parametrize("name", ["perseusd.service", "perseusd-exporter.service"])
def test_libzmq_may_set_its_threads_policy(name: str) -> None:
    """It ends a process that may not, and only once its first socket is made. The last
    SystemCallFilter of a unit is the one that gives it back what a group had taken."""
    assert "sched_setscheduler" in Unit(name)["Service"]["SystemCallFilter"].split()


def test_only_the_exporter_has_a_network() -> None:
    """The daemon and the clock process have none at all; the exporter is for this host alone."""
    for name in READ_GPUS:
        service = Unit(name)["Service"]
        assert service["PrivateNetwork"] == "yes"
        assert service["RestrictAddressFamilies"] == "AF_UNIX"
    exporter = Unit("perseusd-exporter.service")["Service"]
    assert (exporter["IPAddressDeny"], exporter["IPAddressAllow"]) == ("any", "localhost")
    assert exporter["CapabilityBoundingSet"] == ""


def test_clock_process_has_one_capability_and_puts_back() -> None:
    """perseusd-clock may lock clocks and nothing more, and is followed by a reset."""
    service = Unit("perseusd-clock.service")["Service"]
    assert service["CapabilityBoundingSet"] == "CAP_SYS_ADMIN"
    assert "--reset" in values("perseusd-clock.service", "ExecStopPost")[0]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0


@pytest.mark.parametrize("name", READ_GPUS)
def test_nothing_that_breaks_nvml(name: str) -> None:
    """None of the settings under which the driver's library stops working."""
    keys = set(Unit(name)["Service"])
    assert not keys & {"PrivateDevices", "PrivateUsers", "ProcSubset"}


@pytest.mark.parametrize("key", ["ExecStart", "ExecStopPost"])
def test_commands_of_the_clock_unit_are_accepted(key: str, tmp_path: Path) -> None:
    """The options in the unit exist: with a state directory here and a simulated file that is not
    there, each command gets as far as the GPUs or finds nothing to do."""
    command = values("perseusd-clock.service", key)[0].split()
    assert command[0].endswith("/perseusd-clock")
    assert command.pop() == "$CLOCK_OPTIONS"  # none, where /etc/perseusd/clock.env has none
    arguments = [a.replace("/var/lib/perseusd-clock", str(tmp_path)) for a in command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "perseusd.clock", *arguments, "--simulated", tmp_path / "missing"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == (0 if "--reset" in arguments else 1), done.stderr


def test_example_configuration_is_sound() -> None:
    """The example is TOML, and its clock socket is the one that the unit listens on."""
    text = (UNITS / "perseusd.toml").read_text()
    socket = tomllib.loads(text)["clock"]["socket"]
    assert f"--socket {socket} " in Unit("perseusd-clock.service")["Service"]["ExecStart"]


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "most"), [("perseusd", 1.3), ("perseusd-clock", 2.1), ("perseusd-exporter", 1.3)]
)
def test_systemd_calls_the_exposure_low(name: str, most: float) -> None:
    """`systemd-analyze security`, from 0 (safe) to 10, stays below the bounds that we set us."""
    analyze = shutil.which("systemd-analyze")
    assert analyze is not None, "install Debian's systemd package"
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", UNITS / f"{name}.service"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    sys.stdout.write(f"{name}: exposure {found[1]}\n")
    assert float(found[1]) <= most


@pytest.mark.system
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_finds_no_fault(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` accepts the unit without a word about it."""
    analyze = shutil.which("systemd-analyze")
    assert analyze is not None, "install Debian's systemd package"
    for service in SERVICES:
        text = (UNITS / service).read_text()
        (tmp_path / service).write_text(re.sub(r"/opt/perseusd/bin/\S+", sys.executable, text))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert name not in done.stderr
