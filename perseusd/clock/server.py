"""The clock process's loop: requests to writes, and every clock back when the daemon is not there.

A lock lives only as long as a lease: a connected daemon whose last heartbeat is recent. When the
lease ends (the daemon dies, hangs, closes or misbehaves, or this process is told to stop) every GPU
that may be locked is reset, again and again until that has worked.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from perseusd.clock.connection import Connection, HungUpError, peer_credentials
from perseusd.clock.desks import Desks
from perseusd.clock.guard import Answer, Ask
from perseusd.clock.holding import Holding
from perseusd.clock.protocol import (
    PROTOCOL_VERSION,
    UNASKED,
    UNLOCKED,
    Busy,
    Close,
    Disown,
    Heartbeat,
    HeartbeatLost,
    Hello,
    Lock,
    Reply,
    Request,
    Reset,
    ResultCode,
    WriteResult,
)
from perseusd.clock.suspension import Suspension
from perseusd.systemd import Pulse

_NS = 1_000_000_000

_LAST_SAVE_S = 0.5
"""For the disk, though the driver has used up all the time there is."""


@dataclass(frozen=True)
class Timeouts:
    """heartbeat_s: how long locks outlive the last heartbeat.

    restore_s: how long leaving waits for the driver to take the resets.
    """

    heartbeat_s: float = 1.0
    restore_s: float = 5.0


class ClockServer:
    """One run of the clock process, over one inherited connection or a listening socket."""

    def __init__(
        self,
        desks: Desks,
        timeouts: Timeouts,
        log: Callable[[str], None],
        holding: Holding | None = None,
    ) -> None:
        """holding: who fills and empties the desks; None: they stay as they are."""
        self._desks = desks
        self._log = log
        self._heartbeat_ns = round(timeouts.heartbeat_s * _NS)
        self._restore_ns = round(timeouts.restore_s * _NS)
        self._connection: Connection | None = None
        self._connections = 0
        self._stop_reason = ""
        self._pulse = Pulse()
        self._listener: socket.socket | None = None
        self._allowed_uids: Collection[int] = ()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._holding = holding
        self._suspension = Suspension()
        desks.attach(self._report, self._wake)
        desks.check_intent()

    def serve(self, inherited: socket.socket) -> bool:
        """Serve this connection until it ends; True if every clock is back then."""
        self._welcome(inherited)
        return self._run()

    def listen(self, listener: socket.socket, allowed_uids: Collection[int]) -> bool:
        """Serve one connection after another until stopped; True if every clock is back then."""
        listener.setblocking(False)
        self._listener, self._allowed_uids = listener, allowed_uids
        return self._run()

    def restore(self) -> bool:
        """Reset whatever may be locked, within the time set for it; True if all of it worked, and
        no GPU that may be locked was missing."""
        deadline_ns = time.monotonic_ns() + self._restore_ns
        self._desks.take_outcomes()
        self._desks.release()
        self._desks.begin()
        while not self._desks.all_back and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            retry_ns = self._desks.retry_ns()
            self._wait([], left_ns if retry_ns is None else min(retry_ns, left_ns))
            self._desks.take_outcomes()
            self._desks.begin()
            self._desks.settle_intent()
        self._desks.settle_intent()
        self._desks.await_intent(max(_LAST_SAVE_S, (deadline_ns - time.monotonic_ns()) / _NS))
        self._desks.report_left()
        return self._desks.all_back and not self._desks.missing

    def stop(self, reason: str) -> None:
        """Make the loop end; may be called from a signal handler."""
        self._stop_reason = reason
        self._wake()

    # -- the loop ------------------------------------------------------------------------------

    def _run(self) -> bool:
        try:
            self._desks.take_outcomes()  # of before there was anybody to wake
            self._desks.begin()  # what an earlier process left locked
            while not self._finished():
                self._turn()
            if self._stop_reason:
                self._log(f"{self._stop_reason}: putting every clock back")
        finally:
            restored = self.restore()
            self._hang_up()
        return restored

    def _finished(self) -> bool:
        if self._stop_reason or self._listener is not None:
            return bool(self._stop_reason)
        return self._connection is None or self._connection.closing

    def _turn(self) -> None:
        self._pulse.beat()
        ready = self._wait(self._sockets(), self._sleep_ns())
        self._desks.take_outcomes()
        self._check_suspension()
        if self._holding is not None:
            self._look_after(self._holding)
        if self._connection is not None:
            self._hear(self._connection, ready)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)
        self._check_heartbeat()
        self._desks.begin()
        self._leave_if_done()

    def _sockets(self) -> list[tuple[int, int]]:
        """Descriptors to wait for, each with the events that matter."""
        sockets = []
        if self._listener is not None:
            sockets.append((self._listener.fileno(), select.POLLIN))
        if self._connection is not None:
            unsent = select.POLLOUT if self._connection.has_unsent else 0
            sockets.append((self._connection.fileno(), select.POLLIN | unsent))
            if self._connection.peer >= 0:
                sockets.append((self._connection.peer, select.POLLIN))
        return sockets

    def _sleep_ns(self) -> int | None:
        """How long nothing can happen unasked: a late heartbeat, a retry, a sign of life."""
        ends = [self._desks.retry_ns(), self._pulse.due_ns()]
        if self._holding is not None:
            look_in_s = self._holding.look_in_s(self._served)
            ends.append(None if look_in_s is None else round(look_in_s * _NS))
        connection = self._connection
        if connection is not None and self._leased() and not self._desks.all_back:
            late_ns = connection.heartbeat_ns + self._heartbeat_ns + 1
            ends.append(late_ns - time.monotonic_ns())
        return min((end for end in ends if end is not None), default=None)

    def _wait(self, sockets: list[tuple[int, int]], timeout_ns: int | None) -> set[int]:
        """The descriptors that are ready, after `timeout_ns` at the latest."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        for descriptor, events in sockets:
            poll.register(descriptor, events)
        timeout_ms = None if timeout_ns is None else max(0, timeout_ns) / 1e6
        ready = {descriptor for descriptor, _ in poll.poll(timeout_ms)}
        if self._wake_out.fileno() in ready:
            self._wake_out.recv(4096)
        return ready

    # -- the daemon ----------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:  # it has gone away again
            return
        pid, uid = peer_credentials(accepted)
        if uid in self._allowed_uids and self._connection is None:
            self._welcome(accepted)
            return
        reason = "not its user"
        if uid in self._allowed_uids and self._connection is not None:
            reason = f"process {self._connection.pid}, another daemon, is connected"
            Connection(accepted, 0, 0).dismiss(Busy(self._connection.pid))
        self._log(f"process {pid} of user {uid} refused: {reason}")
        accepted.close()

    def _welcome(self, accepted: socket.socket) -> None:
        self._connections += 1
        self._connection = Connection(accepted, self._connections, time.monotonic_ns())
        if self._holding is not None and not self._holding.held:
            self._holding.open(self._wake)  # and says hello once it is open
        else:
            self._say_hello()

    def _say_hello(self) -> None:
        names = list(self._desks.names())
        self._send(Hello(PROTOCOL_VERSION, len(names)))
        for name in names:
            self._send(name)

    def _look_after(self, holding: Holding) -> None:
        """The driver may have been opened, and a GPU may have come that was not there."""
        holding.seek(self._wake)
        held, error = holding.held, holding.opened()
        if error is not None:
            self._hang_up()
        elif holding.held and not held and self._connection is not None:
            self._say_hello()
        elif arrived := {gpu.info.uuid for gpu in holding.arrivals(self._served)}:
            self._log(f"now here: {', '.join(sorted(arrived))}")
            for name in self._desks.names():
                if name.uuid in arrived:
                    self._send(name)

    def _hear(self, connection: Connection, ready: set[int]) -> None:
        ended: HungUpError | None = None
        if connection.fileno() in ready:
            connection.flush()
            requests, ended = connection.requests()
            for request in requests:
                self._take(request, connection)
        elif connection.peer in ready:  # once nothing it sent is left to read
            ended = HungUpError("the daemon's process died")
        if ended is not None:
            self._end_lease(str(ended))

    def _take(self, request: Request, connection: Connection) -> None:
        match request:
            case Heartbeat():
                connection.heartbeat_ns = time.monotonic_ns()
                connection.heartbeat_lost = False
            case Close():
                connection.closing = True
                self._desks.release()
            case Disown(gpu_index):
                self._desks.disown(gpu_index)
            case Lock(request_id, gpu_index, clock_mhz):
                self._take_lock(gpu_index, Ask(connection.number, request_id, clock_mhz))
            case Reset(request_id, gpu_index):
                self._desks.ask(gpu_index, Ask(connection.number, request_id, UNLOCKED))

    def _take_lock(self, gpu_index: int, ask: Ask) -> None:
        if ask.clock_mhz == UNLOCKED:
            self._desks.answer(gpu_index, Answer(ask, ResultCode.UNSUPPORTED_CLOCK))
        elif self._leased():
            self._desks.ask(gpu_index, ask)
        else:
            self._desks.answer(gpu_index, Answer(ask, ResultCode.NO_HEARTBEAT))

    @property
    def _served(self) -> bool:
        return self._connection is not None and not self._connection.closing

    def _leased(self) -> bool:
        connection = self._connection
        if connection is None or connection.closing or connection.heartbeat_lost:
            return False
        return time.monotonic_ns() - connection.heartbeat_ns <= self._heartbeat_ns

    def _check_suspension(self) -> None:
        if slept_s := self._suspension.slept_s():
            self._log(f"this machine has slept for {slept_s:.1f} s: putting every clock back")
            self._desks.doubt()
            self._desks.release()

    def _check_heartbeat(self) -> None:
        connection = self._connection
        if connection is None or connection.closing or connection.heartbeat_lost:
            return
        if not self._leased() and not self._desks.all_back:
            connection.heartbeat_lost = True
            self._log("no heartbeat from the daemon: putting every clock back")
            self._desks.release()
            self._send(HeartbeatLost())

    def _leave_if_done(self) -> None:
        """Once every clock is back: note it, and hang up on a daemon that has said it is done."""
        if not self._desks.all_back or not (self._connection is None or self._connection.closing):
            return
        self._desks.settle_intent()
        self._hang_up()
        if self._holding is not None:
            self._holding.let_go()  # so that a GPU can be reset

    def _end_lease(self, reason: str) -> None:
        if not self._desks.all_back:
            self._log(f"{reason}: putting every clock back")
        self._hang_up()
        self._desks.release()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.flush()
            self._connection.close()
            self._connection = None

    def _report(self, ask: Ask, result: WriteResult) -> None:
        """Results go to the connection that asked, if it is still there."""
        connection = self._connection
        if connection is not None and ask.connection in (UNASKED, connection.number):
            self._send(result)

    def _send(self, reply: Reply) -> None:
        if self._connection is None:
            return
        try:
            self._connection.send(reply)
        except HungUpError as error:
            self._end_lease(str(error))

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except OSError:  # full: it is awake already; closed: the process is leaving
            return
