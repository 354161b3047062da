"""The daemon's life, read downward: start, loop, shutdown.

One thread runs the loop; the sampler reads GPUs in another, plans are made in a process of their
own, and clocks are written by perseusd-clock.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import zmq
from perseus_hooks.events import Goodbye, Hello

from perseusd import __version__
from perseusd.clock.suspension import Suspension
from perseusd.config import Config, Sources
from perseusd.config_sources import Origin
from perseusd.core.actions import Action
from perseusd.core.controller import OWN_ERROR
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.daemon.access import Access, Caller, user_name
from perseusd.daemon.actuator import Actuator
from perseusd.daemon.beginning import (
    gpu_check_of,
    limits_of,
    only_one,
    open_node,
    settings_of,
)
from perseusd.daemon.control import Control
from perseusd.daemon.counters import Counters
from perseusd.daemon.custody import Custody
from perseusd.daemon.deeds import Deeds
from perseusd.daemon.doors import raise_descriptor_limit
from perseusd.daemon.grip import Grip, Hold
from perseusd.daemon.intake import ClientEvent, Intake, Message, Peer, not_among
from perseusd.daemon.keeper import CurveKeeper
from perseusd.daemon.memory import CurveFiles
from perseusd.daemon.obedience import Obedience
from perseusd.daemon.orders import Orders
from perseusd.daemon.ownership import Holder, Ownership
from perseusd.daemon.planning import Planner
from perseusd.daemon.pressure import Pressure
from perseusd.daemon.questions import Questions
from perseusd.daemon.readers import NO_READER, readable
from perseusd.daemon.recorder import Recorder
from perseusd.daemon.reload import Reloader, has_terminal
from perseusd.daemon.sampler import Sampler
from perseusd.daemon.status import StatusView
from perseusd.daemon.waiting import Waiting
from perseusd.gpus.base import Gpu, GpuInfo
from perseusd.gpus.standing import standing_mhz
from perseusd.logs import MessageId, fields
from perseusd.systemd import notify
from perseusd.traces.replay import RecordedController

log = logging.getLogger(__name__)

IDLE_S = 0.02
"""The loop looks at what nothing tells it of (readings, memory, files) this often."""

SWITCH_S = 2e-4
"""How long a thread that reads GPUs may keep the loop from going on (Python's own: 5 ms)."""

YOUNG = 5000
"""Objects that come up before garbage is looked for: Python's 700 are a part of an iteration."""

SAME_ERROR_S = 5.0
"""An error of ours over what is due is logged again after so long."""


def run(config: Config, sources: Sources, origins: Mapping[str, Origin]) -> int:
    """Run until SIGTERM or SIGINT; every clock is full afterwards. Returns the exit code.

    sources, origins: what the configuration was read from, and is again at SIGHUP.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_one(config))
        raise_descriptor_limit()
        service = Service(config, Reloader(config, sources, origins))
        stack.callback(service.shutdown)
        service.start()
        service.loop()
    return 0


class Service:
    """All parts of a running daemon."""

    def __init__(self, config: Config, reloader: Reloader) -> None:
        self.config = config
        self.reloader = reloader
        self.stopping = False
        self.grip = Grip(
            lambda: open_node(config),
            lambda: (self.sampler, self.ownership),
            lambda: self.actuator,
            self._gpu_here,
        )
        gpus = list(self.grip.node.gpus)
        self._standing_mhz = {
            gpu.info.uuid: mhz
            for gpu in gpus
            if (mhz := standing_mhz(gpu.info, config.standing_lock_mhz or {})) is not None
        }
        facts = {gpu.info.uuid: self._facts(gpu.info) for gpu in gpus}
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.controller = RecordedController(settings_of(config), facts)
        self.controller.patient = True
        self.sampler = Sampler(gpus, config.sampler_interval_s)
        self.ownership = Ownership(gpus, gpu_check_of(config))
        self.counters = Counters(reloads=reloader.reloads)
        self.actuator = Actuator(config, list(facts), self.counters.writes)
        self.planner = Planner()
        self.keeper = CurveKeeper(CurveFiles(config.curves_dir) if config.remember else None)
        self.access = Access.of(config)
        self.intake = Intake(
            self.context,
            config.hooks_socket,
            limits_of(config, self.access),
            refusals=self.counters.refused,
        )
        self.obedience = Obedience()
        self.custody = Custody(self.controller, self.sampler, self.actuator, Suspension().slept_s)
        self.status = StatusView(
            self.controller,
            self.sampler,
            self.actuator,
            self.intake,
            self.obedience,
            self.planner,
            self.counters,
            self.custody,
            reloader.outlook,
            self.grip,
        )
        self.deeds = Deeds(
            self.controller,
            self.actuator,
            self.planner,
            self.intake,
            self.keeper,
            self.obedience,
            self.counters,
            self.status.ended,
        )
        self.controller.urgent = self.deeds.do
        orders = Orders(self.controller, self.custody, self.grip, self.deeds.do)
        more = {**self.keeper.commands(), **orders.commands()}
        self.control = Control(self.controller, self.deeds.do, self.access, more)
        self.questions = Questions(
            self.context,
            {
                config.status_socket: (0o666, self._tell),
                config.control_socket: (0o666, self.control.answer),
            },
        )
        self.recorder = Recorder(
            self.context,
            config.record_socket,
            self.controller,
            emulated=any(gpu.info.emulated for gpu in gpus),
            clocks=lambda: self.actuator.requested,
            access=self.access,
        )
        self.doors = [self.intake.door, self.recorder.door, *self.questions.doors]
        self.pressure = Pressure(self.doors)
        self.waiting = Waiting(
            used=(self.intake.socket, self.recorder.socket),
            heard=(*self.questions.sockets, *(door.monitor for door in self.doors)),
        )
        self._in_terminal = has_terminal()
        self._heartbeat_s = self._look_s = self._told_error_s = 0.0
        self._children: frozenset[int] = frozenset()
        """Descriptors of what the processes that we started tell."""

    def start(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        self.planner.start()
        self.sampler.start()
        self.ownership.start()
        self.keeper.start()
        sys.setswitchinterval(SWITCH_S)
        gc.set_threshold(YOUNG)
        gc.collect()
        gc.freeze()  # what is there stays: looking through it takes 15 ms each time
        self.actuator.start()
        self._learn_standing()
        self._watch_children()
        notify("READY=1")
        kind = "emulated " if self.config.simulate is not None else ""
        mode = ", observe-only" if self.config.observe else ""
        log.info(
            "perseusd %s ready: %d %sGPUs, sockets in %s%s",
            __version__,
            len(self.sampler.gpus),
            kind,
            self.config.runtime_dir,
            mode,
            extra=fields(MessageId.READY, mode="observe" if self.config.observe else "act"),
        )

    def loop(self) -> None:
        while not self.stopping:
            self._turn(self._wait())
            self.counters.loop.ended()

    def shutdown(self) -> None:
        """Clocks first, then everything else; each step whatever became of the others."""
        notify("STOPPING=1")
        for step in (
            self.actuator.stop,
            self.planner.stop,
            self.sampler.stop,
            self.ownership.stop,
            self.keeper.stop,
            self.intake.close,
            self.questions.close,
            self.recorder.close,
            self.waiting.close,
            self.grip.close,
            lambda: self.context.destroy(linger=0),
        ):
            _surely(step)
        log.info("perseusd stopped")

    def _wait(self) -> set[zmq.Socket[bytes] | int]:
        """Until something comes in or is due; what is ready: sockets and file descriptors."""
        due_ns, now_ns = self.controller.next_due_ns(), time.monotonic_ns()
        due_s = math.inf if due_ns is None else max(0.0, (due_ns - now_ns) * 1e-9)
        gathering_s = min(due_s, self.controller.events_wait_ns(now_ns) * 1e-9)
        if gathering_s > 0 and not self.intake.backlog:
            time.sleep(gathering_s)  # to wake up costs more than what one event tells
            due_s -= gathering_s
        return self.waiting.wait(min(IDLE_S, due_s))

    def _watch_children(self) -> None:
        """The clock process and the planner may have been started again."""
        told = (self.actuator.fileno(), self.planner.fileno())
        self._children = frozenset(fd for fd in told if fd is not None)
        self.waiting.watch({self.intake.leases.fileno(), *self._children})

    def _turn(self, ready: set[zmq.Socket[bytes] | int]) -> None:
        now_s = time.monotonic()
        self.counters.loop.begins(now_s)
        beat = now_s >= self._heartbeat_s
        if beat:
            self._beat(now_s)
        if beat or not self._children.isdisjoint(ready):
            self._hear_children()
        if ready:
            self._hear_out(ready)
        while self.sampler.readings:
            self.controller.energy(*self.sampler.readings.popleft())
        self.deeds.do(self._tick())
        if now_s >= self._look_s:
            self._look_s = now_s + IDLE_S
            self._look_about(now_s)

    def _beat(self, now_s: float) -> None:
        """Signs of life, and what is to be looked at several times a second."""
        self._heartbeat_s = now_s + self.config.heartbeat_s
        self.actuator.heartbeat()
        self.grip.look(now_s)
        self.custody.paused = self.grip.hold is not Hold.HELD
        self.deeds.do(self.custody.look(now_s, self._look_at_users(now_s)))
        notify("WATCHDOG=1")

    def _hear_out(self, ready: set[zmq.Socket[bytes] | int]) -> None:
        """What has come in."""
        if self.intake.leases.fileno() in ready:
            self._bury()
        if self.intake.socket in ready:
            for message in self.intake.receive():
                self._take(message)
        if len(ready) == 1 and self.intake.socket in ready:
            return
        for door in self.doors:
            if door.monitor in ready:
                door.mind()
        if not ready.isdisjoint(self.questions.sockets):
            self.questions.answer(ready)
        if self.recorder.socket in ready:
            self.recorder.hear()

    def _tick(self) -> list[Action]:
        """What is due, and a piece of what is to be thought about."""
        actions = self.controller.tick(time.monotonic_ns())
        if self.controller.errors:
            errors, self.controller.errors = self.controller.errors, []
            now_s = time.monotonic()
            if now_s >= self._told_error_s:
                self._told_error_s = now_s + SAME_ERROR_S
                log.error("an error of ours over what is due", exc_info=errors[0])
        return actions

    def _look_about(self, now_s: float) -> None:
        """What nothing tells of."""
        self.pressure.relieve(now_s)
        while self.sampler.states:
            state = self.sampler.states.popleft()
            self.controller.gpu_state(state.uuid, state.reasons)
            self.custody.read(state)
            self.obedience.read(state, self.actuator.requested[state.uuid])
        while self.keeper.recalled:
            self.deeds.do(self.controller.recalled(*self.keeper.recalled.popleft()))
        if (config := self.reloader.turn()) is not None:
            self._reconfigure(config)
        self.recorder.flush()

    def _reconfigure(self, config: Config) -> None:
        """Another configuration, which differs in nothing that needs a restart."""
        self.config = config
        logging.getLogger().setLevel(config.log_level.upper())
        self.sampler.interval_s = config.sampler_interval_s
        self.access = self.control.access = self.recorder.access = Access.of(config)
        self.intake.limit(limits_of(config, self.access))
        self.ownership.check = gpu_check_of(config)
        for peer in self.intake.not_allowed():
            self.deeds.do(self.controller.client_lost(peer.client, "is no longer allowed"))
            self.intake.refuse(peer, "not_permitted", not_among(peer.uid))
            self.intake.forget(peer.client)
        self.deeds.do(self.controller.reconfigure(settings_of(config)))

    def _look_at_users(self, now_s: float) -> Mapping[str, str]:
        """End the leases on GPUs that others use; by GPU, why its clock stays full."""
        found = self.ownership.look(self._holders(), now_s)
        for client, reason in found.ended.items():
            self.deeds.do(self.controller.client_lost(client, "does not use the GPU that it names"))
            if (peer := self.intake.peer(client)) is not None:
                self.intake.refuse(peer, "gpu_used_by_others", reason)
                self.intake.forget(client)
        return found.kept_full

    def _holders(self) -> Iterator[Holder]:
        for job in self.controller.jobs.values():
            for member in job.roster.members.values():
                if (peer := self.intake.peer(member.client)) is not None:
                    for uuid in member.gpus:
                        yield Holder(member.client, peer.caller, member.hello.rank, uuid)

    def _tell(self, caller: Caller, request: object) -> Mapping[str, object]:
        """What everybody may ask, unless readers are named."""
        asked = request.get("command") if isinstance(request, Mapping) else None
        if asked != "config":
            return readable(self.status.make(), self.access, caller)
        return self.reloader.answer() if self.access.may_read_all(caller) else NO_READER

    def _hear_children(self) -> None:
        """What became of clock writes, and plans that were made."""
        self.deeds.take_results()
        for planned in self.planner.results():
            self.counters.plans.answered(planned.request, made=not isinstance(planned.answer, str))
            try:
                actions = self.controller.planned(planned.job, planned.request, planned.answer)
            except Exception:
                log.exception("an error of ours over a plan for %s", planned.job)
                actions = self.controller.release_all(OWN_ERROR)
            self.deeds.do(actions)
        self.controller.writable = self.config.observe or self.actuator.alive
        self._learn_standing()
        self._watch_children()

    def _gpu_here(self, gpu: Gpu) -> None:
        """A GPU has come, or come back."""
        info = gpu.info
        self.sampler.add(gpu)
        self.ownership.add(gpu)
        if info.uuid not in self.actuator.requested:
            self.actuator.add(info.uuid)
            log.info("GPU %s (%s) is here now", info.uuid, info.name)
        self._tell_facts(info)

    def _learn_standing(self) -> None:
        """What perseusd-clock puts back is full clock, whatever this daemon was told."""
        told = self.actuator.standing_mhz if self.actuator.alive else self._standing_mhz
        if told != self._standing_mhz:
            self._standing_mhz = dict(told)
            for gpu in self.sampler.gpus:
                self._tell_facts(gpu.info)

    def _tell_facts(self, info: GpuInfo) -> None:
        facts = self._facts(info)
        if self.controller.gpus.get(info.uuid) != facts:
            actions = self.controller.gpu_here(
                facts.uuid, facts.model, facts.supported_mhz, facts.index
            )
            self.deeds.do(actions)

    def _facts(self, info: GpuInfo) -> GpuFacts:
        """What may be locked: nothing where MIG's parts share one clock, unless that is allowed."""
        clocks = info.supported_clocks_mhz
        if info.mig_enabled and not self.config.allow_mig:
            clocks = ()
        standing = self._standing_mhz.get(info.uuid)
        allowed = tuple(mhz for mhz in clocks if standing is None or mhz <= standing)
        return GpuFacts(info.uuid, info.name, allowed, info.index)

    def _bury(self) -> None:
        """Clients whose process has died."""
        for client in self.intake.leases.died():
            self.intake.forget(client)
            self.deeds.do(self.controller.client_lost(client, "has ended"))

    def _take(self, message: Message) -> None:
        peer, event = message
        if type(event) is Hello:
            self._bury()  # a job that was started again is not to be held against its own past
        try:
            actions = self._hear(peer, event)
        except Exception:
            log.exception("an error of ours over a message of process %d", peer.pid)
            why = "met an error of perseusd's own; its log says which"
            actions = self.controller.client_lost(peer.client, why)
            self.intake.refuse(peer, "internal_error", f"its message {why}")
            self.intake.forget(peer.client)
        if actions:
            self.deeds.do(actions)
        if type(event) is Goodbye:
            self.intake.forget(peer.client)

    def _hear(self, peer: Peer, event: ClientEvent) -> list[Action]:
        self.counters.events.heard(peer.client, event)
        if isinstance(event, Hello):
            if not self.intake.welcome(peer):
                return []
            actions = self.controller.hello(peer.client, user_name(peer.uid), event, peer.pid)
            self.ownership.expect(h for h in self._holders() if h.client == peer.client)
            return actions
        return self.controller.stage_event(peer.client, event, time.monotonic_ns())

    def _stop(self, number: int, _frame: object) -> None:
        log.info("stopping on %s", signal.Signals(number).name)
        self.stopping = True

    def _hang_up(self, number: int, frame: object) -> None:
        """Reload, unless it was meant literally: the terminal that we were started in is gone."""
        if self._in_terminal and not has_terminal():
            self._stop(number, frame)
        else:
            self.reloader.ask()


def _surely(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        log.exception("an error while stopping")
