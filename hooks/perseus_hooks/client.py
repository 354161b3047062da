"""A client: the two calls, guarded so that no training ever stops or waits because of them."""

from __future__ import annotations

import operator
import os
import threading
import time
import weakref
from dataclasses import replace
from types import TracebackType
from typing import Any

from perseus_hooks.adapters.torch_cuda import cuda_in_use
from perseus_hooks.channel import CONNECT_MS, Channel
from perseus_hooks.device_times import DeviceTimes, Outlet
from perseus_hooks.events import INSTRUCTIONS, Hello, StageEnd, StageStart
from perseus_hooks.log import Once
from perseus_hooks.spans import MAX_DEPTH, Spans
from perseus_hooks.wire import MAX_COUNT, MAX_INTEGER

_INSTRUCTIONS = frozenset(INSTRUCTIONS)
_OTHER = ("other", 0, 0, None, None)
_NO_TOKEN = 0  # what stage_start returns when it could not open a span; ending it does nothing


class Client:
    """One rank's voice. Use the module's functions, unless one process speaks for several ranks.

    No method blocks or raises. A forked child's copy is silent. wait_ms: how long making a client
    may wait for a daemon whose socket file is there, so that the first computation is not lost.
    device_times: once PyTorch's CUDA runs in this process, stamps are the device's.
    """

    def __init__(
        self,
        hello: Hello,
        runtime_dir: str,
        *,
        outlet: Outlet | None = None,
        wait_ms: int = CONNECT_MS,
        device_times: bool = True,
    ) -> None:
        self._host: Outlet = outlet if outlet is not None else Channel(hello, runtime_dir)
        self._outlet = self._host
        self._hello = hello
        self._awaits_cuda = False
        self._switching = threading.Lock()
        self._once = once = Once()
        self._spans = Spans(given_up=lambda: once.warn("unended", _UNENDED))
        _clients.add(self)
        self.introduce(hello, wait_ms=wait_ms, device_times=device_times)

    def introduce(self, hello: Hello, *, wait_ms: int = 0, device_times: bool = True) -> None:
        """Say who this is; again, when that changes. device_times: False for the host's stamps."""
        try:
            self._hello = hello
            if not device_times:
                self._awaits_cuda = False
                self._keep_to_host()
            elif self._outlet is self._host:
                self._awaits_cuda = True
                self._look_for_cuda()
            self._outlet.introduce(self._present(), time.monotonic_ns(), wait_ms)
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("introduce", error)

    def _look_for_cuda(self) -> bool:
        """Whether it has come up; from then on the device stamps."""
        devices = cuda_in_use()
        if devices is None or not self._switching.acquire(blocking=False):
            return False
        try:
            found = self._awaits_cuda  # else another thread was quicker
            if found:
                self._part_open_spans()
                self._outlet = DeviceTimes(self._host, devices)
                self._awaits_cuda = False
            return found
        finally:
            self._switching.release()

    def _keep_to_host(self) -> None:
        """What is on its way through the device goes before all that is said from now on."""
        outlet = self._outlet
        if isinstance(outlet, DeviceTimes):
            outlet.stop()
            self._host.lose()  # of that which was on its way
            self._outlet = self._host

    def _part_open_spans(self) -> None:
        """One that starts by one clock and ends by another is no span: the daemon sees a gap."""
        if self._spans.any_open:
            self._host.lose()

    def _present(self) -> Hello:
        if self._outlet is self._host:
            return self._hello
        return replace(self._hello, time_source="cuda_event", uses_cuda=True)

    def stage_start(
        self,
        instruction: str,
        *,
        microbatch: int = 0,
        chunk: int = 0,
        stage: int | None = None,
        iteration: int | None = None,
    ) -> int:
        """Open a span in this thread; its token may be given to stage_end, in any thread."""
        time_ns = time.monotonic_ns()
        token = _NO_TOKEN
        try:
            if self._awaits_cuda and self._look_for_cuda():
                self._outlet.introduce(self._present(), time_ns, 0)
            token = self._spans.start()
            fields = (instruction, microbatch, chunk, stage, iteration)
            if not _is_plain(fields):
                fields = self._repaired(fields)
            self._outlet.emit(StageStart, time_ns, token, *fields)
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("stage_start", error)
        return token

    def stage_end(self, token: int | None = None) -> None:
        """End this thread's innermost span, or the one with this token."""
        time_ns = time.monotonic_ns()
        try:
            ended = self._spans.end(token)
            if ended is not None:
                self._outlet.emit(StageEnd, time_ns, ended)
            elif token is None:
                self._once.warn("unstarted", _UNSTARTED)
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("stage_end", error)

    def stage(
        self,
        instruction: str,
        *,
        microbatch: int = 0,
        chunk: int = 0,
        stage: int | None = None,
        iteration: int | None = None,
    ) -> Span:
        """stage_start and stage_end around a `with` block."""
        return Span(self, instruction, microbatch, chunk, stage, iteration)

    def heard(self) -> bool:
        """For adapters that have to work for a span: whether a daemon may be there to hear of it.

        Where none is, the span counts as lost.
        """
        try:
            if self._host.hears(time.monotonic_ns()):
                return True
            self._host.lose()
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("report", error)
        return False

    def report(
        self,
        start_ns: int,
        end_ns: int,
        instruction: str,
        *,
        microbatch: int = 0,
        chunk: int = 0,
        stage: int | None = None,
        iteration: int | None = None,
    ) -> None:
        """Tell of a span that is over, with its own stamps of CLOCK_MONOTONIC.

        One client's stamps must not go backwards: report spans in their order, and leave the other
        calls alone.
        """
        try:
            fields = (instruction, microbatch, chunk, stage, iteration)
            if not _is_plain(fields):
                fields = self._repaired(fields)
            token = self._spans.reserve()
            self._host.emit(StageStart, start_ns, token, *fields)
            self._host.emit(StageEnd, end_ns, token)
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("report", error)

    def close(self, wait_ms: int | None = None) -> None:
        """Say goodbye and stop; waits for nothing but the goodbye, and for that 100 ms at most.

        wait_ms: at most so long.
        """
        try:
            self._outlet.close(time.monotonic_ns(), wait_ms)
        except Exception as error:  # noqa: BLE001  see the class
            self._say_once("close", error)

    def forget(self) -> None:
        """In a forked child: be silent for good, and touch nothing of the parent's."""
        self._spans = Spans()
        self._outlet.forget()

    def _repaired(self, fields: tuple[Any, ...]) -> tuple[Any, ...]:
        """Fields that the wire takes: enums and whole numbers of any type kept, the rest `other`.

        A computation that is reported wrongly is worse than one that says nothing.
        """
        try:
            instruction = str.__str__(fields[0])
            numbers = [None if n is None else int(operator.index(n)) for n in fields[1:]]
        except TypeError as error:
            self._say_once("repair", error)
            return _OTHER
        if instruction not in _INSTRUCTIONS:
            self._say_once("instruction", ValueError(ascii(instruction)[:60]))
            return _OTHER
        if not _is_plain((instruction, *numbers)):
            self._say_once("repair", ValueError(f"{numbers}"[:60]))
            return _OTHER
        return (instruction, *numbers)

    def _say_once(self, where: str, error: Exception) -> None:
        self._once.warn(where, "%s (%s: %s)", _MEANING[where], type(error).__name__, error)


