"""`perseusctl plan` from the request to what is shown: read downward."""

from __future__ import annotations

import sys
from pathlib import Path

from perseusd.ctl.output import print_json, safe
from perseusd.ctl.plan.arguments import Request
from perseusd.ctl.plan.job import Job, job_of
from perseusd.ctl.plan.kernels import prepare
from perseusd.errors import UsageError
from perseusd.exits import DONE


def run(request: Request) -> int:
    """Plan, write the files that were asked for, and print.

    Raises UsageError for what the user can put right, PlanningError for what the planner cannot do.
    """
    job = job_of(request)
    prepare()
    return _planned(job, request)


def _planned(job: Job, request: Request) -> int:
    # Not at the head of this file: these import the planner, which `prepare` has now made ready.
    from perseusd.ctl.plan import answer, plot, solution, text
    from perseusd.ctl.plan.export import exported

    found = solution.solved(job, request)
    told = answer.answer(job, found)
    export = exported(job, found) if request.export else None
    if request.plot is not None and found.frontier is not None:
        _write("--plot", request.plot, plot.plot(job, found, found.frontier))
    if request.output is not None and export is not None:
        _write("--output", request.output, export)
    if request.json:
        print_json(told if export is None or request.output else {**told, "export": export})
        return DONE
    to_stdout = export is not None and request.output is None
    text.show(job, found, on_stderr=to_stdout)
    if export is not None and to_stdout:
        sys.stdout.write(export)
    return DONE


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {safe(path)}: cannot be written ({error.strerror})") from None
