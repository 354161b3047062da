"""Doctor's look at a daemon's status: what in it keeps a job unseen, or at full clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from perseusd.core.jobs.why import WhyCode, code_of
from perseusd.ctl.findings import Finding, Verdict, note, ok, problem
from perseusd.ctl.fixes import CALL_THE_HOOKS, NOTHING, fix_for
from perseusd.ctl.health import (
    about_clock,
    about_configuration,
    about_hands_off,
    about_knowledge,
    about_stragglers,
)
from perseusd.ctl.output import number, safe
from perseusd.ctl.telling import blind, duration, no_job, own_alone, pause

RECENT_S: Final = 60.0
"""A refusal longer ago, or of a process that has ended, is no problem; if both, it is history."""

_SICK_GPU_STATES: Final = frozenset({"lost", "stuck", "failed"})

_PROGRESS: Final = frozenset({WhyCode.WAITING, WhyCode.MEASURING, WhyCode.NOT_UNDERSTOOD_YET})
"""Reasons that at first only ask for patience."""

_ABSENCE: Final = ("waiting for", "has said hello", "has ended", "goodbye")
"""Parts of a job's `why` that tell of a rank that is not there, perhaps beside something else."""

_UNNAMED: Final = re.compile(r"(^|:)pid-\d+$")
"""The id of a job that neither a launcher nor PERSEUS_JOB named."""


