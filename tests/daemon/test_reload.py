"""SIGHUP: a sound configuration is swapped in whole while the daemon runs, a wrong one is not."""

from __future__ import annotations

import logging
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from perseus_hooks.events import Refusal, Welcome

from perseusd.config import OPTIONS, Config, Sources, load_config
from perseusd.daemon.reload import Reloader
from perseusd.daemon.service import Service
from perseusd.emulation.daemon import ask

BUDGET = "[limits]\nslowdown_budget = {}\n"


class Reloaded:
    """A daemon whose configuration is written anew, and what systemd would hear of it."""

    def __init__(self, rig: Any, notices: socket.socket, until: Any) -> None:
        self.rig, self.notices, self.until = rig, notices, until
        self.file = rig.folder / "perseusd.toml"
        self.drop_in = rig.folder / "conf.d" / "50-site.toml"
        self.drop_in.parent.mkdir()
        self._kept: list[str] = []

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def signal(self) -> None:
        assert self.rig.daemon is not None
        self.rig.daemon.send_signal(signal.SIGHUP)

    def reload(self) -> str:
        """Returns what was logged, once systemd has heard that it is over."""
        before = self.rig.log.stat().st_size
        self.heard()
        self.signal()
        self.until(lambda: any("READY=1" in told for told in self.heard(keep=True)), 10)
        with self.rig.log.open() as log:
            log.seek(before)
            return log.read()

    def heard(self, *, keep: bool = False) -> list[str]:
        if not keep:
            self._kept = []
        while True:
            try:
                told = self.notices.recv(4096).decode()
            except BlockingIOError:
                return self._kept
            if "WATCHDOG" not in told:
                self._kept.append(told)

    def shown(self, key: str) -> tuple[object, str]:
        answer = ask(self.rig.folder / "status.sock", {"command": "config"})
        (own,) = [option for option in answer["options"] if option["key"] == key]
        return own["value"], own["origin"]["name"]


@pytest.fixture(scope="module")
def running(make_module_rig: Any, helpers: Any) -> Iterator[Reloaded]:
    """One daemon for all tests, with systemd's end of its notify socket."""
    rig = make_module_rig(config="")
    address = rig.folder / "notify.sock"
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.setblocking(False)
    notices.bind(str(address))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", str(address))
        made = Reloaded(rig, notices, helpers.until)
        rig.start()
        yield made
    notices.close()


@pytest.fixture(autouse=True)
def as_it_was(running: Reloaded) -> None:
    running.write("")
    running.drop_in.unlink(missing_ok=True)
    running.reload()


def test_a_sound_configuration_is_in_force_at_once(running: Reloaded) -> None:
    """The log has each change with its origin; systemd hears when it began and that it is over."""
    running.write(BUDGET.format(0.02) + "max_clients = 7\n")
    running.drop_in.write_text('[daemon]\nlog_level = "warning"\n')
    logged = running.reload()
    assert f"[limits] slowdown_budget: 0.02, was 0.005 ({running.file})" in logged
    assert "[limits] max_clients: 7, was 1024" in logged
    assert running.shown("slowdown_budget") == (0.02, str(running.file))
    assert running.shown("log_level") == ("warning", str(running.drop_in))
    first, *_, last = running.heard(keep=True)
    assert first.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert last.startswith("READY=1")
    running.drop_in.unlink()
    running.reload()  # said in warnings: nothing
    assert "nothing changed" in running.reload()


def test_a_wrong_configuration_changes_nothing(running: Reloaded) -> None:
    """Not even what is right in it; every problem is logged, and systemd is not kept waiting."""
    running.write(BUDGET.format(0.02))
    running.reload()
    running.write(BUDGET.format(0.03) + "silnce_s = 1\n")
    running.drop_in.write_text("[limits")
    logged = running.reload()
    assert "did you mean silence_s?" in logged
    assert f"{running.drop_in}: not TOML" in logged
    assert "nothing is changed: 2 problems" in logged
    assert running.shown("slowdown_budget") == (0.02, str(running.file))
    assert any("refused" in told for told in running.heard(keep=True))


def test_what_needs_a_restart_stays_and_says_so(running: Reloaded) -> None:
    """The rest of the same file comes into force."""
    running.write('[daemon]\nobserve = true\nruntime_dir = "/elsewhere"\n' + BUDGET.format(0.02))
    logged = running.reload()
    assert "[daemon] observe = true" in logged
    assert "false stays in force until a restart" in logged
    assert "runtime_dir" not in logged  # a flag comes before the file
    assert running.shown("observe") == (False, "")
    assert running.shown("slowdown_budget")[0] == 0.02
    answer = ask(running.rig.folder / "status.sock", {"command": "config"})
    assert len(answer["waiting"]) == 1
    assert running.rig.status()["daemon"]["mode"] == "act"


def test_a_user_who_is_no_longer_allowed_loses_the_lease(
    running: Reloaded, make_peer: Any, helpers: Any
) -> None:
    """At once, with the reason; and who was not allowed is, without a restart."""
    peer = make_peer(running.rig)
    peer.send(helpers.hello())
    assert isinstance(peer.hear(), Welcome)
    running.write(f"[access]\nallow_users = [{os.getuid() + 1}]\n")
    running.reload()
    refusal = peer.hear()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "not_permitted"
    assert running.rig.status()["jobs"] == []
    running.write("")
    running.reload()
    peer.send(helpers.hello())
    assert isinstance(peer.hear(), Welcome)


def test_a_disk_that_hangs_delays_nobody(running: Reloaded) -> None:
    """Files are read besides the loop: meanwhile the daemon answers; later it takes what came, and
    reads once more for whoever asked meanwhile."""
    os.mkfifo(running.drop_in)
    running.heard()
    running.signal()
    running.until(lambda: any("RELOADING" in told for told in running.heard(keep=True)))
    running.write(BUDGET.format(0.04))
    running.signal()
    assert running.rig.status()["schema_version"] == 1
    assert running.shown("slowdown_budget")[0] == 0.005
    with running.drop_in.open("w") as late:
        late.write(BUDGET.format(0.03))
        running.drop_in.unlink()
    running.until(lambda: running.shown("slowdown_budget")[0] == 0.04)


def test_a_daemon_ends_with_its_terminal(make_rig: Any, helpers: Any) -> None:
    """Started by hand in one that is closed, it is not to stay: that SIGHUP means what it says."""
    rig = make_rig()
    ours, theirs = pty.openpty()
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    run = rig.command()
    rig.daemon = subprocess.Popen(
        [run[0], "-c", take + "os.execv(sys.argv[1], sys.argv[1:])", *run],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    helpers.until(rig._answers, poll_s=0.02)
    os.close(ours)
    assert rig.daemon.wait(20) == 0


def test_whatever_a_reload_may_change_is_taken_over(
    make_rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option that is said to be live is read when a configuration is swapped in, or by the
    loop whenever it needs it."""
    rig = make_rig()
    overrides = {"runtime_dir": rig.folder, "simulate": rig.gpus, "observe": True}
    config = load_config(None, overrides, {})
    service = Service(config, Reloader(config, Sources()))
    read: set[str] = set()

    class Watched(Config):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(logging.getLogger(), "setLevel", lambda _: None)
    try:
        service._reconfigure(Watched(**{**vars(config), "observe": False}))
        service._turn(set())
    finally:
        service.shutdown()
    assert {option.name for option in OPTIONS.values() if option.live} - read == set()
