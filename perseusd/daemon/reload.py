"""The configuration again, while the daemon runs: SIGHUP asks, a thread reads, the loop takes it.

Files may lie on a disk that hangs, and users' names come from a directory that does not answer: so
nothing here waits but the thread. What is wrong changes nothing; what is sound is swapped in whole.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from perseusd.config import (
    OPTIONS,
    Config,
    Reading,
    Sources,
    described,
    differing,
    read_config,
    with_live,
)
from perseusd.config_kinds import shown
from perseusd.config_sources import DEFAULT, Option, Origin
from perseusd.systemd import notify

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""With the disk: then whoever asked is told that the old values stay."""


def has_terminal() -> bool:
    """Whether this process can be hung up on."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Reloader:
    """Owns what the daemon's values come from.

    config: in force. waiting, problems: what the last reading found that only a restart would
    change, and what was wrong with it, so that a restart would fail; in words. reloads: how many
    there were, by what became of them.
    """

    def __init__(
        self, config: Config, sources: Sources, origins: Mapping[str, Origin] | None = None
    ) -> None:
        self.config = config
        self.waiting: list[str] = []
        self.problems: list[str] = []
        self.reloads = {"done": 0, "refused": 0}
        self._sources = sources
        self._origins = dict(origins or dict.fromkeys(OPTIONS, DEFAULT))
        self._wanted = False
        self._thread: threading.Thread | None = None
        self._since_s = 0.0
        self._told_late = False
        self._reading: Reading | None = None

    def ask(self) -> None:
        """Read again as soon as can be; for a signal handler."""
        self._wanted = True

    def turn(self) -> Config | None:
        """Waits for nothing: a configuration to go on with, once there is one."""
        if self._thread is None:
            if self._wanted:
                self._begin()
            return None
        if self._thread.is_alive():
            self._be_patient()
            return None
        self._thread, reading = None, self._reading
        found = self._judge(reading) if reading is not None else None
        if not self._wanted:
            self._ready("" if found is not None else "the last reload was refused; see the log")
        return found

    def answer(self) -> dict[str, Any]:
        """For status: every option, its value and where that comes from."""
        file = self._sources.file
        return {
            "schema_version": 1,
            "ok": True,
            "file": None if file is None else str(file),
            "options": described(self.config, self._origins),
            **self.outlook(),
        }

    def outlook(self) -> dict[str, list[str]]:
        """What the next restart would bring."""
        return {"waiting": self.waiting, "problems": self.problems}

    def _begin(self) -> None:
        self._wanted, self._told_late, self._reading = False, False, None
        self._since_s = time.monotonic()
        # systemd 253 and later ignores a reload that does not say when it began.
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._thread = threading.Thread(target=self._read, name="reload", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        """The thread."""
        try:
            self._reading = read_config(self._sources)
        except Exception:
            log.exception("an error of ours over the configuration: it stays as it was")

    def _be_patient(self) -> None:
        if not self._told_late and time.monotonic() - self._since_s > PATIENCE_S:
            self._told_late = True
            log.error(
                "reload: the configuration cannot be read within %g s (does a disk hang?): the old "
                "one stays in force until it can",
                PATIENCE_S,
            )
            self._ready("the configuration cannot be read; see the log")

    def _judge(self, reading: Reading) -> Config | None:
        self.problems = [str(problem) for problem in reading.problems]
        if reading.config is None:
            self.reloads["refused"] += 1
            for problem in self.problems:
                log.error("reload: %s", problem)
            count = len(self.problems)
            log.error("reload: nothing is changed: %d problem%s", count, "s" if count > 1 else "")
            return None
        before, read = self.config, reading.config
        self.config = with_live(before, read)
        changed, unchanged = differing(before, self.config), differing(self.config, read)
        for option in changed:
            old, new = _value(before, option), _value(self.config, option)
            log.info(
                "reload: %s: %s, was %s (%s)", option.title, new, old, reading.origins[option.name]
            )
        self.waiting = [
            f"{o.title} = {_value(read, o)} ({reading.origins[o.name]}); "
            f"{_value(self.config, o)} stays in force until a restart"
            for o in unchanged
        ]
        for waiting in self.waiting:
            log.warning("reload: %s", waiting)
        kept = {option.name for option in unchanged}
        self._origins |= {n: origin for n, origin in reading.origins.items() if n not in kept}
        self.reloads["done"] += 1
        log.info("reload: done, %s", _counted(len(changed)))
        return self.config

    @staticmethod
    def _ready(status: str) -> None:
        notify(f"READY=1\nSTATUS={status}")


def _value(config: Config, option: Option) -> str:
    value = option.kind.plain(getattr(config, option.name))
    return "unset" if value is None else shown(value)


def _counted(changes: int) -> str:
    return f"{changes} value{'' if changes == 1 else 's'} changed" if changes else "nothing changed"
