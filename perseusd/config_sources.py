"""Where values of options come from, and what is wrong with them.

Sources in their order, the later before the earlier: defaults, a TOML file, the files of `conf.d`
beside it by name, the environment, flags. Nothing here knows which options there are: `config` says
that, and builds what the rest of the project is given.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from perseusd.config_kinds import Kind, RefusedError, shown

RUNTIME_DIR_VARIABLE = "PERSEUS_RUNTIME_DIR"
"""Read by hooks and perseusctl, too."""

PREFIX = "PERSEUSD_"
"""Of every variable: PERSEUSD_SECTION_KEY."""

DROP_INS = "conf.d"

INJECTED = re.compile(
    r"PERSEUSD_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
INJECTED_PORT = re.compile(r"PERSEUSD_(\w+_)?PORT=(tcp|udp|sctp)://.*")
"""Kubernetes sets these for a service whose name begins with perseusd; nobody wrote them for us."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that nobody knows."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(sorted(names))}"


class Option(NamedTuple):
    """One option. section: None is a flag only. live: a reload may change it."""

    name: str
    section: str | None
    key: str
    kind: Kind
    about: str
    live: bool

    @property
    def variable(self) -> str | None:
        return f"{PREFIX}{self.section}_{self.key}".upper() if self.section else None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def title(self) -> str:
        """As its file has it."""
        return f"[{self.section}] {self.key}" if self.section else self.flag


