"""The exporter beside a real daemon: what it tells, while the daemon works, hangs and is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

WITHIN_S = 1.0
"""A scrape takes no longer, whatever the daemon does; another half is the busy machine's."""


class Exporter:
    """A process of its own, on a free port."""

    def __init__(self, folder: Any) -> None:
        command = [sys.executable, "-m", "perseusd.exporter.main", "--listen", "127.0.0.1:0"]
        command += ["--runtime-dir", str(folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", line)
        assert found, line
        self.port = int(found[1])

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        """Those without labels, or the sum over labels."""
        found: dict[str, float] = {}
        for family in parse(self.get("/metrics")[1]):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def up(self) -> bool:
        return self.metrics()["perseusd_up"] == 1

    def wrong(self, path: str) -> list[str]:
        """Why not; none: 200."""
        code, text = self.get(path)
        told = json.loads(text)
        assert (code == 200) == told["ok"] == (not told["wrong"])
        return told["wrong"]

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def rig(make_module_rig) -> Any:
    made = make_module_rig()
    made.start()
    return made


@pytest.fixture(scope="module")
def exporter(rig) -> Iterator[Exporter]:
    made = Exporter(rig.folder)
    yield made
    if made.process.returncode is None:
        made.stop()


def test_what_the_daemon_heard_is_counted(rig, exporter, make_peer, helpers) -> None:
    """A client of a job, its events, a gap in them, and one refusal."""
    peer, other = make_peer(rig), make_peer(rig)
    peer.send(helpers.hello(gpus=[rig.node.gpus[0].info.uuid]))
    peer.hear()
    for number in (1, 3):
        peer.send(helpers.start(number))
        peer.send(helpers.end(number + 1, number))
    other.send(b"no message")
    other.hear()

    def counted() -> dict[str, float] | None:
        found = exporter.metrics()
        return found if found["perseusd_events_total"] >= 5 else None

    found = helpers.until(counted, poll_s=0.1)
    assert found["perseusd_hook_clients"] == found["perseusd_lease_processes"] == 1
    assert found["perseusd_refusals_total"] == 1
    assert found["perseusd_jobs"] == found["perseusd_job_ranks"] == 1
    assert found["perseusd_gpu_held"] == 1
    assert found["perseusd_gpu_readings_total"] > 0
    assert found["perseusd_loop_turn_duration_seconds_count"] > 0
    assert found["perseusd_clock_process_up"] == 1
    assert abs(found["perseusd_start_time_seconds"] - time.time()) < 600
    peer.send(helpers.start(9))
    helpers.until(lambda: exporter.metrics()["perseusd_events_lost_total"] == 4, poll_s=0.1)


def test_a_daemon_that_works_is_alive_and_becomes_ready(exporter, helpers) -> None:
    """Once its planner is there, and each GPU was read."""
    assert exporter.wrong("/healthz") == []
    helpers.until(lambda: not exporter.wrong("/readyz"), poll_s=0.1)


def test_a_daemon_that_hangs_is_down_within_a_second(rig, exporter, helpers) -> None:
    """SIGSTOP: it takes connections and never answers. It is up again when it goes on."""
    helpers.until(exporter.up, poll_s=0.1)
    os.kill(rig.daemon.pid, signal.SIGSTOP)
    try:
        time.sleep(0.6)  # what it said before is no answer any more
        began_s = time.monotonic()
        found = exporter.metrics()
        took_s = time.monotonic() - began_s
        (wrong,) = exporter.wrong("/healthz")
    finally:
        os.kill(rig.daemon.pid, signal.SIGCONT)
    assert found["perseusd_up"] == 0
    assert took_s < WITHIN_S + 0.5
    assert "did not answer within" in wrong
    helpers.until(exporter.up, poll_s=0.1)


def test_a_daemon_that_was_killed_is_down_until_it_is_back(rig, exporter, helpers) -> None:
    """At once, since nobody listens; and counters begin anew with the next daemon."""
    rig.daemon.kill()
    rig.daemon.wait()
    helpers.until(lambda: not exporter.up(), 5, poll_s=0.1)
    (wrong,) = exporter.wrong("/readyz")
    assert "nobody listens" in wrong
    rig.start()
    helpers.until(exporter.up, poll_s=0.1)
    assert exporter.metrics()["perseusd_events_lost_total"] == 0


def test_it_ends_when_asked(exporter) -> None:
    """SIGTERM is an orderly end: exit code 0."""
    assert exporter.stop() == 0
