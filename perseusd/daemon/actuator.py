"""The daemon's hand on the clocks: requests to perseusd-clock, and what became of them.

Skips requests for what was asked for already. perseusd-clock itself coalesces, bounds the rate, and
puts every clock back when this daemon dies or hangs; when the clock process goes away, it is
started again and restores from its intent on disk.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from perseusd.clock.client import ClockClient
from perseusd.clock.protocol import UNASKED, ResultCode, WriteResult
from perseusd.config import Config
from perseusd.core.foreign import Intent
from perseusd.daemon.clock_child import refusal, spawn
from perseusd.daemon.counters import Writes
from perseusd.daemon.obedience import SETTLE_NS
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

RESTORED_NS = 1_000_000_000
"""After perseusd-clock has said hello: what an earlier one left has been put back by then."""

HELLO_S = 8.0
"""How long the daemon's start waits for perseusd-clock, which opens the driver first."""

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
    uuids: list[str]
    counted: Writes = field(default_factory=Writes)
    requested: dict[str, int | None] = field(default_factory=dict)
    latencies_s: dict[str, float] = field(default_factory=dict)
    _latest: dict[str, int] = field(default_factory=dict)
    _asked: dict[int, tuple[str, int | None, int]] = field(default_factory=dict)
    _unanswered: dict[int, tuple[str, int]] = field(default_factory=dict)
    """As in `_asked`, also where the answer is of no use any more: the call may hang."""
    _client: ClockClient | None = None
    _process: subprocess.Popen[bytes] | None = None
    _unreset: dict[str, float] = field(default_factory=dict)
    """GPUs whose clock could not be put back, and when that is tried again."""
    _retry_s: float = 0.0
    _retry_after_s: float = FIRST_RETRY_S
    _lost: int = 0
    hands_off: set[str] = field(default_factory=set)
    """GPUs whose clock another tool has set: nothing is written there."""
    _stands: dict[str, int] = field(default_factory=dict)
    """Since when what was asked for last stands, in ns; GPUs of which that is not known lack."""
    _told: dict[str, int | None] = field(default_factory=dict)
    """The clock of which it was told last that it is written; full of GPUs that lack."""
    _greeted: bool = False
    _let_go: bool = False
    _early: list[Written | Failed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.requested = dict.fromkeys(self.uuids)
        if self.config.observe:
            self._stands = dict.fromkeys(self.uuids, 0)

    @property
    def alive(self) -> bool:
        """There is a clock process, and it has said which GPUs it has."""
        return self._client is not None and self._client.alive and self._client.greeted

    @property
    def standing_mhz(self) -> dict[str, int]:
        """By UUID, the site's own locks as the clock process knows them."""
        return {} if self._client is None else self._client.standing_mhz

    def start(self) -> None:
        """Start or reach the clock process, and hear which GPUs it has.

        Raises DaemonUnreachableError; ConfigurationError or NotPermittedError where it does not
        serve this daemon, such as beside another one.
        """
        if self.config.observe:
            return
        self._connect()
        deadline_s = time.monotonic() + HELLO_S
        while (client := self._client) is not None and time.monotonic() < deadline_s:
            client.heartbeat()
            self._early += self.results()
            if self.alive:
                return
            if (refused := refusal(client, self._process, self.config)) is not None:
                raise refused
            time.sleep(0.005)

    def add(self, uuid: str) -> None:
        """A GPU that was not there before."""
        self.uuids.append(uuid)
        self.requested[uuid] = None
        if self.config.observe:
            self._stands[uuid] = 0

    def _connect(self) -> None:
        if self.config.clock_socket is not None:
            self._client = ClockClient.connect(self.config.clock_socket)
        else:
            connection, self._process = spawn(self.config)
            self._client = ClockClient(connection)
        self._lost, self._greeted = 0, False
        self._client.heartbeat()

    def fileno(self) -> int | None:
        client = self._client
        return client.fileno() if client is not None and client.alive else None

    def set_clock(self, uuid: str, clock_mhz: int | None) -> bool:
        """Ask for a lock, or with None for full clock; False where there was nothing to ask."""
        if self._client is None or not self.alive or uuid in self.hands_off:
            return False
        if self.requested[uuid] == clock_mhz:
            return False
        self._ask(self._client, uuid, clock_mhz)
        return True

    def respect(self, uuid: str) -> None:
        """Another tool has set this GPU's clock: write nothing there, and put nothing back."""
        self.hands_off.add(uuid)
        self.requested[uuid] = None
        self._stands.pop(uuid, None)
        self._unreset.pop(uuid, None)
        if self._client is not None and (index := _index(self._client, uuid)) is not None:
            self._client.disown(index)

    def reclaim(self, uuid: str, *, reset: bool) -> None:
        """The clock is ours again; reset: put it to full now, whatever stands there."""
        self.hands_off.discard(uuid)
        if reset and self._client is not None and self.alive:
            self._ask(self._client, uuid, None)
        elif self.config.observe or self.alive:
            self._stands[uuid] = time.monotonic_ns()
            self._early += self._put_back([uuid])

    def intent(self, uuid: str) -> Intent | None:
        """What we have written and since when it stands; None where that is not known now."""
        since_ns = self._stands.get(uuid)
        known = (self.alive or self.config.observe) and uuid not in self._unreset
        return Intent(self.requested[uuid], since_ns) if known and since_ns is not None else None

    def unreset(self) -> frozenset[str]:
        """GPUs whose clock could not be put back."""
        return frozenset(self._unreset)

    @property
    def gone(self) -> bool:
        """Whether, after `let_go`, the clock process holds the driver no more."""
        return self._client is None and (self._process is None or self._process.poll() is not None)

    def let_go(self) -> None:
        """Have every clock put back and the driver let go of; `take_up` ends it."""
        self._let_go = True
        if self._client is not None:
            self._client.request_close()

    def take_up(self) -> None:
        self._let_go = False
        self._retry_s, self._retry_after_s = 0.0, FIRST_RETRY_S

    def stuck(self, now_s: float) -> dict[str, str]:
        """GPUs of which a clock write does not end, each with words for it."""
        if not self.alive:
            return {}
        since_ns = now_s * 1e9 - STUCK_S * 1e9
        return {
            uuid: f"GPU {uuid} is stuck: a driver call that sets its clock does not return"
            for uuid, asked_ns in self._unanswered.values()
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
        found, self._early = self._early, []
        if client is None:
            if time.monotonic() >= self._retry_s and not self._let_go:
                self._retry()
            return found
        try:
            found += [r for result in client.results() for r in self._result(result)]
        except ProtocolError as error:
            client.close()
            found.append(Failed(None, str(error)))
        if client.greeted and not self._greeted:
            self._greeted = True
            since_ns = time.monotonic_ns() + RESTORED_NS
            self._stands = dict.fromkeys(set(self.uuids) - self.hands_off, since_ns)
        if client.heartbeats_lost > self._lost:
            self.counted.heartbeats_lost += client.heartbeats_lost - self._lost
            self._lost = client.heartbeats_lost
            found += self._all_put_back()
            for uuid in set(self.uuids) - self.hands_off:
                # a lock asked for since then must not outlive the news
                self._ask(client, uuid, None)
            found.append(Failed(None, "perseusd-clock missed this daemon's heartbeat"))
        if not client.alive:
            self._drop()
            found += self._all_put_back()
            if not self._let_go:
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
        found = _index(client, uuid)
        index = NO_INDEX if found is None else found
        now_ns = time.monotonic_ns()
        number = client.reset(index) if clock_mhz is None else client.lock(index, clock_mhz)
        self.requested[uuid] = clock_mhz
        self._latest[uuid] = number
        self._asked[number] = (uuid, clock_mhz, now_ns)
        self._unanswered[number] = (uuid, now_ns)
        self._stands.pop(uuid, None)

    def _result(self, result: WriteResult) -> list[Written | Failed]:
        self._unanswered.pop(result.request_id, None)
        asked = self._asked.pop(result.request_id, None)
        if asked is None:
            return self._put_back_unasked(result)
        self._retry_after_s = FIRST_RETRY_S  # it works
        uuid, clock_mhz, asked_ns = asked
        self.counted.results[result.code] += 1
        if result.code is ResultCode.OK:
            if clock_mhz is None:
                self._unreset.pop(uuid, None)
            if self._latest.get(uuid) == result.request_id and uuid not in self.hands_off:
                self._stands[uuid] = result.end_ns + SETTLE_NS
            if result.end_ns > result.start_ns:
                self.latencies_s[uuid] = (result.end_ns - result.start_ns) * 1e-9
                self.counted.wrote(uuid, self.latencies_s[uuid])
            elif self._told.get(uuid) == clock_mhz:
                return []  # nothing had to be written, and that is known
            return [self._tell(Written(uuid, clock_mhz, asked_ns, result.end_ns))]
        if result.code is ResultCode.SUPERSEDED:
            return []
        self.counted.failed[uuid] += 1
        if self._latest.get(uuid) == result.request_id:
            self.requested[uuid] = None  # a lock that fails is followed by a reset over there
        if uuid in self.hands_off:
            return []
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

    def _drop(self) -> None:
        self.counted.process_lost += not self._let_go
        self._unanswered.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.poll()
        self._retry_s = time.monotonic() + self._retry_after_s

    def _all_put_back(self) -> list[Written | Failed]:
        """The clock process has put every clock back, or does so when it starts again."""
        back = self._put_back(self.uuids)
        self.requested = dict.fromkeys(self.uuids)
        self._asked.clear()
        self._stands.clear()
        return back

    def _put_back(self, uuids: Iterable[str]) -> list[Written | Failed]:
        """These are at full clock, without a word about it: told where something else was last.

        Also where a reset was asked for before: nobody answers it any more.
        """
        now_ns = time.monotonic_ns()
        asked, told = self.requested, self._told
        lowered = [u for u in uuids if (asked[u], told.get(u)) != (None, None)]
        return [self._tell(Written(uuid, None, now_ns, now_ns)) for uuid in lowered]

    def _put_back_unasked(self, result: WriteResult) -> list[Written | Failed]:
        """perseusd-clock has reset a GPU on its own account, such as after a lock that failed."""
        uuid = self._client.gpus.get(result.gpu_index) if self._client is not None else None
        done = result.request_id == UNASKED and result.code is ResultCode.OK
        if uuid is None or not done or self._told.get(uuid) is None:
            return []
        return [self._tell(Written(uuid, None, result.start_ns, result.end_ns))]

    def _tell(self, written: Written) -> Written:
        self._told[written.uuid] = written.clock_mhz
        return written

    def _retry(self) -> None:
        self._retry_after_s = min(2 * self._retry_after_s, LONGEST_RETRY_S)
        self._retry_s = time.monotonic() + self._retry_after_s
        if self._process is not None and self._process.poll() is None:
            return  # still putting clocks back; it ends by itself
        try:
            self._connect()
        except (DaemonUnreachableError, OSError) as error:
            log.error("cannot reach perseusd-clock: %s", error)


def _index(client: ClockClient, uuid: str) -> int | None:
    """The clock process says which index is which GPU."""
    return next((index for index, known in client.gpus.items() if known == uuid), None)
