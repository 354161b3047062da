"""Which computations run on which rank in which order, and which of the profile's curves each has.

A profile counts the model's stages from 0. Where each rank holds several (chunks), the layout of
the schedule says which: an interleaved one deals them round, so that rank r of p holds stages
r, r + p, …; in a V-shaped one, rank 0 holds the first and the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perseusd.core.model import Curve, Kind
from perseusd.core.schedules import NAMES, Layout, Orders, by_name, read_orders, virtual_stage
from perseusd.ctl.output import counted
from perseusd.ctl.plan.arguments import Request
from perseusd.errors import PlanningError, UsageError
from perseusd.traces.profile import Key

_PIPELINED, _WHOLE = "1f1b", "data-parallel"
"""The schedules of profiles that nobody named one for: of stages, and of whole iterations."""
_LONGEST = 262_144
"""Computations of one iteration. A larger number is a mistake, and would only fill the memory."""


@dataclass(frozen=True)
class Ordered:
    """What runs where.

    name: of the schedule, or of the file that the orders came from.
    chunks: stages of the profile that each rank holds.
    """

    name: str
    orders: Orders
    layout: Layout
    chunks: int
    microbatches: int


def ordered(request: Request, profile: Mapping[Key, Curve]) -> Ordered:
    """Raises UsageError naming thing, value and fix."""
    name = request.schedule or (_WHOLE if _is_whole(profile) else _PIPELINED)
    known = name.strip().casefold().replace("_", "-")
    if known not in NAMES and _is_file(name):
        return _observed(request, Path(name))
    return _named(request, known, stages=_stages(profile))


def curves_by_kind(path: Path, profile: Mapping[Key, Curve], found: Ordered) -> dict[Kind, Curve]:
    """The profile's curve of every kind that the orders have."""
    stages, have = _stages(profile), len(found.orders) * found.chunks
    if stages != have:
        raise UsageError(
            f"{path} has {counted(stages, 'stage')}, and {found.name} {have}, with "
            f"{counted(len(found.orders), 'rank')} of {counted(found.chunks, 'chunk')}: each needs "
            "one profiled stage"
        )
    curves = {}
    for computation in (c for order in found.orders for c in order):
        if computation.kind in curves:
            continue
        stage = virtual_stage(computation, len(found.orders), found.layout)
        curve = profile.get((stage, computation.instruction))
        if curve is None:
            raise UsageError(f"{path} has {_lack(computation.instruction, profile, found.name)}")
        curves[computation.kind] = curve
    return curves


def unused(profile: Mapping[Key, Curve], found: Ordered) -> list[str]:
    """Instructions that were profiled, and that the orders do not have."""
    have = {c.instruction for order in found.orders for c in order}
    return sorted({instruction for _, instruction in profile} - have)


def _stages(profile: Mapping[Key, Curve]) -> int:
    return 1 + max(stage for stage, _ in profile)


def _is_whole(profile: Mapping[Key, Curve]) -> bool:
    return all(instruction in ("iteration", "other") for _, instruction in profile)


def _named(request: Request, name: str, stages: int) -> Ordered:
    chunks, microbatches = request.chunks or 1, request.microbatches
    if microbatches is None:
        if name != _WHOLE:
            raise UsageError(
                "--microbatches is missing: how many pass through the pipeline in one iteration?"
            )
        microbatches = 1
    if stages % chunks:
        raise UsageError(
            f"--chunks {chunks}: the profile's {stages} stages are no multiple of that; each rank "
            "holds as many of them as it has chunks"
        )
    if stages * microbatches > _LONGEST:
        raise UsageError(
            f"--microbatches {microbatches}: with {stages} stages that is more than {_LONGEST} "
            "computations in one iteration; is it meant?"
        )
    try:
        orders = by_name(name, stages // chunks, microbatches, chunks)
    except PlanningError as error:
        hint = "" if name in NAMES else " in a file"
        raise UsageError(f"--schedule {name}: {error}{hint}") from None
    return Ordered(name, orders, "looped", chunks, microbatches)


def _is_file(name: str) -> bool:
    """A schedule's name has neither folder nor suffix; what has, or exists, is meant as a file."""
    path = Path(name)
    return path.name != name or bool(path.suffix) or path.exists()


def _observed(request: Request, path: Path) -> Ordered:
    try:
        written = read_orders(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--schedule {path}: cannot be read as orders ({reason})") from None
    except PlanningError as error:
        raise UsageError(f"--schedule {path}: {error}") from None
    computations = [c for order in written.orders for c in order]
    chunks = 1 + max(c.chunk for c in computations)
    microbatches = len({c.microbatch for c in computations})
    for option, given, have in (
        ("microbatches", request.microbatches, microbatches),
        ("chunks", request.chunks, chunks),
    ):
        if given not in (None, have):
            raise UsageError(
                f"--{option} {given}: the orders in {path} have {have}; leave --{option} out"
            )
    return Ordered(path.name, written.orders, written.layout, chunks, microbatches)


def _lack(instruction: str, profile: Mapping[Key, Curve], schedule: str) -> str:
    """What is not there, and what to do, as the instructions that are there suggest."""
    there = {i for _, i in profile}
    lack = f"no {instruction}, which {schedule} needs"
    if instruction == "iteration":
        return f"{lack}: measure whole iterations, or plan a pipeline's schedule, such as 1f1b"
    if "iteration" in there:
        return f"whole iterations and {lack}: leave --schedule out, or measure it for every stage"
    if instruction in ("input_gradient", "weight_gradient") and "backward" in there:
        return (
            f"{lack}: measure backward's two halves, input_gradient and weight_gradient, or plan "
            "a schedule with a whole backward, such as 1f1b"
        )
    if instruction == "backward" and "input_gradient" in there:
        return f"{lack}: measure it as a whole, or plan a schedule that splits it, such as zb-h1"
    if instruction == "recompute":
        return f"{lack}: measure it by itself, or plan 1f1b, with recomputation inside backward"
    return f"{lack}: measure it for every stage"
