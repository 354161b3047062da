"""What a snapshot of learned curves may say at all, before anything is computed with it.

A file may have been written by another version, by hand, or by a disk that fails in ways a checksum
does not see. Numbers far out of range would not only be wrong, they would overflow.
"""

from __future__ import annotations

from collections.abc import Mapping

DEEPEST = 6
MOST_ITEMS = 4096
LONGEST_TEXT = 256

HOUR_S = 3600.0

RANGES: Mapping[str, tuple[float, float]] = {
    "version": (0, 1e6),
    "rank": (0, 65535),
    "chunk": (0, 65535),
    "top_s": (1e-7, HOUR_S),
    "time_bend": (0.01, 10.0),
    "power_bend": (0.01, 10.0),
    "reach": (1.0, 10.0),
    "time": (-0.5, 2.5),  # logarithms of ratios, as far as clocks of half the highest could need
    "time_error": (0.0, 1.0),
    "power": (-3.0, 1.0),
    "power_error": (0.0, 1.0),
    "clocks": (0.0, 1e6),
    "powers": (0.0, 1e6),
    "blocking": (0.0, 1e6),
    "sensing": (-10.0, 10.0),
}
"""By key, between what every number below it lies."""

ANY = (-1e12, 1e12)
"""Of a number below none of these keys."""


def implausible(snapshot: object) -> str | None:
    """In words, what it holds that no snapshot does; None where nothing is."""
    return _wrong(snapshot, "it", ANY, 0)


def _wrong(value: object, name: str, limits: tuple[float, float], depth: int) -> str | None:
    if depth > DEEPEST:
        return f"{name} is nested too deeply"
    if isinstance(value, Mapping):
        return _wrong_within(value, name, limits, depth)
    if isinstance(value, list):
        if len(value) > MOST_ITEMS:
            return f"{name} has {len(value)} items"
        found = (_wrong(item, name, limits, depth + 1) for item in value)
        return next(filter(None, found), None)
    if isinstance(value, str):
        return f"{name} is a text of {len(value)} signs" if len(value) > LONGEST_TEXT else None
    if value is None:
        return None
    return _wrong_number(value, name, limits)


def _wrong_within(
    value: Mapping[object, object], name: str, limits: tuple[float, float], depth: int
) -> str | None:
    if len(value) > MOST_ITEMS:
        return f"{name} has {len(value)} items"
    for key, item in value.items():
        if not isinstance(key, str):
            return f"{name} has a key that is no text"
        inner = RANGES.get(key, limits)
        if (wrong := _wrong(item, key[:LONGEST_TEXT], inner, depth + 1)) is not None:
            return wrong
    return None


def _wrong_number(value: object, name: str, limits: tuple[float, float]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} holds a {type(value).__name__}"
    low, high = limits
    if low <= value <= high:  # as it is: an integer may be too large to become a float
        return None
    return f"{name} does not lie between {low:g} and {high:g}"
