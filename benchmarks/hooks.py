"""What the two hook calls cost: median and 99th percentile, in microseconds, beside two peers.

    python benchmarks/hooks.py [--json] [--samples N]

With the daemon up (a real consumer process), down (no socket), and hung (the consumer stopped by
SIGSTOP with the connection open); at several gaps between pairs of calls, since waking libzmq's
I/O thread costs more than feeding one that is awake; with and without a second thread that never
leaves the interpreter. Time between calls is slept. Then how long hooks hold up a process's exit.

Peers, where `pip install .[bench]` has put them: `zeus`, its frequency controller's put into a
queue to another process, which only reads it here, one for each of the two calls (its synchronise
needs a GPU and is left out); `resiliency`, NVIDIA resiliency extension's section timing, no CUPTI.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import perseus_hooks
from perseus_hooks import configure, stage_end, stage_start

GAPS_MS = (0.0, 0.2, 1.0, 50.0)
SAMPLES = {0.0: 20_000, 0.2: 2_000, 1.0: 1_000, 50.0: 200}
OURS = ("up", "down", "hung")
FILL = 20_000  # pairs that fill every queue of a hung daemon

CONSUMER = """
import sys, zmq
from perseus_hooks.wire import decode
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("ipc://" + sys.argv[1] + "/hooks.sock")
print("bound", flush=True)
while True:
    decode(socket.recv_multipart()[1])
"""


Calls = tuple[Callable[[int], object], Callable[[], object]]


def main() -> None:
    arguments = _arguments()
    rows = []
    found = {**{name: _our_calls() for name in OURS}, **_peers()}
    for way, calls in found.items():
        for busy in (False, True):
            for gap_ms in GAPS_MS:
                samples = max(20, round(SAMPLES[gap_ms] * arguments.samples))
                row = measure(way, calls, Conditions(busy, gap_ms, samples))
                rows.append(row)
                if not arguments.json:
                    _print(row, first=len(rows) == 1)
    exits = {state: _exit_ms(state) for state in OURS}
    if arguments.json:
        told = {"schema_version": 1, "machine": _machine(), "rows": rows, "exit_ms": exits}
        print(json.dumps(told, indent=1))
    else:
        print("exit held up, ms: " + ", ".join(f"{k} {v:.1f}" for k, v in exits.items()))
    sys.stdout.flush()
    for child in multiprocessing.active_children():  # Zeus's, which would be waited for
        child.kill()


class Conditions(NamedTuple):
    busy: bool
    gap_ms: float
    samples: int


def _our_calls() -> Calls:
    return lambda number: stage_start("forward", microbatch=number % 8), stage_end


def _peers() -> dict[str, Calls]:
    """Those whose packages are here."""
    found = {}
    for name, make in (("zeus", _zeus), ("resiliency", _resiliency)):
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def _zeus() -> Calls:
    from zeus.optimizer.pipeline_frequency.frequency_controller import FrequencyController

    class Reader(FrequencyController):  # type: ignore[misc]
        def _controller_process(self, device_id: int) -> None:
            while self._q.get() is not None:
                pass

    controller = Reader()
    return lambda number: controller.set_frequency(1200 + number % 8), (
        lambda: controller.set_frequency(1410)
    )


def _resiliency() -> Calls:
    from nvidia_resiliency_ext.straggler import Detector

    Detector.initialized, Detector.profiling_interval, Detector.custom_sections = True, 1, {}
    opened: list[AbstractContextManager[None]] = []

    def start(number: int) -> None:
        opened.append(Detector.detection_section("forward", profile_cuda=False))
        opened[-1].__enter__()

    return start, lambda: opened.pop().__exit__(None, None, None)


def measure(way: str, calls: Calls, conditions: Conditions) -> dict[str, object]:
    """One row of the table."""
    busy, gap_ms, samples = conditions
    with tempfile.TemporaryDirectory(prefix="perseus-") as folder, _daemon(way, folder):
        with _busy_thread(busy):
            starts_us, ends_us, pairs_us = _sample(calls, gap_ms / 1000, samples)
        perseus_hooks.close()
    return {
        "way": way,
        "busy_thread": busy,
        "gap_ms": gap_ms,
        "samples": samples,
        "call": _summary(starts_us + ends_us),
        "pair": _summary(pairs_us),
    }


def _sample(
    calls: Calls, gap_s: float, samples: int
) -> tuple[list[float], list[float], list[float]]:
    clock, (start, end) = time.perf_counter_ns, calls
    starts_us, ends_us, pairs_us = [], [], []
    for number in range(samples):
        if gap_s:
            time.sleep(gap_s)
        before = clock()
        start(number)
        between = clock()
        end()
        after = clock()
        starts_us.append((between - before) / 1000)
        ends_us.append((after - between) / 1000)
        pairs_us.append((after - before) / 1000)
    return starts_us, ends_us, pairs_us


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median_us": round(statistics.median(ordered), 2),
        "p99_us": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "max_us": round(ordered[-1], 2),
    }


@contextmanager
def _daemon(state: str, folder: str) -> Iterator[None]:
    """The client configured, and the daemon in this state."""
    if state not in ("up", "hung"):
        configure(job="benchmark", runtime_dir=folder, enabled=state in OURS)
        yield
        return
    consumer = subprocess.Popen(
        [sys.executable, "-c", CONSUMER, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        assert consumer.stdout is not None
        consumer.stdout.readline()
        configure(job="benchmark", runtime_dir=folder)
        if state == "hung":
            os.kill(consumer.pid, signal.SIGSTOP)
            for _ in range(FILL):
                stage_start("forward")
                stage_end()
        yield
    finally:
        consumer.kill()
        consumer.communicate()


EXIT = """
import atexit, sys, time
atexit.register(lambda: print(1e3 * (time.perf_counter() - ended)))  # runs last
import perseus_hooks
perseus_hooks.configure(job="exit", runtime_dir=sys.argv[1])
print("configured", flush=True)
sys.stdin.readline()
for number in range(2000):
    perseus_hooks.stage_start("forward")  # left open, too
