"""The nouns of the planning problem: computations, pipelines, curves, plans.

All are frozen values. Times are seconds, energies joules, powers watts, clocks MHz.

A *rank* is one training process of one pipeline (one replica); it runs its computations one after
another in a fixed order that recurs every iteration. A *kind* is what has one curve: the same
instruction of the same chunk on the same rank, whatever the microbatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(NamedTuple):
    """What shares one curve over the clock."""

    rank: int
    chunk: int
    instruction: str


class Computation(NamedTuple):
    """One instruction of one chunk of one rank for one microbatch."""

    rank: int
    chunk: int
    instruction: str
    microbatch: int

    @property
    def kind(self) -> Kind:
        return Kind(self.rank, self.chunk, self.instruction)


class Edge(NamedTuple):
    """`after` may start `lag_s` (communication) after `before` has ended."""

    before: Computation
    after: Computation
    lag_s: float


@dataclass(frozen=True)
class Pipeline:
    """One replica's iteration: each rank's order, and the dependencies between ranks.

    orders: per rank, its computations in execution order.
    edges: dependencies between computations of different positions; the order on a rank is
        implied and not repeated here.
    """

    orders: tuple[tuple[Computation, ...], ...]
    edges: tuple[Edge, ...]

    @property
    def ranks(self) -> int:
        return len(self.orders)


@dataclass(frozen=True)
class Curve:
    """Time and energy of one kind of computation at clocks that exist, ascending in clock."""

    clock_mhz: tuple[int, ...]
    time_s: tuple[float, ...]
    energy_j: tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """The deadline problem: least energy for one iteration that ends by the deadline.

    The deadline is `deadline_ratio` times the expected makespan with every computation at its
    highest clock. Energy counts every computation's energy plus blocking power for the time a
    rank waits until the deadline.

    noise: relative standard deviation of one computation's duration; the plan keeps its deadline
        on average over such noise, not only without it.
    confidence: what is compared instead of the average: the iteration time that this share of
        iterations keeps, for the plan and for full clock alike (None: the average).
    max_writes: the most clock writes one rank may make per iteration (None: unlimited); a rank's
        iteration is cyclic, so going back to its first clock counts as a write, and so does
        returning to full clock at the iteration's end where `full_clock_at_end`.
    write_latency_s: how long one clock write of one GPU takes. A rank whose clock changes asks for
        it when the computation before has ended, and runs at the old clock until all its GPUs have
        the new one; the GPUs of a node are written to one after another.
    gpus_per_rank: GPUs of one rank, a tensor-parallel group: they share one clock. Curves and
        blocking power are those of one of them.
    gpus_per_node: GPUs that share a driver; ranks fill nodes in order.
    """

    pipeline: Pipeline
    curves: Mapping[Kind, Curve]
    blocking_power_w: Sequence[float]
    deadline_ratio: float = 1.0
    noise: float = 0.0
    max_writes: int | None = None
    full_clock_at_end: bool = True
    confidence: float | None = None
    write_latency_s: float = 0.0
    gpus_per_rank: int = 1
    gpus_per_node: int = 1
    time_budget_s: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A clock for every computation. `clocks[rank][position]` is MHz; None means full clock."""

    clocks: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True)
class PlanResult:
    """A plan with what it is expected to do.

    baseline_*: every computation at its highest clock, energy until that iteration's own end.
    energy_lower_bound_j: no plan with a free clock change at every computation can use less, by
        the deadline, without noise.
    energy_lower_bound_writes_j: the same for plans of at most `max_writes` clock writes per rank.
    saving: 1 − energy_j / baseline energy waited until max(deadline, baseline end).
    clock_writes: the most that one rank makes per iteration.
    margin_s: what noise adds to the expected makespan beyond the noise-free one.
    """

    plan: Plan
    deadline_s: float
    iteration_time_s: float
    energy_j: float
    energy_lower_bound_j: float
    energy_lower_bound_writes_j: float
    baseline_time_s: float
    baseline_energy_j: float
    saving: float
    clock_writes: int
    margin_s: float
    solve_time_s: float
    warnings: tuple[str, ...] = field(default=())
