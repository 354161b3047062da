"""The thread that reads and writes learned curves, and what the loop and operators ask of it.

A disk that is full, failing or across a network may take any time, and the loop times clock writes:
so nothing here waits but the thread.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from perseusd.core.actions import Discard, Recall, Remember
from perseusd.daemon.memory import CurveFiles, Entry, is_signature

log = logging.getLogger(__name__)

MOST_WAITING = 64
"""Requests to a disk that does not answer; those beyond are dropped."""

STOP_S = 1.0
"""How long the daemon's end waits for what is still to be written."""


class CurveKeeper:
    """Carries out, one after another, what is asked.

    recalled: (job, signature, what was learned or None), for the loop to drain.
    """

    def __init__(self, files: CurveFiles | None) -> None:
        """files: None keeps nothing and recalls nothing."""
        self.recalled: collections.deque[tuple[str, str, dict[str, Any] | None]] = (
            collections.deque()
        )
        self._files = files
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._entries: list[Entry] = []
        self._looks_asked = self._looks = 0
        self._stuck = False
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What waits to be written is, unless the disk takes too long."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._work.put_nowait(None)
            self._thread.join(STOP_S)  # a hung disk keeps it; it is a daemon thread

    def act(self, action: Recall | Remember | Discard) -> None:
        """Have it carried out; dropped where the disk has not answered for too long."""
        files = self._files
        match action:
            case Recall(job, signature):
                if files is None or not self._ask(lambda: self._recall(files, job, signature)):
                    self.recalled.append((job, signature, None))
            case Remember(signature, learned) if files is not None:
                self._ask(lambda: files.save(signature, learned))
            case Discard(signature) if files is not None:
                self._ask(lambda: files.discard(signature))

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """Requests on the control socket → answers.

        What the directory holds is answered as of the last look at it; `look` is the number of the
        one that is asked for now, `looks` how many there were.
        """
        return {"memory_list": self._answer_list, "memory_forget": self._answer_forget}

    def _answer_list(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        curves = [
            {
                "signature": entry.signature,
                "size_bytes": entry.size_bytes,
                "used_s_ago": max(0.0, time.time() - entry.used_s),
                **entry.about,
            }
            for entry in self._entries
        ]
        files = self._files
        return {
            "ok": True,
            "remember": files is not None,
            "directory": None if files is None else str(files.directory),
            "troubles": [] if files is None else list(files.troubles.values()),
            "curves": curves,
            "looks": self._looks,
            "look": self._look(),
        }

    def _answer_forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        signature = request.get("signature")
        if not isinstance(signature, str) or not is_signature(signature):
            error = f"signature {signature!r}: give one as `perseusctl memory list` shows it"
            return {"ok": False, "code": "bad_request", "error": error}
        self.act(Discard(signature))
        return {"ok": True, "look": self._look()}

    def _ask(self, work: Callable[[], None]) -> bool:
        try:
            self._work.put_nowait(work)
        except queue.Full:
            if not self._stuck:
                log.warning("learned curves: the disk does not answer; jobs learn anew")
            self._stuck = True
            return False
        return True

    def _look(self) -> int:
        """Ask for one; its number, from 1, or 0 where there is nothing to look at."""
        if (files := self._files) is None:
            return 0
        if not self._ask(lambda: self._list(files)):
            return self._looks_asked + 1
        self._looks_asked += 1
        return self._looks_asked

    # --- the thread -------------------------------------------------------------------------

    def _list(self, files: CurveFiles) -> None:
        try:
            self._entries = files.entries()
        finally:
            self._looks += 1

    def _recall(self, files: CurveFiles, job: str, signature: str) -> None:
        learned = None
        try:
            learned = files.load(signature)
        finally:
            self.recalled.append((job, signature, learned))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("an error of ours over learned curves")
            self._stuck = False