def diagnose(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything that a Status object tells, in the order in which it stands in the way."""
    daemon = status["daemon"]
    yield from _daemon(daemon)
    for words in blind(daemon):
        yield problem("gpu_check", words, fix_for(words, WhyCode.GPU_USE_UNKNOWN))
    yield from about_hands_off(daemon)
    yield from about_configuration(daemon)
    yield from _gpus(status["gpus"])
    yield from _refusals(daemon.get("refused"))
    torn = _torn(status["jobs"])
    yield from _torn_jobs(torn)
    if not status["jobs"]:
        yield _nobody(status.get("ended"))
    if (restricted := own_alone(daemon)) is not None:
        yield note("jobs", restricted)
    for job in status["jobs"]:
        yield from _job(job, daemon, part_of_torn=_owner_if_unnamed(job) in torn)
    yield from about_stragglers(status["jobs"])


def _nobody(ended: object) -> Finding:
    if ended:
        return note("jobs", no_job(ended).removesuffix("."))
    return note(
        "jobs",
        "no training process has said hello",
        "in the training: call perseus_hooks.stage_start and stage_end, on this node, with the "
        "same PERSEUS_RUNTIME_DIR as here; the hooks log one warning where they are refused",
    )


def _daemon(daemon: Mapping[str, Any]) -> Iterator[Finding]:
    up = duration(daemon.get("uptime_s"))
    yield ok("daemon", f"perseusd {safe(daemon.get('version'))} answers, up {up}")
    if daemon.get("mode") == "observe":
        yield note(
            "mode",
            "observe-only: no clock is ever written",
            "to let it act, start perseusd without --observe and without `observe = true`",
        )
    elif pause(daemon) is not None:
        pass  # perseusd-clock is meant to be gone
    elif daemon.get("clock_process") != "alive":
        yield problem(
            "clock process",
            f"perseusd-clock is {safe(daemon.get('clock_process'))}: no clock can be written",
            "see its log (`journalctl -u perseusd-clock -u perseusd`) and restart perseusd",
        )
    else:
        yield ok("clock process", "perseusd-clock is alive")
    if daemon.get("emulated"):
        yield note("GPUs", "emulated: perseusd runs with --simulate")


def _gpus(gpus: list[Mapping[str, Any]]) -> Iterator[Finding]:
    if not gpus:
        yield problem(
            "GPUs",
            "none is visible to perseusd",
            "see whether `nvidia-smi` lists them for the daemon's user; without GPUs, run "
            "`perseusd run --simulate N`",
        )
        return
    yield ok("GPUs", f"{len(gpus)} visible")
    for gpu in gpus:
        subject, error = f"GPU {safe(gpu.get('uuid'))}", gpu.get("error")
        if gpu.get("mig"):
            yield note(
                subject,
                "MIG is on: its parts share one clock, so it is left alone",
                "to have its clock planned, switch MIG off on it (`nvidia-smi -mig 0`), or see "
                "[access] allow_mig",
            )
        if gpu.get("state") in _SICK_GPU_STATES:
            yield problem(
                subject,
                f"is {safe(gpu.get('state'))}" + (f": {safe(error)}" if error else ""),
                "see `dmesg` and `nvidia-smi -q` for it; the other GPUs go on",
            )
        yield from about_clock(subject, gpu)


def _refusals(refused: object) -> Iterator[Finding]:
    for refusal in refused if isinstance(refused, list) else []:
        if not isinstance(refusal, Mapping):
            continue
        reason = safe(refusal.get("reason") or refusal.get("code"))
        ago = refusal.get("last_s_ago")
        text = f"refused {_times(refusal.get('count'))}: {reason}"
        old = isinstance(ago, int | float) and ago > RECENT_S
        gone = refusal.get("process_runs") is False
        if old and not gone:
            yield note("clients", f"{text} (last {duration(ago)} ago)")
        elif gone and not old:
            yield note("clients", f"{text} (that process has ended)")
        elif not gone:
            yield problem("clients", text, "do what the reason says, in the process that sent it")


def _times(count: object) -> str:
    return "once" if count == 1 else f"{number(count)} times"


def _job(
    job: Mapping[str, Any], daemon: Mapping[str, Any], *, part_of_torn: bool
) -> Iterator[Finding]:
    subject = f"job {safe(job.get('id'))}"
    ranks = _ranks(subject, job)
    state = _state(subject, job, observing=daemon.get("mode") == "observe")
    if part_of_torn:  # what is torn lacks ranks: that is said once, for all of them
        yield replace(ranks, verdict=Verdict.NOTE, fix=None)
    else:
        yield ranks
    yield from _beside(ranks, state, job)
    yield from about_knowledge(subject, job, observing=daemon.get("mode") == "observe")
    told = _code(job) == WhyCode.HOST_TIMES
    if job.get("time_source") == "host" and not told and not daemon.get("emulated"):
        yield note(
            subject,
            "its times are the host's: right for work on the CPU, launch times only for a GPU's",
            "PyTorch on a GPU tells the device's by itself; for JAX use its adapter",
        )


def _beside(ranks: Finding, state: Finding, job: Mapping[str, Any]) -> Iterator[Finding]:
    """The state, unless it says no more than the ranks do: one missing rank is one problem."""
    if ranks.verdict is not Verdict.PROBLEM or not _says_who_is_missing(job):
        yield state
    elif state.fix != ranks.fix:
        yield replace(state, verdict=Verdict.NOTE)


def _says_who_is_missing(job: Mapping[str, Any]) -> bool:
    why = safe(job.get("why"))
    return any(part in why for part in _ABSENCE)


def _torn(jobs: list[Mapping[str, Any]]) -> dict[str, int]:
    """Of each owner of several jobs that look like processes of one, how many they are."""
    owners = [owner for job in jobs if (owner := _owner_if_unnamed(job)) is not None]
    return {owner: count for owner, count in Counter(owners).items() if count > 1}


def _torn_jobs(torn: Mapping[str, int]) -> Iterator[Finding]:
    """Processes of one job that no launcher named are each taken for a job of their own."""
    for owner, count in sorted(torn.items()):
        yield problem(
            "jobs",
            f"{count} jobs of {owner or 'one user'} are a process each and lack ranks: no "
            "launcher was recognised that would say that they belong together",
            "where the training is started, set PERSEUS_JOB to one name for all its processes, "
            "and PERSEUS_RANK for each",
        )


def _owner_if_unnamed(job: Mapping[str, Any]) -> str | None:
    """Of a job that is one process of who knows how many."""
    name = safe(job.get("id"))
    unnamed = _UNNAMED.search(name) is not None and _lacks_ranks(job)
    return name.rpartition(":")[0] if unnamed else None


def _lacks_ranks(job: Mapping[str, Any]) -> bool:
    present, expected = job.get("ranks"), job.get("expected_ranks")
    return isinstance(present, int) and isinstance(expected, int) and present < expected


def _ranks(subject: str, job: Mapping[str, Any]) -> Finding:
    present, expected = job.get("ranks"), job.get("expected_ranks")
    missing = job.get("missing_ranks")
    seen = f"{number(present)} of {number(expected)} ranks have said hello"
    if missing and _code(job) == WhyCode.TOPOLOGY_UNKNOWN:
        return note(subject, seen)  # which stage is missing is not known either
    if isinstance(missing, list) and missing:
        named = ", ".join(safe(stage) for stage in missing)
        stages = "stage" if len(missing) == 1 else "stages"
        return problem(
            subject,
            f"{seen}; missing: {stages} {named}. It stays at full clock until all are there",
            CALL_THE_HOOKS,
        )
    if _lacks_ranks(job):
        return problem(subject, seen, CALL_THE_HOOKS)
    if expected is None:
        ranks = "rank has" if present == 1 else "ranks have"
        return note(subject, f"{number(present)} {ranks} said hello; of how many is not known")
    return ok(subject, seen)


def _state(subject: str, job: Mapping[str, Any], *, observing: bool) -> Finding:
    state, why, code = safe(job.get("state")), safe(job.get("why") or ""), _code(job)
    if state == "hold":
        return ok(subject, "hold: its clocks follow the plan" + (f" ({why})" if why else ""))
    if not why:
        return ok(subject, state)
    fix = fix_for(why, code)
    unclear = code == WhyCode.ORDER  # keeps from observing, too
    if (observing and not unclear) or fix.startswith(NOTHING):
        patience = observing and (code in _PROGRESS or code == WhyCode.OBSERVING)
        return note(subject, f"{state}: {why}", None if patience else fix)
    return problem(subject, f"{state}: {why}", fix)


def _code(job: Mapping[str, Any]) -> str | None:
    """As the daemon says, or by its words where it is older than codes."""
    code = job.get("why_code")
    return code if isinstance(code, str) else code_of(safe(job.get("why") or ""))
