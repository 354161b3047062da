"""One writer of clocks per node: the lock, its holder's name, and who may take it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import nvml_build
import pytest

from perseusd.clock.nodelock import NodeLock
from perseusd.errors import ConfigurationError, NotPermittedError
from perseusd.gpus.simulated import SPECS, create_node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "node.lock"


def test_the_second_is_told_who_has_it(path: Path) -> None:
    """Until that lets go; the file stays, and is for its owner alone."""
    first = NodeLock(path)
    with pytest.raises(ConfigurationError, match=f"process {os.getpid()}"):
        NodeLock(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first.release()
    NodeLock(path).release()


def test_a_predecessor_that_is_ending_is_waited_for(path: Path) -> None:
    """It lets go within the time: its successor has the lock then, and not before."""
    first = NodeLock(path)
    threading.Timer(0.3, first.release).start()
    begin_s = time.monotonic()
    second = NodeLock(path, wait_s=10)
    assert 0.2 < time.monotonic() - begin_s < 5
    with pytest.raises(ConfigurationError):
        NodeLock(path)
    second.release()


def test_a_removed_file_is_not_held_twice(path: Path) -> None:
    """What is locked is the file that the path names."""
    first = NodeLock(path)
    path.unlink()
    second = NodeLock(path)
    with pytest.raises(ConfigurationError):
        NodeLock(path)
    first.release()
    second.release()


def test_on_a_full_disk_it_holds_without_a_name(path: Path) -> None:
    """A clock process that is started there can still put clocks back."""
    program = "import resource, sys; from pathlib import Path; "
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    program += "from perseusd.clock.nodelock import NodeLock; "
    program += "NodeLock(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigurationError, match="process unknown"):
            NodeLock(path)
        holder.kill()


def test_another_users_file(path: Path, monkeypatch) -> None:
    """It keeps nobody's lock from root, which takes its place; other users are refused."""
    path.parent.mkdir()
    path.touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(NotPermittedError, match="--observe"):
            NodeLock(path)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        NodeLock(path).release()
        assert path.stat().st_uid == 0


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Nothing that the path may point to is written."""
    path.parent.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(ConfigurationError):
        NodeLock(path)
    assert target.read_text() == "precious"


def test_two_clock_processes_of_real_gpus(tmp_path: Path, nvml_library: Path, wait_for) -> None:
    """The second is refused with exit code 78, naming the first, whatever its directories are; as
    soon as that is killed, the next one has it."""
    node = create_node(tmp_path / "node", SPECS["a100-sxm"], 1)
    environment = os.environ | nvml_build.environment(nvml_library, node.path)
    lock = tmp_path / "node.lock"

    def clock(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "perseusd.clock", "--socket", str(tmp_path / name / "s")]
        command += ["--state-dir", str(tmp_path / name), "--node-lock", str(lock)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    first = clock("one")
    try:
        assert wait_for((tmp_path / "one" / "s").exists)
        second = clock("two")
        _, said = second.communicate(timeout=30)
        assert second.returncode == 78
        assert f"process {first.pid}" in said
        first.kill()
        first.communicate()
        third = clock("two")
        assert wait_for((tmp_path / "two" / "s").exists)
        third.terminate()
        third.communicate()
        assert third.returncode == 0
    finally:
        first.kill()
        first.wait()
        node.close()
