"""Doctor's look at the environment that it was called in, as the hooks would read it."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping

from perseusd.ctl.findings import Finding, note, ok, problem
from perseusd.ctl.output import safe

SUBJECT = "environment"

VARIABLES = (
    "PERSEUS_ENABLED",
    "PERSEUS_GPUS",
    "PERSEUS_JOB",
    "PERSEUS_RANK",
    "PERSEUS_REPLICA",
    "PERSEUS_REPLICAS",
    "PERSEUS_RUNTIME_DIR",
    "PERSEUS_SCHEDULE",
    "PERSEUS_STAGE",
    "PERSEUS_STAGES",
)


def check_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What is set here; a training process may have been started with something else."""
    named = {name: value for name, value in sorted(environ.items()) if name.startswith("PERSEUS_")}
    shown = ", ".join(f"{name}={safe(value)}" for name, value in named.items())
    yield ok(SUBJECT, shown or "no PERSEUS_ variable is set")
    for name in named:
        if name not in VARIABLES:
            yield _unknown(name)
    if importlib.util.find_spec("perseus_hooks") is None:
        yield problem(
            SUBJECT,
            f"perseus_hooks cannot be imported by {sys.executable}",
            "install perseus-hooks into the training's own Python environment",
        )
        return
    yield from _as_hooks_read_it(environ)


def _as_hooks_read_it(environ: Mapping[str, str]) -> Iterator[Finding]:
    from perseus_hooks.identity import Arguments, identify, is_enabled

    yield ok(
        SUBJECT,
        f"perseus_hooks can be imported by {sys.executable}; a training that uses another Python "
        "needs it there",
    )
    if not is_enabled(environ):
        yield problem(
            SUBJECT,
            f"PERSEUS_ENABLED={safe(environ['PERSEUS_ENABLED'])} switches the hooks off",
            "unset it where the training is started",
        )
    complaints: list[str] = []
    identify(Arguments(), environ, complaints.append)
    for complaint in complaints:
        yield problem(SUBJECT, complaint, "correct it where the training is started")


def _unknown(name: str) -> Finding:
    near = difflib.get_close_matches(name, VARIABLES, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(VARIABLES)}"
    return note(SUBJECT, f"{safe(name)} is read by nobody", fix)
