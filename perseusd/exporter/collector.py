"""The table of metrics, filled from a snapshot, as prometheus_client wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from perseusd.exporter.definitions import METRICS
from perseusd.exporter.metric import Metric
from perseusd.exporter.snapshot import Snapshot

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily

log = logging.getLogger(__name__)


class StatusCollector(Collector):
    """Asks for a snapshot at each scrape. What this daemon's status does not have is left out."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], metrics: Iterable[Metric] = METRICS
    ) -> None:
        self._snapshot = snapshot
        self._metrics = tuple(metrics)
        self._missing: set[str] = set()
        """Named in the log already."""

    def collect(self) -> Iterator[Family]:
        snapshot = self._snapshot()
        for metric in self._metrics:
            try:
                family = _family(metric, snapshot)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._tell(metric, error)
                continue
            if family.samples:
                yield family

    def _tell(self, metric: Metric, error: Exception) -> None:
        if metric.name not in self._missing:
            self._missing.add(metric.name)
            log.warning(
                "%s is left out: the daemon's status does not have it (%s: %s); are daemon and "
                "exporter of one release?",
                metric.name,
                type(error).__name__,
                error,
            )


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """Ours alone: nothing of this process, whose cost the unit's accounting tells."""
    made = CollectorRegistry(auto_describe=False)
    made.register(StatusCollector(snapshot))
    return made


def _family(metric: Metric, snapshot: Snapshot) -> Family:
    family = _MAKE[metric.kind](
        metric.name.removesuffix("_total"), metric.help, labels=metric.labels, unit=metric.unit
    )
    for labels, value in metric.read(snapshot):
        if value is not None:
            _add(family, labels, value)
    return family


_MAKE: Mapping[str, Callable[..., Family]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _add(family: Family, labels: tuple[str, ...], value: Any) -> None:
    if isinstance(family, HistogramMetricFamily):
        buckets = [(f"{bound:g}", count) for bound, count in value["buckets"]]
        buckets.append(("+Inf", value["count"]))
        family.add_metric(labels, buckets, value["sum"])
    else:
        family.add_metric(labels, float(value))
