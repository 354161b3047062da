"""perseusd under a real systemd: installed, running a job, killed in every way, upgraded, removed.

The tests run in this order, on one machine. Whatever happens to the daemon, the job or the clock
process, every clock is full soon afterwards, and systemd has everything running again.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

UNITS = ("perseusd-clock", "perseusd")
EXPORTER = "perseusd-exporter"
WATCHDOG_S = 5.0
"""A watchdog's interval, as docs/operating.md promises it: from a process's last sign of life until
its successor serves."""

SIGNS_S = {"perseusd": 0.2, "perseusd-clock": 0.75}
"""Between two signs of life: when a process is stopped, the last one may be so old."""

EXPOSURES = {"perseusd": 1.3, "perseusd-clock": 2.1, EXPORTER: 1.3}
"""The most, from 0 (safe) to 10: as in test_units.py."""

DYNAMIC_USERS = range(61184, 65520)
"""User ids that systemd gives to units with DynamicUser=yes."""

GPUS = 3  # as in conftest.py: each a rank's

SETTLE_S = 1.0
"""Of a daemon or client that is gone, every clock is back after this."""


def test_install_starts_nothing_and_says_what_is_next(installed: Any) -> None:
    """From a wheelhouse, without a network: files, user, commands, and units that do not run."""
    said = installed.script("install", "--wheelhouse", "/wheels")
    assert "systemctl enable --now perseusd-clock perseusd" in said
    assert installed.machine.run("perseusctl", "--version").stdout.startswith("perseusctl ")
    assert installed.machine.run("perseusd-exporter", "--version").returncode == 0
    assert installed.machine.run("id", "perseusd").returncode == 0
    for unit in UNITS:
        assert installed.machine.property(unit, "ActiveState") == "inactive"


def test_units_start_and_hold_a_job(installed: Any, configuration: str) -> None:
    """Enabled and started, ready when systemctl returns, as the users that they are to be."""
    installed.give_driver()
    installed.warm_kernels()
    (installed.machine.root / "etc/perseusd/perseusd.toml").write_text(configuration)
    began_s = time.monotonic()
    installed.machine.run("systemctl", "enable", "--quiet", "--now", *UNITS)
    sys.stdout.write(f"both units started in {time.monotonic() - began_s:.2f} s\n")
    installed.hold()
    users = installed.machine.run("ps", "-eo", "user=,args=").stdout
    assert re.search(r"^perseusd .*bin/perseusd run", users, re.MULTILINE)
    assert re.search(r"^root .*bin/perseusd-clock --socket", users, re.MULTILINE)
    status = Path(f"/proc/{installed.main_pid('perseusd')}/status").read_text()
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)


def metric(installed: Any, name: str) -> float:
    """The sum over its labels."""
    status, text = installed.scrape("/metrics")
    assert status == 200
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, text
    return sum(map(float, found))


def test_exporter_serves_metrics_and_readiness(installed: Any) -> None:
    """Ready when systemctl returns; as a user of its own, with no capability, and it sees the
    daemon's socket from where its unit has put it."""
    installed.machine.run("systemctl", "enable", "--quiet", "--now", EXPORTER)
    installed.hold()
    assert metric(installed, "perseusd_up") == 1
    assert metric(installed, "perseusd_gpu_held") == GPUS
    assert metric(installed, "perseusd_clock_process_up") == 1
    installed.until(lambda: installed.scrape("/readyz")[0] == 200)
    assert json.loads(installed.scrape("/readyz")[1])["ok"] is True
    status = Path(f"/proc/{installed.main_pid(EXPORTER)}/status").read_text()
    uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert uid is not None
    assert int(uid[1]) in DYNAMIC_USERS
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)


