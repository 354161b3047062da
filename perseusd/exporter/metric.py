"""What a metric is: its name, type, unit, labels and help, and how its values are read.

The tables of metrics are made of these, and docs/metrics.md is generated from the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perseusd.exporter.snapshot import Snapshot

Status = Mapping[str, Any]
Labelled = tuple[tuple[str, ...], Any]
"""Values of the labels, and the metric's: a number, a histogram, or None where it is not known."""

Read = Callable[[Snapshot], Iterable[Labelled]]
Kind = Literal["gauge", "counter", "histogram"]

UNITS = ("seconds", "joules", "watts", "hertz", "bytes", "ratio")


@dataclass(frozen=True)
class Metric:
    """One metric. A counter's name ends in `_total`; before that stands the unit, where it has one.

    read: raises KeyError, TypeError or ValueError where the daemon's status does not have it.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    read: Read

    @property
    def unit(self) -> str:
        """The base unit that the name ends in; empty where it counts things."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if stem.endswith("_" + unit)), "")


def gauge(name: str, help_text: str, read: Read, *labels: str) -> Metric:
    return Metric(name, "gauge", labels, help_text, read)


def counter(name: str, help_text: str, read: Read, *labels: str) -> Metric:
    return Metric(name, "counter", labels, help_text, read)


def histogram(name: str, help_text: str, read: Read) -> Metric:
    return Metric(name, "histogram", (), help_text, read)


def one(read: Callable[[Status], Any]) -> Read:
    """A metric without labels, from the status object; nothing while there is none."""

    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        return () if snapshot.status is None else (((), read(snapshot.status)),)

    return samples


def many(read: Callable[[Status], Mapping[str, Any]]) -> Read:
    """One value for each key of a part of the status object, the key as the label."""

    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        if snapshot.status is None:
            return ()
        return [((plain(key),), value) for key, value in read(snapshot.status).items()]

    return samples


def each_state(state: str | None, states: Iterable[str]) -> dict[str, int]:
    """1 for the state that holds and 0 for the others; no state at all where it is not known."""
    return {} if state is None else {name: int(name == state) for name in states}


LONGEST_LABEL = 128


def plain(text: object) -> str:
    """As a label's value: not too long, and UTF-8, whatever a user called his job."""
    return str(text)[:LONGEST_LABEL].encode("utf-8", "replace").decode()
