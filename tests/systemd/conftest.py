"""perseusd installed on a machine of its own (machine.py), with a job to be slowed on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import CHECKOUT, Machine
from nvml_build import build
from nvml_faults import require_admin

from perseusd.emulation.daemon import ask
from perseusd.errors import DaemonUnreachableError, ProtocolError
from perseusd.gpus.simulated import SPECS, SimulatedNode, create_node

PATIENCE_S = 60.0  # far above anything measured: the machine may be busy
GPUS = 3

SOON_HELD = (CHECKOUT / "tests" / "soon_held.toml").read_text(encoding="utf-8")

# All of this node, training included, is in one container: its process ids are not the driver's.
CONFIG = f"""
[clock]
socket = "/run/perseusd-clock/clock.sock"
[access]
gpu_check = "off"
{SOON_HELD}"""

# The driver of this machine: where the units find the fake library and its GPUs.
DRIVER = """
[Service]
Environment=LD_LIBRARY_PATH=/driver NVMLFAKE_NODE=/driver/node
ReadWritePaths=/driver
"""


_PLANNER = "perseusd/core/planner"

_GET = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(f"{answer.status}\\n{answer.read().decode()}")
"""


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value, or a failed test."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s:g} s in vain")
        time.sleep(0.005)
    return value


class Installation:
    """The machine, its GPUs as this process sees them, and at most one job on them."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.machine = Machine(folder, {"/wheels": wheels})
        driver = self.machine.root / "driver"
        driver.mkdir(mode=0o777)
        driver.chmod(0o777)
        build(driver)
        self.node: SimulatedNode = create_node(driver / "node", SPECS["a100-sxm"], GPUS)
        require_admin(driver / "node")
        for file in ("node", "node.nvml"):
            (driver / file).chmod(0o666)
        self._log = folder / "job.log"
        self._job: subprocess.Popen[bytes] | None = None

    until = staticmethod(until)

    def script(self, name: str, *words: str, check: bool = True) -> str:
        """What one of our scripts says, run there from the checkout."""
        done = self.machine.run(f"/checkout/scripts/{name}", *words, check=check)
        sys.stdout.write(done.stdout + done.stderr)
        return done.stdout

    def give_driver(self) -> None:
        for unit in ("perseusd", "perseusd-clock"):
            folder = self.machine.root / f"etc/systemd/system/{unit}.service.d"
            folder.mkdir()
            (folder / "driver.conf").write_text(DRIVER)
        self.machine.run("systemctl", "daemon-reload")

    def warm_kernels(self) -> None:
        """The planner's kernels as an earlier start would have left them in its cache.

        Taken from this checkout's own, which numba believes when the sources' times are the same;
        else the first plan waits for half a minute of compiling.
        """
        import_planner = [sys.executable, "-c", "import perseusd.core.planner"]
        subprocess.run(import_planner, check=True, cwd=CHECKOUT)
        ours = CHECKOUT / _PLANNER
        release = self.machine.root / "opt/perseusd" / self.release()
        (theirs,) = release.glob(f"lib/python3*/site-packages/{_PLANNER}")
        for source in ours.glob("*.py"):
            times = source.stat()
            os.utime(theirs / source.name, ns=(times.st_atime_ns, times.st_mtime_ns))
        inside = f"/{theirs.relative_to(self.machine.root)}"
        key = hashlib.sha1(inside.encode(), usedforsecurity=False).hexdigest()
        cache = self.machine.root / f"var/cache/perseusd/{ours.name}_{key}"
        cache.mkdir(parents=True, exist_ok=True)  # systemd hands it to the daemon's user
        for kernel in (ours / "__pycache__").glob("*.nb?"):
            shutil.copy(kernel, cache)

    def release(self) -> str:
        """The one that is installed, e.g. releases/20260102-030405-67."""
        return os.readlink(self.machine.root / "opt/perseusd/current")

    def hold(self) -> None:
        """See to it that the job is held; returns at a moment when its clocks are lowered."""
        if self._job_ended():
            self.stop_job()
            self.start_job()
        until(lambda: self.state() == "hold" or self._job_ended())
        assert not self._job_ended(), self._log.read_text()
        until(self.locked)

    def _job_ended(self) -> bool:
        return self._job is None or self._job.poll() is not None

    def state(self) -> str | None:
        with contextlib.suppress(DaemonUnreachableError, ProtocolError):
            jobs = ask(self.machine.path("/run/perseusd/status.sock"), {"command": "status"}, 2.0)
            return next((str(job["state"]) for job in jobs["jobs"]), None)
        return None

    def locked(self) -> list[int]:
        """The clocks that are lowered."""
        return [mhz for gpu in self.node.gpus if (mhz := gpu.locked_mhz()) is not None]

    def seconds_locked(self, since_s: float, limit_s: float, what: str) -> float:
        """How long after since_s some clock was still lowered, watched for limit_s and no more."""
        last_s = since_s
        while (now := time.monotonic()) < since_s + limit_s + 0.2:
            if self.locked():
                last_s = now
            time.sleep(0.002)
        sys.stdout.write(f"{what}: full clocks after {last_s - since_s:.3f} s ({limit_s:g} s)\n")
        return last_s - since_s

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> float:
        """Sends the signal to processes of the machine; when."""
        since_s = time.monotonic()
        for pid in pids:
            os.kill(pid, number)
        return since_s

    def scrape(self, path: str) -> tuple[int, str]:
        """The exporter's answer to a GET, as its own host gets it: (status, text)."""
        told = self.machine.run("/usr/bin/python3", "-c", _GET, f"http://127.0.0.1:10612{path}")
        status, _, text = told.stdout.partition("\n")
        return int(status), text

    def seconds_replaced(self, unit: str, pid: int, since_s: float) -> float:
        """How long after since_s another process than this one is the unit's, and ready."""

        def replaced() -> bool:
            ready = self.machine.property(unit, "ActiveState") == "active"
            return ready and self.main_pid(unit) not in (0, pid)

        until(replaced)
        took_s = time.monotonic() - since_s
        sys.stdout.write(f"{unit}: a successor is ready after {took_s:.2f} s\n")
        return took_s

    def main_pid(self, unit: str) -> int:
        """The unit's process, as this machine counts."""
        return self.machine.host_pid(int(self.machine.property(unit, "MainPID")))

    def start_job(self) -> None:
        command = ["setpriv", "--reuid=alice", "--regid=alice", "--clear-groups"]
        command += ["/opt/perseusd/current/bin/python", "/checkout/tests/systemd/job.py"]
        self._log.unlink(missing_ok=True)
        self._job = self.machine.start(*command, "/driver/node", "/run/perseusd", log=self._log)
        until(lambda: "\n" in self._log.read_text() or self._job_ended())
        assert not self._job_ended(), self._log.read_text()

    def workers(self) -> list[int]:
        return [self.machine.host_pid(int(pid)) for pid in self._log.read_text().split()]

    def processes(self) -> list[str]:
        """The command lines of all that runs of perseusd; the job is not its own."""
        listed = self.machine.run("ps", "-eo", "args=").stdout.splitlines()
        ours = [line for line in listed if "/opt/perseusd/" in line]
        return [line for line in ours if "perseusd.emulation" not in line and "/job.py" not in line]

    def left(self) -> set[str]:
        """What of perseusd lies anywhere in the machine, the outermost of each."""
        places = ["/etc", "/opt", "/run", "/usr/local", "/var", "/tmp"]  # noqa: S108 - not ours
        command = ["find", *places, "-name", "*perseus*", "-prune"]
        return set(self.machine.run(*command).stdout.split())

    def stop_job(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            assert job.stdin is not None
            job.stdin.close()
            job.wait(20)

    def close(self) -> None:
        try:
            self.stop_job()
        finally:
            self.machine.halt()
            self.node.close()


@pytest.fixture
def configuration() -> str:
    """An administrator's /etc/perseusd/perseusd.toml: a job that is soon held."""
    return CONFIG


@pytest.fixture(scope="session")
def wheels() -> Iterator[Path]:
    """What scripts/wheels makes for a node without internet: ours and all that they need."""
    folder = Path(tempfile.mkdtemp(prefix="perseusd-wheels-"))
    command = [CHECKOUT / "scripts/wheels", "--dependencies", folder]
    subprocess.run(command, check=True, env=os.environ | {"PYTHON": "/usr/bin/python3"})
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def installed(wheels: Path) -> Iterator[Installation]:
    """A machine on which scripts/install has put perseusd, not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="perseusd-machine-"))
    folder.chmod(0o755)
    made = Installation(folder, wheels)
    try:
        made.machine.boot()
        yield made
    finally:
        try:
            made.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
