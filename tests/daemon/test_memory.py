"""Learned curves on disk: real files, sound and unsound, on disks that do not obey."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perseusd.daemon.memory import LARGEST_BYTES, MOST_DAMAGED, CurveFiles

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
LEARNED = {"version": 1, "stages": 8, "gpus": ["A100"], "schedule": None, "knowledge": {"a": [0.1]}}

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@pytest.fixture
def files(tmp_path: Path) -> CurveFiles:
    return CurveFiles(tmp_path / "state" / "curves")


def path(files: CurveFiles, signature: str = KEY) -> Path:
    return files.directory / f"{signature}.curves"


def aside(files: CurveFiles) -> list[str]:
    return sorted(p.name for p in files.directory.iterdir() if p.suffix == ".damaged")


def test_what_is_saved_is_loaded_by_another_daemon(files: CurveFiles) -> None:
    """Nothing at first; then what was saved last, also by who has not saved it; then nothing."""
    assert files.load(KEY) is None
    files.save(KEY, {"old": 1})
    files.save(KEY, LEARNED)
    files.save(OTHER, {"other": True})
    again = CurveFiles(files.directory)
    assert again.load(KEY) == LEARNED
    assert again.load(OTHER) == {"other": True}
    again.discard(KEY)
    again.discard(KEY)
    assert again.load(KEY) is None
    assert again.load(OTHER) == {"other": True}
    assert (files.troubles, again.troubles) == ({}, {})


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_object_comes_back_as_it_was(files: CurveFiles, learned: dict) -> None:
    """To the last bit of every number, whatever the text in it."""
    files.save(KEY, learned)
    assert files.load(KEY) == learned


def test_only_the_daemon_may_read_them(files: CurveFiles) -> None:
    """Directory 0700, file 0600, whatever the umask; and nothing else is left lying there."""
    before = os.umask(0)
    try:
        files.save(KEY, LEARNED)
    finally:
        os.umask(before)
    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert path(files).stat().st_mode & 0o777 == 0o600
    assert [p.name for p in files.directory.iterdir()] == [f"{KEY}.curves"]


def with_head(sound: bytes, before: str, after: str) -> bytes:
    head, rest = sound.split(b"\n", 1)
    return head.replace(before.encode(), after.encode()) + b"\n" + rest


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda sound: b"",
    "zeros, as after a power failure": lambda sound: bytes(len(sound)),
    "not text": lambda sound: b"\xff\xfe\x00" * 50,
    "not JSON": lambda sound: b"{" * 20 + b"\n",
    "too deep": lambda sound: b"[" * 100_000 + b"\n",
    "a list": lambda sound: b"[]\n[]\n",
    "another format": lambda sound: with_head(sound, "learned curves", "shopping list"),
    "a later version": lambda sound: with_head(sound, '"version": 1', '"version": 2'),
    "no second line": lambda sound: sound.split(b"\n")[0] + b"\n",
    "a changed number": lambda sound: sound.replace(b"0.1]", b"0.2]"),
    "another signature": lambda sound: with_head(sound, KEY, OTHER),
    "huge": lambda sound: sound + b" " * LARGEST_BYTES,
    "a number of many digits": lambda sound: b'{"format": ' + b"9" * 5000 + b"}\n",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_put_aside_and_told(
    files: CurveFiles, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Whatever is in it: nothing is recalled, the log names the file and what is wrong, the file is
    kept for whoever wonders, the other entries stay, and the next save is sound again."""
    files.save(KEY, LEARNED)
    files.save(OTHER, LEARNED)
    sound = path(files).read_bytes()
    assert DAMAGE[name](sound) != sound
    path(files).write_bytes(DAMAGE[name](sound))
    assert files.load(KEY) is None
    assert str(path(files)) in caplog.text
    assert aside(files) == [f"{KEY}.damaged"]
    assert not path(files).exists()
    assert files.load(OTHER) == LEARNED
    files.save(KEY, LEARNED)
    assert files.load(KEY) == LEARNED


def test_a_file_cut_anywhere_is_never_believed(files: CurveFiles) -> None:
    """Every length short of the whole is found out; all but the last newline count."""
    files.save(KEY, LEARNED)
    sound = path(files).read_bytes()
    for length in range(len(sound) - 1):
        path(files).write_bytes(sound[:length])
        assert files.load(KEY) is None, length
    assert aside(files) == [f"{KEY}.damaged"]


