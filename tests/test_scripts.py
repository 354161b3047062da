"""The scripts' own set-up: what they say when it cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(script: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def setup(tmp_path: Path) -> Path:
    """scripts/setup in a checkout without .venv."""
    (tmp_path / "scripts").mkdir()
    return Path(shutil.copy(SCRIPTS / "setup", tmp_path / "scripts"))


def test_a_python_that_is_too_old_or_absent_is_named(setup: Path, tmp_path: Path) -> None:
    """The message names the interpreter and the fix, and nothing is left behind."""
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    for python, said in [(old, "Python 3.9.2"), (tmp_path / "absent", "absent")]:
        done = run(setup, PYTHON=str(python))
        assert done.returncode == 1
        assert "needs Python 3.11 or newer" in done.stderr
        assert said in done.stderr
        assert "PYTHON=/path/to/python3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_told_the_package(setup: Path, tmp_path: Path) -> None:
    """Debian's Python without python3-venv gets the package's name instead of a traceback."""
    bare = tmp_path / "bare-python"
    bare.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    done = run(setup, PYTHON=str(bare))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


def test_an_unknown_argument_is_usage(setup: Path) -> None:
    """scripts/setup takes --test and nothing else."""
    assert run(setup, "--nope").returncode == 2


def old_python(folder: Path) -> Path:
    """An interpreter that says it is too old."""
    old = folder / "old-python"
    old.write_text("#!/bin/sh\necho 'is Python 3.9; 3.11 or newer is needed' >&2; exit 1\n")
    old.chmod(0o755)
    return old


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--prefix", "relative"], 2, "give an absolute path"),
        (["--prefix", "/home/somebody/perseusd"], 2, "the units see nothing there"),
        (["--prefix", "/usr"], 2, "something in it that scripts/install did not put there"),
        (["--wheelhouse", "/nowhere"], 2, "scripts/wheels --dependencies"),
        (["--python", "/nowhere/python"], 1, "/nowhere/python"),
        (["--python"], 2, "--python needs a value"),
        (["--nope"], 2, "usage:"),
        (["--nope"], 2, "unknown argument --nope"),
    ],
)
def test_install_refuses_what_units_could_not_run(words: list[str], code: int, said: str) -> None:
    """Before anything is written: places that the units do not see, and what is not ours."""
    done = run(SCRIPTS / "install", *words)
    assert done.returncode == code
    assert said in done.stderr


def test_install_names_a_python_that_cannot_be_the_one(tmp_path: Path) -> None:
    """One that is too old, and one that the units' PrivateTmp hides."""
    done = run(SCRIPTS / "install", "--python", str(old_python(tmp_path)))
    assert done.returncode == 1
    assert "3.11 or newer is needed" in done.stderr
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        done = run(SCRIPTS / "install", "--python", f"{folder}/bin/python")
    assert done.returncode == 1
    assert f"has {folder}/bin/python, where the units see nothing" in done.stderr


def test_wheels_and_uninstall_take_no_other_words() -> None:
    """Wrong usage is exit code 2, and nothing is done."""
    assert run(SCRIPTS / "wheels").returncode == 2
    assert run(SCRIPTS / "wheels", "--nope").returncode == 2
    assert run(SCRIPTS / "uninstall", "--nope").returncode == 2


IMAGE = """
set -e
for place in /run /etc/systemd/system /etc/sysusers.d /etc/tmpfiles.d /usr/local/bin /var/cache; do
  [ ! -d "$place" ] || mount -t tmpfs none "$place"
done
for unit in "$1"/systemd/*.service; do
  sed 's|/opt/perseusd/|/nowhere/|g' "$unit" > "/etc/systemd/system/$(basename "$unit")"
done
"$1/scripts/uninstall"
ls /etc/systemd/system
"""


@pytest.mark.skipif(
    os.getuid() != 0 or not all(map(shutil.which, ("unshare", "systemctl"))),
    reason="needs root, unshare and systemctl",
)
def test_uninstall_of_an_image_has_nothing_to_stop() -> None:
    """Where no systemd runs it removes what scripts/install put there, as that can be installed."""
    command = ["unshare", "--mount", "bash", "-c", IMAGE, "bash", str(SCRIPTS.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("mounts of its own are not allowed here")
    assert done.returncode == 0, done.stderr
    assert "perseusd is removed" in done.stdout
    assert ".service" not in done.stdout


def test_the_writer_of_options_writes_only_when_told_so() -> None:
    """What is not --check is refused: it would write instead of checking."""
    done = run(SCRIPTS / "configuration", "--chec", PATH=f"{Path(sys.executable).parent}:/usr/bin")
    assert (done.returncode, done.stderr) == (2, "usage: scripts/configuration [--check]\n")
