"""Where log lines go: to standard error, or to the journal with fields that can be searched for.

The journal takes a line on standard error as a text of one priority. In its own protocol a record
carries fields, so `journalctl JOB=alice:gpt3 -p warning` finds what it is asked for. Used is the
transport of logging-journald, which is pure Python: systemd's own binding needs C headers to be
installed. Its handler's names for fields (EXTRA_JOB) are not ours, and it waits for a journal that
does not read; a daemon that must feed its watchdog loses the line instead, and says how many.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""syslog's, by the nearest level that is not above."""

FIELDS: Final = "journal_fields"
"""As a record's attribute: more fields of the journal's, by name."""


def fields(message_id: str | None = None, **named: object) -> dict[str, Any]:
    """For `extra=`: fields in upper case, such as JOB and GPU; None is left out.

    message_id: of one kind of message, from MessageId.
    """
    known = {name.upper(): str(value) for name, value in named.items() if value is not None}
    if message_id is not None:
        known["MESSAGE_ID"] = message_id
    return {FIELDS: known}


class MessageId:
    """One for each kind of message that somebody may wait for."""

    READY: Final = "f565f44946db4bd6a19162e3146d869f"
    STATE: Final = "cf2e46c1c1754842aea3cff70a85c750"
    STRAGGLER: Final = "56cef14079754862a28affbf3073ace3"
    WRITE_FAILED: Final = "6d37e1f9740146828f893187c76f17ca"
    REFUSED: Final = "8259f3b3ae81458f8127b73daf668551"
    JOB_ENDED: Final = "6f2bc72949744eb8b01acaa9c4036186"


def set_up_logging(level: str) -> None:
    """To the journal where standard error is one, else to standard error with the time."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if into_journal():
        handler = Journal(prefixed(handler))
    else:
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def into_journal() -> bool:
    """Whether this process's own standard error is the journal's, not just a parent's."""
    if "JOURNAL_STREAM" not in os.environ:
        return False
    from logging_journald import check_journal_stream  # only where it may be of use

    try:
        return bool(check_journal_stream())
    except (OSError, ValueError):
        return False


def prefixed(handler: logging.Handler) -> logging.Handler:
    """With the priority as systemd takes it from a line on standard error."""
    handler.setFormatter(_Prefix("%(name)s: %(message)s"))
    return handler


class _Prefix(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        start = f"<{priority(record.levelno)}>"
        return "\n".join(start + line for line in super().format(record).splitlines())


class Journal(logging.Handler):
    """Sends records with their fields; where there is no journal, to `otherwise`."""

    def __init__(self, otherwise: logging.Handler, socket_path: str | None = None) -> None:
        from logging_journald import JournaldTransport

        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._otherwise = otherwise
        # Addressed with each line, so that a journal which is started again is found again.
        self._transport = JournaldTransport(socket_path, connected=False)
        self._transport.socket.setblocking(False)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._transport.send(self._pairs(record))
        except BlockingIOError:  # the journal does not keep up, or hangs
            self._lost += 1
        except OSError:
            self._otherwise.handle(record)
        except Exception:  # noqa: BLE001 - logging never breaks what logs
            self.handleError(record)
        else:
            self._lost = 0

    def close(self) -> None:
        self._transport.socket.close()
        super().close()

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
        message = self.format(record)
        if self._lost:
            message += f" ({self._lost} messages before this one were lost: the journal was busy)"
        yield "MESSAGE", message
        yield "PRIORITY", priority(record.levelno)
        yield "SYSLOG_IDENTIFIER", os.path.basename(sys.argv[0]) or "perseusd"
        yield "LOGGER", record.name
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", record.lineno
        yield "CODE_FUNC", record.funcName
        if record.exc_info and (kind := record.exc_info[0]) is not None:
            yield "EXCEPTION", kind.__name__
        own: Mapping[str, str] = getattr(record, FIELDS, {})
        yield from own.items()


def priority(level: int) -> int:
    """syslog's number for a level of Python's."""
    return next((number for known, number in PRIORITIES.items() if level >= known), 7)
