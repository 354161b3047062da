"""A real Prometheus scrapes a real exporter of a real daemon, beside a training loop, and promtool
finds nothing wrong with what it reads. Both are in the Debian package `prometheus`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perseusd.emulation.daemon import DaemonProcess
from perseusd.exporter.definitions import METRICS

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring" / "prometheus"
PATIENCE_S = 90.0

CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs:
  - job_name: perseusd
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, "install Debian's prometheus package"
    return found


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return value


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
        return str(answer.read().decode())


class Prometheus:
    """Its own UI's API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """The answer's data; None while it does not answer."""
        try:
            text = read(f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}")
        except urllib.error.URLError:
            return None
        return json.loads(text)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Values by their labels, as one text."""
        found = self.get("query", query=expression)
        return {
            json.dumps(series["metric"], sort_keys=True): float(series["value"][1])
            for series in (found["result"] if found else ())
        }


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="perseusd-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def exporter(folder: Path) -> Iterator[int]:
    """Its port. Beside it a daemon on four simulated GPUs, and a job of four ranks."""
    listen = ["--listen", "127.0.0.1:0", "--runtime-dir", str(folder)]
    plain = [sys.executable, str(ROOT / "examples" / "plain.py"), "120"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PERSEUS_")}
    with (
        DaemonProcess(folder, 4),
        running(
            [sys.executable, "-m", "perseusd.exporter.main", *listen], stderr=subprocess.PIPE
        ) as process,
        running(plain, env=environ | {"PERSEUS_RUNTIME_DIR": str(folder)}),
    ):
        assert process.stderr is not None
        found = re.search(r":(\d+)/metrics", process.stderr.readline())
        assert found
        yield int(found[1])


@pytest.fixture(scope="module")
def prometheus(folder: Path, exporter: int) -> Iterator[Prometheus]:
    """It scrapes every second, and evaluates the alerts."""
    config, port = folder / "prometheus.yml", free_port()
    rules = str(MONITORING / "perseusd.rules.yml")
    config.write_text(CONFIG.replace("RULES", rules).replace("PORT", str(exporter)))
    command = [tool("prometheus"), f"--config.file={config}", "--log.level=error"]
    command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, cwd=folder):
        made = Prometheus(port)
        until(lambda: made.query("perseusd_up"))
        yield made


def test_prometheus_scrapes_without_an_error(prometheus: Prometheus) -> None:
    """The target is up, its last scrape said nothing, and took far less than a second."""
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["lastScrapeDuration"] < 1.0
    assert list(prometheus.query("perseusd_up").values()) == [1.0]


def test_the_query_api_answers_of_gpus_and_of_the_job(prometheus: Prometheus) -> None:
    """Four GPUs by index, a job of four ranks, and rates of what it sends."""
    job = until(lambda: prometheus.query('perseusd_job_ranks{training_job=~".+:plain"} == 4'))
    assert json.loads(next(iter(job)))["job"] == "perseusd"
    assert prometheus.query("count by (index) (perseusd_gpu_power_watts)").keys() == {
        json.dumps({"index": str(index)}) for index in range(4)
    }
    assert list(prometheus.query("sum(perseusd_gpu_held)").values()) == [4.0]
    until(lambda: prometheus.query('rate(perseusd_events_total{kind="stage_start"}[10s]) > 1'))
    assert prometheus.query("histogram_quantile(0.99, perseusd_loop_turn_duration_seconds_bucket)")


def test_prometheus_knows_help_and_types(prometheus: Prometheus) -> None:
    """Of every metric that it has scraped, as the table says."""
    told = prometheus.get("metadata", limit="1000")
    known = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    ours = {name: entry for name, (entry, *_) in told.items() if name.startswith("perseusd_")}
    assert len(ours) > 40
    for name, entry in ours.items():
        assert (entry["type"], entry["help"]) == (known[name].kind, known[name].help)


def test_every_alert_is_evaluated_and_none_of_a_failure_fires(prometheus: Prometheus) -> None:
    """On a node on which all is well."""

    def evaluated() -> Any:
        (group,) = prometheus.get("rules")["groups"]
        return all(rule["health"] == "ok" for rule in group["rules"]) and group["rules"]

    rules = until(evaluated)
    assert len(rules) > 10
    down = ("Down", "Dead", "Unreadable", "Loop", "Flaps")
    assert not [r["name"] for r in rules if r["state"] == "firing" and r["name"].endswith(down)]


def test_promtool_finds_nothing_wrong_with_the_metrics(exporter: int) -> None:
    """Names, units and help of a whole scrape."""
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=read(f"http://127.0.0.1:{exporter}/metrics"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "perseusd.rules.yml"), ("test", "rules", "perseusd.rules.test.yml")],
)
def test_promtool_finds_nothing_wrong_with_the_rules(arguments: tuple[str, ...]) -> None:
    """Their form, and what they say of series that are given."""
    *words, file = arguments
    done = subprocess.run(
        [tool("promtool"), *words, str(MONITORING / file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr
