"""Metrics from a status object: names, values, and labels that stay few whatever users do."""

from __future__ import annotations

import logging

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from perseusd.exporter.collector import registry
from perseusd.exporter.definitions import METRICS
from perseusd.exporter.of_jobs import MOST_JOBS

GPU0 = {"uuid": "GPU-0", "index": "0", "model": "NVIDIA A100"}


@pytest.fixture
def read(snapshot_of):
    """Sample name → {labels: value} of a status object."""

    def make(status, error=None) -> dict[str, dict[tuple, float]]:
        text = generate_latest(registry(lambda: snapshot_of(status, error))).decode()
        found: dict[str, dict[tuple, float]] = {}
        for family in parse(text):
            for sample in family.samples:
                key = tuple(sorted(sample.labels.items()))
                assert key not in found.setdefault(sample.name, {})
                found[sample.name][key] = sample.value
        return found

    return make


def key(**labels: str) -> tuple:
    return tuple(sorted(labels.items()))


def test_every_metric_has_a_value(status, read) -> None:
    """None of the table is there in name only: a full status fills each, in observe mode too."""
    status["counters"]["refused"]["malformed"] = 3
    status["gpus"][0]["reasons"] = ["sw_thermal"]
    status["gpus"][0] |= {"withheld_code": "foreign_writer", "standing_mhz": 1300}
    status["counters"] |= {"energy_saved_j_low": 1.0, "energy_saved_j_high": 2.0}
    status["jobs"][0]["stragglers"] = [{"cause": "thermal", "factor": 1.3}]
    status["jobs"][0] |= {"why_code": "observing", "predicted_saving": {"saving": 0.1}}
    found = read(status)
    names = {name.removesuffix("_count") if "_bucket" not in name else name for name in found}
    assert not {metric.name for metric in METRICS} - names


def test_units_are_base_units(status, read) -> None:
    """MHz become hertz; watts, joules and seconds are as they are."""
    found = read(status)
    assert found["perseusd_gpu_clock_hertz"][key(**GPU0)] == 1.2e9
    assert found["perseusd_gpu_power_watts"][key(**GPU0)] == 250.5
    assert found["perseusd_gpu_energy_joules_total"][key(**GPU0)] == 1e6
    assert found["perseusd_job_saving_low_ratio"][key(training_job="alice:gpt3")] == 0.1


def test_what_is_not_known_has_no_series(status, read) -> None:
    """An unlocked clock is no clock of 0 Hz, and nothing measured is no saving of 0."""
    status["jobs"][0] |= {"saving": None, "energy_saved_j": 0.0, "energy_saved_j_low": None}
    found = read(status)
    requested = found["perseusd_gpu_requested_clock_hertz"]
    assert list(requested) == [key(**GPU0)]
    assert "perseusd_job_saving_ratio" not in found
    assert "perseusd_job_energy_saved_joules" not in found
    status["daemon"] |= {"mode": "observe", "clock_process": "dead"}
    assert "perseusd_clock_process_up" not in read(status)
    status["daemon"] |= {"mode": "act", "driver": "free"}
    assert "perseusd_clock_process_up" not in read(status), "a pause is no death that alarms"


def test_histograms_are_cumulative_with_infinity(status, read) -> None:
    """As the status tells them, and all values up to infinity."""
    found = read(status)
    buckets = found["perseusd_decision_latency_seconds_bucket"]
    assert buckets == {key(le="0.001"): 3, key(le="0.01"): 5, key(le="+Inf"): 6}
    assert found["perseusd_decision_latency_seconds_sum"] == {(): 0.25}


def test_a_daemon_that_does_not_answer_is_down_and_nothing_else(read) -> None:
    """No number of the last answer is shown as if it were one of now."""
    found = read(None, "no such socket")
    assert found["perseusd_up"] == {(): 0}
    known = {"perseusd_up", "perseusd_status_duration_seconds", "perseusd_status_age_seconds"}
    assert {name for name in found if "exporter" not in name} == known


def test_series_of_jobs_are_bounded(status, read) -> None:
    """However many jobs there are and whatever they are called; those with most ranks have them."""
    job = status["jobs"][0]
    hostile = ['a"}b\n', "\ud800", "x" * 5000, "x" * 5000 + "y", "", "alice:gpt3"]
    many = [f"bob:{number}" for number in range(300)]
    status["jobs"] = [
        job | {"id": name, "ranks": 9 if name in hostile else 1} for name in hostile + many
    ]
    found = read(status)
    names = {dict(labels)["training_job"] for labels in found["perseusd_job_ranks"]}
    assert len(names) == MOST_JOBS
    assert {'a"}b\n', "?", "x" * 128, "", "alice:gpt3"} <= names
    assert found["perseusd_jobs_without_series"] == {(): 306 - MOST_JOBS}
    assert found["perseusd_jobs"][key(state="hold")] == 306


def test_an_older_daemons_status_leaves_metrics_out_and_says_so_once(status, read, caplog) -> None:
    """The others are there all the same."""
    del status["counters"]
    status["gpus"][1] = "a GPU"
    with caplog.at_level(logging.WARNING):
        found = read(status)
    assert found["perseusd_up"] == {(): 1}
    assert found["perseusd_job_ranks"] == {key(training_job="alice:gpt3"): 2}
    assert "perseusd_events_total" not in found
    assert "perseusd_events_total is left out" in caplog.text


def test_both_formats_parse(status, snapshot_of) -> None:
    """OpenMetrics is stricter: units and the endings of counters are checked by its own parser."""
    made = registry(lambda: snapshot_of(status))
    families = list(parse_open(openmetrics.generate_latest(made).decode()))
    units = {family.name: family.unit for family in families}
    assert units["perseusd_gpu_energy_joules"] == "joules"
    assert units["perseusd_decision_latency_seconds"] == "seconds"
    assert units["perseusd_jobs"] == ""


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric) -> None:
    """Prefix, endings, and help that is a sentence; labels that could not be unbounded."""
    assert metric.name.startswith("perseusd_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    bounded = {"uuid", "index", "model", "training_job", "state", "code", "cause", "reason", "mode",
               "kind", "result", "version", "follows"}  # fmt: skip
    assert set(metric.labels) <= bounded


def test_names_are_unique() -> None:
    """One definition each."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
