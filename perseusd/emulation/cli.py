"""`perseusd demo`: its arguments, and what it says."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from rich.console import Console

from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.demo import DemoOptions, run_demo
from perseusd.emulation.picture import percent_longer
from perseusd.emulation.progress import Lines, Panels, Progress
from perseusd.emulation.report import SCHEMA_VERSION, DemoReport, Phase, job_title
from perseusd.emulation.workloads import Workload, listing, load_profile_workload, load_workload
from perseusd.errors import UsageError
from perseusd.traces.profile import COLUMNS

DEFAULT_WORKLOAD = "gpt3-175b"
DEFAULT_SECONDS = 225.0
DEFAULT_NOISE = 0.01
DEFAULT_PICTURE = Path("perseusd-demo.svg")
STRAGGLER_ITERATIONS = 15
_STRAGGLER = re.compile(r"(?P<factor>\d+(\.\d+)?)@(?P<start>\d+)(-(?P<end>\d+))?")


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--list", action="store_true", help="name the workloads and where their numbers come from")
    add("--workload", metavar="NAME", help=f"the emulated job (default {DEFAULT_WORKLOAD})")
    add("--gpu", metavar="NAME", help="the emulated GPU, where a workload is known on several")
    add(
        "--profile",
        metavar="FILE",
        type=Path,
        help=f"a job whose stages behave as measured in this CSV: {','.join(COLUMNS)} (stage from "
        "0, forward|backward, MHz, s, J); requires --blocking-power",
    )
    add(
        "--blocking-power",
        metavar="W",
        type=float,
        help="required with --profile: the power of a GPU that waits, in watts",
    )
    add("--microbatches", metavar="M", type=int, help="in one iteration (default: --list)")
    add(
        "--straggler",
        metavar="FACTOR@START[-END]",
        help="another replica, FACTOR × slower from iteration START until END "
        f"(default START + {STRAGGLER_ITERATIONS}), as an operator would announce it",
    )
    add(
        "--noise", metavar="F", type=float, default=DEFAULT_NOISE, help="sd of a computation's time"
    )
    add("--seconds", metavar="S", type=float, default=DEFAULT_SECONDS, help="at most so long")
    add("--seed", metavar="N", type=int, default=0, help="of the noise")
    add("--runtime-dir", metavar="DIR", type=Path, help="sockets and state (default: temporary)")
    add(
        "--picture",
        metavar="FILE",
        type=Path,
        help=f"the pipeline before and after, as SVG (default {DEFAULT_PICTURE}; none with --json)",
    )
    add(
        "--json", action="store_true", help="one JSON object on standard output, progress on stderr"
    )


def main_demo(given: argparse.Namespace) -> int:
    """Run what was asked for. Exit code 1 where the job was never held: nothing was shown."""
    if given.list:
        sys.stdout.write(_listed(given.json))
        return 0
    options = demo_options(given)
    stream = sys.stderr if given.json else sys.stdout
    with _ending_on_sigterm():
        report = run_demo(options, _progress(options, stream))
    if given.json:
        sys.stdout.write(json.dumps(report.to_json()) + "\n")
        if (reason := _nothing_shown(report)) is not None:
            sys.stderr.write(f"perseusd: {reason}\n")
    else:
        sys.stdout.write("\n".join(_summary(report, options)) + "\n")
    return 0 if report.saving is not None else 1


def demo_options(given: argparse.Namespace) -> DemoOptions:
    """Raises UsageError naming the argument, its value and what would do."""
    workload = _workload(given)
    for name, least in (("microbatches", 1), ("seconds", 1), ("noise", 0)):
        value = getattr(given, name)
        if value is not None and not value >= least:
            raise UsageError(f"--{name} {value}: must be at least {least}")
    if given.noise > 0.5:
        raise UsageError(f"--noise {given.noise}: a share of a computation's time, 0.01 is usual")
    return DemoOptions(
        workload=workload,
        microbatches=given.microbatches or workload.microbatches,
        straggler=None if given.straggler is None else parse_straggler(given.straggler),
        noise=given.noise,
        seconds=given.seconds,
        seed=given.seed,
        runtime_dir=given.runtime_dir,
        picture=given.picture or (None if given.json else DEFAULT_PICTURE),
        profile=given.profile,
    )


def parse_straggler(text: str) -> Straggler:
    """`FACTOR@START[-END]`; END unsaid is START + 15, so that onset and end are both seen."""
    match = _STRAGGLER.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--straggler {text}: write FACTOR@START or FACTOR@START-END, as 1.2@20-35"
        )
    factor, start = float(match["factor"]), int(match["start"])
    end = start + STRAGGLER_ITERATIONS if match["end"] is None else int(match["end"])
    if factor <= 1:
        raise UsageError(f"--straggler {text}: a straggler's factor is above 1, as in 1.2@20")
    if not 0 < start < end:
        raise UsageError(f"--straggler {text}: START must be at least 1, and END after it")
    return Straggler(factor, start, end)


def _workload(given: argparse.Namespace) -> Workload:
    if given.profile is None:
        if given.blocking_power is not None:
            raise UsageError("--blocking-power belongs to --profile: name a profile file, too")
        return load_workload(given.workload or DEFAULT_WORKLOAD, given.gpu)
    if given.workload is not None:
        raise UsageError("--workload and --profile name two jobs: give one of them")
    if given.blocking_power is None or not given.blocking_power > 0:
        raise UsageError("--profile needs --blocking-power W, the power of a GPU that waits")
    return load_profile_workload(given.profile, given.gpu, given.blocking_power, given.microbatches)


def _progress(options: DemoOptions, stream: TextIO) -> Progress:
    console, workload = Console(file=stream), options.workload
    if not console.is_terminal or console.is_dumb_terminal:  # neither can redraw a panel
        return Lines(stream)
    full_w = max(c.energy_j[-1] / c.time_s[-1] for c in workload.curves.values())
    profile = None if options.profile is None else options.profile.name
    title = job_title(workload.name, workload.gpu, workload.stages, profile)
    return Panels(console, title, full_w)


class _ending_on_sigterm:  # noqa: N801 - used as a context manager, like a function
    """SIGTERM ends the demo as Ctrl-C does: with everything stopped."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt


