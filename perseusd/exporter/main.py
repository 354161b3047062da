"""`perseusd-exporter`: ask a running perseusd, serve metrics and health until SIGTERM."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from perseusd import __version__
from perseusd.config import DEFAULT_RUNTIME_DIR, LOG_LEVELS, RUNTIME_DIR_VARIABLE, load_config
from perseusd.errors import ConfigurationError, PerseusError
from perseusd.exits import DONE, Parser, exit_code
from perseusd.exporter.server import Server
from perseusd.exporter.source import Source, asker
from perseusd.logs import set_up_logging
from perseusd.systemd import notify

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
PORT: Final = 10612
"""Prometheus's list of default ports has none left between 9100 and 9999."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; the exit code. Errors go to standard error."""
    arguments = _parser().parse_args(argv)
    try:
        config = load_config(None, {"runtime_dir": arguments.runtime_dir}, os.environ)
        set_up_logging(arguments.log_level)
        with _listen(arguments.listen, config.status_socket) as server:
            _serve(server)
        return DONE
    except PerseusError as error:
        sys.stderr.write(f"perseusd-exporter: {error}\n")
        return exit_code(error)


def _listen(listen: str, status_socket: Path) -> Server:
    host, port = address(listen)
    try:
        server = Server(host, port, Source(asker(status_socket)).snapshot)
    except OSError as error:
        taken = "is another exporter running? " if error.errno == errno.EADDRINUSE else ""
        raise ConfigurationError(
            f"--listen {listen}: {error.strerror or error}; {taken}give another address or port"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    log.info(
        "perseusd-exporter %s: http://%s:%d/metrics, of the daemon at %s",
        __version__,
        shown,
        server.server_port,
        status_socket,
    )
    return server


def _serve(server: Server) -> None:
    def stop(_number: int, _frame: object) -> None:  # from the loop's own thread it would wait
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    notify("READY=1")
    server.serve_forever(poll_interval=0.5)
    notify("STOPPING=1")


def address(listen: str) -> tuple[str, int]:
    """Of HOST:PORT, :PORT or [IPv6]:PORT. Raises ConfigurationError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ConfigurationError(
            f"--listen {listen}: give HOST:PORT, such as {HOST}:{PORT} or [::1]:{PORT}"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigurationError(f"--listen {listen}: write an IPv6 address as [{host}]:{port}")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="perseusd-exporter",
        description="Serve a running perseusd's status as Prometheus metrics, and its health.",
    )
    parser.add_argument("--version", action="version", version=f"perseusd-exporter {__version__}")
    parser.add_argument(
        "--listen",
        default=f"{HOST}:{PORT}",
        metavar="HOST:PORT",
        help="where to serve; port 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        help=f"the daemon's directory (default: ${RUNTIME_DIR_VARIABLE}, else "
        f"{DEFAULT_RUNTIME_DIR})",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="default: info")
    return parser


if __name__ == "__main__":
    sys.exit(main())
