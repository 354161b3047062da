"""`perseusctl selftest`: lock clocks of this node's GPUs, read them back, time it, put them back.

For whoever may write clocks: the step between a driver on which nothing was verified and perseusd
acting on it. It refuses while a job holds a GPU or a daemon runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from perseusd.config import Config
from perseusd.ctl.arguments import add_json
from perseusd.ctl.connection import check_listening
from perseusd.ctl.output import print_json
from perseusd.ctl.selftest.clocks import SERVICE_STATE, connected, found_service
from perseusd.ctl.selftest.measure import Measured, measure
from perseusd.ctl.selftest.report import answer, text
from perseusd.errors import DaemonUnreachableError, PerseusError, UsageError
from perseusd.exits import DONE, FAILED
from perseusd.gpus import open_gpus
from perseusd.gpus.base import Gpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu", action="append", metavar="GPU", help="a UUID or an index; may be repeated"
    )
    parser.add_argument(
        "--load",
        action="append",
        type=int,
        default=[],
        metavar="PID",
        help="a process of yours that keeps the GPU busy meanwhile; any other one is in the way",
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=10, metavar="N", help="of three locks (default: 10)"
    )
    parser.add_argument(
        "--clock-socket",
        type=Path,
        metavar="PATH",
        help="where a perseusd-clock listens (default: the node's service; else one is started)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=SERVICE_STATE,
        metavar="DIR",
        help="where one that is started notes what it may have locked (default: %(default)s)",
    )
    parser.add_argument(
        "--node-lock",
        type=Path,
        metavar="FILE",
        help="held by one that is started, so that no other one writes (default: its own)",
    )
    add_json(parser)


def main(arguments: argparse.Namespace, config: Config) -> int:
    _refuse_beside_a_daemon(config)
    node = open_gpus()
    try:
        gpus = _chosen(node.gpus, arguments.gpu)
        service = arguments.clock_socket or found_service()
        measured = _measured(gpus, service, arguments, _options(arguments, config))
    finally:
        node.close()
    through = str(service) if service is not None else "a perseusd-clock of its own"
    report = answer(measured, through)
    if arguments.json:
        print_json(report)
    else:
        print(text(report))
    return DONE if report["ok"] else FAILED


def _measured(
    gpus: Sequence[Gpu], service: Path | None, arguments: argparse.Namespace, options: Sequence[str]
) -> list[Measured]:
    allowed = {os.getpid(), *arguments.load}
    for gpu in gpus:
        _refuse_if_used(gpu, allowed)
    measured = []
    with connected(service, options) as clocks:
        clocks.greet({gpu.info.uuid for gpu in gpus})
        for gpu in gpus:
            _refuse_if_used(gpu, allowed)  # a job may have begun meanwhile
            measured.append(measure(clocks, gpu, arguments.rounds))
    return measured


def _options(arguments: argparse.Namespace, config: Config) -> list[str]:
    """Of a clock process that is started for the test."""
    options = ["--state-dir", str(arguments.state_dir)]
    options += ["--min-clock-fraction", str(config.min_clock_fraction)]
    node_lock = arguments.node_lock or config.node_lock
    options += [] if node_lock is None else ["--node-lock", str(node_lock)]
    for which, clock_mhz in (config.standing_lock_mhz or {}).items():
        options += ["--standing-lock", f"{which}={clock_mhz}"]
    return options


def _refuse_beside_a_daemon(config: Config) -> None:
    try:
        check_listening(config.status_socket)
    except DaemonUnreachableError:
        return
    raise PerseusError(
        f"perseusd runs ({config.status_socket}) and writes clocks itself; stop it for the test: "
        "systemctl stop perseusd"
    )


def _refuse_if_used(gpu: Gpu, allowed: Collection[int]) -> None:
    others = [pid for pid in gpu.process_ids() if pid not in allowed]
    if others:
        pids = ", ".join(str(pid) for pid in others)
        raise PerseusError(
            f"GPU {gpu.info.index} ({gpu.info.uuid}) is used by process {pids}, which this would "
            "slow down; wait for its end, choose other GPUs with --gpu, or name a load of your own "
            "with --load"
        )


def _chosen(gpus: Sequence[Gpu], names: Sequence[str] | None) -> list[Gpu]:
    """Those named, all where none is; UsageError for one that cannot be tested."""
    chosen = []
    for name in names or [gpu.info.uuid for gpu in gpus]:
        gpu = next((g for g in gpus if name in (g.info.uuid, str(g.info.index))), None)
        if gpu is None:
            here = ", ".join(f"{g.info.index} ({g.info.uuid})" for g in gpus)
            raise UsageError(f"--gpu {name}: not on this node, which has {here or 'none'}")
        if gpu.info.mig_enabled or not gpu.info.supported_clocks_mhz:
            why = "is divided by MIG" if gpu.info.mig_enabled else "supports no clock to lock"
            raise UsageError(
                f"GPU {gpu.info.index} ({gpu.info.uuid}) {why}, and perseusd locks none of it; "
                "choose others with --gpu"
            )
        chosen.append(gpu)
    if not chosen:
        raise UsageError("this node has no GPU that can be tested")
    return chosen


def _rounds(word: str) -> int:
    value = int(word)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{word} is not from 1 to 1000")
    return value