def test_exporter_outlives_the_daemon(installed: Any) -> None:
    """A restart, and a stop after which the daemon's directory is gone and comes anew: it says what
    is wrong meanwhile, and is the same process afterwards."""
    before = installed.main_pid(EXPORTER)
    installed.machine.run("systemctl", "restart", "perseusd")
    installed.until(lambda: metric(installed, "perseusd_up") == 1)
    installed.machine.run("systemctl", "stop", "perseusd")
    installed.until(lambda: metric(installed, "perseusd_up") == 0)
    status, told = installed.scrape("/readyz")
    assert status == 503
    assert "no such socket" in " ".join(json.loads(told)["wrong"])
    installed.machine.run("systemctl", "start", "perseusd")
    installed.until(lambda: metric(installed, "perseusd_up") == 1)
    installed.until(lambda: installed.scrape("/readyz")[0] == 200)
    assert installed.main_pid(EXPORTER) == before
    assert installed.machine.property(EXPORTER, "NRestarts") == "0"


def test_exposure_of_what_runs_is_low(installed: Any) -> None:
    """`systemd-analyze security` of the units as they are loaded, with their drop-ins."""
    for unit, most in EXPOSURES.items():
        said = installed.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert found is not None, said
        sys.stdout.write(f"{unit}: exposure {found[1]}\n")
        assert float(found[1]) <= most


def test_upgrade_in_place_while_training_runs(installed: Any) -> None:
    """Installed over what runs: another release, the same configuration, and the job is served."""
    installed.hold()
    config = (installed.machine.root / "etc/perseusd/perseusd.toml").read_text()
    before, old = installed.release(), installed.main_pid("perseusd")
    said = installed.script("install", "--wheelhouse", "/wheels")
    assert "/etc/perseusd/perseusd.toml is kept" in said
    assert (installed.machine.root / "etc/perseusd/perseusd.toml").read_text() == config
    releases = installed.machine.root / "opt/perseusd/releases"
    assert [f"releases/{path.name}" for path in releases.iterdir()] == [installed.release()]
    assert installed.release() != before
    for unit in ("perseusd", EXPORTER):
        command = Path(f"/proc/{installed.main_pid(unit)}/cmdline").read_text()
        assert installed.release() in command
    assert installed.main_pid("perseusd") != old
    installed.until(installed.state)  # its hooks have introduced themselves
    installed.warm_kernels()
    installed.machine.run("systemctl", "restart", "perseusd")


def test_reload_takes_the_configuration_that_is_right(installed: Any) -> None:
    """`systemctl reload` swaps what may be swapped and keeps the process; what is wrong is refused,
    and changes nothing."""
    installed.hold()
    before = installed.main_pid("perseusd")
    config = installed.machine.root / "etc/perseusd/perseusd.toml"
    right = config.read_text()
    config.write_text(right.replace("slowdown_budget", "slowdown_bugdet"))
    refused = installed.machine.run("systemctl", "reload", "perseusd", check=False)
    assert refused.returncode != 0
    assert "slowdown_bugdet" in installed.machine.journal("--unit=perseusd")
    config.write_text(right.replace("slowdown_budget = 0.1", "slowdown_budget = 0.12"))
    installed.machine.run("systemctl", "reload", "perseusd")
    installed.until(lambda: "reload: done" in installed.machine.journal("--unit=perseusd"))
    assert installed.main_pid("perseusd") == before
    installed.hold()


def test_killed_daemon(installed: Any) -> None:
    """SIGKILL of perseusd: perseusd-clock puts back, systemd starts it anew, the job is held."""
    installed.hold()
    before = installed.main_pid("perseusd")
    since = installed.kill(before)
    assert installed.seconds_locked(since, SETTLE_S, "daemon killed") <= SETTLE_S
    installed.hold()
    assert installed.main_pid("perseusd") not in (0, before)


def test_killed_client(installed: Any) -> None:
    """SIGKILL of one training process: its pidfd tells."""
    installed.hold()
    since = installed.kill(installed.workers()[0])
    assert installed.seconds_locked(since, SETTLE_S, "client killed") <= SETTLE_S


def test_killed_daemon_and_client(installed: Any) -> None:
    """SIGKILL of both at once."""
    installed.hold()
    since = installed.kill(installed.main_pid("perseusd"), installed.workers()[1])
    assert installed.seconds_locked(since, SETTLE_S, "both killed") <= SETTLE_S


def test_killed_clock_process(installed: Any) -> None:
    """SIGKILL of perseusd-clock: the stop step of its unit puts back what its intent file names."""
    installed.hold()
    since = installed.kill(installed.main_pid("perseusd-clock"))
    assert installed.seconds_locked(since, SETTLE_S, "perseusd-clock killed") <= SETTLE_S
    installed.hold()