def _listed(as_json: bool) -> str:
    if as_json:
        rows = [_row(workload) for workload in listing()]
        return json.dumps({"schema_version": SCHEMA_VERSION, "workloads": rows}) + "\n"
    lines = ["workload          GPU        stages  microbatches  iteration", ""]
    sources: dict[str, list[str]] = {}
    for workload in listing():
        row = _row(workload)
        lines.append(
            f"{workload.name:<17} {workload.gpu:<10} {workload.stages:>6}  "
            f"{workload.microbatches:>12}  {row['iteration_time_s']:>7.2f} s"
        )
        sources.setdefault(workload.source, []).append(f"{workload.name} on {workload.gpu}")
    for source, names in sources.items():
        lines += ["", f"{', '.join(names)}:", f"  {source}"]
    return "\n".join(lines) + "\n"


def _row(workload: Workload) -> dict[str, Any]:
    return {
        "workload": workload.name,
        "gpu": workload.gpu,
        "stages": workload.stages,
        "microbatches": workload.microbatches,
        "iteration_time_s": round(workload.full_clock_time_s(), 4),
        "source": workload.source,
    }


def _summary(report: DemoReport, options: DemoOptions) -> Iterator[str]:
    yield report.title
    yield ""
    width = max(10, *(len(_row_label(phase)) for phase in report.phases), 0)
    yield f"{'state':<{width}} iterations    mean time    mean energy"
    for phase in report.phases:
        yield (
            f"{_row_label(phase):<{width}} {phase.iterations:>10}  "
            f"{phase.iteration_time_s:>9.3f} s  {phase.energy_j:>10.0f} J"
        )
    yield ""
    yield from _verdict(report)
    if options.picture is not None and report.phases:
        yield f"Picture: {options.picture}"


def _row_label(phase: Phase) -> str:
    return f"{phase.state} (straggler)" if phase.straggler else phase.state


def _nothing_shown(report: DemoReport) -> str | None:
    """Why no saving is reported; None where one is."""
    if report.saving is not None and report.slowdown is not None:
        return None
    if any(phase.state == "hold" for phase in report.phases):
        return (
            "A straggler was announced all the while the job was measured or held, so there is "
            "nothing to compare; end it (perseusctl straggler end), or give it longer with "
            "--seconds."
        )
    return (
        "The job was never held at lowered clocks in this time, so nothing was saved; "
        "give it longer with --seconds."
    )


def _verdict(report: DemoReport) -> Iterator[str]:
    if (reason := _nothing_shown(report)) is not None:
        yield reason
    if report.saving is None or report.slowdown is None:
        return
    yield (
        f"Saved {_percent(report.saving)} of the GPUs' energy by their own (emulated) counters; "
        f"iterations {percent_longer(report.slowdown).replace('%', ' %')}."
    )
    if report.bound_saving is not None:
        writes = report.bound_saving_writes
        cut = "" if writes is None else f", {_percent(writes)} with these clock changes"
        yield f"In full clocks' time no plan saves more than {_percent(report.bound_saving)}{cut};"
        if report.bound_saving_as_run is not None:
            yield f"in the time that iterations took, {_percent(report.bound_saving_as_run)}."
    if report.clock_writes_per_iteration is not None:
        yield f"Clock writes per GPU and iteration: {report.clock_writes_per_iteration:.1f}."
    if report.learning_iterations is not None and report.learning_slowdown is not None:
        longer = percent_longer(report.learning_slowdown).replace("%", " %")
        yield f"Learned in {report.learning_iterations} iterations, {longer} while exploring."
    if (straggler := report.straggler) is not None:
        yield "Straggler: " + _straggled(dataclasses.asdict(straggler))


def _straggled(facts: dict[str, Any]) -> str:
    reacted, recovered = facts["reacted_after_iterations"], facts["recovered_after_iterations"]
    words = [f"set in at iteration {facts['onset_iteration']}"]
    words.append(f"clocks followed {_after(reacted)}, and its end {_after(recovered)}")
    if facts["saving"] is not None:
        words.append(f"{_percent(facts['saving'])} saved meanwhile")
    return "; ".join(words) + "."


def _after(iterations: int | None) -> str:
    if iterations is None:
        return "not yet"
    return "at once" if iterations == 0 else f"after {iterations}"


def _percent(share: float) -> str:
    return f"{100 * share:z.1f} %"
