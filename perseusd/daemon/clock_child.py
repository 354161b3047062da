"""A perseusd-clock of the daemon's own: how it is started, and why it may refuse to serve."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from perseusd.clock.client import ClockClient
from perseusd.config import Config
from perseusd.errors import ConfigurationError, NotPermittedError, PerseusError
from perseusd.exits import CONFIGURATION, NOT_PERMITTED


def spawn(config: Config) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Our end of the socket, and the process; in a session of its own, so that Ctrl-C is for us."""
    config.clock_state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "perseusd.clock", "--fd", str(theirs.fileno())]
    command += ["--state-dir", str(config.clock_state_dir)]
    command += ["--min-clock-fraction", str(config.min_clock_fraction)]
    command += ["--allow-mig"] if config.allow_mig else []
    if config.simulate is not None:
        command += ["--simulated", str(config.simulated_file)]
    if config.node_lock is not None:
        command += ["--node-lock", str(config.node_lock)]
    for which, clock_mhz in (config.standing_lock_mhz or {}).items():
        command += ["--standing-lock", f"{which}={clock_mhz}"]
    with theirs:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=Path("/"),
            env=_environment(),
            start_new_session=True,
        )
    return ours, process


def refusal(
    client: ClockClient, process: subprocess.Popen[bytes] | None, config: Config
) -> PerseusError | None:
    """Why a clock process that has not said hello never will, if it is known."""
    if client.busy_pid:
        return ConfigurationError(
            f"perseusd-clock at {config.clock_socket} serves another perseusd (process "
            f"{client.busy_pid}); stop that first, or run with --observe"
        )
    if client.alive or process is None:
        return None
    code = process.wait()  # it has hung up, and does nothing more than end
    told = f"perseusd-clock did not start (exit code {code}), and has said why"
    if code == CONFIGURATION:
        return ConfigurationError(told)
    return NotPermittedError(told) if code == NOT_PERMITTED else None


def _environment() -> dict[str, str]:
    """Our own, with the module path that started us: the child changes directory."""
    paths = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
    return os.environ | {"PYTHONPATH": paths} if "PYTHONPATH" in os.environ else dict(os.environ)
