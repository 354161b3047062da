"""Simulated nodes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, SimulatedNode, SimulatedSpec, create_node

Maker = Callable[..., SimulatedNode]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Maker]:
    """Creates nodes of A100s, quick to write unless told otherwise, and closes them."""
    nodes: list[SimulatedNode] = []

    def make(count: int = 1, **changes: object) -> SimulatedNode:
        spec: SimulatedSpec = replace(SPECS["a100-sxm"], **{"write_latency_s": 0.0, **changes})
        nodes.append(create_node(tmp_path / f"node{len(nodes)}", spec, count))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def curve() -> WorkCurve:
    """20 ms at the highest A100 clock, time inverse to the clock, power from 100 to 300 W."""
    clocks = SPECS["a100-sxm"].supported_clocks_mhz
    times = tuple(0.02 * clocks[-1] / clock for clock in clocks)
    powers = (100 + 200 * clock / clocks[-1] for clock in clocks)
    return WorkCurve(times, tuple(t * p for t, p in zip(times, powers, strict=True)))
