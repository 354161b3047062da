"""The ring: a reader sees whole records in order, whatever the writer does."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from mmap import mmap
from pathlib import Path

import pytest

from perseusd.gpus.ring import Ring, words_of

LAYOUT = "qqd"
SLOTS = 8

_WRITER = textwrap.dedent(
    """
    import sys
    from mmap import mmap
    from perseusd.gpus.ring import Ring, words_of
    with open(sys.argv[1], "r+b") as file:
        memory = mmap(file.fileno(), 0)
    ring = Ring(memory, words_of(memory), 0, "qqd", 8)
    print("ready", flush=True)
    while True:
        number = ring.count
        ring.append(number, -number, number / 2)
    """
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    path.write_bytes(bytes(Ring.size(LAYOUT, SLOTS)))
    return path


@pytest.fixture
def ring(file: Path) -> Ring:
    with file.open("r+b") as opened:
        memory = mmap(opened.fileno(), 0)
    return Ring(memory, words_of(memory), 0, LAYOUT, SLOTS)


def start_writer(path: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdout.close()
    return writer


def read_whole(ring: Ring) -> int:
    """Check that every record is whole and the next older one; how many there were."""
    newest: int | None = None
    seen = 0
    for number, negative, half in ring.newest_first():
        assert (negative, half) == (-number, number / 2)
        assert newest is None or number == newest - 1
        newest = number
        seen += 1
    return seen


def test_newest_first_and_never_the_slot_in_danger(ring: Ring) -> None:
    """After many appends the last slots − 1 records are there, newest first."""
    assert list(ring.newest_first()) == []
    for number in range(20):
        ring.append(number, -number, number / 2)
    assert [record[0] for record in ring.newest_first()] == list(range(19, 12, -1))
    assert ring.count == 20


def test_reader_beside_a_racing_writer(file: Path, ring: Ring) -> None:
    """While another process appends as fast as it can no reader sees a mixed record."""
    writer = start_writer(file)
    try:
        deadline = time.monotonic() + 0.5
        seen = sum(read_whole(ring) for _ in iter(lambda: time.monotonic() < deadline, False))
    finally:
        writer.kill()
        writer.wait()
    assert seen > 100
    assert ring.count > SLOTS


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_reader_beside_a_writer_stopped_anywhere(file: Path, ring: Ring, end: int) -> None:
    """A writer stopped or killed at any moment leaves SLOTS − 1 whole records to read at once."""
    for _ in range(5):
        writer = start_writer(file)
        time.sleep(0.02)
        os.kill(writer.pid, end)
        os.waitpid(writer.pid, os.WUNTRACED)
        try:
            assert read_whole(ring) == SLOTS - 1
        finally:
            if end == signal.SIGSTOP:
                writer.kill()
                writer.wait()
        writer.returncode = writer.returncode or -int(end)


def test_half_written_record_is_not_seen(file: Path, ring: Ring) -> None:
    """What lies in the slot after the newest record is nobody's business until it is published."""
    for number in range(10):
        ring.append(number, -number, number / 2)
    with file.open("r+b") as opened:
        memory = mmap(opened.fileno(), 0)
        size = struct.calcsize("@Q" + LAYOUT)
        memory[8 + 2 * size : 8 + 3 * size] = b"\xff" * size
        memory.close()
    assert read_whole(ring) == SLOTS - 1
