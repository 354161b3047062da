"""What events cost the daemon: throughput, decisions, processor time and memory.

    python benchmarks/load.py [--only throughput overload decisions small] [--seconds S] [--json]

perseusd, its planner and perseusd-clock run on core 0, what makes the load on the others. Emulated
GPUs, real processes, real sockets.

throughput: eight ranks send the events of a pipeline, `--rate` a second in all, for `--seconds`;
how many of them the daemon counted, how long after the last one it had taken it, its processor
time for each and its memory meanwhile; and the processor time of a process that does nothing but
receive and decode as many. overload: one client sends as fast as it can beside that job at 2,000
events a second, which must lose nothing. decisions: a job in hold, 2,000 events a second; from the
stamp of an event that asks for full clock until perseusd-clock is asked. small: 8 GPUs and 40
events a second each, from when the job is held: processor time, and memory of all processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq
from load_job import LoadJob, connected, greet
from perseus_hooks.events import StageEnd, StageStart
from perseus_hooks.wire import encode

from perseusd.core.graph import Graph
from perseusd.core.model import Computation
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.emulation.daemon import ask
from perseusd.gpus.simulated import SPECS, create_node, open_node

RANKS = 8
GPUS = RANKS + 1
"""One for the client that floods."""

SECOND_NS = 1_000_000_000
TICK_NS = 1_000_000
"""Events are sent in lots, a lot every millisecond."""

MICROBATCHES = 64
JOB_EVENTS_PER_S = 2000.0
SMALL_EVENTS_PER_S = 40.0 * RANKS
MEASURED_EVENTS_PER_S = 178.0
"""Of GPT-3 175B with 64 microbatches as fast as it was measured."""

MOST_LEARNING_S = 300

CONSUMER = """
import sys, time, zmq
from perseus_hooks.wire import decode
socket = zmq.Context().socket(zmq.ROUTER)
socket.setsockopt(zmq.RCVHWM, 100_000)
socket.bind("ipc://" + sys.argv[1] + "/hooks.sock")
print("bound", flush=True)
taken = 0
while taken < int(sys.argv[2]):
    decode(socket.recv_multipart()[1])
    taken += 1
print(time.process_time(), flush=True)
"""

Row = dict[str, Any]


class Daemon:
    """A perseusd on simulated GPUs, on a core of its own with what it starts."""

    def __init__(self, directory: Path, configuration: str = "") -> None:
        self.directory = directory
        self.node_path = directory / "simulated-gpus"
        create_node(self.node_path, SPECS["a100-sxm"], GPUS)
        file = directory / "perseusd.toml"
        file.write_text(configuration)
        command = ["taskset", "-c", "0", sys.executable, "-m", "perseusd", "run"]
        command += ["--simulate", str(GPUS), "--runtime-dir", str(directory), "--config", str(file)]
        with (directory / "log").open("wb") as log:
            self._process = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)
        _await(directory / "record.sock")
        self.status()

    def status(self) -> Row:
        return ask(self.directory / "status.sock", {"command": "status"}, timeout_s=30)

    def events(self) -> int:
        """That were counted since its start."""
        events = self.status()["counters"]["events"]
        return int(events["stage_start"] + events["stage_end"])

    def cpu_s(self) -> dict[str, float]:
        """By process: its name's last part, and processor time so far."""
        return {_name(p): sum(p.cpu_times()[:2]) for p in self._processes()}

    def pss_mb(self) -> dict[str, float]:
        return {_name(p): p.memory_full_info().pss / 1e6 for p in self._processes()}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


@contextmanager
def running(configuration: str = "") -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        daemon = Daemon(Path(directory), configuration)
        try:
            yield daemon
        finally:
            daemon.close()


# --- throughput -------------------------------------------------------------------------------


