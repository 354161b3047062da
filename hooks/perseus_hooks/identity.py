"""Who this process is: its job, rank, place in the pipeline and GPUs.

What `configure` is told comes first, then PERSEUS_* variables, then what an adapter found out of
the framework, then what the launcher set. A wrong argument raises ValueError; a wrong variable is
reported and passed over, since no training may stop over it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable, NamedTuple

from perseus_hooks.events import TIME_SOURCES, Hello
from perseus_hooks.launchers import job_of, launcher_of
from perseus_hooks.wire import MAX_COUNT, MAX_GPUS, MAX_STRING_BYTES, PLACES

DEFAULT_RUNTIME_DIR = "/run/perseusd"
_COUNTS = ("stages", "replicas", "world_size")
_NAMED = ("stage", "stages", "replica", "replicas", "rank", "schedule", "job", "time_source")
_OFF = frozenset(("0", "false", "no", "off"))

Complain = Callable[[str], None]


class Arguments(NamedTuple):
    """What `configure` was told. None: not told."""

    stage: int | None = None
    stages: int | None = None
    replica: int | None = None
    replicas: int | None = None
    schedule: str | None = None
    gpus: Any = None
    job: str | None = None
    rank: int | None = None
    slowdown_budget: float | None = None
    time_source: str | None = None


class Found(NamedTuple):
    """What an adapter found out of its framework. None: it does not say.

    device: the CUDA device that it computes on, as the process counts them.
    """

    job: str | None = None
    rank: int | None = None
    world_size: int | None = None
    local_rank: int | None = None
    stage: int | None = None
    stages: int | None = None
    replica: int | None = None
    replicas: int | None = None
    schedule: str | None = None
    device: int | None = None
    time_source: str | None = None


def identify(
    arguments: Arguments,
    environ: Mapping[str, str],
    complain: Complain,
    found: Found | None = None,
) -> Hello:
    """The hello of this process. Raises ValueError for a wrong argument, and only for that."""
    _check(arguments)
    found = _credible(found or Found(), complain)
    variables = _Variables(environ, complain)
    launcher = launcher_of(environ)
    rank, world_size, local_rank = 0, None, None
    if launcher is not None:
        rank = variables.count(*launcher.rank) or 0
        world_size = variables.count(*launcher.world_size) or None
        local_rank = variables.count(*launcher.local_rank)
    world_size = _first(found.world_size, world_size)
    local_rank = _first(found.local_rank, local_rank)
    hello = Hello(
        job=_first(arguments.job, variables.text("PERSEUS_JOB"), found.job)
        or _printable(job_of(environ, launcher)),
        rank=_first(arguments.rank, variables.count("PERSEUS_RANK"), found.rank, rank),
        world_size=world_size,
        local_rank=local_rank,
        stage=_first(arguments.stage, variables.count("PERSEUS_STAGE"), found.stage),
        stages=_first(arguments.stages, variables.count("PERSEUS_STAGES"), found.stages),
        replica=_first(arguments.replica, variables.count("PERSEUS_REPLICA"), found.replica),
        replicas=_first(arguments.replicas, variables.count("PERSEUS_REPLICAS"), found.replicas),
        schedule=_first(arguments.schedule, variables.text("PERSEUS_SCHEDULE"), found.schedule),
        gpus=_gpus(arguments.gpus, environ, _first(found.device, local_rank)),
        time_source=_stamps(_first(arguments.time_source, found.time_source)),
        uses_cuda=uses_cuda(),
        slowdown_budget=arguments.slowdown_budget,
        hostname=_printable(os.uname().nodename) or "unknown",
    )
    return _with_possible_places(hello, arguments, complain)


def device_times(arguments: Arguments, found: Found) -> bool:
    """Whether stamps are to be the device's where they can be."""
    return _first(arguments.time_source, found.time_source) in (None, "cuda_event")


def _stamps(told: str | None) -> str:
    """Whose stamps there are until a client has those of the device."""
    return "host" if told in (None, "cuda_event") else told


def is_enabled(environ: Mapping[str, str]) -> bool:
    """False where PERSEUS_ENABLED says so."""
    return environ.get("PERSEUS_ENABLED", "").strip().lower() not in _OFF


def runtime_dir_of(environ: Mapping[str, str]) -> str:
    """The folder of the daemon's sockets."""
    return environ.get("PERSEUS_RUNTIME_DIR") or DEFAULT_RUNTIME_DIR


def uses_cuda() -> bool:
    """Whether a framework of this process has CUDA running. Imports nothing and never raises."""
    try:
        torch_cuda = sys.modules.get("torch.cuda")
        if torch_cuda is not None and torch_cuda.is_initialized():
            return True
        # JAX has no public way to ask without starting a backend.
        bridge = sys.modules.get("jax._src.xla_bridge")
        return bool({"cuda", "gpu"} & set(getattr(bridge, "_backends", ())))
    except Exception:  # noqa: BLE001  a half-imported framework can raise anything
        return False