def test_stopped_daemon_is_restarted_by_its_watchdog(installed: Any) -> None:
    """SIGSTOP: perseusd-clock misses the heartbeat, and systemd the sign of life."""
    installed.hold()
    before = installed.main_pid("perseusd")
    since = installed.kill(before, number=signal.SIGSTOP)
    assert installed.seconds_locked(since, 2.0, "daemon stopped by SIGSTOP") <= 2.0
    assert installed.seconds_replaced("perseusd", before, since) <= WATCHDOG_S - SIGNS_S["perseusd"]
    assert "watchdog" in installed.machine.journal("--unit=perseusd").lower()
    installed.hold()


def test_hung_clock_process_is_killed_by_its_watchdog(installed: Any) -> None:
    """SIGSTOP of perseusd-clock while clocks are lowered: its watchdog, its stop step, its next
    start, and the same job is held again."""
    installed.hold()
    before, unit = installed.main_pid("perseusd-clock"), "perseusd-clock"
    since = installed.kill(before, number=signal.SIGSTOP)
    installed.until(lambda: not installed.locked(), 10.0)
    took_s = time.monotonic() - since
    sys.stdout.write(f"perseusd-clock stopped by SIGSTOP: full clocks after {took_s:.2f} s\n")
    assert took_s <= 4.0
    assert installed.seconds_replaced(unit, before, since) <= WATCHDOG_S - SIGNS_S[unit]
    installed.hold()


def test_a_daemon_that_crashes_at_once_does_not_spin(installed: Any) -> None:
    """Its watchdog's kill is followed by a start at once, a crash by a pause and then a start."""
    crash = installed.machine.path("/run/systemd/system/perseusd.service.d/crash.conf")
    crash.parent.mkdir(parents=True)
    crash.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    installed.machine.run("systemctl", "daemon-reload")
    installed.machine.run("systemctl", "restart", "--no-block", "perseusd")
    time.sleep(4.5)
    restarts = int(installed.machine.property("perseusd", "NRestarts"))
    sys.stdout.write(f"a daemon that crashes at once: {restarts} restarts in 4.5 s\n")
    assert 2 <= restarts <= 4  # one in 1.1 s
    shutil.rmtree(crash.parent)
    installed.machine.run("systemctl", "daemon-reload")
    installed.machine.run("systemctl", "reset-failed", "perseusd")
    installed.machine.run("systemctl", "restart", "perseusd")


def test_stop_is_quick_and_leaves_full_clocks(installed: Any) -> None:
    """When `systemctl stop` returns, no clock is lowered and nothing runs; training goes on."""
    installed.hold()
    began_s = time.monotonic()
    installed.machine.run("systemctl", "stop", *UNITS, EXPORTER)
    sys.stdout.write(f"stopped within {time.monotonic() - began_s:.2f} s\n")
    assert not installed.locked()
    assert installed.processes() == []
    installed.machine.run("systemctl", "start", *UNITS, EXPORTER)


def test_uninstall_leaves_what_it_says(installed: Any) -> None:
    """Removed under a job that is held: clocks are full, and what is kept is named."""
    installed.hold()
    said = installed.script("uninstall")
    assert not installed.locked()
    for path in ("/etc/perseusd", "/var/lib/perseusd", "perseusd.service.d"):
        assert path in said
    assert installed.processes() == []
    assert installed.left() == {
        "/etc/perseusd",
        "/etc/systemd/system/perseusd-clock.service.d",
        "/etc/systemd/system/perseusd.service.d",
        "/var/lib/perseusd",
        "/var/lib/perseusd-clock",
    }


def test_purge_leaves_nothing(installed: Any) -> None:
    """--purge, even after an uninstall without it, takes configuration, state and user away."""
    installed.script("uninstall", "--purge")
    assert {path for path in installed.left() if not path.endswith(".d")} == set()
    assert installed.machine.run("getent", "passwd", "perseusd", check=False).returncode != 0
    assert installed.machine.run("getent", "group", "perseusd", check=False).returncode != 0
    assert installed.machine.run("systemctl", "--failed", "--no-legend").stdout == ""
