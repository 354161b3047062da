"""The scripts' own set-up: what they say when it cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
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
