"""Metrics of each GPU. Every series of one has the same labels, so that they join by `uuid`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from perseusd.exporter.metric import Labelled, Metric, Read, counter, each_state, gauge, plain
from perseusd.exporter.snapshot import Snapshot

GPU: Final = ("uuid", "index", "model")
HERTZ: Final = 1_000_000

Gpu = Mapping[str, Any]


def _each(read: Callable[[Gpu], Any]) -> Read:
    """One value for each GPU."""

    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        return [(_labels(gpu), read(gpu)) for gpu in _gpus(snapshot)]

    return samples


def _several(read: Callable[[Gpu], Mapping[str, Any]]) -> Read:
    """For each GPU one value for each key, the key as one more label."""

    def samples(snapshot: Snapshot) -> Iterable[Labelled]:
        return [
            ((*_labels(gpu), plain(key)), value)
            for gpu in _gpus(snapshot)
            for key, value in read(gpu).items()
        ]

    return samples


def _gpus(snapshot: Snapshot) -> list[Gpu]:
    return [] if snapshot.status is None else list(snapshot.status["gpus"])


def _labels(gpu: Gpu) -> tuple[str, ...]:
    return plain(gpu["uuid"]), plain(gpu["index"]), plain(gpu["name"])


def _hertz(mhz: float | None) -> float | None:
    return None if mhz is None else mhz * HERTZ


GPUS: tuple[Metric, ...] = (
    gauge(
        "perseusd_gpu_state",
        "1 for the GPU's state: ok; foreign, set by another tool; stuck in a driver call; "
        "lost, until it is reset; failed.",
        _several(lambda g: each_state(g["state"], ("ok", "foreign", "stuck", "lost", "failed"))),
        *GPU,
        "state",
    ),
    gauge(
        "perseusd_gpu_held",
        "1 if a job holds it.",
        _each(lambda g: int(g["holder"] is not None)),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_clock_hertz",
        "SM clock as read.",
        _each(lambda g: _hertz(g["clock_mhz"])),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_requested_clock_hertz",
        "SM clock that was asked for; absent while it is not locked, so at full clock.",
        _each(lambda g: _hertz(g["requested_mhz"])),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_locked",
        "1 while the daemon asks for a locked clock.",
        _each(lambda g: int(g["requested_mhz"] is not None)),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_standing_clock_hertz",
        "The site's own lock, which clocks are put back to; absent without one.",
        _each(lambda g: _hertz(g["standing_mhz"])),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_agrees",
        "1 if its clock is what was written, by readings under load, else 0; absent: not known.",
        _each(lambda g: None if g["agrees"] is None else int(g["agrees"])),
        *GPU,
    ),
    gauge(
        "perseusd_gpu_follows_request",
        "While its clock is locked, 1 for how it runs: as asked (yes), above it, or below it.",
        _several(lambda g: each_state(g["follows_request"], ("yes", "above", "below"))),
        *GPU,
        "follows",
    ),
    gauge(
        "perseusd_gpu_withheld",
        "1, with the reason, while its clock stays full whatever the plans say.",
        _several(lambda g: {g["withheld_code"]: 1} if g["withheld_code"] else {}),
        *GPU,
        "code",
    ),
    gauge(
        "perseusd_gpu_clock_reason",
        "1 for each reason for which it runs below its highest clock; absent: it does not hold.",
        _several(lambda g: dict.fromkeys(g["reasons"], 1)),
        *GPU,
        "reason",
    ),
    gauge("perseusd_gpu_power_watts", "Power as read.", _each(lambda g: g["power_w"]), *GPU),
    counter(
        "perseusd_gpu_energy_joules_total",
        "The GPU's own energy counter, since its driver was loaded.",
        _each(lambda g: g["energy_j"]),
        *GPU,
    ),
    counter(
        "perseusd_gpu_readings_total",
        "Readings of the energy counter.",
        _each(lambda g: g["readings"]),
        *GPU,
    ),
    counter(
        "perseusd_gpu_readings_failed_total",
        "Readings that the driver refused.",
        _each(lambda g: g["readings_failed"]),
        *GPU,
    ),
    counter(
        "perseusd_gpu_clock_writes_total",
        "Clock writes that the driver was asked for, and did.",
        _each(lambda g: g["clock_writes"]),
        *GPU,
    ),
    counter(
        "perseusd_gpu_clock_writes_failed_total",
        "Requests for clock writes that were neither done nor replaced by a newer one.",
        _each(lambda g: g["clock_writes_failed"]),
        *GPU,
    ),
)
