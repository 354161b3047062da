"""The daemon's hand on the clocks: requests to perseusd-clock, and what became of them.

Skips requests for what was asked for already. perseusd-clock itself coalesces, bounds the rate, and
puts every clock back when this daemon dies or hangs; when the clock process goes away, it is
started again and restores from its intent on disk.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from perseusd.clock.client import ClockClient
from perseusd.clock.protocol import ResultCode, WriteResult
from perseusd.config import Config
from perseusd.daemon.counters import Writes
from perseusd.errors import DaemonUnreachableError, ProtocolError

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 30.0
"""Between attempts to reach a clock process that went away: doubled each time, up to this."""

RESET_RETRY_S = 1.0
"""Between attempts to put a clock back that could not be."""

NO_INDEX = 0xFFFE
"""Of a GPU that the clock process does not have; it answers that there is none."""

STUCK_S = 2.0
"""A clock write without a result for so long is taken for one that hangs."""

STOP_TIMEOUT_S = 3.0


class Written(NamedTuple):
    """A write that was done. asked_ns: when it was asked for."""

    uuid: str
    clock_mhz: int | None
    asked_ns: int
    end_ns: int


class Failed(NamedTuple):
    """A write that was not done, in words; uuid None: none can be done now."""

    uuid: str | None
    why: str


@dataclass
class Actuator:
    """Talks to the clock process; in observe-only mode there is none and nothing is asked."""

    config: Config
    uuids: Sequence[str]
    counted: Writes = field(default_factory=Writes)
    requested: dict[str, int | None] = field(default_factory=dict)
    latencies_s: dict[str, float] = field(default_factory=dict)
    _latest: dict[str, int] = field(default_factory=dict)
    _asked: dict[int, tuple[str, int | None, int]] = field(default_factory=dict)
    _client: ClockClient | None = None
    _process: subprocess.Popen[bytes] | None = None
    _unreset: dict[str, float] = field(default_factory=dict)
    """GPUs whose clock could not be put back, and when that is tried again."""
    _retry_s: float = 0.0
    _retry_after_s: float = FIRST_RETRY_S
    _lost: int = 0

    def __post_init__(self) -> None:
        self.requested = dict.fromkeys(self.uuids)

    @property
    def alive(self) -> bool:
        return self._client is not None and self._client.alive

    def start(self) -> None:
        """Start or reach the clock process. Raises DaemonUnreachableError."""
        if self.config.observe:
            return
        if self.config.clock_socket is not None:
            self._client = ClockClient.connect(self.config.clock_socket)
        else:
            self._client = ClockClient(self._spawn())
        self._lost = 0
        self._client.heartbeat()

    def fileno(self) -> int | None:
        return self._client.fileno() if self.alive and self._client is not None else None

    def set_clock(self, uuid: str, clock_mhz: int | None) -> bool:
        """Ask for a lock, or with None for full clock; False where there was nothing to ask."""
        if self._client is None or self.requested[uuid] == clock_mhz:
            return False
        self._ask(self._client, uuid, clock_mhz)
        return True

    def stuck(self, now_s: float) -> dict[str, str]:
        """GPUs of which a clock write does not end, each with words for it."""
        if not self.alive:
            return {}
        since_ns = now_s * 1e9 - STUCK_S * 1e9
        return {
            uuid: f"GPU {uuid} is stuck: a driver call that sets its clock does not return"
            for uuid, _, asked_ns in self._asked.values()
            if asked_ns < since_ns
        }

    def heartbeat(self) -> None:
        if self._client is not None and self._client.alive:
            self._client.heartbeat()

    def results(self) -> list[Written | Failed]:
        """What became of requests since the last call; reaches for a lost clock process."""
        if self.config.observe:
            return []
        client = self._client
        if client is None:
            if time.monotonic() >= self._retry_s:
                self._retry()
            return []
        found: list[Written | Failed] = []
        try:
            found += [r for result in client.results() for r in self._result(result)]
        except ProtocolError as error:
            client.close()
            found.append(Failed(None, str(error)))
        if client.heartbeats_lost > self._lost:
            self.counted.heartbeats_lost += client.heartbeats_lost - self._lost
            self._lost = client.heartbeats_lost
            found += self._all_put_back()
            for uuid in self.uuids:  # a lock asked for since then must not outlive the news
                self._ask(client, uuid, None)
            found.append(Failed(None, "perseusd-clock missed this daemon's heartbeat"))
        if not client.alive:
            self._drop()
            found += self._all_put_back()
            found.append(Failed(None, "perseusd-clock went away"))
        self._retry_resets(client)
        return found

    def stop(self) -> None:
        """Every clock back to full, bounded in time."""
        client, self._client = self._client, None
        if client is not None:
            client.request_close()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while client.alive and time.monotonic() < deadline:
                client.results()
                time.sleep(0.005)
            client.close()  # had it not answered, the hang-up makes it put every clock back
        if self._process is not None:
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.error("perseusd-clock did not end within %g s", STOP_TIMEOUT_S)
            self._process = None

    def _ask(self, client: ClockClient, uuid: str, clock_mhz: int | None) -> None:
        """The clock process says which index is which GPU; until it has, ours are the driver's."""
        indices = {u: i for i, u in client.gpus.items()} or {u: i for i, u in enumerate(self.uuids)}
        index = indices.get(uuid, NO_INDEX)
        now_ns = time.monotonic_ns()
        number = client.reset(index) if clock_mhz is None else client.lock(index, clock_mhz)
        self.requested[uuid] = clock_mhz
        self._latest[uuid] = number
        self._asked[number] = (uuid, clock_mhz, now_ns)

    def _result(self, result: WriteResult) -> list[Written | Failed]:
        asked = self._asked.pop(result.request_id, None)
        if asked is None:
            return []
        self._retry_after_s = FIRST_RETRY_S  # it works
        uuid, clock_mhz, asked_ns = asked
        self.counted.results[result.code] += 1
        if result.code is ResultCode.OK:
            if clock_mhz is None:
                self._unreset.pop(uuid, None)
            if result.end_ns == result.start_ns:
                return []  # nothing had to be written
            self.latencies_s[uuid] = (result.end_ns - result.start_ns) * 1e-9
            self.counted.wrote(uuid, self.latencies_s[uuid])
            return [Written(uuid, clock_mhz, asked_ns, result.end_ns)]
        if result.code is ResultCode.SUPERSEDED:
            return []
        self.counted.failed[uuid] += 1
        if self._latest.get(uuid) == result.request_id:
            self.requested[uuid] = None  # a lock that fails is followed by a reset over there
        if result.code is ResultCode.NOT_SENT:
            self._unreset[uuid] = 0.0  # but this one was never heard of: an older lock may stand
        elif clock_mhz is None:
            self._unreset[uuid] = time.monotonic() + RESET_RETRY_S
        what = "full clock" if clock_mhz is None else f"{clock_mhz} MHz"
        return [Failed(uuid, f"could not set {what} on {uuid}: {result.code.text}")]

    def _retry_resets(self, client: ClockClient) -> None:
        now = time.monotonic()
        for uuid, due in self._unreset.items():
            if now >= due and self.requested[uuid] is None:
                self._unreset[uuid] = now + RESET_RETRY_S
                self._ask(client, uuid, None)

    def _spawn(self) -> socket.socket:
        """Our own clock process, in a session of its own so that Ctrl-C leaves it to us."""
        self.config.clock_state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno())]
        command += ["--state-dir", str(self.config.clock_state_dir)]
        command += ["--min-clock-fraction", str(self.config.min_clock_fraction)]
        command += ["--allow-mig"] if self.config.allow_mig else []
        if self.config.simulate is not None:
            command += ["--simulated", str(self.config.simulated_file)]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path("/"),
                env=_environment(),
                start_new_session=True,
            )
        return ours

    def _drop(self) -> None:
        self.counted.process_lost += 1
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.poll()
        self._retry_s = time.monotonic() + self._retry_after_s

    def _all_put_back(self) -> list[Written | Failed]:
        """The clock process has put every clock back, or does so when it starts again."""
        lowered = [uuid for uuid, clock in self.requested.items() if clock is not None]
        self.requested = dict.fromkeys(self.uuids)
        self._asked.clear()
        now_ns = time.monotonic_ns()
        return [Written(uuid, None, now_ns, now_ns) for uuid in lowered]

    def _retry(self) -> None:
        self._retry_after_s = min(2 * self._retry_after_s, LONGEST_RETRY_S)
        self._retry_s = time.monotonic() + self._retry_after_s
        if self._process is not None and self._process.poll() is None:
            return  # still putting clocks back; it ends by itself
        try:
            self.start()
        except (DaemonUnreachableError, OSError) as error:
            log.error("cannot reach perseusd-clock: %s", error)


def _environment() -> dict[str, str]:
    """Our own, with the module path that started us: the child changes directory."""
    paths = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
    return os.environ | {"PYTHONPATH": paths} if "PYTHONPATH" in os.environ else dict(os.environ)
