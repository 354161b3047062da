"""`perseusd run | demo`: arguments to a Config to the service.

The only place beside perseusctl that prints, exits and sets log handlers. What a command needs is
imported when that command runs, so that `perseusd --version` stays quick.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perseusd import __version__
from perseusd.config import (
    DEFAULT_RUNTIME_DIR,
    LOG_LEVELS,
    RUNTIME_DIR_VARIABLE,
    Sources,
    read_config,
    told,
)
from perseusd.errors import ConfigurationError, PerseusError
from perseusd.exits import INTERRUPTED, Parser, exit_code

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by NumPy's linear algebra when it is first imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without a character shows "?" instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(words).parse_args(words)
    try:
        code: int = arguments.main(arguments)
        return code
    except PerseusError as error:
        return _fail(error, as_json=getattr(arguments, "json", False))
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: PerseusError, *, as_json: bool) -> int:
    code = exit_code(error)
    if as_json:
        print(json.dumps({"schema_version": 1, "error": str(error), "exit_code": code}))
    print(f"perseusd: {error}", file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace) -> int:
    sources = _sources(arguments)
    reading = read_config(sources)
    if reading.config is None:
        raise ConfigurationError(told(reading.problems))
    from perseusd.logs import set_up_logging

    set_up_logging(reading.config.log_level)
    faulthandler.enable()  # a watchdog's SIGABRT leaves in the log where the loop was
    # The loop's small fits are slower on many threads, which would also take the training's cores.
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    from perseusd.daemon.service import run

    return run(reading.config, sources, reading.origins)


def _sources(arguments: argparse.Namespace) -> Sources:
    overrides = {
        "runtime_dir": arguments.runtime_dir,
        "simulate": arguments.simulate,
        "observe": arguments.observe or None,  # the flag can switch it on, never off
        "log_level": arguments.log_level,
    }
    file = None if arguments.config is None else arguments.config.absolute()
    return Sources(file, overrides, dict(os.environ))


def _demo(arguments: argparse.Namespace) -> int:
    from perseusd.emulation.cli import main_demo
    from perseusd.logs import set_up_logging

    set_up_logging("warning")
    return main_demo(arguments)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="perseusd",
        description="Less energy for the same training time: slows what is not on a training "
        "job's critical path.",
    )
    parser.add_argument("--version", action="version", version=f"perseusd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the daemon and its clock process"))
    demo = commands.add_parser("demo", help="a whole training job on emulated GPUs, closed loop")
    demo.set_defaults(main=_demo)
    if "demo" in words:  # its arguments name workloads, which costs an import of their tables
        from perseusd.emulation.cli import add_demo_arguments

        add_demo_arguments(demo)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=_run)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file (default: none)")
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        help="all sockets and state under DIR, so that anyone can run a daemon of their own "
        f"(default: ${RUNTIME_DIR_VARIABLE}, else {DEFAULT_RUNTIME_DIR})",
    )
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="run on N simulated GPUs instead of real ones"
    )
    parser.add_argument(
        "--observe", action="store_true", help="observe-only: measure, and never write a clock"
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="default: info")
