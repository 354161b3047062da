"""What the two hook calls cost: median and 99th percentile, in microseconds.

    python benchmarks/hooks.py [--json] [--samples N]

With the daemon up (a real consumer process), down (no socket), and hung (the consumer stopped by
SIGSTOP with the connection open); at several gaps between pairs of calls, since waking libzmq's
I/O thread costs more than feeding one that is awake; with and without a second thread that never
leaves the interpreter. Time between calls is slept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import perseus_hooks
from perseus_hooks import configure, stage_end, stage_start

GAPS_MS = (0.0, 0.2, 1.0, 50.0)
SAMPLES = {0.0: 20_000, 0.2: 2_000, 1.0: 1_000, 50.0: 200}
DAEMONS = ("up", "down", "hung")
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


def main() -> None:
    arguments = _arguments()
    rows = []
    for daemon in DAEMONS:
        for busy in (False, True):
            for gap_ms in GAPS_MS:
                samples = max(20, round(SAMPLES[gap_ms] * arguments.samples))
                row = measure(daemon, busy, gap_ms, samples)
                rows.append(row)
                if not arguments.json:
                    _print(row, first=len(rows) == 1)
    if arguments.json:
        print(json.dumps({"schema_version": 1, "machine": _machine(), "rows": rows}, indent=1))


def measure(daemon: str, busy: bool, gap_ms: float, samples: int) -> dict[str, object]:
    """One row of the table."""
    with tempfile.TemporaryDirectory(prefix="perseus-") as folder, _daemon(daemon, folder):
        with _busy_thread(busy):
            starts_us, ends_us, pairs_us = _sample(gap_ms / 1000, samples)
        perseus_hooks.close()
    return {
        "daemon": daemon,
        "busy_thread": busy,
        "gap_ms": gap_ms,
        "samples": samples,
        "call": _summary(starts_us + ends_us),
        "pair": _summary(pairs_us),
    }


def _sample(gap_s: float, samples: int) -> tuple[list[float], list[float], list[float]]:
    clock = time.perf_counter_ns
    starts_us, ends_us, pairs_us = [], [], []
    for number in range(samples):
        if gap_s:
            time.sleep(gap_s)
        before = clock()
        stage_start("forward", microbatch=number % 8)
        between = clock()
        stage_end()
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
    if state == "down":
        configure(job="benchmark", runtime_dir=folder)
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
        print(f"{'':30}|{'per call':^28}|{'per pair':^28}")
        heads = f"{'median':>9}{'p99':>9}{'max':>10}"
        print(f"{'daemon':8}{'busy thread':13}{'gap ms':>8} |{heads}|{heads}")
    halves = []
    for name in ("call", "pair"):
        half = row[name]
        assert isinstance(half, dict)
        halves.append(f"{half['median_us']:9.1f}{half['p99_us']:9.1f}{half['max_us']:10.1f}")
    busy = "yes" if row["busy_thread"] else "no"
    print(f"{row['daemon']:8}{busy:13}{row['gap_ms']:8} |{halves[0]}|{halves[1]}", flush=True)


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
