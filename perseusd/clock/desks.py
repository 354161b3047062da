"""All GPUs of the clock process: their desks (what to do), their writers (doing it), the intent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from perseusd.clock.guard import UNASKED_RESET, Answer, Ask, GpuDesk, Limits
from perseusd.clock.intent import IntentError, IntentFile
from perseusd.clock.protocol import UNLOCKED, GpuName, ResultCode, WriteResult
from perseusd.clock.writer import GpuWriter, Outcome
from perseusd.gpus.base import Gpu
from perseusd.gpus.standing import standing_mhz

_NS = 1_000_000_000
_FIRST_RETRY_NS = _NS // 4  # a reset that failed is tried again, less and less often
_LAST_RETRY_NS = 5 * _NS


class Desks:
    """Takes requests, carries them out, and answers each through `report`.

    report: called with the request and its result. wake: called on a writer's thread when a driver
    call has ended; `take_outcomes` is to be called soon after.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        intent: IntentFile,
        limits: Limits,
        log: Callable[[str], None],
        standing: Mapping[str, int] | None = None,
    ) -> None:
        """standing: the site's own locks, as `standing_mhz` takes them."""
        self._limits = limits
        self._standing = standing or {}
        self._intent = intent
        self._log = log
        self._outcomes: deque[Outcome] = deque()
        self._wake: Callable[[], None] = _nothing
        self._report: Callable[[Ask, WriteResult], None] = _nobody
        self._last_errors: dict[int, str] = {}
        self._retries: dict[int, tuple[int, int]] = {}  # by GPU: (not before ns, then after ns)
        self._desks: dict[int, GpuDesk] = {}
        self._writers: dict[int, GpuWriter] = {}
        self._damaged = intent.damage is not None
        self._seen: set[str] = set()  # since this process started
        for gpu in gpus:
            self.add(gpu)

    def add(self, gpu: Gpu) -> None:
        """Another GPU; one that may be locked is owed a reset.

        Raises ConfigurationError where it does not support the site's own lock.
        """
        index, full = gpu.info.index, standing_mhz(gpu.info, self._standing)
        uuid = gpu.info.uuid
        may_be_locked = self._intent.may_be_locked(uuid)
        if self._damaged and uuid not in self._seen:
            may_be_locked = True
        self._seen.add(uuid)
        self._desks[index] = GpuDesk(gpu.info, self._limits, may_be_locked, full)
        self._writers[index] = GpuWriter(gpu, self._intent, self._on_outcome, full)

    def clear(self) -> None:
        """Forget all GPUs; only while `all_back`."""
        for writer in self._writers.values():
            writer.end()
        for known in (self._desks, self._writers, self._retries, self._last_errors):
            known.clear()

    def attach(self, report: Callable[[Ask, WriteResult], None], wake: Callable[[], None]) -> None:
        """Say who is to hear of results and of ended driver calls."""
        self._report = report
        self._wake = wake

    def names(self) -> Iterator[GpuName]:
        for index, desk in self._desks.items():
            yield GpuName(index, desk.gpu.uuid, desk.standing_mhz or UNLOCKED)

    @property
    def all_back(self) -> bool:
        """Nothing may be locked, and no driver call is under way."""
        return not (self.busy or any(desk.may_be_locked for desk in self._desks.values()))

    @property
    def busy(self) -> bool:
        """A driver call is under way, or hangs."""
        return any(desk.running is not None for desk in self._desks.values())

    def ask(self, gpu_index: int, ask: Ask) -> None:
        desk = self._desks.get(gpu_index)
        if desk is None:
            self.answer(gpu_index, Answer(ask, ResultCode.UNKNOWN_GPU))
            return
        for answer in desk.ask(ask):
            self.answer(gpu_index, answer)

    def answer(self, gpu_index: int, answer: Answer) -> None:
        """The result of a request that ended without a driver call."""
        now_ns = time.monotonic_ns()
        self._tell(answer.ask, Outcome(gpu_index, answer.code, now_ns, now_ns, 0, ""))

    def disown(self, gpu_index: int) -> None:
        """What stands on this GPU is another tool's."""
        desk = self._desks.get(gpu_index)
        if desk is not None:
            desk.disown()
            self.settle_intent()

    def doubt(self) -> None:
        """The machine has slept: whatever may be locked is reset, whatever the driver still has."""
        for desk in self._desks.values():
            desk.doubt()

    def release(self) -> None:
        """The lease has ended: drop waiting locks, and owe every GPU that may be locked a reset."""
        for index, desk in self._desks.items():
            for answer in desk.withdraw_locks():
                self.answer(index, answer)
            desk.owe_reset()

    def begin(self) -> None:
        """Start what can be started: resets that are owed and due, then whatever waits."""
        now_ns = time.monotonic_ns()
        for index, desk in self._desks.items():
            not_before_ns, pause_ns = self._retries.get(index, (0, _FIRST_RETRY_NS))
            if desk.reset_due and now_ns >= not_before_ns:
                self._retries[index] = (now_ns + pause_ns, min(2 * pause_ns, _LAST_RETRY_NS))
                desk.ask(UNASKED_RESET)
            self._begin_at(index, desk, now_ns)

    def take_outcomes(self) -> None:
        """Note the driver calls that have ended."""
        while self._outcomes:
            outcome = self._outcomes.popleft()
            ask = self._desks[outcome.gpu_index].finish(outcome.code)
            if outcome.error != self._last_errors.get(outcome.gpu_index, ""):
                self._log(outcome.error or f"GPU {outcome.gpu_index}: the driver works again")
            self._last_errors[outcome.gpu_index] = outcome.error
            if outcome.code is ResultCode.OK:
                self._retries.pop(outcome.gpu_index, None)
            self._tell(ask, outcome)

    def retry_ns(self) -> int | None:
        """In how long an owed reset is to be tried again; None if none waits for that."""
        now_ns = time.monotonic_ns()
        due = [self._retries.get(i, (0, 0))[0] for i, d in self._desks.items() if d.reset_due]
        return max(0, min(due) - now_ns) if due else None

    def settle_intent(self) -> None:
        """Take what has been put back out of the intent file."""
        back = {d.gpu.uuid for d in self._desks.values() if not d.may_be_locked}
        try:
            self._intent.remove(back)
        except IntentError as error:
            self._log(f"{error}; the next start resets GPUs that need no reset")

    def report_left(self) -> None:
        """Say which GPUs may still be locked."""
        for desk in self._desks.values():
            if desk.may_be_locked:
                self._log(
                    f"GPU {desk.gpu.index} ({desk.gpu.uuid}) may still be locked: no reset of it "
                    "has worked; it stays in the intent file for the next start"
                )

    def _begin_at(self, index: int, desk: GpuDesk, now_ns: int) -> None:
        begun = desk.begin(now_ns)
        if isinstance(begun, Answer):
            self.answer(index, begun)
        elif begun is not None:
            self._writers[index].write(begun.clock_mhz)

    def _tell(self, ask: Ask, outcome: Outcome) -> None:
        result = WriteResult(
            ask.request_id,
            outcome.gpu_index,
            ask.clock_mhz,
            outcome.code,
            outcome.start_ns,
            outcome.end_ns,
            outcome.observed_mhz,
        )
        self._report(ask, result)

    def check_intent(self) -> None:
        """Make a damaged intent file sound again, and speak of what it says."""
        here = {desk.gpu.uuid for desk in self._desks.values()}
        if self._intent.damage is not None:
            self._log(f"{self._intent.damage}; resetting all")
            try:
                self._intent.repair(here)
            except IntentError as error:
                self._log(f"{error}; no clock will be locked")
        for uuid in sorted(self._intent.uuids - here):
            self._log(f"{uuid} may be locked but is not here; it stays in {self._intent.path}")

    def _on_outcome(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._wake()


def _nothing() -> None:
    """Nobody to wake yet."""


def _nobody(_ask: Ask, _result: WriteResult) -> None:
    """Nobody to report to yet."""
