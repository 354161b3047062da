"""`perseusctl doctor`: why is my job not seen, or not slowed?

Looks along the way that a hook call takes: this shell's environment, the runtime directory, the
hooks' socket, the daemon, its clock process, its GPUs, and every job that has reported.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.connection import check_listening
from perseusd.ctl.diagnosis import diagnose
from perseusd.ctl.environment import check_environment
from perseusd.ctl.findings import Finding, Verdict, ok, problem
from perseusd.ctl.output import print_json, safe
from perseusd.ctl.status import fetch
from perseusd.errors import DaemonUnreachableError, NotPermittedError, ProtocolError
from perseusd.exits import DONE, FAILED

_MARKS = {
    Verdict.OK: ("ok     ", "green"),
    Verdict.NOTE: ("note   ", "yellow"),
    Verdict.PROBLEM: ("problem", "bold red"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    findings = list(examine(config))
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    if arguments.json:
        answer = {"ok": not problems, "findings": [finding.as_json() for finding in findings]}
        print_json(answer)
    else:
        _show(findings, problems)
    return FAILED if problems else DONE


def examine(config: Config) -> Iterator[Finding]:
    """Every check in order; what needs an answering daemon is left out where none answers."""
    yield from check_environment(os.environ)
    yield _runtime_dir(config)
    yield _hooks_socket(config)
    try:
        status = fetch(config)
    except (DaemonUnreachableError, NotPermittedError, ProtocolError) as error:
        yield _from_error("daemon", error)
        return
    yield from diagnose(status)


def _runtime_dir(config: Config) -> Finding:
    path = config.runtime_dir
    if not path.is_dir():
        return problem(
            "runtime directory",
            f"{path} does not exist",
            "start perseusd (`systemctl start perseusd`), or name the directory it was started "
            "with: --runtime-dir or PERSEUS_RUNTIME_DIR, here and for the training processes",
        )
    if not os.access(path, os.R_OK | os.X_OK):
        return problem(
            "runtime directory",
            f"{path} may not be entered by this user",
            f"run as root or as a member of the group that owns it (see `ls -ld {path}`)",
        )
    return ok("runtime directory", str(path))


def _hooks_socket(config: Config) -> Finding:
    try:
        check_listening(config.hooks_socket)
    except (DaemonUnreachableError, NotPermittedError) as error:
        return _from_error("hooks socket", error)
    return ok("hooks socket", f"{config.hooks_socket} takes connections from this user")


def _from_error(subject: str, error: Exception) -> Finding:
    """An error's message names the thing, then after the semicolon the fix."""
    text, _, fix = safe(error).partition("; ")
    return problem(subject, text, fix)


def _show(findings: list[Finding], problems: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        line = Text(mark, style=style)
        line.append(f"  {safe(finding.subject)}: {safe(finding.text)}", style="default not bold")
        console.print(line)
        if finding.fix:
            console.print(Text(f"         fix: {safe(finding.fix)}"))
    plural = "problem" if problems == 1 else "problems"
    console.print(Text(f"\n{problems} {plural}." if problems else "\nNothing is wrong."))
