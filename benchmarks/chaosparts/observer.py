"""Watches the GPUs' file: is a clock lowered without a live lease?

A *cause* says that the lease on some GPUs has ended (a process of theirs died, is stopped): from
then on their clocks must be full within its grace. An *excuse* is a time in which nobody could have
put them back, such as a reset that the driver refuses: the grace runs on from its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from perseusd.gpus.simulated import open_node

POLL_S = 0.004
STALL_S = 2.5
"""Ten iterations: training that has not moved for so long, with all of its ranks running, hangs."""


@dataclass
class Cause:
    """lasting: once over, it is so until a clock was seen full: a lock of the old lease must go."""

    what: str
    gpus: frozenset[int]
    since_s: float
    grace_s: float
    lasting: bool = True
    until_s: float | None = None


@dataclass
class Excuse:
    what: str
    gpus: frozenset[int]
    since_s: float
    after_s: float = 1.0
    until_s: float | None = None

    def end_s(self) -> float:
        return float("inf") if self.until_s is None else self.until_s + self.after_s


@dataclass
class Seen:
    """Since `Observer.begin`. worst_s: how long at most a clock was lowered after a cause, of those
    for which nothing excused more than their grace."""

    violations: list[str] = field(default_factory=list)
    worst_s: dict[str, float] = field(default_factory=dict)
    lag_s: float = 0.0


class Observer:
    """A thread of its own. `lowered` says now which GPUs are, `locked` which have any lock."""

    def __init__(self, path: Path) -> None:
        self._node = open_node(path)
        self._full_s = [time.monotonic()] * len(self._node.gpus)
        self._causes: list[Cause] = []
        self._excuses: list[Excuse] = []
        self._lags: list[tuple[float, float]] = []
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self.seen = Seen()
        self._told: set[tuple[int, int]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def locked(self) -> list[int]:
        return [i for i, gpu in enumerate(self._node.gpus) if gpu.locked_mhz() is not None]

    def lowered(self) -> set[int]:
        """A lock at the top clock is full clock too: where a reset was seen to do nothing."""
        told = ((gpu.locked_mhz(), gpu.info.supported_clocks_mhz[-1]) for gpu in self._node.gpus)
        return {i for i, (mhz, top_mhz) in enumerate(told) if mhz is not None and mhz < top_mhz}

    def begin(self) -> None:
        """Forget what was seen; causes and excuses go on."""
        with self._guard:
            self.seen = Seen()

    def cause(self, cause: Cause) -> Cause:
        with self._guard:
            self._causes.append(cause)
        return cause

    def excuse(self, excuse: Excuse) -> Excuse:
        with self._guard:
            self._excuses.append(excuse)
        return excuse

    def pending(self) -> bool:
        """Whether a clock of an ended lease is still lowered."""
        with self._guard:
            return any(cause.until_s is not None for cause in self._causes)

    def violation(self, text: str) -> None:
        with self._guard:
            self.seen.violations.append(text)

    def lag_s(self, since_s: float) -> float:
        """By how much this machine held up our own polls since then: others waited as long."""
        return sum(lag for at_s, lag in self._lags if at_s >= since_s)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._node.close()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._ended.is_set():
            now_s = time.monotonic()
            if now_s - due_s > 0.02:
                self._lags = [entry for entry in self._lags[-500:] if entry[0] > now_s - 20]
                self._lags.append((now_s, now_s - due_s))
                self.seen.lag_s += now_s - due_s
            with self._guard:
                self._look(now_s)
            due_s = time.monotonic() + POLL_S
            time.sleep(POLL_S)

    def _look(self, now_s: float) -> None:
        lowered = self.lowered()
        for gpu in range(len(self._full_s)):
            if gpu not in lowered:
                self._full_s[gpu] = now_s
        for cause in self._causes:
            for gpu in cause.gpus & lowered:
                self._judge(cause, gpu, now_s)
        self._causes = [cause for cause in self._causes if not self._over(cause)]
        self._excuses = [e for e in self._excuses if e.end_s() > now_s - 30]

    def _judge(self, cause: Cause, gpu: int, now_s: float) -> None:
        if cause.until_s is not None and (not cause.lasting or self._was_full(gpu, cause.since_s)):
            return
        late_s = now_s - cause.since_s
        deadline_s = self._deadline_s(cause, gpu)
        if deadline_s <= cause.since_s + cause.grace_s:
            worst_s = self.seen.worst_s
            worst_s[cause.what] = max(worst_s.get(cause.what, 0.0), late_s)
        late = now_s > deadline_s + self.lag_s(cause.since_s)
        if late and (id(cause), gpu) not in self._told:
            self._told.add((id(cause), gpu))
            excused = "" if deadline_s <= cause.since_s + cause.grace_s else ", excuses counted"
            text = f"GPU {gpu} is lowered {late_s:.2f} s after {cause.what}{excused}"
            self.seen.violations.append(text)

    def _deadline_s(self, cause: Cause, gpu: int) -> float:
        deadline_s = cause.since_s + cause.grace_s
        for excuse in sorted(self._excuses, key=lambda excuse: excuse.since_s):
            meanwhile = excuse.since_s <= deadline_s and excuse.end_s() >= cause.since_s
            if meanwhile and gpu in excuse.gpus:
                deadline_s = max(deadline_s, excuse.end_s())
        return deadline_s

    def _over(self, cause: Cause) -> bool:
        if cause.until_s is None:
            return False
        return not cause.lasting or all(self._was_full(g, cause.since_s) for g in cause.gpus)

    def _was_full(self, gpu: int, since_s: float) -> bool:
        """Whether its clock was full at some moment since then, however short: by its records."""
        if self._full_s[gpu] > since_s:
            return True
        since_ns = round(since_s * 1e9)
        seen = self._node.gpus[gpu]
        changes = seen.clock_history(since_ns).changes
        top = len(seen.info.supported_clocks_mhz) - 1
        return any(c.clock_index == top for c in changes if c.effective_ns > since_ns)


def gpus(which: Iterable[int]) -> frozenset[int]:
    return frozenset(which)
