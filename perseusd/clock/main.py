"""`perseusd-clock`: arguments to one run of the clock process."""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from perseusd.clock.desks import Desks
from perseusd.clock.guard import Limits
from perseusd.clock.holding import Holding
from perseusd.clock.intent import IntentFile, boot_id
from perseusd.clock.nodelock import DEFAULT, VARIABLE, NodeLock
from perseusd.clock.server import ClockServer, Timeouts
from perseusd.errors import ConfigurationError, NotPermittedError, PerseusError, UsageError
from perseusd.gpus import open_gpus
from perseusd.gpus.base import GpuPermissionError
from perseusd.gpus.standing import ANY
from perseusd.systemd import notify

_PREDECESSOR_S = Timeouts.restore_s + 1
"""How long the clock process of a daemon that has just died may hold up its successor's."""

_EXIT_CODES: tuple[tuple[type[PerseusError], int], ...] = (
    (UsageError, 2),
    (NotPermittedError, 77),
    (GpuPermissionError, 77),
    (ConfigurationError, 78),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 all clocks back, 1 not all, 2 usage, 77 not permitted, 78 configuration."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which stops this
    try:
        return _run(options)
    except PerseusError as error:
        _log(str(error))
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def _run(options: argparse.Namespace) -> int:
    state = _state_directory(options.state_dir)
    if options.reset and _nothing_noted(_intent(state, options)):
        return 0
    _become_the_only_one(state, options)
    intent = _intent(state, options)  # not before: a predecessor may have noted more until its end
    if options.reset and _nothing_noted(intent):
        return 0
    limits = Limits(options.min_clock_fraction, options.allow_mig)
    desks = Desks((), intent, limits, _log, dict(options.standing_lock))
    try:
        holding = Holding(lambda wait_s: open_gpus(options.simulated, wait_s), desks, _log)
    except PerseusError:
        desks.report_left()
        raise
    timeouts = Timeouts(heartbeat_s=options.heartbeat_timeout)
    server = ClockServer(desks, timeouts, _log, holding)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopper(server))
    restored = _serve(server, options)
    holding.close()
    return 0 if restored else 1


def _intent(state: Path, options: argparse.Namespace) -> IntentFile:
    """As it is on disk now. Simulated GPUs keep their locks in a file, which outlives a boot."""
    boot = None if options.simulated is not None else boot_id()
    return IntentFile(state / "clock-intent.json", boot)


def _nothing_noted(intent: IntentFile) -> bool:
    """Whether nothing was locked, so that the driver may be left alone."""
    return intent.damage is None and not intent.uuids


def _become_the_only_one(state: Path, options: argparse.Namespace) -> None:
    """Until this process ends: of those that write these clocks, and the file that notes them."""
    lock = options.node_lock if options.simulated is None else state / "clock.lock"
    NodeLock(lock, _PREDECESSOR_S)


def _serve(server: ClockServer, options: argparse.Namespace) -> bool:
    if options.reset:
        return server.restore()
    if options.fd is not None:
        return server.serve(_inherited(options.fd))
    uid = _uid_of(options.allow_user)
    with _listener(options.socket, uid) as listener:
        notify("READY=1")
        try:
            return server.listen(listener, {0, uid})
        finally:
            options.socket.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perseusd-clock",
        allow_abbrev=False,
        description="The only process of perseusd that writes GPU clocks. It puts them back when "
        "the daemon dies, hangs or stops.",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--fd", type=int, help="serve the SOCK_SEQPACKET socket inherited as this fd")
    way.add_argument("--socket", type=Path, help="listen here for the daemon")
    way.add_argument("--reset", action="store_true", help="reset what may be locked, and exit")
    parser.add_argument(
        "--allow-user",
        "--allow-uid",
        default=str(os.getuid()),
        metavar="USER",
        help="name or uid of the user whose daemon may connect, besides root (default: this user)",
    )
    parser.add_argument(
        "--state-dir", type=Path, required=True, help="where to note which GPUs may be locked"
    )
    parser.add_argument("--simulated", type=Path, help="use the simulated GPUs of this file")
    parser.add_argument(
        "--min-clock-fraction",
        type=_fraction,
        default=Limits.min_clock_fraction,
        help="never lock below this part of a GPU's highest clock (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-mig",
        action="store_true",
        help="lock GPUs that MIG divides, too: all their parts get that clock",
    )
    parser.add_argument(
        "--standing-lock",
        type=_standing_lock,
        action="append",
        default=[],
        metavar="[UUID=|MODEL=]MHZ",
        help="the site's own lock of all GPUs, one GPU or a model, which is put back instead of "
        "none; may be given more than once",
    )
    parser.add_argument(
        "--node-lock",
        type=Path,
        default=Path(os.environ.get(VARIABLE) or DEFAULT),
        metavar="FILE",
        help="held, so that no other perseusd-clock writes this node's clocks; not with "
        f"--simulated (default: ${VARIABLE}, else {DEFAULT})",
    )
    parser.add_argument(
        "--heartbeat-timeout",
        type=_seconds,
        default=Timeouts.heartbeat_s,
        help="put clocks back when the daemon is silent for so many seconds (default: %(default)s)",
    )
    return parser


def _standing_lock(text: str) -> tuple[str, int]:
    which, _, clock_mhz = text.rpartition("=")
    if not clock_mhz.isdigit() or not 0 < int(clock_mhz) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is not MHz, nor UUID=MHZ or MODEL=MHZ")
    return which or ANY, int(clock_mhz)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 60 seconds")
    return value


def _state_directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        raise NotPermittedError(f"--state-dir {path}: {error.strerror}") from error
    except OSError as error:
        raise ConfigurationError(
            f"--state-dir {path}: {error.strerror}; name a directory that can be written"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise NotPermittedError(f"--state-dir {path}: this user cannot write there")
    return path


def _uid_of(user: str) -> int:
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigurationError(f"--allow-user {user}: there is no such user") from None


def _inherited(descriptor: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"--fd {descriptor}: {error.strerror}; it must be a socket") from error
    if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_SEQPACKET:
        inherited.detach()
        raise UsageError(f"--fd {descriptor}: not an AF_UNIX SOCK_SEQPACKET socket")
    return inherited


def _listener(path: Path, uid: int) -> socket.socket:
    """Listening at `path`, for this user alone or for it and its group (the daemon's)."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177 if uid == os.getuid() else 0o117)
    try:
        listener.bind(str(path))
        listener.listen(8)
    except OSError as error:
        listener.close()
        kind = NotPermittedError if isinstance(error, PermissionError) else ConfigurationError
        raise kind(f"--socket {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: Path) -> None:
    """A socket that a killed clock process left goes; one that answers does not."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigurationError(f"--socket {path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise ConfigurationError(
        f"--socket {path}: another perseusd-clock answers there; stop it first"
    )


def _stopper(server: ClockServer) -> Callable[[int, object], None]:
    def stop(number: int, _frame: object) -> None:
        server.stop(signal.Signals(number).name)

    return stop


def _log(text: str) -> None:
    """One line to standard error, which systemd and the daemon keep."""
    sys.stderr.write(f"perseusd-clock: {text}\n")
    sys.stderr.flush()