def throughput(rate: float, seconds: float) -> Row:
    """Sustained, with nothing lost; and beside it what only decodes."""
    with running() as daemon:
        stream = Stream(daemon.directory, daemon.node_path)
        stream.greet()
        before, events = daemon.cpu_s(), daemon.events()
        memory = [daemon.pss_mb()["perseusd"]]
        late_s = 0.0
        sent = 0
        while sent < rate * seconds:
            sent += stream.send(rate, min(20.0, seconds))
            ended_s = time.monotonic()
            while (taken := daemon.events() - events) < sent and time.monotonic() < ended_s + 10:
                time.sleep(0.002)
            late_s = max(late_s, time.monotonic() - ended_s)
            memory.append(daemon.pss_mb()["perseusd"])
        after = daemon.cpu_s()
        stream.close()
    used_s = after["perseusd"] - before["perseusd"]
    decoding_s = _decoding_s(min(sent, 1_000_000)) / min(sent, 1_000_000)
    return {
        "events": sent,
        "events_per_s": rate,
        "lost": sent - taken,
        "behind_s": round(late_s, 3),
        "cpu_us_per_event": round(used_s / sent * 1e6, 2),
        "of_decoding_alone": round(used_s / sent / decoding_s, 2),
        "pss_mb": [round(m, 1) for m in memory],
    }


