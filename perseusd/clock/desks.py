"""All GPUs of the clock process: their desks (what to do), their writers (doing it), the intent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from perseusd.clock.guard import UNASKED_RESET, Answer, Ask, GpuDesk, Limits
from perseusd.clock.intent import OTHERS, IntentError, IntentFile, Saver
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
    unavailable: why GPUs of this node have no desk, as whoever opens them says; empty: all have.
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
        self._saver = Saver(intent, log)
        self._log = log
        self._outcomes: deque[Outcome] = deque()
        self._wake: Callable[[], None] = _nothing
        self._report: Callable[[Ask, WriteResult], None] = _nobody
        self._last_errors: dict[int, str] = {}
        self._retries: dict[int, tuple[int, int]] = {}  # by GPU: (not before ns, then after ns)
        self._desks: dict[int, GpuDesk] = {}
        self._writers: dict[int, GpuWriter] = {}
        self._any = intent.damage is not None or OTHERS in intent.uuids  # may be locked, if unseen
        self._seen: set[str] = set()  # since this process started
        self.unavailable: Sequence[str] = ()
        for gpu in gpus:
            self.add(gpu)

    def add(self, gpu: Gpu) -> None:
        """Another GPU; one that may be locked is owed a reset.

        Raises ConfigurationError where it does not support the site's own lock.
        """
        index, full = gpu.info.index, standing_mhz(gpu.info, self._standing)
        uuid = gpu.info.uuid
        may_be_locked = self._intent.may_be_locked(uuid)
        if self._any and uuid not in self._seen:
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

    @property
    def missing(self) -> frozenset[str]:
        """GPUs that may be locked and have no desk, by UUID; OTHERS: some without a name."""
        named = self._intent.uuids
        if self._intent.damage is not None:
            named |= {OTHERS}
        here = {desk.gpu.uuid for desk in self._desks.values()}
        return named - here if self.unavailable else named - here - {OTHERS}

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
        """Take what has been put back out of the intent file, without waiting for the disk."""
        back = {desk.gpu.uuid for desk in self._desks.values() if not desk.may_be_locked}
        if self._desks and not self.unavailable and self.all_back:
            back.add(OTHERS)
        if self._intent.forget(back):
            self._saver.save()

    def await_intent(self, patience_s: float) -> None:
        """Until the intent file says what is so, if that does not take too long."""
        if not self._saver.save().wait(patience_s):
            self._log(
                f"intent file {self._intent.path}: the disk takes very long; the next start resets "
                "GPUs that need no reset"
            )

    def report_left(self) -> None:
        """Say which GPUs may still be locked, what failed, and what to do."""
        for desk in self._desks.values():
            if desk.may_be_locked:
                gpu = desk.gpu
                self._report_left(f"GPU {gpu.index} ({gpu.uuid})", gpu.uuid, self._failure(desk))
        for uuid in sorted(self.missing):
            self._report_left(_name(uuid), "GPU" if uuid == OTHERS else uuid, self._absence())

    def _report_left(self, name: str, selector: str, why: str) -> None:
        self._log(
            f"{name} may still be locked: {why}. It stays in {self._intent.path}; once the cause "
            "is gone, start perseusd-clock, or call it with --reset, to put it back. By hand: "
            f"nvidia-smi -i {selector} --reset-gpu-clocks (then the site's own lock, if it has one)"
        )

    def _failure(self, desk: GpuDesk) -> str:
        if desk.running is not None:
            return f"a write of GPU {desk.gpu.index} has not returned"
        return self._last_errors.get(desk.gpu.index) or "no reset of it has worked"

    def _absence(self) -> str:
        if self.unavailable:
            return f"it could not be opened ({'; '.join(self.unavailable)})"
        return "it is not among this node's GPUs (if it has left for good, remove the intent file)"

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
        if self._intent.damage is not None:
            self._log(f"{self._intent.damage}; resetting all")
            here = {desk.gpu.uuid for desk in self._desks.values()}
            try:
                self._intent.repair(here | {OTHERS} if self.unavailable else here)
            except IntentError as error:
                self._log(f"{error}; no clock will be locked")
        for uuid in sorted(self.missing):
            self._log(f"{_name(uuid)} may be locked and is not here")

    def _on_outcome(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._wake()


def _name(uuid: str) -> str:
    return "a GPU whose name is not known" if uuid == OTHERS else uuid


def _nothing() -> None:
    """Nobody to wake yet."""


def _nobody(_ask: Ask, _result: WriteResult) -> None:
    """Nobody to report to yet."""
