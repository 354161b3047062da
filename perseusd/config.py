"""The one configuration: every option, its default and its range, built and checked here.

A value comes from the first of these that gives it: a flag, the environment, the file, the default.
Each field of `Config` says in its metadata in which section of the file it stands, under which key,
and what a value must be; nothing else in the project reads a file, a flag or a variable for these.
"""

from __future__ import annotations

import difflib
import os
import pwd
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from perseusd.errors import ConfigurationError

DEFAULT_RUNTIME_DIR = Path("/run/perseusd")
DEFAULT_STATE_DIR = Path("/var/lib/perseusd")
RUNTIME_DIR_VARIABLE = "PERSEUS_RUNTIME_DIR"
LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 bytes, one of them the closing zero

Check = Callable[[object], Any]


class _RefusedError(ValueError):
    """A value that an option does not take; the message says what it does take."""


def _number(low: float, high: float) -> Check:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _RefusedError(f"must be a number from {low:g} to {high:g}")
        if not low <= value <= high:  # neither NaN nor infinity gets past this
            raise _RefusedError(f"must lie between {low:g} and {high:g}")
        return float(value)

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _RefusedError(f"must be a whole number from {low} to {high}")
        if not low <= value <= high:
            raise _RefusedError(f"must lie between {low} and {high}")
        return value

    return check


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise _RefusedError("must be true or false")
    return value


def _level(value: object) -> str:
    if not isinstance(value, str) or value.lower() not in LOG_LEVELS:
        raise _RefusedError(f"must be one of {', '.join(LOG_LEVELS)}")
    return value.lower()


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise _RefusedError("must be a path")
    return Path(os.path.abspath(value))


