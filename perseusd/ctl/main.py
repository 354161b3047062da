"""`perseusctl`: ask a running perseusd, tell it things, plan offline. One file or folder each."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perseusd import __version__
from perseusd.config import load_config, runtime_environment
from perseusd.ctl import (
    analyze,
    completion,
    config,
    doctor,
    memory,
    pause,
    plan,
    record,
    release,
    resume,
    selftest,
    status,
    straggler,
    verify,
)
from perseusd.ctl.arguments import RUNTIME_DIR_HELP, add_runtime_dir
from perseusd.ctl.output import print_json
from perseusd.errors import PerseusError
from perseusd.exits import DONE, INTERRUPTED, Parser, exit_code

_COMMANDS = {
    "status": (status, "what every GPU and job is doing, and what it saves"),
    "doctor": (doctor, "why is my job not seen, or not slowed?"),
    "plan": (plan, "the plan for a profiled job, offline: clocks, saving, bound, frontier"),
    "analyze": (analyze, "who was slow in a recorded run, since when, and where its time went"),
    "record": (record, "what the daemon is told, in a file: for analyze, or to send with a report"),
    "straggler": (straggler, "list who is slow; announce a slow replica of a job, or its end"),
    "pause": (pause, "every clock full and the driver let go of, so that a GPU can be reset"),
    "resume": (resume, "end a pause, or let a released job or GPU be slowed again"),
    "release": (release, "put one job or GPU to full clock, and leave it there until resumed"),
    "verify": (verify, "is every GPU's clock what perseusd has written? Exits with 1 if not"),
    "memory": (memory, "the learned curves that are kept on disk: list them, forget them"),
    "selftest": (selftest, "lock clocks of real GPUs, read them back, time it, put them back"),
    "config": (config, "check the configuration, or show what is in force"),
    "completion": (completion, "a script for bash, zsh or fish to complete these words with"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without a character shows "?" instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    try:
        flags = {"runtime_dir": arguments.runtime_dir}
        found = load_config(None, flags, runtime_environment(os.environ))
        code: int = arguments.main(arguments, found)
        sys.stdout.flush()
        return code
    except PerseusError as error:
        return _fail(error, as_json=getattr(arguments, "json", False))
    except KeyboardInterrupt:
        if getattr(arguments, "json", False):
            print_json({"error": "interrupted", "exit_code": INTERRUPTED})
        return DONE if getattr(arguments, "watch", False) else INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _fail(error: PerseusError, *, as_json: bool) -> int:
    code = exit_code(error)
    if as_json:
        print_json({"error": str(error), "exit_code": code})
    print(f"perseusctl: {error}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = Parser(prog="perseusctl", description="Ask a running perseusd, or plan offline.")
    made.add_argument("--version", action="version", version=f"perseusctl {__version__}")
    made.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        help=RUNTIME_DIR_HELP,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, purpose) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:]
        )
        add_runtime_dir(command)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return made
