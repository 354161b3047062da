"""The way to the clocks: always through a perseusd-clock, which puts them back whatever happens.

The node's own service, if it runs and no daemon is connected to it: then the test is of the very
process, unit and privilege that perseusd will use. Else one of our own. Either has its intent on
disk before the first write, and resets when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from perseusd.clock.client import ClockClient
from perseusd.clock.protocol import ResultCode, WriteResult
from perseusd.errors import DaemonUnreachableError, GpuError, PerseusError

SERVICE_SOCKET = Path("/run/perseusd-clock/clock.sock")
SERVICE_STATE = Path("/var/lib/perseusd-clock")
HELLO_S = 10.0
ANSWER_S = 15.0
CLOSE_S = 10.0
HEARTBEAT_S = 0.1
_PAUSE_S = 0.0005


class Clocks:
    """A connection to a clock process, kept alive while its answers are awaited."""

    def __init__(self, client: ClockClient) -> None:
        self._client = client
        self._results: dict[int, WriteResult] = {}
        self._heartbeat_s = 0.0

    def greet(self, uuids: set[str]) -> None:
        """Wait until it has named these GPUs."""
        deadline = time.monotonic() + HELLO_S
        while not uuids <= set(self._client.gpus.values()):
            self._hear()
            if not self._client.alive:
                raise PerseusError(
                    "perseusd-clock hung up: a daemon is connected to it, or this user may not be; "
                    "`systemctl stop perseusd` first, and run this as root"
                )
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(uuids - set(self._client.gpus.values())))
                raise GpuError(f"perseusd-clock does not have {missing}; restart it")

    def write(self, uuid: str, clock_mhz: int | None) -> WriteResult:
        """Lock to that clock, or with None reset; what became of it."""
        index = next(i for i, name in self._client.gpus.items() if name == uuid)
        client = self._client
        number = client.reset(index) if clock_mhz is None else client.lock(index, clock_mhz)
        deadline = time.monotonic() + ANSWER_S
        while number not in self._results:
            self._hear()
            if not client.alive or time.monotonic() > deadline:
                raise GpuError(
                    f"{uuid}: perseusd-clock did not answer a clock write within {ANSWER_S:g} s; "
                    "does the driver hang? See its log; it goes on trying to put the clock back"
                )
        return self._results.pop(number)

    def rest(self, seconds: float) -> None:
        """Let time pass, with heartbeats."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._hear()

    def close(self) -> bool:
        """Have every clock put back; False if that was not done in time."""
        self._client.request_close()
        deadline = time.monotonic() + CLOSE_S
        while self._client.alive and time.monotonic() < deadline:
            self._hear()
        back = not self._client.alive
        self._client.close()
        return back

    def _hear(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._heartbeat_s:  # more of them would fill the socket
            self._heartbeat_s = now_s + HEARTBEAT_S
            self._client.heartbeat()
        for result in self._client.results():
            self._results[result.request_id] = result
        time.sleep(_PAUSE_S)


def refused(result: WriteResult) -> str | None:
    """Why a write was not done, in words."""
    return None if result.code is ResultCode.OK else result.code.text


@contextlib.contextmanager
def connected(service: Path | None, options: Sequence[str]) -> Iterator[Clocks]:
    """Through the service that listens there, or with None through a process with these options.

    Every clock is back afterwards, or GpuError says that one may not be.
    """
    with contextlib.ExitStack() as stack:
        if service is not None:
            client = ClockClient.connect(service)
        else:
            client = ClockClient(_own_process(stack, options))
        clocks = Clocks(client)
        try:
            yield clocks
        finally:
            back = clocks.close()
    if not back:
        raise GpuError(
            "perseusd-clock did not say that every clock is back; see its log, and "
            "`nvidia-smi --reset-gpu-clocks` if a clock stays low"
        )


def found_service() -> Path | None:
    """Where the node's perseusd-clock listens, if it does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(SERVICE_SOCKET))
        except OSError:
            return None
    return SERVICE_SOCKET


def _own_process(stack: contextlib.ExitStack, options: Sequence[str]) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno()), *options]
    with theirs:
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; it then puts the clocks back
            )
        except OSError as error:
            ours.close()
            raise DaemonUnreachableError(f"perseusd-clock does not start: {error}") from error
    stack.callback(process.wait, CLOSE_S)
    return ours
