"""The module-level calls: one client for this process, made by the first call that needs it."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from perseus_hooks.channel import CONNECT_MS, SOCKET_NAME
from perseus_hooks.client import Client, Span
from perseus_hooks.events import Hello
from perseus_hooks.identity import (
    Arguments,
    Found,
    device_times,
    identify,
    is_enabled,
    runtime_dir_of,
)
from perseus_hooks.log import inform, warn


class _Process:
    """This process's client.

    quiet: no client, and none is to be made unless configured. fixed: the only client it may have,
    since a test looks at it. told, found: what `configure` and adapters said last.
    """

    def __init__(self, client: Client | None = None) -> None:
        self.lock = threading.RLock()  # reentrant: a log handler may call the hooks
        self.client = client
        self.fixed = client
        self.runtime_dir = ""
        self.quiet = False
        self.told = Arguments()
        self.found = Found()

    def speak(self, hello: Hello, runtime_dir: str, wait_ms: int) -> None:
        stamps = device_times(self.told, self.found)
        with self.lock:
            self.quiet = False
            if self.fixed is not None:
                self.client = self.fixed
            if self.client is not None and (self.fixed or self.runtime_dir == runtime_dir):
                self.client.introduce(hello, wait_ms=wait_ms, device_times=stamps)
                return
            if self.client is not None:
                self.client.close()
            self.client = Client(hello, runtime_dir, wait_ms=wait_ms, device_times=stamps)
            self.runtime_dir = runtime_dir


_process = _Process()


def configure(
    *,
    stage: int | None = None,
    stages: int | None = None,
    replica: int | None = None,
    replicas: int | None = None,
    schedule: str | None = None,
    gpus: Sequence[str | int] | str | None = None,
    job: str | None = None,
    rank: int | None = None,
    slowdown_budget: float | None = None,
    enabled: bool | None = None,
    runtime_dir: str | os.PathLike[str] | None = None,
    time_source: str | None = None,
) -> None:
    """Tell what the launcher's environment does not say; what is left out is looked up there.

    stage, stages, replica, replicas: this process's place, from 0, and how many there are.
    gpus: the GPUs that it computes on, UUIDs or indices in PCI bus order. slowdown_budget: 0.05
    allows iterations 5 % longer. time_source: whose clock the spans tell; `host` keeps to the
    host's stamps where PyTorch's CUDA could tell the device's, or an adapter when results were
    ready. enabled=False: say nothing (as PERSEUS_ENABLED=0 does).

    Call it again when something changes. In a forked child it makes a client of the child's own;
    until then a forked child is silent. Waits up to 200 ms where a daemon's socket file is there,
    so that the first computation is not lost. Raises ValueError for a wrong argument.
    """
    told = Arguments(
        stage, stages, replica, replicas, schedule, gpus, job, rank, slowdown_budget, time_source
    )
    if runtime_dir is not None and not isinstance(runtime_dir, (str, os.PathLike)):
        raise ValueError(f"configure: runtime_dir is {runtime_dir!r}: pass a path")
    if enabled is not None and not isinstance(enabled, bool):
        raise ValueError(f"configure: enabled is {enabled!r}: pass True or False")
    hello = identify(told, os.environ, warn, _process.found)
    _process.told = told
    folder = os.fspath(runtime_dir) if runtime_dir is not None else runtime_dir_of(os.environ)
    if enabled is None:
        enabled = _process.fixed is not None or is_enabled(os.environ)
    if enabled:
        _process.speak(hello, folder, CONNECT_MS)
        if not os.path.exists(path := os.path.join(folder, SOCKET_NAME)):
            inform("no perseusd at %s yet: nothing is reported until one starts", path)
    else:
        close()


def find(**found: int | str | None) -> None:
    """For adapters: what the framework knows of this process, named as in `Found`.

    `configure` and PERSEUS_* variables win over it; what is left out stays as it was. Never raises
    for what a framework says; TypeError where an adapter names what `Found` does not have.
    """
    _process.found = _process.found._replace(**found)  # type: ignore[arg-type]
    if _process.client is None and (_process.quiet or not is_enabled(os.environ)):
        return
    try:
        hello = identify(_process.told, os.environ, warn, _process.found)
        _process.speak(hello, _process.runtime_dir or runtime_dir_of(os.environ), CONNECT_MS)
    except Exception as error:  # noqa: BLE001  a hook never raises
        warn(f"perseusd does not hear what the framework says of this process: {error}")


def stage_start(
    instruction: str,
    *,
    microbatch: int = 0,
    chunk: int = 0,
    stage: int | None = None,
    iteration: int | None = None,
) -> int:
    """A computation starts in this thread. Returns a token that `stage_end` may take.

    instruction: `forward`, `backward`, `input_gradient`, `weight_gradient`, `recompute`,
    `iteration` (a job without pipeline) or `other`. microbatch, chunk: from 0. stage: where it is
    not the configured one. iteration: its number, where the trainer has one.

    Never blocks and never raises; costs a microsecond or two without a daemon.
    """
    client = _process.client or _first_client()
    if client is None:
        return 0
    return client.stage_start(
        instruction, microbatch=microbatch, chunk=chunk, stage=stage, iteration=iteration
    )


def stage_end(token: int | None = None) -> None:
    """The computation has ended: this thread's innermost, or the one with this token."""
    client = _process.client
    if client is not None:
        client.stage_end(token)


def stage(
    instruction: str,
    *,
    microbatch: int = 0,
    chunk: int = 0,
    stage: int | None = None,
    iteration: int | None = None,
) -> Span:
    """`with stage("forward", microbatch=3):` is stage_start and stage_end around the block."""
    client = _process.client or _first_client()
    return Span(client, instruction, microbatch, chunk, stage, iteration)


def report(
    start_ns: int,
    end_ns: int,
    instruction: str,
    *,
    microbatch: int = 0,
    chunk: int = 0,
    stage: int | None = None,
    iteration: int | None = None,
) -> None:
    """For adapters: a computation that is over, with its own stamps (see `Client.report`)."""
    client = _process.client or _first_client()
    if client is not None:
        client.report(
            start_ns,
            end_ns,
            instruction,
            microbatch=microbatch,
            chunk=chunk,
            stage=stage,
            iteration=iteration,
        )


def speaks() -> bool:
    """For adapters: False where nobody would be told of a span, so that none need be measured."""
    client = _process.client or _first_client()
    return client is not None and client.heard()


def close() -> None:
    """Say goodbye and be silent until `configure` is called again. Runs at exit by itself."""
    client, _process.client = _process.client, None
    _process.quiet = True
    if client is not None:
        client.close()


@contextlib.contextmanager
def speaking_through(client: Client) -> Iterator[None]:
    """Let all calls of this process go to this client for a while, whatever configure is told."""
    global _process
    kept, _process = _process, _Process(client)
    try:
        yield
    finally:
        _process = kept


def _first_client() -> Client | None:
    """The client, made from the environment alone; None where this process is to be quiet."""
    if _process.quiet:
        return None
    with _process.lock:
        if _process.client is None and not _process.quiet:
            try:
                _speak_from_environment()
            except Exception as error:  # noqa: BLE001  a hook never raises
                _process.quiet = True
                warn(f"no hooks in this process: {error}")
        return _process.client


def _speak_from_environment() -> None:
    if is_enabled(os.environ):
        hello = identify(_process.told, os.environ, warn, _process.found)
        _process.speak(hello, runtime_dir_of(os.environ), wait_ms=0)
    else:
        _process.quiet = True


def _forget_in_child() -> None:
    _process.lock = threading.RLock()
    _process.client = None
    _process.quiet = True


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(close)
