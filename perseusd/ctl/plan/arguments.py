"""The command line of `perseusctl plan`, and the checks that need nothing but its words."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from perseusd.ctl.arguments import add_json
from perseusd.errors import UsageError
from perseusd.traces.profile import COLUMNS

DEFAULT_TIME_BUDGET_S = 2.0
UNLIMITED, AUTO = "unlimited", "auto"
EXPORTS = ("zeus",)
SCHEDULES = ("1f1b", "gpipe", "early-recompute-1f1b", "zb-h1", "interleaved-1f1b", "data-parallel")
"""What core.schedules has names for, said here so that a command line is parsed without numpy."""
_COUNTS = ("microbatches", "chunks", "tensor_parallel", "gpus_per_node")


@dataclass(frozen=True)
class Request:
    """What was asked for, each value by itself in range.

    schedule: a name or a file; None: whatever the profile's instructions call for.
    microbatches: None where the schedule is to say.
    blocking_power_w: one value for all ranks, or one each.
    deadline_s, deadline_ratio: one of them is given.
    clock_writes: a number, "unlimited" or "auto".
    """

    profile: Path
    schedule: str | None
    microbatches: int | None
    chunks: int | None
    blocking_power_w: tuple[float, ...]
    deadline_s: float | None
    deadline_ratio: float | None
    clock_writes: int | str
    write_latency_s: float
    gpus_per_node: int
    tensor_parallel: int
    noise: float
    confidence: float | None
    communication_s: float
    time_budget_s: float
    frontier: bool
    plot: Path | None
    export: str | None
    output: Path | None
    json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The least energy for one iteration by a deadline: a clock for every computation, and a "
        "proven bound beside it. Works offline, from a profile file; no daemon, no GPU."
    )
    _add_job(parser.add_argument_group("the job"))
    _add_goal(parser.add_argument_group("what to plan for"))
    _add_clock_writes(parser.add_argument_group("clock writes"))
    _add_results(parser.add_argument_group("what to show"))


def _add_job(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--profile",
        metavar="FILE",
        type=Path,
        required=True,
        help=f"CSV with the columns {','.join(COLUMNS)} (stage from 0, MHz, s, J)",
    )
    add(
        "--schedule",
        metavar="NAME|FILE",
        help=f"the order on each rank: {', '.join(SCHEDULES)}, or a file with the orders as "
        "observed (default: 1f1b; data-parallel where the profile has whole iterations)",
    )
    add("--microbatches", metavar="M", help="in one iteration")
    add("--chunks", metavar="C", help="stages of the profile that each rank holds (interleaved)")
    add(
        "--blocking-power",
        metavar="W[,W…]",
        required=True,
        help="power of a GPU that waits: for all, or one for each rank, with commas",
    )
    add(
        "--communication",
        metavar="S",
        default="0",
        help="from one rank's computation to another's that needs it, in seconds (default 0)",
    )
    add(
        "--tensor-parallel",
        metavar="G",
        default="1",
        help="GPUs of each rank, which share one clock (default 1)",
    )


def _add_goal(group: argparse._ArgumentGroup) -> None:
    deadline = group.add_mutually_exclusive_group(required=True)
    deadline.add_argument("--deadline", metavar="S", help="of one iteration, in seconds")
    deadline.add_argument(
        "--deadline-ratio", metavar="R", help="the same, in iterations at full clock: 1 or more"
    )
    add = group.add_argument
    add(
        "--noise",
        metavar="F",
        default="0",
        help="relative standard deviation of a computation's time, such as 0.01: plan with the "
        "margin that this takes (default 0)",
    )
    add(
        "--confidence",
        metavar="C",
        help="with --noise: the share of iterations that keep the deadline, such as 0.95 "
        "(default: the average iteration keeps it)",
    )
    add(
        "--time-budget",
        metavar="S",
        default=str(DEFAULT_TIME_BUDGET_S),
        help="stop searching after so many seconds, with the best so far "
        f"(default {DEFAULT_TIME_BUDGET_S:g})",
    )


def _add_clock_writes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--clock-writes",
        metavar="N|unlimited|auto",
        default=UNLIMITED,
        help="the most that one GPU may make in one iteration; auto: as many as pay, net of their "
        "latency (default unlimited)",
    )
    add(
        "--write-latency",
        metavar="S",
        default="0",
        help="of one clock write, in seconds; the old clock stays until then (default 0)",
    )
    add(
        "--gpus-per-node",
        metavar="G",
        default="1",
        help="GPUs whose writes wait for each other (default 1)",
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--frontier",
        action="store_true",
        help="also the least energy at every iteration time, from the shortest to the cheapest",
    )
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="write an SVG of the frontier and of the pipeline before and after",
    )
    add(
        "--export",
        choices=EXPORTS,
        help="the plan in another tool's format: in --output, else on standard output",
    )
    add("--output", metavar="FILE", type=Path, help="where --export writes: a .py file for Zeus")
    add_json(group)


def requested(given: argparse.Namespace) -> Request:
    """Raises UsageError naming the argument, its value and what would do."""
    counts = {name: _count(name, getattr(given, name)) for name in _COUNTS}
    request = Request(
        profile=given.profile,
        schedule=given.schedule,
        microbatches=counts["microbatches"],
        chunks=counts["chunks"],
        blocking_power_w=_powers(given.blocking_power),
        deadline_s=_optional("--deadline", given.deadline, above=0.0),
        deadline_ratio=_optional("--deadline-ratio", given.deadline_ratio, above=0.0),
        clock_writes=_clock_writes(given.clock_writes),
        write_latency_s=_number("--write-latency", given.write_latency, least=0.0),
        gpus_per_node=counts["gpus_per_node"] or 1,
        tensor_parallel=counts["tensor_parallel"] or 1,
        noise=_number("--noise", given.noise, least=0.0),
        confidence=_optional("--confidence", given.confidence, above=0.0),
        communication_s=_number("--communication", given.communication, least=0.0),
        time_budget_s=_number("--time-budget", given.time_budget, above=0.0),
        frontier=given.frontier,
        plot=given.plot,
        export=given.export,
        output=given.output,
        json=given.json,
    )
    _check_together(request)
    return request


def _check_together(request: Request) -> None:
    if request.noise > 0.5:
        raise UsageError(
            f"--noise {request.noise:g}: a share of a computation's time, at most 0.5; "
            "0.01 is usual"
        )
    if request.confidence is not None and request.noise == 0:
        raise UsageError("--confidence says something of noise only: give --noise, such as 0.01")
    if request.confidence is not None and not 0.5 <= request.confidence < 1:
        raise UsageError(
            f"--confidence {request.confidence:g}: a share of iterations, from 0.5 to below 1, "
            "such as 0.95"
        )
    if request.export is None and request.output is not None:
        raise UsageError(f"--output {request.output} is where --export writes: give --export zeus")
    if request.output is not None and request.output.suffix != ".py":
        raise UsageError(
            f"--output {request.output}: Zeus reads a plan from a file named *.py only"
        )
    if request.plot is not None and request.plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot {request.plot}: what is drawn is SVG; name the file *.svg")
    for option, path in (("--plot", request.plot), ("--output", request.output)):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")


def _powers(text: str) -> tuple[float, ...]:
    return tuple(_number("--blocking-power", part, least=0.0) for part in text.split(","))


def _clock_writes(text: str) -> int | str:
    if text in (UNLIMITED, AUTO):
        return text
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f"--clock-writes {text}: give a whole number, 0 or more, or {UNLIMITED} or {AUTO}"
        )
    return int(text)


def _count(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--{name.replace('_', '-')} {text}: must be a whole number, 1 or more")
    return int(text)


def _optional(option: str, text: str | None, *, above: float) -> float | None:
    return None if text is None else _number(option, text, above=above)


def _number(option: str, text: str, *, least: float = -math.inf, above: float = -math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{option} {text}: is not a number") from None
    if not math.isfinite(value):
        raise UsageError(f"{option} {text}: must be finite")
    if value < least:
        raise UsageError(f"{option} {text}: must be {least:g} or more")
    if value <= above:
        raise UsageError(f"{option} {text}: must be above {above:g}")
    return value
