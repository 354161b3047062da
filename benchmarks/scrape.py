"""What monitoring costs: a scrape in the daemon's loop, and the exporter's memory and time.

    python benchmarks/scrape.py

A daemon on eight simulated GPUs and an emulated GPT-3 175B job of eight ranks, once it is in hold.
The daemon's CPU time per answer is what asking adds to what the job costs anyway, measured over
windows with and without questions in turn. Run it on a machine that does nothing else.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from perseusd.ctl.connection import ask
from perseusd.emulation.daemon import DaemonProcess
from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.workloads import load_workload
from perseusd.gpus.simulated import SPECS, create_node

GPUS = 8
WINDOW_S = 6.0
WINDOWS = 5
PER_S = 20
SCRAPES = 20
PATIENCE_S = 180.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="perseusd-") as name:
        folder = Path(name)
        node = create_node(folder / "simulated-gpus", SPECS["a100-sxm"], GPUS)
        workload = load_workload("gpt3-175b", "a100-sxm")
        job = EmulatedJob(workload, node.path, folder, JobOptions(microbatches=12, job="scrape"))
        with DaemonProcess(folder, GPUS), job:
            state = wait_for_hold(folder)
            print(f"{GPUS} GPUs, a job of {workload.stages} ranks in {state}")
            tell_daemon(folder)
            tell_exporter(folder)


def status(folder: Path) -> dict:
    return ask(folder / "status.sock", {"command": "status"}, 5.0)


def wait_for_hold(folder: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    state = "nothing"
    while state != "hold" and time.monotonic() < deadline:
        time.sleep(1)
        jobs = status(folder)["jobs"]
        state = jobs[0]["state"] if jobs else state
    return state


def tell_daemon(folder: Path) -> None:
    asked, quiet, took = [], [], []
    for _ in range(WINDOWS):
        quiet.append(window(folder, 0, took))
        asked.append(window(folder, PER_S, took))
    per_answer_s = (statistics.median(asked) - statistics.median(quiet)) / PER_S
    print(f"the daemon's CPU time per answer: {per_answer_s * 1e3:.2f} ms")
    print(f"  its cost with no question: {100 * statistics.median(quiet):.2f} % of a core")
    print(f"  an answer, from question to JSON: median {statistics.median(took) * 1e3:.2f} ms")
    print(f"  largest {max(took) * 1e3:.2f} ms of {len(took)}")


def window(folder: Path, per_s: float, took: list[float]) -> float:
    """CPU time of the daemon's process per second."""
    before, began_s = status(folder)["daemon"]["cpu_s"], time.monotonic()
    while time.monotonic() - began_s < WINDOW_S:
        if not per_s:
            time.sleep(WINDOW_S)
            continue
        asked_s = time.monotonic()
        status(folder)
        took.append(time.monotonic() - asked_s)
        time.sleep(max(0.0, 1 / per_s - took[-1]))
    return (status(folder)["daemon"]["cpu_s"] - before) / (time.monotonic() - began_s)


def tell_exporter(folder: Path) -> None:
    command = [sys.executable, "-m", "perseusd.exporter.main", "--listen", "127.0.0.1:0"]
    command += ["--runtime-dir", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        found = re.search(r"http://\S+/metrics", process.stderr.readline())
        took, size = [], 0
        for _ in range(SCRAPES):
            time.sleep(0.6)  # no answer is used twice
            asked_s = time.monotonic()
            with urllib.request.urlopen(found[0]) as answer:  # noqa: S310 - our own
                size = len(answer.read())
            took.append(time.monotonic() - asked_s)
        own = psutil.Process(process.pid)
        cpu_s = sum(own.cpu_times()[:2])
        print(f"a scrape: median {statistics.median(took) * 1e3:.1f} ms, {size} bytes")
        print(f"the exporter's memory: {own.memory_full_info().pss / 1e6:.1f} MB (PSS)")
        print(f"the exporter's CPU time: {cpu_s:.2f} s, start and {SCRAPES} scrapes")
        process.terminate()


if __name__ == "__main__":
    main()