class Stream:
    """The events of a pipeline of eight ranks, encoded beforehand, sent at a given rate."""

    def __init__(self, directory: Path, node_path: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [connected(self._context, directory) for _ in range(RANKS)]
        self._gpus = _uuids(node_path)
        self._iteration_events = _pipeline_events(RANKS, MICROBATCHES)
        self._sequences = [0] * RANKS
        self._tokens = count(1)
        self._iteration = 0

    def greet(self) -> None:
        for rank, socket in enumerate(self._sockets):
            greet(socket, "stream", rank, RANKS, self._gpus[rank])

    def send(self, rate: float, seconds: float) -> int:
        """Whole iterations, for about so long; how many events."""
        an_iteration = 4 * MICROBATCHES * RANKS
        iterations = max(1, round(rate * seconds / an_iteration))
        apart_ns = SECOND_NS / rate
        first_ns = 0
        lots: list[list[tuple[int, bytes]]] = []
        start_ns = time.monotonic_ns() + round(iterations * an_iteration * 12_000) + SECOND_NS
        for _ in range(iterations):
            for at, (rank, event) in enumerate(self._events(start_ns + first_ns, apart_ns)):
                lot = round((first_ns + at * apart_ns) / TICK_NS)
                lots += [[] for _ in range(lot + 1 - len(lots))]
                lots[lot].append((rank, event))
            first_ns += round(an_iteration * apart_ns)
        for lot, events in enumerate(lots):
            _sleep_until(start_ns + lot * TICK_NS)
            for rank, event in events:
                self._sockets[rank].send(event)
        return iterations * an_iteration

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _events(self, start_ns: int, apart_ns: float) -> Iterator[tuple[int, bytes]]:
        """One iteration's, in the order in which a pipeline makes them, evenly stamped."""
        tokens = [0] * RANKS
        for place, (_, starts, rank, todo) in enumerate(self._iteration_events):
            stamp_ns = start_ns + round(place * apart_ns)
            self._sequences[rank] += 1
            sequence = self._sequences[rank]
            if starts:
                tokens[rank] = next(self._tokens)
                what = (todo.instruction, todo.microbatch, 0, None, self._iteration)
                yield rank, encode(StageStart(sequence, stamp_ns, tokens[rank], *what))
            else:
                yield rank, encode(StageEnd(sequence, stamp_ns, tokens[rank]))
        self._iteration += 1


def _pipeline_events(ranks: int, microbatches: int) -> list[tuple[float, bool, int, Computation]]:
    """(when, whether it starts, rank, computation), ascending; backward takes twice forward."""
    graph = Graph.from_pipeline(pipeline(one_f_one_b(ranks, microbatches), 0.25))
    took = np.array([1.0 + (todo.instruction == "backward") for todo in graph.nodes])
    start = graph.earliest(took)
    events = [
        (when, starts, todo.rank, todo)
        for todo, begin, end in zip(graph.nodes, start, start + took, strict=True)
        for when, starts in ((begin, True), (end, False))
    ]
    return sorted(events, key=lambda event: event[:3])


def _decoding_s(events: int) -> float:
    """Processor time of a process that receives and decodes so many events, and no more."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        directory = Path(name)
        create_node(directory / "simulated-gpus", SPECS["a100-sxm"], GPUS)
        command = ["taskset", "-c", "0", sys.executable, "-c", CONSUMER, name, str(events)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as consumer:
            assert consumer.stdout is not None
            consumer.stdout.readline()
            stream = Stream(directory, directory / "simulated-gpus")
            sent = 0
            while sent < events:
                sent += stream.send(50_000, min(20.0, (events - sent) / 50_000 + 0.1))
            used_s = float(consumer.stdout.readline())
            stream.close()
    return used_s


# --- one client that floods -------------------------------------------------------------------


def overload(seconds: float) -> Row:
    """A job of 2,000 events a second beside a client that sends as fast as it can."""
    with running() as daemon:
        stream = Stream(daemon.directory, daemon.node_path)
        stream.greet()
        ready = multiprocessing.Event()
        flood = multiprocessing.Process(
            target=_flood,
            args=(daemon.directory, daemon.node_path, ready, seconds + 2),
            daemon=True,
        )
        flood.start()
        ready.wait()
        cpu_s = daemon.cpu_s()["perseusd"]
        sent = stream.send(JOB_EVENTS_PER_S, seconds)
        cpu_s = daemon.cpu_s()["perseusd"] - cpu_s
        flood.join()
        status = daemon.status()
        stream.close()
        job = next(j for j in status["jobs"] if j["id"].endswith(":stream"))
        refused = {r["code"]: r["count"] for r in status["daemon"]["refused"]}
        lost = status["counters"]["events_lost"]
        behind = stream._iteration - 1 - job["iteration"]
    return {
        "job_events": sent,
        "job_iterations_missing": behind,
        "job_why": job["why"],
        "events_lost": lost,
        "refused": refused,
        "daemon_cores": round(cpu_s / seconds, 2),
    }


def _flood(directory: Path, node_path: Path, ready: Any, seconds: float) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connected(context, directory)
    greet(socket, "flood", 0, 1, _uuids(node_path)[RANKS])
    ready.set()
    until_s = time.monotonic() + seconds
    sequence = 0
    while time.monotonic() < until_s:
        for _ in range(1000):
            sequence += 1
            event = StageStart(sequence, time.monotonic_ns(), sequence, "forward", 0, 0, None, 0)
            try:
                socket.send(encode(event), zmq.NOBLOCK)
            except zmq.Again:
                time.sleep(0.001)  # its queue is full
    context.destroy(linger=0)


# --- decisions --------------------------------------------------------------------------------


def decisions(seconds: float) -> Row:
    """In hold, at 2,000 events a second: from an event to what perseusd-clock is asked for it."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        directory = Path(name)
        clock, tap, notes = (directory / n for n in ("clock.sock", "tap.sock", "notes"))
        create_node(directory / "simulated-gpus", SPECS["a100-sxm"], GPUS)
        python = [sys.executable, "-m", "perseusd.clock", "--state-dir", str(directory / "clock")]
        simulated = ["--simulated", str(directory / "simulated-gpus"), "--socket", str(clock)]
        tapping = [sys.executable, str(Path(__file__).with_name("clock_tap.py"))]
        with subprocess.Popen([*python, *simulated]) as server:
            _await(clock)
            with subprocess.Popen([*tapping, str(tap), str(clock), str(notes)]) as tapper:
                _await(tap)
                daemon = Daemon(directory, f'[clock]\nsocket = "{tap}"\n')
                faster = JOB_EVENTS_PER_S / MEASURED_EVENTS_PER_S
                job = LoadJob(daemon.node_path, directory, MICROBATCHES, faster)
                held_s = _until_hold(daemon, job)
                job.probes = 4
                from_ns, events = time.monotonic_ns(), job.events
                job.run(from_ns + round(seconds * SECOND_NS))
                rate = (job.events - events) / (time.monotonic_ns() - from_ns) * SECOND_NS
                state = daemon.status()["jobs"][0]["state"]
                job.close()
                daemon.close()
                tapper.wait(10)
            server.terminate()
        waits_us = sorted(_waits_us(job.told, notes))
    return {
        "held_after_s": held_s,
        "state_at_the_end": state,
        "events_per_s": round(rate),
        "decisions": len(waits_us),
        "median_us": round(statistics.median(waits_us)),
        "p99_us": round(waits_us[int(0.99 * len(waits_us))]),
        "most_us": round(waits_us[-1]),
    }


def _until_hold(daemon: Daemon, job: LoadJob) -> float:
    began_s = time.monotonic()
    while daemon.status()["jobs"][0]["state"] != "hold":
        job.run(time.monotonic_ns() + SECOND_NS)
        if time.monotonic() > began_s + MOST_LEARNING_S:
            why = daemon.status()["jobs"][0]["why"]
            raise SystemExit(f"the job was not held within {MOST_LEARNING_S} s: {why}")
    return round(time.monotonic() - began_s, 1)


def _waits_us(told: Sequence[tuple[int, int]], notes: Path) -> Iterator[float]:
    """Of events that found their GPU's clock lowered: until full clock was asked for it."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for line in notes.read_text().splitlines():
        stamp_ns, gpu, clock_mhz = map(int, line.split())
        asked.setdefault(gpu, [(0, 0)]).append((stamp_ns, clock_mhz))
    for gpu, told_ns in told:
        for (before_ns, before_mhz), (after_ns, after_mhz) in pairwise(asked.get(gpu, ())):
            if before_ns < told_ns <= after_ns:
                if before_mhz and not after_mhz:
                    yield (after_ns - told_ns) / 1000
                break


# --- at rest ----------------------------------------------------------------------------------


def small(seconds: float) -> Row:
    """8 GPUs, 40 events a second each: processor time of each process, and memory."""
    with running() as daemon:
        faster = SMALL_EVENTS_PER_S / MEASURED_EVENTS_PER_S
        job = LoadJob(daemon.node_path, daemon.directory, MICROBATCHES, faster)
        held_s = _until_hold(daemon, job)
        before, began_s, events = daemon.cpu_s(), time.monotonic(), job.events
        job.run(time.monotonic_ns() + round(seconds * SECOND_NS))
        took_s = time.monotonic() - began_s
        after, memory = daemon.cpu_s(), daemon.pss_mb()
        state = daemon.status()["jobs"][0]["state"]
        job.close()
    shares = {name: (after[name] - before.get(name, 0.0)) / took_s for name in after}
    return {
        "held_after_s": held_s,
        "state_at_the_end": state,
        "events_per_s": round((job.events - events) / took_s),
        "percent_of_a_core": {name: round(100 * share, 2) for name, share in shares.items()},
        "percent_of_a_core_all": round(100 * sum(shares.values()), 2),
        "pss_mb": {name: round(mb, 1) for name, mb in memory.items()},
        "pss_mb_all": round(sum(memory.values()), 1),
    }


# --- shared -----------------------------------------------------------------------------------


def _uuids(node_path: Path) -> list[str]:
    node = open_node(node_path)
    uuids = [gpu.info.uuid for gpu in node.gpus]
    node.close()
    return uuids


def _name(process: psutil.Process) -> str:
    """perseusd's processes by what they are."""
    words = process.cmdline()
    module = words[words.index("-m") + 1] if "-m" in words else words[-1]
    return {"perseusd.clock": "perseusd-clock", "perseusd": "perseusd"}.get(module, "planner")


def _await(path: Path) -> None:
    until_s = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > until_s:
            raise SystemExit(f"{path} did not appear within 60 s")
        time.sleep(0.05)


def _sleep_until(when_ns: int) -> None:
    if (left_ns := when_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns * 1e-9)


def main() -> None:
    arguments = _arguments()
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    parts = {
        "throughput": lambda: throughput(arguments.rate, arguments.seconds),
        "overload": lambda: overload(arguments.seconds),
        "decisions": lambda: decisions(arguments.seconds),
        "small": lambda: small(arguments.seconds),
    }
    told: Row = {"schema_version": 1, "machine": platform.processor() or platform.machine()}
    for name in arguments.only:
        told[name] = parts[name]()
        if not arguments.json:
            print(f"{name}:")
            for key, value in told[name].items():
                print(f"  {key}: {value}")
            sys.stdout.flush()
    if arguments.json:
        print(json.dumps(told, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = ("throughput", "overload", "decisions", "small")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rate", type=float, default=50_000, help="events a second, of all ranks")
    parser.add_argument("--seconds", type=float, default=60, help="of each part")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