class Origin(NamedTuple):
    """kind: default, file, environment or flag. name: which file, variable or flag."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return {"environment": f"environment {self.name}"}.get(self.kind, self.name or self.kind)


DEFAULT = Origin("default")


class Problem(NamedTuple):
    """What is wrong, and what to write instead.

    source: the file, or "environment" or "flags". key, value: as they stand there; a problem with
    the whole source has neither.
    """

    source: str
    key: str | None
    value: str | None
    text: str

    def as_json(self) -> dict[str, object]:
        return {"source": self.source, "key": self.key, "value": self.value, "problem": self.text}

    def __str__(self) -> str:
        at = self.key if self.value is None else f"{self.key} = {self.value}"
        source = {"flags": "", "environment": "environment "}.get(self.source, f"{self.source}: ")
        return f"{source}{self.text}" if self.key is None else f"{source}{at}: {self.text}"


@dataclass
class Found:
    """What all sources gave so far, by option; and every problem, in order."""

    options: Mapping[str, Option]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def files(self, file: Path) -> None:
        """A file, and then those of the directory `conf.d` beside it."""
        self._file(file)
        try:
            for drop_in in drop_ins(file):
                self._file(drop_in)
        except OSError as error:
            self._wrong(str(file.parent / DROP_INS), f"cannot be read ({error.strerror})")

    def environment(self, environ: Mapping[str, str]) -> None:
        by_variable = {o.variable: o for o in self.options.values() if o.variable}
        known = {RUNTIME_DIR_VARIABLE: self.options["runtime_dir"], **by_variable}
        given = {n: text for n, text in environ.items() if n in known or n.startswith(PREFIX)}
        self._two_directories(given, str(self.options["runtime_dir"].variable))
        for name, text in sorted(given.items()):
            if INJECTED.fullmatch(name) or INJECTED_PORT.fullmatch(f"{name}={text}"):
                continue
            if name not in known:
                told = f"unknown variable{nearest(name, known)}"
                self._wrong("environment", told, name, shown(text))
            elif text:  # an empty one is one that is not set
                option = known[name]
                self._take(option, option.kind.parse(text), Origin("environment", name))

    def flags(self, overrides: Mapping[str, object]) -> None:
        """By option; None: not given."""
        for name, value in overrides.items():
            if value is None:
                continue
            if name in self.options:
                option = self.options[name]
                self._take(option, value, Origin("flag", option.flag))
            else:
                flag = "--" + name.replace("_", "-")
                told = f"unknown option{nearest(name, self.options)}"
                self._wrong("flags", told, flag, shown(value))

    def _two_directories(self, given: Mapping[str, str], ours: str) -> None:
        """Hooks and perseusctl would look for the daemon in the one that it is not in."""
        two = given.get(ours), given.get(RUNTIME_DIR_VARIABLE)
        if all(two) and two[0] != two[1]:
            told = f"{RUNTIME_DIR_VARIABLE} says {shown(two[1])}; set {RUNTIME_DIR_VARIABLE} alone"
            self._wrong("environment", told, ours, shown(two[0]))

    def _take(self, option: Option, value: object, origin: Origin) -> None:
        try:
            self.values[option.name] = option.kind.check(value)
            self.origins[option.name] = origin
        except RefusedError as refusal:
            self.problems.append(problem_with(option, origin, shown(value), str(refusal)))

    def _wrong(
        self, source: str, text: str, key: str | None = None, value: str | None = None
    ) -> None:
        self.problems.append(Problem(source, key, value, text))

    # --- files ------------------------------------------------------------------------------------

    def _file(self, file: Path) -> None:
        try:
            found = _toml(file)
        except RefusedError as refusal:
            self._wrong(str(file), str(refusal))
            return
        for section, keys in found.items():
            known = section_options(self.options, section)
            if not known:
                self._unknown_section(file, section, keys)
            elif not isinstance(keys, dict):
                told = (
                    f"{section} is a section; write [{section}] on a line of its own and its keys "
                    "below it"
                )
                self._wrong(str(file), told, section, shown(keys))
            else:
                for key, value in keys.items():
                    if key in known:
                        self._take(known[key], value, Origin("file", str(file)))
                    else:
                        told = self._unknown_key(section, key)
                        self._wrong(str(file), told, f"[{section}] {key}", shown(value))

    def _unknown_section(self, file: Path, section: str, value: object) -> None:
        homes = self._homes(section)
        if homes and not isinstance(value, dict):
            told = f"{section} stands in no section; move it below [{homes[0]}]"
            self._wrong(str(file), told, section, shown(value))
        else:
            told = f"unknown section{nearest(section, sections(self.options))}"
            self._wrong(str(file), told, f"[{section}]")

    def _unknown_key(self, section: str, key: str) -> str:
        if homes := self._homes(key):
            return f"{key} belongs in [{homes[0]}]; move it there"
        if key in self.options and self.options[key].section is None:
            return f"{key} is a flag only; remove it here and pass --{key}"
        return f"unknown key{nearest(key, section_options(self.options, section))}"

    def _homes(self, key: str) -> list[str]:
        return [s for s in sections(self.options) if key in section_options(self.options, s)]


def sections(options: Mapping[str, Option]) -> list[str]:
    """The file's sections, in their order."""
    return list(dict.fromkeys(o.section for o in options.values() if o.section))


def section_options(options: Mapping[str, Option], section: str) -> dict[str, Option]:
    """By key; empty for a section nobody knows."""
    return {o.key: o for o in options.values() if o.section == section}


def drop_ins(file: Path) -> Iterator[Path]:
    """The files of `conf.d` beside a file, by name; hidden ones are an editor's. Raises OSError."""
    try:
        names = sorted(os.listdir(file.parent / DROP_INS))
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(".toml") and not name.startswith("."):
            yield file.parent / DROP_INS / name


def problem_with(option: Option, origin: Origin, value: str, text: str) -> Problem:
    """With a value that an option was given there."""
    match origin.kind:
        case "file":
            return Problem(origin.name, option.title, value, text)
        case "environment":
            return Problem("environment", origin.name, value, text)
    return Problem("flags", origin.name, value, text)


def _toml(file: Path) -> dict[str, Any]:
    """Raises RefusedError for a file that is none."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        told = "no such file; create it, or leave --config away to run on the defaults"
    except OSError as error:
        told = f"cannot be read ({error.strerror}); make it a file that this user may read"
    except UnicodeDecodeError as error:
        told = f"byte {error.start} is not UTF-8; save the file as UTF-8"
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        told = f"not TOML: {error}; write [section] lines and key = value lines"
    raise RefusedError(told)