ended = time.perf_counter()
"""


def _exit_ms(state: str) -> float:
    """The most of five exits: from the end of the program to the end of all that hooks do."""
    worst = 0.0
    for _ in range(5):
        with tempfile.TemporaryDirectory(prefix="perseus-") as folder:
            worst = max(worst, _one_exit_ms(state, folder))
    return worst


def _one_exit_ms(state: str, folder: str) -> float:
    consumer = None
    if state != "down":
        consumer = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, folder], stdout=subprocess.PIPE, text=True
        )
        assert consumer.stdout is not None
        consumer.stdout.readline()
    command = [sys.executable, "-c", EXIT, folder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdout.readline()
        if state == "hung" and consumer is not None:
            os.kill(consumer.pid, signal.SIGSTOP)
        told = trainer.communicate("go\n")[0]
    if consumer is not None:
        consumer.kill()
        consumer.communicate()
    return float(told.split()[-1])


@contextmanager
def _busy_thread(wanted: bool) -> Iterator[None]:
    """A thread that computes in the interpreter and holds its lock whenever it can."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number += 1

    thread = threading.Thread(target=work, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if wanted:
            thread.join()


def _print(row: dict[str, object], *, first: bool) -> None:
    if first:
        print(f"{_machine()}\nmicroseconds; a pair is one stage_start and one stage_end")
        print(f"{'':34}|{'per call':^28}|{'per pair':^28}")
        heads = f"{'median':>9}{'p99':>9}{'max':>10}"
        print(f"{'way':12}{'busy thread':13}{'gap ms':>8} |{heads}|{heads}")
    halves = []
    for name in ("call", "pair"):
        half = row[name]
        assert isinstance(half, dict)
        halves.append(f"{half['median_us']:9.1f}{half['p99_us']:9.1f}{half['max_us']:10.1f}")
    busy = "yes" if row["busy_thread"] else "no"
    print(f"{row['way']:12}{busy:13}{row['gap_ms']:8} |{halves[0]}|{halves[1]}", flush=True)


def _machine() -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--samples", type=float, default=1.0, help="times the usual number of samples"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
