"""What to do about each reason why a job is not being slowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perseusd.core.jobs.why import WhyCode, code_of

NOTHING: Final = "nothing"
"""How the fix begins of what is no problem."""

CALL_THE_HOOKS: Final = (
    "see that these ranks run, all with the same PERSEUS_JOB, call the hooks, and reach this "
    "node's daemon (PERSEUS_RUNTIME_DIR; the hooks' one warning in their log)"
)
_START_AGAIN: Final = "start that rank again; until it is back, the job stays at full clock"
READ_THE_LOG: Final = "the daemon's log says more (`journalctl -u perseusd`)"

_FIXES: Final[Mapping[str, str]] = {
    WhyCode.TOPOLOGY_UNKNOWN: (
        "tell it: perseus_hooks.configure(stage=…, stages=…, replica=…, replicas=…) on every rank, "
        "alike"
    ),
    WhyCode.RANKS_MISSING: CALL_THE_HOOKS,
    WhyCode.WAITING: (
        "nothing, while it trains; else see that it calls the hooks, with a stage_end for each "
        "stage_start, and what they have logged there"
    ),
    WhyCode.NOT_UNDERSTOOD_YET: (
        "nothing, for some iterations: every one must run the same computations in the same order, "
        "and where ten in a row do not, what differs first is told here"
    ),
    WhyCode.MEASURING: "nothing: it takes a few iterations",
    WhyCode.GPU_UNKNOWN: "set PERSEUS_GPUS, or pass gpus= to perseus_hooks.configure",
    WhyCode.GPU_SHARED: "give each stage a GPU of its own, and say which with PERSEUS_GPUS",
    WhyCode.HOST_TIMES: "use an adapter that sends device times",
    WhyCode.CLOCK_PROCESS: "see its log (`journalctl -u perseusd-clock -u perseusd`)",
    WhyCode.WRITE_FAILED: "see `dmesg` and `nvidia-smi -q` for that GPU; the others go on",
    WhyCode.GPU_STUCK: "see `dmesg` for that GPU; once its driver answers, the job is slowed again",
    WhyCode.GPU_FAILED: (
        "reset it: `perseusctl pause`, `nvidia-smi --gpu-reset`, `perseusctl resume`; or reboot"
    ),
    WhyCode.FOREIGN_WRITER: (
        "see which tool sets clocks (`nvidia-smi --lock-gpu-clocks`, DCGM, a prolog script) and "
        "stop it; then `perseusctl resume GPU`. A lock that shall stay: [clock] standing_lock_mhz"
    ),
    WhyCode.RELEASED: "`perseusctl resume JOB|GPU` when it may be slowed again",
    WhyCode.PAUSED: "`perseusctl resume` when clocks may be written again",
    WhyCode.GPU_NOT_SEEN: (
        "name the GPU that it uses with PERSEUS_GPUS or gpus=; where another process of the same "
        'user computes for it (MPS), set [access] gpu_check = "user"'
    ),
    WhyCode.GPU_USED_BY_OTHERS: (
        "end the other process, or give it a GPU of its own; until then this one keeps full clock"
    ),
    WhyCode.GPU_USE_UNKNOWN: (
        "run perseusd in the host's process namespace (hostPID: true), see docs/security.md; where "
        'all on this node is one user\'s, [access] gpu_check = "off" will do'
    ),
    WhyCode.TOO_SHORT: (
        "nothing, if iterations are meant to be this short; else name the whole iteration, not a "
        "part of it, or raise [limits] max_writes_per_s"
    ),
    WhyCode.TOO_SLOW: "nothing: it goes back to measuring, at full clock",
    WhyCode.CHANGED: "nothing: it is measured and learned anew",
    WhyCode.SILENT: "see whether that rank still trains; it is served again once it speaks",
    WhyCode.RANK_GONE: _START_AGAIN,
    WhyCode.RANK_JOINED: "nothing: with that rank, it is measured anew",
    WhyCode.NO_PLAN: READ_THE_LOG,
    WhyCode.NOTHING_WAITS: "nothing: slowing any part of this job would slow all of it",
    WhyCode.LITTLE_SLACK: (
        "nothing, if its computations are meant to be this short; a larger [limits] "
        "learning_slowdown allows more, from the job's next start on"
    ),
    WhyCode.NOTHING_TRIED: (
        "raise [learning] max_iterations and `systemctl reload perseusd`: it goes on learning"
    ),
    WhyCode.ORDER: (
        "every iteration must run the same computations in the same order, one after another, and "
        "iteration=, where it is told, count by one; report what does not recur as `other`, or not "
        "at all"
    ),
}


def fix_for(why: str, code: str | None = None) -> str:
    """What to do about a job's `why`."""
    return _FIXES.get(code or code_of(why) or "", READ_THE_LOG)
