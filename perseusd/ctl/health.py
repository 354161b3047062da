"""Doctor's look at what is served: who is slow, which clock does not follow, what is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from perseusd.ctl import telling
from perseusd.ctl.findings import Finding, note, problem
from perseusd.ctl.output import number, percent, percent_with_interval, safe

LONG_LEARNING: Final = 100
"""Iterations in learn after which it is worth saying why: it is meant to take some twenty."""

_SLOWED_BY_HARDWARE: Final = frozenset(
    {"hw_slowdown", "hw_thermal", "sw_thermal", "hw_power_brake"}
)

_COOLING: Final = (
    "see its temperature and cooling: `nvidia-smi -q -d TEMPERATURE,PERFORMANCE`, fans, the air "
    "that comes in"
)
_POWER: Final = (
    "compare its power limit with its neighbours' (`nvidia-smi -q -d POWER`), and see whether the "
    "node or the rack is capped"
)
_SUPPLY: Final = "see the node's power supplies and their cables; `nvidia-smi -q -d PERFORMANCE`"

_CAUSES: Final[Mapping[str, str]] = {
    "thermal": _COOLING,
    "power_cap": _POWER,
    "power_brake": _SUPPLY,
    "hardware_slowdown": _SUPPLY,
    "compute": (
        "compare that GPU with its neighbours: other processes on it (`nvidia-smi`), memory errors "
        "(`nvidia-smi -q -d ECC,PAGE_RETIREMENT`), the CPU that feeds it; is its stage's work the "
        "same as before?"
    ),
    "communication": (
        "see its links: `nvidia-smi nvlink -s`, `nvidia-smi topo -m`, the network's error counters"
    ),
    "replica": "see that replica's nodes: CPU, storage, network, and everything else on them",
    "iteration": "see what all its nodes share: storage, network, the data loader",
}


def about_configuration(daemon: Mapping[str, Any]) -> Iterator[Finding]:
    """What the last reload found, as far as it is not in force."""
    outlook = daemon.get("configuration")
    if not isinstance(outlook, Mapping):
        return
    for wrong in outlook.get("problems") or ():
        yield problem(
            "configuration",
            f"refused at the last reload: {safe(wrong)}",
            "correct it and `systemctl reload perseusd`; as it is, the next start fails",
        )
    for waiting in outlook.get("waiting") or ():
        yield note("configuration", safe(waiting), "`systemctl restart perseusd` when it suits")


_RESUME = "`perseusctl resume` when clocks may be written again"


def about_hands_off(daemon: Mapping[str, Any]) -> Iterator[Finding]:
    """What an operator has taken from it, and which GPUs it could not open."""
    if (paused := telling.pause(daemon)) is not None:
        resumed = daemon.get("driver") == "opening"
        fix = "see `dmesg` and `nvidia-smi` if it stays so" if resumed else _RESUME
        yield problem("driver", paused, fix)
    for words in telling.released(daemon):
        yield note("released", words, "resume it when it may be slowed again")
    for words in telling.missing_gpus(daemon):
        yield problem("GPUs", words, "see `dmesg` and `nvidia-smi`; it is looked for all the time")


def about_stragglers(jobs: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Each once: replicas of one job show the same."""
    told: set[tuple[str, str]] = set()
    for job in jobs:
        name = safe(job.get("id")).rpartition("/")[0] or safe(job.get("id"))
        found = job.get("stragglers")
        for straggler in found if isinstance(found, list) else []:
            words = telling.straggler(straggler)
            if isinstance(straggler, Mapping) and (name, words) not in told:
                told.add((name, words))
                yield _straggler(f"job {safe(job.get('id'))}", straggler, words)


def _straggler(subject: str, straggler: Mapping[str, Any], words: str) -> Finding:
    cause = straggler.get("cause")
    if cause == "announced":
        end = f"once it is over: `perseusctl straggler end --job {subject.removeprefix('job ')}`"
        return note(subject, f"straggler: {words}", end)
    fix = _CAUSES.get(safe(cause), _CAUSES["compute"])
    if straggler.get("transient"):
        return note(subject, f"straggler: {words}", f"if it comes back: {fix}")
    return problem(subject, f"straggler: {words}; all others wait for it", fix)


