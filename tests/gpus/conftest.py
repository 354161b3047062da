"""Simulated nodes, and real NVML calls on them, for the tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nvml_build
import pytest
from nvml_faults import Fault, set_faults

from perseusd.gpus.physics import WorkCurve
from perseusd.gpus.simulated import SPECS, SimulatedNode, SimulatedSpec, create_node

Maker = Callable[..., SimulatedNode]
Run = Callable[..., Any]

_PRELUDE = """
import json, os
from perseusd.errors import GpuError
from perseusd.gpus import open_gpus
def error(function, *arguments):
    try:
        function(*arguments)
    except GpuError as error:
        return [type(error).__name__, str(error)]
"""


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


@pytest.fixture
def node(make_node: Callable[..., SimulatedNode]) -> SimulatedNode:
    """Two A100s, written at once."""
    return make_node(2, settle_s=0.0)


@pytest.fixture
def environment(nvml_library: Path, node: SimulatedNode) -> dict[str, str]:
    return os.environ | nvml_build.environment(nvml_library, node.path)


@pytest.fixture
def run(environment: dict[str, str], node: SimulatedNode) -> Run:
    """Runs a program that assigns `answer`, in a process of its own; the answer."""

    def run_program(program: str, *faults: Fault | tuple[str, int, int]) -> Any:
        set_faults(node.path, *faults)
        text = _PRELUDE + textwrap.dedent(program) + "\nprint(json.dumps(answer))"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", text],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_program
