"""What scripts/wheels builds: both distributions, the same bytes wherever it is done."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_of_the_sources(folder: Path) -> Path:
    """Not a git checkout, and every file has another age and other bits for group and others."""
    git = shutil.which("git")
    assert git is not None
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
            os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder


def test_two_builds_are_the_same(tmp_path: Path) -> None:
    """Wheels and sdists of both distributions, from this checkout and from an unlike copy of it."""
    copy = copy_of_the_sources(tmp_path / "copy")
    common = {"SOURCE_DATE_EPOCH": "1700000000"}
    unlike = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"}
    builds = [
        subprocess.Popen(
            [root / "scripts/wheels", tmp_path / name],
            env=os.environ | common | others,
            umask=umask,
        )
        for root, name, others, umask in ((ROOT, "a", {}, 0o022), (copy, "b", unlike, 0o077))
    ]
    assert [build.wait(100) for build in builds] == [0, 0]
    built = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert sorted(name.split("-")[0] + Path(name).suffix for name in built) == [
        "perseus_hooks.gz",
        "perseus_hooks.whl",
        "perseusd.gz",
        "perseusd.whl",
    ]
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == built
