"""The intent file: on disk before a lock, readable after any crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perseusd.clock.intent import IntentError, IntentFile

_WRITER = """
import sys
from pathlib import Path
from perseusd.clock.intent import IntentFile
intent = IntentFile(Path(sys.argv[1]))
intent.add("GPU-always")
print("ready", flush=True)
while True:
    intent.add("GPU-sometimes")
    intent.forget({"GPU-sometimes"})
    intent.save()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clock-intent.json"


def test_what_was_added_is_found_again(path: Path) -> None:
    """Another reader sees what was added and not forgotten."""
    intent = IntentFile(path)
    intent.add("GPU-0")
    intent.add("GPU-1")
    assert intent.forget({"GPU-0", "GPU-7"})
    assert not intent.forget({"GPU-0"})
    assert not intent.may_be_locked("GPU-0")
    assert IntentFile(path).uuids == {"GPU-0", "GPU-1"}  # until it is saved
    intent.save()
    found = IntentFile(path)
    assert found.uuids == {"GPU-1"}
    assert found.may_be_locked("GPU-1")
    assert not found.may_be_locked("GPU-0")
    assert found.damage is None


def test_no_file_means_nothing_is_locked(path: Path) -> None:
    """A first start finds nothing to reset, and writes nothing."""
    assert not IntentFile(path).may_be_locked("GPU-0")
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 2, "may_be_locked": []}',
        b'{"version": 1}',
        b'{"version": 1, "may_be_locked": [1]}',
        b'{"version": 1, "may_be_locked": 5}',
        b"[" * 100_000,
    ],
)
def test_damaged_file_means_all(path: Path, content: bytes) -> None:
    """A file that cannot be understood means every GPU, until it is repaired; it takes no lock."""
    path.write_bytes(content)
    intent = IntentFile(path)
    assert intent.may_be_locked("GPU-anything")
    assert intent.damage is not None
    assert str(path) in intent.damage
    with pytest.raises(IntentError):
        intent.add("GPU-0")
    intent.repair({"GPU-0", "GPU-1"})
    assert IntentFile(path).uuids == {"GPU-0", "GPU-1"}
    assert not intent.may_be_locked("GPU-anything")


def test_unwritable_is_an_error_and_changes_nothing(path: Path) -> None:
    """Without its folder nothing can be added; the error names the file, memory stays as disk."""
    folder = path.parent / "folder"
    folder.mkdir()
    intent = IntentFile(folder / path.name)
    folder.rmdir()
    with pytest.raises(IntentError, match=path.name):
        intent.add("GPU-0")
    assert intent.uuids == frozenset()


def test_what_could_not_be_saved_is_saved_later(path: Path) -> None:
    """A GPU that was reset is forgotten, whatever the disk does; a later save tells it, too."""
    intent = IntentFile(path)
    intent.add("GPU-0")
    path.with_name(path.name + ".new").mkdir()
    intent.forget({"GPU-0"})
    with pytest.raises(IntentError):
        intent.save()
    assert not intent.may_be_locked("GPU-0")
    path.with_name(path.name + ".new").rmdir()
    intent.save()
    assert IntentFile(path).uuids == frozenset()


def test_killed_writer_leaves_a_sound_file(path: Path) -> None:
    """Killed at any moment of its writing, the file is whole and names what was locked."""
    for round_ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.01 + 0.003 * round_)
            writer.kill()
        content = json.loads(path.read_text())
        assert content["version"] == 1
        assert "GPU-always" in content["may_be_locked"]
        assert set(content["may_be_locked"]) <= {"GPU-always", "GPU-sometimes"}
