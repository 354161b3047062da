"""A machine of its own with a real systemd: a container that boots the host's own programs.

Its /usr is this machine's, read-only; everything else is an empty directory, so nothing has to be
downloaded, and what is installed in it goes with it. It has no network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
BOOT_S = 30.0
HALT_S = 20.0

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n",
    "etc/group": "root:x:0:\nalice:x:1000:\n",
    "etc/machine-id": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\n",
    "etc/login.defs": "USERGROUPS_ENAB yes\n",
}
_FOLDERS = ["dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var"]
_LINKS = ["bin", "lib", "lib64", "sbin"]
_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")
_HIERARCHIES = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"))


class Machine:
    """One container. `root` is its file tree as this machine sees it."""

    def __init__(self, folder: Path, binds: Mapping[str, Path]) -> None:
        """binds: what of this machine it sees, read-only, by the place where it sees it."""
        self.root = folder / "root"
        self._binds = {"/usr": Path("/usr"), "/checkout": CHECKOUT, **binds}
        self._console = folder / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        hierarchies = [] if _UNIFIED.exists() else [h for h in _HIERARCHIES if h.is_dir()]
        self._groups = [hierarchy / f"perseusd-test-{os.getpid()}" for hierarchy in hierarchies]
        _make_tree(self.root)

    def boot(self) -> None:
        """Returns when systemd says that it is up."""
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]
        command += [f"--directory={self.root}", "--private-network", "--tmpfs=/usr/local"]
        command += [f"--bind-ro={ours}:{theirs}" for theirs, ours in self._binds.items()]
        for group in self._groups:
            group.mkdir()
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                preexec_fn=self._enter_groups,
            )
        deadline = time.monotonic() + BOOT_S
        while not self._is_up():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"it does not boot:\n{self._console.read_text()}")
            time.sleep(0.02)

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """A command in it, as root."""
        done = subprocess.run(
            self._entering(words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=_ENVIRONMENT,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """A command in it that goes on, with a pipe as its standard input."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self._entering(words),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_ENVIRONMENT,
            )

    def path(self, inside: str) -> Path:
        """A place in it as it sees it itself, such as a socket under its own /run."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit, e.g. MainPID (as the container counts)."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def host_pid(self, pid: int) -> int:
        """This machine's number of a process of the container, 0 if there is none."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if _numbers(entry)[1:] == [str(pid)] and self._owns(entry):
                    return int(entry.name)
        return 0

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", *words).stdout

    def halt(self) -> None:
        """Ends it, orderly if it can, and all that runs in it."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._pid:
            self.run("systemctl", "poweroff", "--no-block", check=False, timeout_s=5)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HALT_S)
        if process.poll() is None:
            os.kill(self._pid or process.pid, signal.SIGKILL)  # its PID 1 takes the rest with it
            process.wait(HALT_S)
        for group in self._groups:
            _remove_group(group)

    def _enter_groups(self) -> None:
        """Control groups of its own, or its systemd would take those of whoever tests."""
        for group in self._groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _is_up(self) -> bool:
        if not self._pid:
            self._pid = self._first_process()
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _first_process(self) -> int:
        """This machine's number of its PID 1, 0 as long as there is none."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if _numbers(Path("/proc", child))[1:] == ["1"]:
                    return int(child)
        return 0

    def _owns(self, process: Path) -> bool:
        ours = os.readlink(f"/proc/{self._pid}/ns/pid")
        return os.readlink(process / "ns/pid") == ours

    def _entering(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--all", "env", "--chdir=/", *words]


_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}


def _numbers(process: Path) -> list[str]:
    """A process's numbers, ours first, then that in its own namespace if it has another."""
    lines = (process / "status").read_text().splitlines()
    return next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])


def _make_tree(root: Path) -> None:
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    for name in _LINKS:
        (root / name).symlink_to(f"usr/{name}")
    for name, text in _FILES.items():
        (root / name).write_text(text)
    shutil.copy("/usr/lib/os-release", root / "etc/os-release")


def _remove_group(group: Path) -> None:
    """From the innermost outwards; one that still has processes stays, and is named."""
    for inner, _, _ in os.walk(group, topdown=False):
        os.rmdir(inner)