def about_clock(subject: str, gpu: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether it runs as asked, and what slows it besides."""
    listed = gpu.get("reasons")
    reasons = [safe(reason) for reason in (listed if isinstance(listed, list) else [])]
    asked, runs = number(gpu.get("requested_mhz")), number(gpu.get("clock_mhz"))
    last = f"last read: {runs} MHz, asked {asked}"
    follows = gpu.get("follows_request")
    if follows == "above":
        yield problem(
            subject,
            f"does not follow its clock: it runs above what is asked ({last})",
            "see whether something else sets its clocks (`nvidia-smi -q -d CLOCK`, another tool), "
            "and whether its driver can lock them; until then it saves nothing",
        )
    elif follows == "below":
        why = f", {', '.join(reasons)}" if reasons else ""
        yield problem(
            subject,
            f"runs below even the clock that is asked ({last}{why})",
            f"something slows it further: {_COOLING}; {_POWER}",
        )
    if (hot := _SLOWED_BY_HARDWARE & set(reasons)) and follows != "below":
        yield note(subject, f"is slowed by {', '.join(sorted(hot))}", _COOLING)


def about_knowledge(subject: str, job: Mapping[str, Any], *, observing: bool) -> Iterator[Finding]:
    """What was learned and remembered, and in observe-only mode what comes next."""
    learning = job.get("learning")
    learning = learning if isinstance(learning, Mapping) else {}
    if job.get("state") == "learn" and (since := _in_state(job)) > LONG_LEARNING:
        yield note(
            subject,
            f"has been learning for {since} iterations{_doubt(learning)}",
            "iterations that differ much from each other take longer to learn from; "
            "[learning] max_iterations bounds it. The daemon's log says more",
        )
    why = safe(learning.get("remembered_why") or "")
    match learning.get("remembered"):
        case "discarded":
            yield note(
                subject,
                f"curves remembered of an earlier run were wrong and are discarded: {why}",
                "nothing: it learns anew; if it recurs, something about these GPUs changes from "
                "run to run",
            )
        case "unlike":
            yield note(subject, f"is not the job whose curves are remembered: {why}")
        case "unusable":
            yield note(subject, f"remembered curves cannot be used: {why}")
    if observing and job.get("why_code") == "observing":
        yield _next_step(subject, job)


def _in_state(job: Mapping[str, Any]) -> int:
    """Iterations since its state began."""
    states, iteration = job.get("states"), job.get("iteration")
    last = states[-1] if isinstance(states, list) and states else None
    since = last.get("since_iteration") if isinstance(last, Mapping) else None
    if not isinstance(since, int) or not isinstance(iteration, int):
        return 0
    return iteration - since


def _doubt(learning: Mapping[str, Any]) -> str:
    doubts = learning.get("uncertain")
    worst = doubts[0] if isinstance(doubts, list) and doubts else None
    if not isinstance(worst, Mapping):
        return ""
    where = f"{safe(worst.get('instruction'))} of stage {safe(worst.get('stage'))}"
    time, energy = percent(worst.get("time_error")), percent(worst.get("energy_error"))
    return f"; least known: {where} (time ± {time}, energy ± {energy})"


def _next_step(subject: str, job: Mapping[str, Any]) -> Finding:
    forecast = job.get("predicted_saving")
    if isinstance(forecast, Mapping):
        share = percent_with_interval(
            forecast.get("saving"), forecast.get("saving_low"), forecast.get("saving_high")
        )
        return note(
            subject,
            f"nothing stands in the way of acting, which is predicted to save {share} (a "
            f"prediction, from a prior: {safe(forecast.get('source'))})",
            "to measure what it really saves, let perseusd act: docs/operating.md, Start with "
            "observing",
        )
    if job.get("no_prediction"):
        return note(
            subject,
            f"no saving is predicted: {safe(job['no_prediction'])}",
            "critical path, slack and stragglers are measured all the same; what acting saves, "
            "only acting tells",
        )
    return note(subject, "is still being measured; what acting would save is predicted then")