@given(st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_nothing(files: CurveFiles, data: bytes) -> None:
    """No content raises, in a recall or in the list."""
    files.directory.mkdir(parents=True, exist_ok=True)
    path(files).write_bytes(data)
    assert "damaged" in files.entries()[0].about
    assert files.load(KEY) is None


def test_what_is_no_file_is_not_waited_for(files: CurveFiles, tmp_path: Path) -> None:
    """A pipe that nobody writes, a directory and a link by that name: nothing, at once, and a link
    is neither followed nor written through."""
    files.directory.mkdir(parents=True)
    os.mkfifo(path(files))
    assert files.load(KEY) is None
    path(files, OTHER).mkdir()
    assert files.load(OTHER) is None
    target = tmp_path / "precious"
    target.write_text("precious")
    path(files).symlink_to(target)
    assert files.load(KEY) is None
    files.save(KEY, LEARNED)
    assert files.load(KEY) == LEARNED
    assert target.read_text() == "precious"


def test_foreign_files_are_left_alone(files: CurveFiles) -> None:
    """Neither listed nor counted nor removed, however many they are."""
    files.directory.mkdir(parents=True)
    foreign = ["README", "x.curves", f"{KEY}.json", f"{KEY.upper()}.curves"]
    for name in foreign:
        (files.directory / name).write_text("mine")
    files.limit = 1
    files.save(OTHER, LEARNED)
    files.save(KEY, LEARNED)
    assert [entry.signature for entry in files.entries()] == [KEY]
    assert all((files.directory / name).read_text() == "mine" for name in foreign)


@pytest.mark.parametrize("signature", ["../../etc/passwd", "", "a" * 15, "A" * 32, f"{KEY}/x", "."])
def test_a_signature_is_never_a_path(files: CurveFiles, signature: str) -> None:
    """What is none is refused before any file is touched."""
    for touch in (files.load, files.discard, lambda s: files.save(s, {})):
        with pytest.raises(ValueError, match="no signature"):
            touch(signature)


def test_the_one_used_longest_ago_goes(files: CurveFiles) -> None:
    """The number is bounded; loading counts as use, so what jobs start with stays."""
    files.limit = 3
    signatures = [f"{i:032x}" for i in range(4)]
    for age, signature in enumerate(signatures[:3]):
        files.save(signature, LEARNED)
        os.utime(path(files, signature), (1000 + age, 1000 + age))
    assert files.load(signatures[0]) == LEARNED
    files.save(signatures[3], LEARNED)
    assert {e.signature for e in files.entries()} == {signatures[i] for i in (0, 2, 3)}


def test_damaged_files_are_few(files: CurveFiles) -> None:
    """A disk that keeps damaging them does not fill up with them."""
    files.directory.mkdir(parents=True)
    for i in range(MOST_DAMAGED + 3):
        path(files, f"{i:032x}").write_text("damaged")
        assert files.load(f"{i:032x}") is None
    assert len(aside(files)) == MOST_DAMAGED


def test_too_much_is_not_kept(files: CurveFiles, caplog: pytest.LogCaptureFixture) -> None:
    """What would not be read again is not written, and what was there stays."""
    files.save(KEY, LEARNED)
    files.save(KEY, {"numbers": [0.1234567890123] * (LARGEST_BYTES // 10)})
    assert "too large" in caplog.text
    assert files.load(KEY) == LEARNED


def test_entries_say_what_they_are_about(files: CurveFiles) -> None:
    """Newest use first, with what a person looks for and the damage where there is some."""
    files.save(OTHER, LEARNED)
    os.utime(path(files, OTHER), (1000, 1000))
    files.save(KEY, {**LEARNED, "schedule": "1f1b"})
    newest, oldest = files.entries()
    assert (newest.signature, oldest.signature, oldest.used_s) == (KEY, OTHER, 1000)
    assert newest.size_bytes == path(files).stat().st_size
    assert {k: newest.about[k] for k in ("stages", "gpus", "schedule")} == {
        "stages": 8, "gpus": ["A100"], "schedule": "1f1b",
    }  # fmt: skip
    path(files).write_text("?")
    assert "not JSON" in {e.signature: e for e in files.entries()}[KEY].about["damaged"]


# -- disks that do not do as they are told ---------------------------------------------------------


FILES_OF_8_KB = """
import errno, logging, os, pathlib, resource, sys
from perseusd.daemon.memory import CurveFiles
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
logging.basicConfig(format="%(message)s", stream=sys.stderr)
files = CurveFiles(pathlib.Path(sys.argv[1]) / "curves")
small, big = {"small": 1}, {"numbers": [0.1234567890123] * 1000}
files.save("a" * 32, small)
for _ in range(3):
    files.save("a" * 32, big)
assert files.load("a" * 32) == small
assert [p.name for p in files.directory.iterdir()] == ["a" * 32 + ".curves"]
assert os.strerror(errno.EFBIG) in files.troubles["write"]
files.save("a" * 32, small)
assert files.troubles == {}
print("written", file=sys.stderr)
files.save("a" * 32, big)
"""


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    """No file may grow beyond 8 KB: the old one stays whole, nothing half written is left, and it
    is told once however often it happens; once something can be written again, a new failure is
    told again. In a process of its own, because the limit holds for pytest's own output too."""
    command = [sys.executable, "-c", FILES_OF_8_KB, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [told.count("learn anew") for told in done.stderr.split("written\n")] == [1, 1]


ON_A_FULL_DISK = """
import logging, pathlib, sys
from perseusd.daemon.memory import CurveFiles
logging.basicConfig(format="%(message)s", stream=sys.stdout)
files = CurveFiles(pathlib.Path(sys.argv[1]) / "curves")
files.save("a" * 32, {"small": 1})
for _ in range(2):
    files.save("b" * 32, {"numbers": [0.1234567890123] * 20000})
assert files.load("a" * 32) == {"small": 1}
assert files.load("b" * 32) is None
assert [p.name for p in files.directory.iterdir()] == ["a" * 32 + ".curves"]
"""


def _mounted(options: str, where: Path, program: str) -> subprocess.CompletedProcess[str]:
    """A program on a disk of its own, mounted where no other process sees it."""
    mount = f'mount -t tmpfs {options} none "$0" && exec "$1" -c "$2" "$0"'
    command = ["unshare", "--mount", "sh", "-c", mount, str(where), sys.executable, program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here, to mount a small disk of one's own")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
    return done


def test_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC of a real, tiny disk: nothing half written, what was kept stays, told once."""
    done = _mounted("-o size=64k", tmp_path, ON_A_FULL_DISK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left") == 1


READ_ONLY = """
import logging, pathlib, subprocess, sys
from perseusd.daemon.memory import CurveFiles
logging.basicConfig(format="%(message)s", stream=sys.stdout)
files = CurveFiles(pathlib.Path(sys.argv[1]) / "curves")
files.save("a" * 32, {"small": 1})
files.save("b" * 32, {"small": 1})
(files.directory / ("b" * 32 + ".curves")).write_text("damaged")
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for _ in range(2):
    files.save("a" * 32, {"small": 2})
    files.discard("a" * 32)
    assert files.load("a" * 32) == {"small": 1}
    assert files.load("b" * 32) is None
assert len(files.entries()) == 2
"""


def test_a_disk_that_became_read_only(tmp_path: Path) -> None:
    """What is there is still recalled, what is damaged is not, and writing is given up quietly."""
    done = _mounted("-o size=1m", tmp_path, READ_ONLY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Read-only file system; jobs learn anew") == 1


NOT_PERMITTED = """
import logging, os, pathlib, sys
from perseusd.daemon.memory import CurveFiles
os.setgroups([]); os.setgid(65534); os.setuid(65534)
logging.basicConfig(format="%(message)s", stream=sys.stdout)
files = CurveFiles(pathlib.Path(sys.argv[1]))
for _ in range(2):
    assert files.load("a" * 32) is None
    files.save("a" * 32, {})
    files.discard("a" * 32)
    assert files.entries() == []
assert set(files.troubles) == {"read", "write"}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_belongs_to_somebody_else(tmp_path: Path) -> None:
    """Permission denied, whatever is asked: told once for reading and once for writing."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    for folder in (theirs, *theirs.parents[:3]):
        folder.chmod(0o755 if folder != theirs else 0o700)
    command = [sys.executable, "-c", NOT_PERMITTED, str(theirs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Permission denied") == 2


def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands where the directory should."""
    (tmp_path / "curves").write_text("")
    files = CurveFiles(tmp_path / "curves")
    files.save(KEY, LEARNED)
    assert files.load(KEY) is None
    assert files.entries() == []
    assert {r.levelno for r in caplog.records} == {logging.WARNING}


def test_killed_while_writing(files: CurveFiles) -> None:
    """What a daemon killed in the middle of a write leaves behind is never taken for curves, and
    the next write clears it away."""
    files.save(KEY, LEARNED)
    (files.directory / f"{OTHER}.new").write_bytes(path(files).read_bytes()[:40])
    assert files.load(OTHER) is None
    assert len(files.entries()) == 1
    files.save(KEY, LEARNED)
    assert [p.name for p in files.directory.iterdir()] == [f"{KEY}.curves"]


def test_the_first_line_is_json_for_people(files: CurveFiles) -> None:
    """Who wrote what when can be read with any JSON reader, and the second line is the learned."""
    files.save(KEY, LEARNED)
    head, body = path(files).read_text().splitlines()
    assert json.loads(head)["about"] == {"stages": 8, "gpus": ["A100"], "schedule": None}
    assert json.loads(body) == LEARNED
