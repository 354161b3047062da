"""The benchmark's seeded cases, and plain jobs whose slowness a test says in a function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from perseusd.core.model import Computation
from perseusd.core.stragglers import Observation

Slowness = Callable[[int, int, int], float]
"""(iteration, replica, rank) → factor."""


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """benchmarks/stragglers.py, whose generator and judgement the sample here shares."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "stragglers.py"
    spec = importlib.util.spec_from_file_location("benchmark_stragglers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Job:
    """replicas × ranks, forward and backward of each microbatch; stages of unequal length.

    noise: standard deviation of log duration per computation; lengths: of a microbatch's log
    length, alike on all ranks of a replica.
    """

    def __init__(self, replicas: int = 1, ranks: int = 4, microbatches: int = 6) -> None:
        self.replicas, self.ranks, self.microbatches = replicas, ranks, microbatches
        self.noise, self.lengths = 0.01, 0.0
        self._rng = np.random.default_rng(7)

    def iteration(
        self, number: int, replica: int, slow: Slowness = lambda *_: 1.0, **told: object
    ) -> Observation:
        length = np.exp(self._rng.normal(0, self.lengths, self.microbatches))
        computations = []
        for rank in range(self.ranks):
            factor = slow(number, replica, rank) * (1 + 0.3 * rank)
            for instruction, base in (("forward", 0.01), ("backward", 0.02)):
                for microbatch in range(self.microbatches):
                    noise = np.exp(self._rng.normal(0, self.noise))
                    seconds = base * factor * length[microbatch] * noise
                    computation = Computation(rank, 0, instruction, microbatch)
                    computations.append((computation, float(seconds)))
        return Observation(replica, number, computations, **told)  # type: ignore[arg-type]

    def run(self, numbers: range, slow: Slowness = lambda *_: 1.0) -> Iterator[Observation]:
        for number in numbers:
            for replica in range(self.replicas):
                yield self.iteration(number, replica, slow)


@pytest.fixture
def job() -> type[Job]:
    return Job
