"""Metrics of the daemon itself: its life, its loop, what it heard, asked for and decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from perseusd.exporter.metric import (
    Labelled,
    Metric,
    Status,
    counter,
    each_state,
    gauge,
    histogram,
    many,
    one,
)
from perseusd.exporter.snapshot import Snapshot

DRIVER: Final = ("held", "letting_go", "free", "opening")


def _up(snapshot: Snapshot) -> Iterable[Labelled]:
    return (((), int(snapshot.status is not None)),)


def _asked(snapshot: Snapshot) -> Iterable[Labelled]:
    return [((result,), count) for result, count in snapshot.asked.items()]


def _clock_process(status: Status) -> int | None:
    """None in observe-only mode and in a pause, which have no such process."""
    daemon = status["daemon"]
    meant_to_be = daemon["mode"] != "observe" and daemon["driver"] == "held"
    return int(daemon["clock_process"] == "alive") if meant_to_be else None


def _plans(status: Status) -> Mapping[str, Any]:
    return {result: status["counters"]["plans"][result] for result in ("made", "failed")}


EXPORTER: tuple[Metric, ...] = (
    gauge("perseusd_up", "1 if the daemon answered in time, else 0.", _up),
    gauge(
        "perseusd_status_duration_seconds",
        "How long the daemon took to answer.",
        lambda snapshot: (((), snapshot.took_s),),
    ),
    gauge(
        "perseusd_status_age_seconds",
        "Since when this answer is known: one answer serves all scrapes of half a second.",
        lambda snapshot: (((), snapshot.age_s),),
    ),
    counter(
        "perseusd_exporter_status_requests_total",
        "Questions to the daemon, by what became of them.",
        _asked,
        "result",
    ),
    counter(
        "perseusd_exporter_connections_refused_total",
        "Connections to the exporter that it closed, because too many were open.",
        lambda snapshot: (((), snapshot.turned_away),),
    ),
)

LIFE: tuple[Metric, ...] = (
    gauge(
        "perseusd_build_info",
        "1, with the daemon's version.",
        many(lambda s: {s["daemon"]["version"]: 1}),
        "version",
    ),
    gauge(
        "perseusd_start_time_seconds",
        "When the daemon was started, in Unix time.",
        one(lambda s: s["daemon"]["started_s"]),
    ),
    gauge(
        "perseusd_mode",
        "1 for the mode that it runs in: act, or observe, in which no clock is ever written.",
        many(lambda s: each_state(s["daemon"]["mode"], ("act", "observe"))),
        "mode",
    ),
    gauge(
        "perseusd_emulated",
        "1 if its GPUs are simulated.",
        one(lambda s: int(s["daemon"]["emulated"])),
    ),
    gauge(
        "perseusd_clock_process_up",
        "1 if perseusd-clock is there to write clocks; absent in observe-only mode and in a pause.",
        one(_clock_process),
    ),
    counter(
        "perseusd_clock_process_lost_total",
        "How often perseusd-clock went away.",
        one(lambda s: s["counters"]["clock_process_lost"]),
    ),
    counter(
        "perseusd_heartbeats_lost_total",
        "How often perseusd-clock put every clock back because the daemon's heartbeat was late.",
        one(lambda s: s["counters"]["heartbeats_lost"]),
    ),
    gauge(
        "perseusd_driver_state",
        "1 for how the daemon has the driver: held; letting_go or free in a pause; opening.",
        many(lambda s: each_state(s["daemon"]["driver"], DRIVER)),
        "state",
    ),
    gauge(
        "perseusd_missing_gpus",
        "GPUs that could not be opened.",
        one(lambda s: len(s["daemon"]["missing_gpus"])),
    ),
    gauge(
        "perseusd_released",
        "GPUs and jobs that an operator has released.",
        one(lambda s: len(s["daemon"]["released"])),
    ),
    gauge(
        "perseusd_planner_ready",
        "1 if the planner's process is ready; its kernels are compiled at a first start.",
        one(lambda s: int(s["daemon"]["planner"] == "ready")),
    ),
    counter(
        "perseusd_planner_restarts_total",
        "How often the planner's process ended or hung, and was replaced.",
        one(lambda s: s["daemon"]["planner_restarts"]),
    ),
    counter(
        "perseusd_config_reloads_total",
        "Reloads of the configuration; one that is refused leaves everything as it was.",
        many(lambda s: s["counters"]["reloads"]),
        "result",
    ),
    counter(
        "perseusd_process_cpu_seconds_total",
        "CPU time that the daemon's process used, without its children.",
        one(lambda s: s["daemon"]["cpu_s"]),
    ),
    gauge(
        "perseusd_process_resident_memory_bytes",
        "Resident memory of the daemon's process, without its children.",
        one(lambda s: s["daemon"]["resident_bytes"]),
    ),
)

WORK: tuple[Metric, ...] = (
    gauge(
        "perseusd_hook_clients",
        "Hook clients that are served.",
        one(lambda s: s["daemon"]["clients"]),
    ),
    gauge(
        "perseusd_lease_processes",
        "Processes that hold a lease; their death ends it.",
        one(lambda s: s["daemon"]["client_processes"]),
    ),
    counter(
        "perseusd_events_total",
        "Messages of hooks that were accepted.",
        many(lambda s: s["counters"]["events"]),
        "kind",
    ),
    counter(
        "perseusd_events_lost_total",
        "Gaps in what clients numbered: events that never arrived, or that were too many.",
        one(lambda s: s["counters"]["events_lost"]),
    ),
    counter(
        "perseusd_refusals_total",
        "Refusals of what processes sent, by code.",
        many(lambda s: s["counters"]["refused"]),
        "code",
    ),
    histogram(
        "perseusd_loop_turn_duration_seconds",
        "A turn of the daemon's loop, its waiting left out.",
        one(lambda s: s["counters"]["turn_s"]),
    ),
    histogram(
        "perseusd_decision_latency_seconds",
        "From the loop's waking up, which events may have awaited, to a clock write being asked "
        "for.",
        one(lambda s: s["counters"]["decision_s"]),
    ),
    counter(
        "perseusd_clock_writes_total",
        "Requests for clock writes, by what became of them.",
        many(lambda s: s["counters"]["clock_writes"]),
        "result",
    ),
    histogram(
        "perseusd_clock_write_duration_seconds",
        "The driver's time for a clock write.",
        one(lambda s: s["counters"]["clock_write_s"]),
    ),
    counter(
        "perseusd_plan_requests_total",
        "Plans that were asked for; one that a newer request replaces has no result.",
        one(lambda s: s["counters"]["plans"]["asked"]),
    ),
    counter(
        "perseusd_plans_total",
        "Plans that were made, and that could not be made.",
        many(_plans),
        "result",
    ),
    histogram(
        "perseusd_plan_duration_seconds",
        "From a plan's request to the answer.",
        one(lambda s: s["counters"]["plan_s"]),
    ),
)
