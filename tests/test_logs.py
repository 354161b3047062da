"""Log lines: fields in the journal's protocol, text everywhere else, and never a wait."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perseusd.core.actions import Notice
from perseusd.core.jobs.states import State
from perseusd.core.stragglers import Straggler
from perseusd.daemon.journal import of_notice
from perseusd.logs import Journal, MessageId, fields, into_journal, prefixed


class Journald:
    """The journal's socket, and what came in on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(5)

    def read(self) -> dict[str, str]:
        """The next record; a value of several lines is given with its length before it."""
        data, found = self._socket.recv(1_000_000), {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (length,) = struct.unpack("<Q", rest[:8])
                value, rest = rest[8 : 8 + length], rest[9 + length :]
            found[name.decode()] = value.decode()
            data = rest
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    made = Journald(tmp_path / "socket")
    yield made
    made.close()


@pytest.fixture
def otherwise() -> list[logging.LogRecord]:
    return []


@pytest.fixture
def log(tmp_path: Path, otherwise: list[logging.LogRecord]) -> Iterator[logging.Logger]:
    """Into that journal, and into `otherwise` where there is none."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            otherwise.append(record)

    logger = logging.getLogger("perseusd.tests.logs")
    logger.propagate, handler = False, Journal(Kept(), str(tmp_path / "socket"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_a_record_has_its_fields(log, journald) -> None:
    """Priority, where in the code, and what it is about; what is not known is left out."""
    log.warning("job %s: slow", "me:j", extra=fields(MessageId.STATE, job="me:j", rank=None))
    read = journald.read()
    assert read["MESSAGE"] == "job me:j: slow"
    assert (read["PRIORITY"], read["JOB"]) == ("4", "me:j")
    assert read["CODE_FUNC"] == "test_a_record_has_its_fields"
    assert read["CODE_FILE"] == __file__
    assert read["MESSAGE_ID"] == MessageId.STATE
    assert "RANK" not in read


def test_an_exception_is_one_record(log, journald) -> None:
    """With its traceback in the message, and its kind as a field."""
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("an error of ours")
    read = journald.read()
    assert read["MESSAGE"].startswith("an error of ours\nTraceback")
    assert (read["PRIORITY"], read["EXCEPTION"]) == ("3", "KeyError")


def test_what_users_call_a_job_forges_no_field(log, journald) -> None:
    """A name of several lines is one value."""
    name = "me:j\nPRIORITY=0\nMESSAGE=forged"
    log.info("job %s", name, extra=fields(job=name))
    read = journald.read()
    assert (read["JOB"], read["MESSAGE"], read["PRIORITY"]) == (name, f"job {name}", "6")


def test_a_journal_that_does_not_read_holds_up_nobody(log, journald, otherwise) -> None:
    """Lines are lost, and the next one that gets through says how many."""
    sent = 2000
    for number in range(sent):
        log.info("line %d", number)
    assert journald.read()["MESSAGE"] == "line 0"
    kept = 1
    journald._socket.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while journald.read():
            kept += 1
    journald._socket.settimeout(5)
    assert kept < sent
    log.info("again")
    assert journald.read()["MESSAGE"] == (
        f"again ({sent - kept} messages before this one were lost: the journal was busy)"
    )
    assert otherwise == []


def test_without_a_journal_lines_go_elsewhere(log, otherwise, tmp_path) -> None:
    """Nothing is lost, and the journal is used again as soon as it is there."""
    log.error("nobody listens")
    assert [record.getMessage() for record in otherwise] == ["nobody listens"]
    journald = Journald(tmp_path / "socket")
    log.error("somebody listens")
    assert journald.read()["MESSAGE"] == "somebody listens"
    journald.close()
    journald.path.unlink()
    log.error("gone again")
    assert len(otherwise) == 2


def test_lines_on_standard_error_have_a_priority() -> None:
    """Each of a message's lines its own, as systemd reads it."""
    handler = prefixed(logging.StreamHandler())
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "two\nlines", None, None)
    assert handler.format(record) == "<3>a: two\n<3>lines"


@pytest.mark.parametrize("stream", ["", "nonsense", "1:2", "8:12:3"])
def test_a_parents_journal_is_not_ours(stream, monkeypatch) -> None:
    """The variable is inherited by processes whose standard error goes elsewhere."""
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert not into_journal()


def test_text_goes_to_standard_error_with_the_time() -> None:
    """As ever, where there is no journal."""
    code = "import perseusd.logs as l; l.set_up_logging('info'); import logging; logging.info('hi')"
    environ = os.environ | {"JOURNAL_STREAM": "1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO root: hi\n", done.stderr)


def test_notices_of_jobs_have_fields_of_their_kind() -> None:
    """A state with the reason's code; a straggler with who and why; else the job."""
    moved = Notice("me:j", "", state=State.RELEASE, why="rank 2 has ended")
    assert of_notice(moved)["journal_fields"] == {
        "JOB": "me:j",
        "STATE": "release",
        "WHY_CODE": "rank_gone",
        "MESSAGE_ID": MessageId.STATE,
    }
    slow = Notice("me:j", "", Straggler(0, 1, 3, 1.25, 7, None, False, "thermal"))
    told = of_notice(slow)["journal_fields"]
    assert (told["STAGE"], told["RANK"], told["CAUSE"], told["OVER"]) == ("1", "3", "thermal", "no")
    assert of_notice(Notice("me:j", "else")) == {"journal_fields": {"JOB": "me:j"}}


@pytest.fixture
def real_journald() -> Iterator[str]:
    """systemd's own, in a namespace that is ours: its name."""
    name = f"perseusd-test-{os.getpid()}"
    sockets = Path(f"/run/systemd/journal.{name}")
    sockets.mkdir(parents=True)
    process = subprocess.Popen(["/lib/systemd/systemd-journald", name])
    try:
        deadline = time.monotonic() + 20
        while not (sockets / "socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield name
    finally:
        process.terminate()
        process.wait(20)
        logs = [
            log for kept in ("/run", "/var") for log in Path(kept).glob(f"log/journal/*.{name}")
        ]
        for left in (sockets, *logs):
            shutil.rmtree(left, ignore_errors=True)


@pytest.mark.system
def test_systemds_journal_finds_lines_by_their_fields(real_journald) -> None:
    """A job's, and by the reason's code; a line of 300 KB, which no datagram holds, is whole."""
    socket_path = f"/run/systemd/journal.{real_journald}/socket"
    handler = Journal(logging.StreamHandler(), socket_path)
    log = logging.Logger("perseusd.tests", logging.INFO)
    log.addHandler(handler)
    told = fields(MessageId.STATE, job="me:j", state="release", why_code="too_slow")
    log.warning("job me:j: hold → release", extra=told)
    log.error("x" * 300_000, extra=fields(job="me:k"))
    handler.close()

    def found(*match: str) -> list[dict[str, str]]:
        command = ["journalctl", f"--namespace={real_journald}", "--output=json", "--all", *match]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    deadline = time.monotonic() + 20
    while len(found("JOB=me:k")) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    (line,) = found("WHY_CODE=too_slow")
    assert (line["MESSAGE"], line["PRIORITY"]) == ("job me:j: hold → release", "4")
    assert line["MESSAGE_ID"] == MessageId.STATE
    (long,) = found("JOB=me:k")
    assert len(long["MESSAGE"]) == 300_000
