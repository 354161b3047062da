"""`perseusctl record` from the first byte to the last: read downward."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NamedTuple

from perseusd.config import Config
from perseusd.ctl.connection import ask
from perseusd.ctl.output import counted, print_json, safe
from perseusd.ctl.record.selection import Selection
from perseusd.ctl.record.stream import Stream
from perseusd.errors import (
    DaemonUnreachableError,
    OutputError,
    PerseusError,
    ProtocolError,
    UsageError,
)
from perseusd.exits import DONE
from perseusd.traces.heard import Follower
from perseusd.traces.recording import DROPPED, Reader, pack, pack_header

FLUSH_S = 1.0
"""A recording that is killed has lost no more than this."""


class Wanted(NamedTuple):
    """What to record; None: the default file, no limit, every job."""

    output: Path | None
    seconds: float | None
    iterations: int | None
    job: str | None


@dataclass
class Recording:
    """A file that grows, and what is in it so far."""

    path: Path
    file: BinaryIO
    wanted: Wanted
    began_s: float = field(default_factory=time.monotonic)
    written: int = 0
    selection: Selection | None = None
    _reader: Reader = field(default_factory=Reader)
    _flushed_s: float = 0.0

    def add(self, data: bytes) -> None:
        """Raises ProtocolError for what is no recording, OutputError where the disk is full."""
        kept = bytearray()
        try:
            for told in self._reader.feed(data):
                selection = self._follow()
                selection.follower.follow(told)
                if told.name == DROPPED or selection.keeps(told):
                    kept += pack(told)
        except ValueError as error:
            raise ProtocolError(f"what perseusd sends is no recording: {error}") from None
        self._write(bytes(kept))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s

    def is_over(self) -> bool:
        seconds, iterations = self.wanted.seconds, self.wanted.iterations
        if seconds is not None and self.seconds >= seconds:
            return True
        return iterations is not None and self.iterations() >= iterations

    def iterations(self) -> int:
        return self.selection.iterations() if self.selection is not None else 0

    def _follow(self) -> Selection:
        """From the header on."""
        if self.selection is None:
            header = self._reader.header
            assert header is not None  # inputs come after it
            self.selection = Selection(self.wanted.job, Follower(header, keeps=False))
            self._write(pack_header(header))
        return self.selection

    def _write(self, data: bytes) -> None:
        try:
            self.file.write(data)
            now_s = time.monotonic()
            if now_s - self._flushed_s >= FLUSH_S:
                self._flushed_s = now_s
                self.file.flush()
        except OSError as error:
            raise OutputError(
                f"{self.path}: {error.strerror}; what was written before can be read: "
                f"{self.written} bytes"
            ) from None
        self.written += len(data)


def run(config: Config, wanted: Wanted, *, as_json: bool) -> int:
    """Record until it is enough, Ctrl-C, or the daemon's end, which is an error of its own."""
    if wanted.job is not None:
        wanted = wanted._replace(job=_whole_id(config, wanted.job))
    path = wanted.output or Path(time.strftime("perseusd-%Y%m%d-%H%M%S.recording"))
    stream = Stream(config.record_socket)
    try:
        with _created(path) as file:
            recording = Recording(path, file, wanted)
            if wanted.seconds is None and wanted.iterations is None:
                sys.stderr.write(f"perseusctl: recording into {safe(path)} until Ctrl-C\n")
            lost = _record(stream, recording)
            file.flush()
    finally:
        stream.close()
    if lost is not None:
        if not as_json:  # one object is enough: the error's
            _tell(recording, as_json=False)
        raise DaemonUnreachableError(f"{lost}; what came before is in {path}") from lost
    _tell(recording, as_json=as_json)
    return DONE


def _whole_id(config: Config, job: str) -> str:
    """As status names it, of a job that may be given without its user.

    Raises UsageError where no such job runs, for the recording would be of nothing, and where
    several users have one, for it would be of both.
    """
    jobs = ask(config.status_socket, {"command": "status"}).get("jobs", [])
    names = sorted(str(own.get("id")) for own in jobs if isinstance(own, dict))
    if job in names:
        return job
    found = [name for name in names if job == name.partition(":")[2]]
    if not found:
        running = ", ".join(map(safe, names)) or "none"
        raise UsageError(f"--job {safe(job)}: no such job here: running are {running}")
    if len(found) > 1:
        which = " or ".join(f"--job {safe(name)}" for name in found)
        raise UsageError(f"--job {safe(job)}: several users have one: say {which}")
    return found[0]


def _record(stream: Stream, recording: Recording) -> DaemonUnreachableError | None:
    """Returns why there was no more, where more was wanted."""
    with _interruptible() as interrupted:
        try:
            for data in stream.batches():
                if data:
                    recording.add(data)
                if interrupted or recording.is_over():
                    return None
        except DaemonUnreachableError as error:
            if not recording.written:
                recording.path.unlink(missing_ok=True)
                raise
            return error
        except PerseusError:
            if not recording.written:
                recording.path.unlink(missing_ok=True)
            raise
    return None


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """SIGINT and SIGTERM end a recording; the list says that one has come."""
    come: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        come.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _created(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileExistsError:
        raise UsageError(f"--output {safe(path)}: is there already; give another name") from None
    except OSError as error:
        raise UsageError(f"--output {safe(path)}: cannot be written ({error.strerror})") from None


def _tell(recording: Recording, *, as_json: bool) -> None:
    selection = recording.selection
    jobs = [] if selection is None else selection.jobs()
    dropped = 0 if selection is None else selection.follower.dropped
    if as_json:
        print_json(
            {
                "output": str(recording.path),
                "seconds": round(recording.seconds, 3),
                "bytes": recording.written,
                "iterations": recording.iterations(),
                "jobs": [{"id": own.name, "iterations": own.count} for own in jobs],
                "dropped": dropped,
            }
        )
        return
    named = ", ".join(safe(own.name) for own in jobs) or "no job"
    sys.stdout.write(
        f"{safe(recording.path)}: {recording.seconds:.1f} s, "
        f"{counted(recording.iterations(), 'iteration')} of {named}, "
        f"{recording.written / 1e6:.1f} MB\n"
    )
    if dropped:
        sys.stdout.write(f"{dropped} inputs were lost: this machine could not keep up\n")
