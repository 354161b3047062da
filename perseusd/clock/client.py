"""The daemon's side of the socket to perseusd-clock. Nothing here ever waits."""

from __future__ import annotations

import itertools
import socket
import time
from pathlib import Path

from perseusd.clock.protocol import (
    MAX_PACKET,
    PROTOCOL_VERSION,
    UNASKED,
    UNLOCKED,
    Busy,
    Close,
    Disown,
    GpuName,
    Heartbeat,
    HeartbeatLost,
    Hello,
    Lock,
    Reply,
    Request,
    Reset,
    ResultCode,
    WriteResult,
    decode_reply,
    encode,
)
from perseusd.errors import DaemonUnreachableError, ProtocolError


class ClockClient:
    """Asks the clock process for writes and collects their results.

    Requests are numbered; every one of them gets a result, also when it could not be sent (code
    NOT_SENT). Results numbered UNASKED are resets that the clock process made on its own account.

    gpus: UUID by index as the clock process sees them, filled by `results` from its first replies.
    standing_mhz: by UUID, the site's own lock of GPUs that have one, likewise.
    greeted: it has said hello. busy_pid: the daemon that it serves instead; 0: none.
    alive: False from the moment the clock process hung up; it stays so.
    heartbeats_lost: how often it put every clock back because no heartbeat came.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._numbers = itertools.count(UNASKED + 1)
        self._unsent: list[WriteResult] = []
        self.alive = True
        self.greeted = False
        self.busy_pid = 0
        self.gpus: dict[int, str] = {}
        self.standing_mhz: dict[str, int] = {}
        self.heartbeats_lost = 0

    @classmethod
    def connect(cls, path: Path | str) -> ClockClient:
        """To a clock process that listens at `path`; DaemonUnreachableError if none does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise DaemonUnreachableError(
                f"perseusd-clock does not answer at {path}: {error.strerror}; is it running?"
            ) from error
        return cls(connection)

    def lock(self, gpu_index: int, clock_mhz: int) -> int:
        """Ask for a lock; the number its result will have."""
        number = next(self._numbers)
        self._ask(Lock(number, gpu_index, clock_mhz), gpu_index, clock_mhz)
        return number

    def reset(self, gpu_index: int) -> int:
        """Ask to undo a lock."""
        number = next(self._numbers)
        self._ask(Reset(number, gpu_index), gpu_index, UNLOCKED)
        return number

    def disown(self, gpu_index: int) -> None:
        """What stands on this GPU is another tool's: it is not to be put back."""
        self._send(Disown(gpu_index))

    def heartbeat(self) -> None:
        """To be called several times per heartbeat timeout, from the loop whose life it proves."""
        self._send(Heartbeat())

    def results(self) -> list[WriteResult]:
        """What has come in since the last call.

        Raises ProtocolError for a peer that does not speak this protocol.
        """
        results, self._unsent = self._unsent, []
        while (packet := self._receive()) is not None:
            reply = decode_reply(packet)
            if isinstance(reply, WriteResult):
                results.append(reply)
            else:
                self._note(reply)
        return results

    def fileno(self) -> int:
        """Readable when there are results, or when the clock process is gone."""
        return self._socket.fileno()

    def request_close(self) -> None:
        """Ask it to put every clock back and hang up; `alive` turns False when it has."""
        self._send(Close())

    def close(self) -> None:
        """Hang up at once; the clock process then puts every clock back by itself."""
        self.alive = False
        self._socket.close()

    def _note(self, reply: Reply) -> None:
        match reply:
            case Hello(version, _) if version != PROTOCOL_VERSION:
                raise ProtocolError(
                    f"perseusd-clock speaks version {version} of the clock protocol, this daemon "
                    f"{PROTOCOL_VERSION}; install both from one release"
                )
            case Hello():
                self.greeted = True
            case GpuName(index, uuid, standing_mhz):
                self.gpus[index] = uuid
                if standing_mhz != UNLOCKED:
                    self.standing_mhz[uuid] = standing_mhz
            case Busy(pid):
                self.busy_pid = pid
            case HeartbeatLost():
                self.heartbeats_lost += 1

    def _ask(self, request: Request, gpu_index: int, clock_mhz: int) -> None:
        if not self._send(request):
            now_ns = time.monotonic_ns()
            self._unsent.append(
                WriteResult(
                    next(iter(request)),
                    gpu_index,
                    clock_mhz,
                    ResultCode.NOT_SENT,
                    now_ns,
                    now_ns,
                    0,
                )
            )

    def _send(self, request: Request) -> bool:
        if not self.alive:
            return False
        try:
            self._socket.send(encode(request))
        except BlockingIOError:  # it has stopped reading; a request that waits would be stale
            return False
        except OSError:  # it has hung up: reading says so, after what it has said last
            return False
        return True

    def _receive(self) -> bytes | None:
        if not self.alive:
            return None
        try:
            packet = self._socket.recv(MAX_PACKET)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self.alive = False
            return None
        return packet