class _Variables:
    """Environment variables as values; a wrong one is reported and counts as unset."""

    def __init__(self, environ: Mapping[str, str], complain: Complain) -> None:
        self._environ = environ
        self._complain = complain

    def count(self, *names: str) -> int | None:
        for name in names:
            text = self._environ.get(name, "").strip()
            if _is_index(text) and int(text) < MAX_COUNT:
                return int(text)
            if text:
                self._complain(
                    f"{name} is {ascii(text)[:60]} and is passed over: "
                    f"set an integer from 0 to {MAX_COUNT - 1}"
                )
        return None

    def text(self, name: str) -> str | None:
        return _printable(self._environ.get(name, "")) or None


def _with_possible_places(hello: Hello, arguments: Arguments, complain: Complain) -> Hello:
    """The hello without places that cannot be, such as stage 8 of 8; ValueError where told so."""
    for place, places in PLACES:
        number, count = getattr(hello, place), getattr(hello, places)
        if number is None or count is None or number < count:
            continue
        if getattr(arguments, place, None) is not None:
            _wrong(place, number, f"less than {places}, which is {count} (count from 0)")
        complain(f"{place} is {number} of {count} {places}, which cannot be: {places} passed over")
        unknown: dict[str, Any] = {places: None}
        hello = replace(hello, **unknown)
    return hello


def _gpus(told: Any, environ: Mapping[str, str], device: int | None) -> tuple[str, ...]:
    """The GPUs of this process as told, else its device: its launcher's local rank, if unsaid."""
    if told is not None:
        return tuple(_gpu(str(entry), "index") for entry in _listed(told))
    if "PERSEUS_GPUS" in environ:
        return tuple(_gpu(entry, "index") for entry in _entries(environ["PERSEUS_GPUS"]))
    prefix = "index" if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" else "cuda-index"
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return () if device is None else (f"{prefix}:{device}",)
    entries = _visible(visible)
    if len(entries) > 1:
        # Several, and which is not known: the daemon sees better which of them this process opens.
        entries = [] if device is None else entries[device : device + 1]
    return tuple(_gpu(entry, prefix) for entry in entries)


def _gpu(entry: str, prefix: str) -> str:
    return f"{prefix}:{int(entry)}" if _is_index(entry) else entry


def _listed(gpus: Any) -> Any:
    return [gpus] if isinstance(gpus, (str, int)) else gpus


def _entries(text: str) -> list[str]:
    entries = (_printable(entry) for entry in text.split(","))
    return [entry for entry in entries if entry][:MAX_GPUS]


def _visible(text: str) -> list[str]:
    """The entries that CUDA takes: those before the first that is neither index nor UUID."""
    entries: list[str] = []
    for entry in _entries(text):
        if not _is_index(entry) and not entry.startswith(("GPU-", "MIG-")):
            break
        entries.append(entry)
    return entries


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _printable(text: str) -> str:
    """As much of a variable's text as the wire takes."""
    kept = "".join(character for character in text.strip() if character.isprintable())
    return kept.encode()[:MAX_STRING_BYTES].decode(errors="ignore").strip()


def _check(arguments: Arguments) -> None:
    """Raise ValueError naming the first argument that is wrong, its value and the fix."""
    for name in _NAMED:
        value = getattr(arguments, name)
        if value is not None and (wanted := _wanted(name, value)):
            _wrong(name, value, wanted)
    budget = arguments.slowdown_budget
    if budget is not None and not (type(budget) in (int, float) and 0 <= budget <= 1):
        _wrong("slowdown_budget", budget, "a fraction from 0 to 1 (0.05 allows 5 % longer)")
    _check_gpus(arguments.gpus)


def _credible(found: Found, complain: Complain) -> Found:
    """What a framework says, without what cannot be."""
    for name, value in found._asdict().items():
        if value is not None and (wanted := _wanted(name, value)):
            complain(
                f"the framework says that {name} is {ascii(value)[:60]}, which is not {wanted}"
            )
            found = found._replace(**{name: None})
    return found


def _wanted(name: str, value: Any) -> str | None:
    """What a value of this name has to be; None where it is."""
    if name in ("schedule", "job"):
        return None if _is_name(value) else f"printable text of 1 to {MAX_STRING_BYTES} bytes"
    if name == "time_source":
        return None if value in TIME_SOURCES else f"one of {', '.join(TIME_SOURCES)}"
    lowest = 1 if name in _COUNTS else 0
    fits = type(value) is int and lowest <= value < MAX_COUNT
    return None if fits else f"an integer from {lowest} to {MAX_COUNT - 1}"


def _check_gpus(gpus: Any) -> None:
    if gpus is None:
        return
    entries = _listed(gpus)
    if not isinstance(entries, Sequence) or len(entries) > MAX_GPUS:
        _wrong("gpus", gpus, f"a list of at most {MAX_GPUS} UUIDs or indices")
    for entry in entries:
        if not (type(entry) is int and 0 <= entry < MAX_COUNT) and not _is_name(entry):
            _wrong("gpus", gpus, "UUIDs such as 'GPU-…', or indices in PCI bus order")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and _printable(value) == value


def _wrong(name: str, value: Any, wanted: str) -> None:
    raise ValueError(f"configure: {name} is {ascii(value)[:60]}: pass {wanted}")
