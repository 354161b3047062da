"""Metrics of jobs: of all together, and of each of the MOST_JOBS that have the most ranks.

A job is named by its user, so the number of series is bounded here: what is beyond has none of its
own, and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from perseusd.exporter.metric import (
    Labelled,
    Metric,
    Read,
    Status,
    counter,
    each_state,
    gauge,
    many,
    one,
    plain,
)
from perseusd.exporter.snapshot import Snapshot

JOB: Final = "training_job"
"""The label; `job` is what Prometheus calls what it scrapes."""

MOST_JOBS: Final = 64
STATES: Final = ("baseline", "learn", "hold", "release")

Job = Mapping[str, Any]


def shown(status: Status) -> dict[str, Job]:
    """Jobs with series of their own, by the label that names them."""
    largest = sorted(status["jobs"], key=lambda job: (-job["ranks"], job["id"]))
    named: dict[str, Job] = {}
    for job in largest:
        if len(named) < MOST_JOBS:
            named.setdefault(plain(job["id"]), job)
    return named


def _each(read: Callable[[Job], Any]) -> Read:
    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        return [((name,), read(job)) for name, job in _jobs(snapshot)]

    return samples


def _several(read: Callable[[Job], Mapping[str, Any]]) -> Read:
    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        return [
            ((name, plain(key)), value)
            for name, job in _jobs(snapshot)
            for key, value in read(job).items()
        ]

    return samples


def _jobs(snapshot: Snapshot) -> Iterable[tuple[str, Job]]:
    return () if snapshot.status is None else shown(snapshot.status).items()


def _by_state(status: Status) -> Mapping[str, int]:
    count = Counter(job["state"] for job in status["jobs"])
    return {state: count[state] for state in STATES}


def _factors(job: Job) -> Mapping[str, float]:
    """The largest factor of each cause."""
    found: dict[str, float] = {}
    for straggler in job["stragglers"]:
        cause = straggler["cause"] or "unknown"
        found[cause] = max(straggler["factor"], found.get(cause, 0.0))
    return found


def _predicted(job: Job) -> float | None:
    prediction = job["predicted_saving"]
    return None if prediction is None else prediction["saving"]


def _measured(job: Job, name: str) -> float | None:
    """None before anything was measured, when the status has a 0 without an interval."""
    return None if job["energy_saved_j_low"] is None else job[name]


def _ratio(name: str, what: str) -> tuple[Metric, ...]:
    """A measured share with its interval: three metrics, since a gauge has one value."""
    bounds = {"": "", "_low": ", lower end of its 95 % interval", "_high": ", upper end of it"}
    return tuple(
        gauge(
            f"perseusd_job_{name}{suffix}_ratio",
            f"{what}{told}; absent until measured.",
            _each(lambda job, key=name + suffix: job[key]),  # type: ignore[misc]
            JOB,
        )
        for suffix, told in bounds.items()
    )


def _joules(suffix: str, told: str) -> tuple[Metric, Metric]:
    """Of one job, and of all."""
    key = f"energy_saved_j{suffix}"
    return (
        gauge(
            f"perseusd_job_energy_saved{suffix}_joules",
            f"Energy saved since the job started{told}; absent until measured.",
            _each(lambda job: _measured(job, key)),
            JOB,
        ),
        gauge(
            f"perseusd_energy_saved{suffix}_joules",
            f"Energy saved since the daemon started, by all jobs{told}; it may fall.",
            one(lambda s: s["counters"][key]),
        ),
    )


ALL_JOBS: tuple[Metric, ...] = (
    gauge("perseusd_jobs", "Jobs that run, by state.", many(_by_state), "state"),
    gauge(
        "perseusd_jobs_without_series",
        f"Jobs beyond the {MOST_JOBS} that have series of their own.",
        one(lambda s: len(s["jobs"]) - len(shown(s))),
    ),
    counter(
        "perseusd_jobs_ended_total",
        "Jobs whose last process is gone.",
        one(lambda s: s["counters"]["jobs_ended"]),
    ),
    counter(
        "perseusd_job_state_changes_total",
        "How often a job went to each state.",
        many(lambda s: s["counters"]["states"]),
        "state",
    ),
    counter(
        "perseusd_releases_total",
        "How often a job was let go of, by reason: too_slow is the guard.",
        many(lambda s: s["counters"]["releases"]),
        "code",
    ),
    counter(
        "perseusd_stragglers_total",
        "Stragglers that were found, by cause as it was known then.",
        many(lambda s: s["counters"]["stragglers"]),
        "cause",
    ),
)

EACH_JOB: tuple[Metric, ...] = (
    gauge(
        "perseusd_job_state",
        "1 for the job's state.",
        _several(lambda job: each_state(job["state"], STATES)),
        JOB,
        "state",
    ),
    gauge(
        "perseusd_job_not_slowed",
        "1, with the reason why the job is not being slowed; absent while it is.",
        _several(lambda job: {job["why_code"]: 1} if job["why_code"] else {}),
        JOB,
        "code",
    ),
    gauge("perseusd_job_ranks", "Ranks that have said hello.", _each(lambda j: j["ranks"]), JOB),
    gauge(
        "perseusd_job_expected_ranks",
        "Ranks that the job has; absent where it did not say.",
        _each(lambda job: job["expected_ranks"]),
        JOB,
    ),
    gauge(
        "perseusd_job_iteration",
        "The latest iteration, as the job counts them; -1 before the first.",
        _each(lambda job: job["iteration"]),
        JOB,
    ),
    gauge(
        "perseusd_job_iteration_duration_seconds",
        "The latest whole iteration's time.",
        _each(lambda job: job["iteration_time_s"]),
        JOB,
    ),
    gauge(
        "perseusd_job_deadline_seconds",
        "The iteration time that is aimed at; absent unless the job is in hold.",
        _each(lambda job: job["deadline_s"]),
        JOB,
    ),
    gauge(
        "perseusd_job_straggler_ratio",
        "How many times its usual time the slowest straggler of each cause takes now.",
        _several(_factors),
        JOB,
        "cause",
    ),
    *_ratio("saving", "Energy per iteration saved in hold, as a share of full clock's"),
    *_ratio("slowdown", "Iteration time in hold over full clock's, minus 1"),
    gauge(
        "perseusd_job_predicted_saving_ratio",
        "In observe-only mode, what acting would save by a prior for the GPU's model.",
        _each(_predicted),
        JOB,
    ),
)

JOULES: tuple[Metric, ...] = (
    *_joules("", ""),
    *_joules("_low", ", lower end of its 95 % interval"),
    *_joules("_high", ", upper end of its 95 % interval"),
)