_UNSTARTED = "stage_end, and no computation is open in this thread: call stage_start before each"
_UNENDED = (
    f"{MAX_DEPTH} computations are open in one thread, and the oldest are given up: call stage_end "
    "after each stage_start"
)

_MEANING = {
    "introduce": "perseusd does not hear of this process",
    "stage_start": "perseusd does not hear of some computations",
    "stage_end": "perseusd does not hear of some computations' ends",
    "report": "perseusd does not hear of some computations",
    "close": "the connection to perseusd did not close cleanly",
    "instruction": "a computation is reported as 'other': pass one of " + ", ".join(INSTRUCTIONS),
    "repair": "a computation is reported as 'other': pass an instruction's name and whole numbers "
    f"from 0 to {MAX_COUNT - 1}",
}


class Span:
    """What `stage` returns; enter it once."""

    __slots__ = ("_client", "_instruction", "_place", "_token")

    def __init__(
        self,
        client: Client | None,
        instruction: str,
        microbatch: int,
        chunk: int,
        stage: int | None,
        iteration: int | None,
    ) -> None:
        self._client = client
        self._instruction = instruction
        self._place = (microbatch, chunk, stage, iteration)
        self._token = _NO_TOKEN

    def __enter__(self) -> int:
        if self._client is not None:
            microbatch, chunk, stage, iteration = self._place
            self._token = self._client.stage_start(
                self._instruction,
                microbatch=microbatch,
                chunk=chunk,
                stage=stage,
                iteration=iteration,
            )
        return self._token

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.stage_end(self._token)


def _is_plain(fields: tuple[Any, ...]) -> bool:
    """Whether the wire takes these as they are: the usual case, and cheap to see."""
    instruction, microbatch, chunk, stage, iteration = fields
    return (
        type(instruction) is str
        and instruction in _INSTRUCTIONS
        and type(microbatch) is int
        and 0 <= microbatch < MAX_COUNT
        and type(chunk) is int
        and 0 <= chunk < MAX_COUNT
        and (stage is None or (type(stage) is int and 0 <= stage < MAX_COUNT))
        and (iteration is None or (type(iteration) is int and 0 <= iteration < MAX_INTEGER))
    )


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_in_child() -> None:
    for client in list(_clients):
        client.forget()


os.register_at_fork(after_in_child=_forget_in_child)