def _group(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _RefusedError("must be the name of a group")
    return value


def _users(value: object) -> frozenset[int] | None:
    if value == "*":
        return None
    if not isinstance(value, list | tuple):
        raise _RefusedError('must be "*" or a list of user names and uids')
    return frozenset(_uid(user) for user in value)


def _uid(user: object) -> int:
    if isinstance(user, int) and not isinstance(user, bool) and user >= 0:
        return user
    if not isinstance(user, str):
        raise _RefusedError(f"must hold user names and uids, and {_shown(user)} is neither")
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise _RefusedError(f"names a user this machine does not have: {_shown(user)}") from None


def _in(section: str, check: Check, key: str | None = None) -> dict[str, object]:
    return {"section": section, "check": check, "key": key}


def _flag_only(check: Check) -> dict[str, object]:
    return {"section": None, "check": check, "key": None}


@dataclass(frozen=True)
class Config:
    """What one perseusd runs with. Build it with `load_config`, which checks it.

    allow_users: uids whose processes may hold a lease; None: anyone who can reach the socket.
    clock_socket: where a perseusd-clock already listens; None: the daemon starts its own child.
    remember: whether learned curves are kept on disk for a job's next start.
    simulate: how many simulated GPUs to run on; None: the real ones. A flag only.
    max_writes_per_s: clock writes per GPU and second that a plan may count on.
    max_node_write_share: share of the time that the GPUs of this node may spend in clock writes.
    """

    runtime_dir: Path = field(metadata=_in("daemon", _path))
    state_dir: Path = field(metadata=_in("daemon", _path))
    observe: bool = field(default=False, metadata=_in("daemon", _truth))
    log_level: str = field(default="info", metadata=_in("daemon", _level))

    slowdown_budget: float = field(default=0.005, metadata=_in("limits", _number(0, 0.5)))
    learning_slowdown: float = field(default=0.01, metadata=_in("limits", _number(0, 0.5)))
    min_clock_fraction: float = field(default=0.5, metadata=_in("limits", _number(0.1, 1)))
    max_writes_per_s: float = field(default=3.0, metadata=_in("limits", _number(0.01, 1000)))
    max_node_write_share: float = field(default=0.2, metadata=_in("limits", _number(0.001, 1)))
    silence_s: float = field(default=5.0, metadata=_in("limits", _number(0.1, 3600)))
    silence_iterations: int = field(default=2, metadata=_in("limits", _integer(1, 1000)))
    events_per_s: int = field(default=20_000, metadata=_in("limits", _integer(1, 10_000_000)))
    max_clients: int = field(default=1024, metadata=_in("limits", _integer(1, 1_000_000)))

    baseline_iterations: int = field(default=5, metadata=_in("learning", _integer(2, 10_000)))
    max_iterations: int = field(default=11, metadata=_in("learning", _integer(1, 10_000)))
    remember: bool = field(default=True, metadata=_in("learning", _truth))

    clock_socket: Path | None = field(default=None, metadata=_in("clock", _path, "socket"))
    heartbeat_s: float = field(default=0.2, metadata=_in("clock", _number(0.02, 1)))

    sampler_interval_s: float = field(
        default=0.02, metadata=_in("sampler", _number(0.002, 1), "interval_s")
    )

    allow_users: frozenset[int] | None = field(default=None, metadata=_in("access", _users))
    admin_group: str = field(default="perseusd", metadata=_in("access", _group))

    simulate: int | None = field(default=None, metadata=_flag_only(_integer(1, 1024)))

    @property
    def hooks_socket(self) -> Path:
        return self.runtime_dir / "hooks.sock"

    @property
    def status_socket(self) -> Path:
        return self.runtime_dir / "status.sock"

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    @property
    def record_socket(self) -> Path:
        return self.runtime_dir / "record.sock"

    @property
    def lock_file(self) -> Path:
        return self.runtime_dir / "perseusd.lock"

    @property
    def simulated_file(self) -> Path:
        return self.runtime_dir / "simulated-gpus"

    @property
    def curves_dir(self) -> Path:
        """Where learned curves are kept."""
        return self.state_dir / "curves"

    @property
    def clock_state_dir(self) -> Path:
        """Where a perseusd-clock that the daemon starts itself keeps its intent."""
        return self.state_dir / "clock"

    def allows(self, uid: int) -> bool:
        """Whether a process of this user may hold a lease."""
        return self.allow_users is None or uid in self.allow_users


def load_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> Config:
    """The configuration from a file, flags and environment, checked.

    overrides: by field name; None means that the flag was not given.
    Raises ConfigurationError naming where the value stands, the value and the fix.
    """
    values = {} if file is None else _from_file(file)
    placed = _from_environment(environ) | _from_overrides(overrides)
    if "runtime_dir" in placed:  # who moves the daemon with a flag moves its state with it
        values.setdefault("state_dir", placed["runtime_dir"] / "state")
    values |= placed
    values.setdefault("runtime_dir", DEFAULT_RUNTIME_DIR)
    values.setdefault("state_dir", DEFAULT_STATE_DIR)
    config = Config(**values)
    _check_socket_paths(config)
    return config


def _from_file(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, keys in _read_toml(file).items():
        known = _section(section)
        if not known:
            raise ConfigurationError(f"{file}: {_unknown_section(section, keys)}")
        if not isinstance(keys, dict):
            raise ConfigurationError(
                f"{file}: {section} = {_shown(keys)}: {section} is a section; write [{section}] "
                "on a line of its own and its keys below it"
            )
        for key, value in keys.items():
            if key not in known:
                raise ConfigurationError(f"{file}: {_unknown_key(section, key, value)}")
            option = known[key]
            values[option.name] = _checked(option, value, f"{file}: [{section}] {key}")
    return values


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{file}: no such file; create it, or leave --config away to run on the defaults"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error.strerror}); make it a file that this user may read"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise ConfigurationError(
            f"{file}: not TOML: {error}; write [section] lines and key = value lines"
        ) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    runtime_dir = environ.get(RUNTIME_DIR_VARIABLE)
    if not runtime_dir:
        return {}
    option = _options()["runtime_dir"]
    return {"runtime_dir": _checked(option, runtime_dir, f"environment {RUNTIME_DIR_VARIABLE}")}


def _from_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = _options()
    for name, value in overrides.items():
        if value is None:
            continue
        flag = "--" + name.replace("_", "-")
        if name not in known:
            raise ConfigurationError(f"{flag} {value}: unknown option{_nearest(name, known)}")
        values[name] = _checked(known[name], value, flag)
    return values


def _options() -> dict[str, Field[Any]]:
    return {option.name: option for option in fields(Config)}


def _section(section: str) -> dict[str, Field[Any]]:
    """The options of one section of the file, by key; empty for a section nobody knows."""
    return {
        option.metadata["key"] or option.name: option
        for option in fields(Config)
        if option.metadata["section"] == section
    }


def _sections() -> list[str]:
    named = (option.metadata["section"] for option in fields(Config))
    return list(dict.fromkeys(section for section in named if section))


def _checked(option: Field[Any], value: object, where: str) -> Any:
    try:
        return option.metadata["check"](value)
    except _RefusedError as refusal:
        raise ConfigurationError(f"{where} = {_shown(value)}: {refusal}") from None


def _shown(value: object) -> str:
    """A value as its file would write it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print a huge one
        return f"a number of {value.bit_length()} bits"
    text = f'"{value}"' if isinstance(value, str | Path) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _unknown_section(section: str, value: object) -> str:
    homes = [home for home in _sections() if section in _section(home)]
    if homes and not isinstance(value, dict):
        fix = f"{section} stands in no section; move it below [{homes[0]}]"
        return f"{section} = {_shown(value)}: {fix}"
    return f"[{section}]: unknown section{_nearest(section, _sections())}"


def _unknown_key(section: str, key: str, value: object) -> str:
    at = f"[{section}] {key} = {_shown(value)}"
    homes = [home for home in _sections() if key in _section(home)]
    if homes:
        return f"{at}: {key} belongs in [{homes[0]}]; move it there"
    if key in _options() and _options()[key].metadata["section"] is None:
        return f"{at}: {key} is a flag only; remove it here and pass --{key}"
    return f"{at}: unknown key{_nearest(key, _section(section))}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(sorted(names))}"


def _check_socket_paths(config: Config) -> None:
    named = (config.hooks_socket, config.status_socket, config.control_socket, config.clock_socket)
    for path in named:
        if path is None:
            continue
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"{path}: {length} bytes, and a Unix socket's path holds at most "
                f"{MAX_SOCKET_PATH_BYTES}; choose a shorter directory "
                f"(--runtime-dir, {RUNTIME_DIR_VARIABLE} or [clock] socket)"
            )
