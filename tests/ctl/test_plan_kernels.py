"""What the first plan on a machine says while the planner's kernels are compiled, and who waits."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from perseusd.core.schedules import NAMES
from perseusd.ctl.plan import kernels
from perseusd.ctl.plan.arguments import SCHEDULES


def test_other_commands_do_not_wait_for_the_planner() -> None:
    """`perseusctl status` and its like import neither numpy nor a compiler."""
    words = "import sys, perseusd.ctl.main; print({'numpy', 'numba'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_the_help_names_every_schedule() -> None:
    """What `--schedule` is said to take is what the schedules' own register has."""
    assert sorted(SCHEDULES) == sorted(NAMES)


@pytest.mark.parametrize(("compilations", "lines"), [([], 0), ([object()], 1)])
def test_only_compiling_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compilations: list[object],
    lines: int,
) -> None:
    """A slow import alone says nothing; one that compiles says so, once."""
    monkeypatch.setattr(kernels, "PATIENCE_S", 0.001)
    done = threading.Event()
    teller = threading.Thread(target=kernels._tell, args=(compilations, done))
    teller.start()
    if lines:
        teller.join()
    done.set()
    teller.join()
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_preparing_twice_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """What is imported already is not told of."""
    kernels.prepare()
    capsys.readouterr()
    kernels.prepare()
    assert capsys.readouterr().err == ""
