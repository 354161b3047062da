"""The one configuration: every option read from its sources, checked, and put together here.

What options there are stands in `config_options`, what their values may be in `config_kinds`, and
the sources in `config_sources`; nothing else in the project reads a file, a flag or a variable for
these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from perseusd.config_kinds import LOG_LEVELS as LOG_LEVELS
from perseusd.config_kinds import shown
from perseusd.config_options import DEFAULT_RUNTIME_DIR as DEFAULT_RUNTIME_DIR
from perseusd.config_options import DEFAULTS as DEFAULTS
from perseusd.config_options import OPTIONS as OPTIONS
from perseusd.config_options import Config as Config
from perseusd.config_sources import (
    DEFAULT,
    Found,
    Option,
    Origin,
    Problem,
    problem_with,
)
from perseusd.config_sources import RUNTIME_DIR_VARIABLE as RUNTIME_DIR_VARIABLE
from perseusd.errors import ConfigurationError

DEFAULT_FILE = Path("/etc/perseusd/perseusd.toml")
"""Where perseusd.service has its file; `perseusd run` without --config reads none."""

MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 bytes, one of them the closing zero


@dataclass(frozen=True)
class Sources:
    """What a configuration is read from, now and at a reload.

    overrides: flags, by field; None: not given.
    """

    file: Path | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


class Reading(NamedTuple):
    """What came of it. config: None where there is any problem; then `problems` has all of them.

    origins: where the value of each field comes from.
    """

    config: Config | None
    origins: Mapping[str, Origin]
    problems: tuple[Problem, ...]


def read_config(sources: Sources) -> Reading:
    """Read all sources, and tell of every problem; raises nothing."""
    found = Found(OPTIONS)
    if sources.file is not None:
        found.files(sources.file)
    found.environment(sources.environ)
    found.flags(sources.overrides)
    moved = found.origins.get("runtime_dir", DEFAULT)
    if moved.kind in ("environment", "flag") and "state_dir" not in found.values:
        # Who moves the daemon by variable or flag moves its state with it.
        found.values["state_dir"] = found.values["runtime_dir"] / "state"
        found.origins["state_dir"] = moved
    if found.problems:
        return Reading(None, found.origins, tuple(found.problems))
    config = Config(**{**DEFAULTS, **found.values})
    origins = {name: found.origins.get(name, DEFAULT) for name in OPTIONS}
    problems = (*_too_long(config, origins), *_misplaced(config, origins))
    return Reading(None if problems else config, origins, problems)


def load_config(
    file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]
) -> Config:
    """The configuration from a file, flags and environment, checked.

    Raises ConfigurationError with every problem: where the value stands, the value and the fix.
    """
    reading = read_config(Sources(file, overrides, environ))
    if reading.config is None:
        raise ConfigurationError(told(reading.problems))
    return reading.config


def told(problems: tuple[Problem, ...]) -> str:
    """One problem on its line; several below each other."""
    if len(problems) == 1:
        return str(problems[0])
    return "\n  ".join([f"{len(problems)} problems:", *map(str, problems)])


def runtime_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What perseusctl reads of the environment: the rest of it is the daemon's."""
    names = (RUNTIME_DIR_VARIABLE, OPTIONS["runtime_dir"].variable)
    return {name: text for name, text in environ.items() if name in names}


def with_live(old: Config, new: Config) -> Config:
    """The old configuration with the new values of what a reload may change."""
    live = {o.name: getattr(new, o.name) for o in OPTIONS.values() if o.live}
    return replace(old, **live)


def differing(old: Config, new: Config) -> list[Option]:
    """Options whose values differ, in their order."""
    return [o for o in OPTIONS.values() if getattr(old, o.name) != getattr(new, o.name)]


def described(config: Config, origins: Mapping[str, Origin]) -> list[dict[str, Any]]:
    """Every option for JSON, with its value as TOML has it, None where unset, and its origin."""
    return [
        {
            "section": option.section,
            "key": option.key,
            "value": option.kind.plain(getattr(config, option.name)),
            "origin": origins[option.name]._asdict(),
            "live": option.live,
        }
        for option in OPTIONS.values()
    ]


def _misplaced(config: Config, origins: Mapping[str, Origin]) -> Iterator[Problem]:
    """A perseusd-clock that runs by itself has options of its own, and tells the daemon of them."""
    if config.clock_socket is not None and config.standing_lock_mhz is not None:
        yield problem_with(
            OPTIONS["standing_lock_mhz"],
            origins["standing_lock_mhz"],
            shown(config.standing_lock_mhz),
            "not beside [clock] socket; give --standing-lock to that perseusd-clock, in "
            "CLOCK_OPTIONS in /etc/perseusd/clock.env",
        )


def _too_long(config: Config, origins: Mapping[str, Origin]) -> Iterator[Problem]:
    of_runtime_dir = (config.hooks_socket, config.status_socket, config.control_socket)
    longest = max(of_runtime_dir, key=lambda path: len(os.fsencode(path)))
    for name, path in (("runtime_dir", longest), ("clock_socket", config.clock_socket)):
        length = 0 if path is None else len(os.fsencode(path))
        if length > MAX_SOCKET_PATH_BYTES:
            yield problem_with(
                OPTIONS[name],
                origins[name],
                shown(getattr(config, name)),
                f"{path}: {length} bytes, and a Unix socket's path holds at most "
                f"{MAX_SOCKET_PATH_BYTES}; choose a shorter directory "
                f"(--runtime-dir, {RUNTIME_DIR_VARIABLE} or [clock] socket)",
            )
