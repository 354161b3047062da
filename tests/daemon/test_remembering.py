"""A real daemon remembers a real (emulated) job on disk, and recalls it at its next start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def perseusctl(rig: Any, *arguments: str) -> dict[str, Any]:
    program = "import sys; from perseusd.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *arguments, "--runtime-dir", str(rig.folder)]
    command.append("--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def kept(rig: Any) -> list[Path]:
    return sorted((rig.folder / "state" / "curves").glob("*.curves"))


@pytest.fixture(scope="module")
def remembering(make_module_rig, helpers) -> Any:
    """A job that was held, stopped, and held again by another daemon."""
    rig = make_module_rig()
    rig.hold()
    helpers.until(lambda: kept(rig))
    assert rig.job_status()["learning"]["remembered"] == "none"
    rig.stop()
    rig.hold()
    return rig


def test_the_second_start_recalls_what_the_first_kept(remembering) -> None:
    """It is read, found sound, and judged by this start's own iterations. How is another matter: a
    busy machine disturbs the very times that are compared (see emulation/test_remembered)."""
    judged = remembering.job_status()["learning"]["remembered"]
    assert judged in ("checking", "unlike", "discarded", "holds")
    assert "cannot be used" not in remembering.log.read_text()


def test_files_are_the_daemons_alone(remembering) -> None:
    """One signature, one private file in a private directory."""
    (path,) = kept(remembering)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_perseusctl_lists_and_forgets(remembering, helpers) -> None:
    """Over the control socket: what is kept, and then nothing."""
    (path,) = kept(remembering)
    shown = perseusctl(remembering, "memory", "list")
    assert (shown["remember"], shown["directory"]) == (True, str(path.parent))
    (curve,) = shown["curves"]
    assert curve["signature"] == path.stem
    assert (curve["stages"], curve["schedule"]) == (helpers.STAGES, "1f1b")
    answer = perseusctl(remembering, "memory", "forget", path.stem[:6])
    assert answer["forgotten"] == [path.stem]
    assert kept(remembering) == []
    assert perseusctl(remembering, "memory", "list")["curves"] == []


def test_nothing_is_kept_where_that_is_switched_off(make_rig, helpers) -> None:
    """remember = false: no directory, and the list says so."""
    rig = make_rig(config="[learning]\nremember = false\n")
    rig.start()
    shown = perseusctl(rig, "memory", "list")
    assert (shown["remember"], shown["curves"]) == (False, [])
    assert not (rig.folder / "state" / "curves").exists()
