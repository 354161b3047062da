"""What an emulated node and the job on it are like."""

from __future__ import annotations

from dataclasses import dataclass

from perseusd.emulation.coordinator import Straggler
from perseusd.emulation.fasttime.disturbances import Disturbance


@dataclass(frozen=True)
class Slow:
    """A rank's computations, or what it receives, take `factor` times as long; power stays.

    rank: within its replica's pipeline, which is its stage; None is the whole replica.
    start, end: iterations, the end exclusive; None lasts for ever.
    ramp: iterations over which the factor grows linearly from 1; 0 is at once.
    where: "compute", or "communication": the time from a neighbour's end to this rank's start.
    reason: why its GPU says that it runs slower than it could, by NVML's name in lower case
        ("sw_thermal", "hw_thermal", "sw_power_cap"); None says nothing.
    """

    replica: int = 0
    rank: int | None = None
    factor: float = 1.0
    start: int = 0
    end: int | None = None
    ramp: int = 0
    where: str = "compute"
    reason: str | None = None

    def active(self, iteration: int) -> bool:
        return self.start <= iteration and (self.end is None or iteration < self.end)

    def concerns(self, replica: int, rank: int) -> bool:
        return replica == self.replica and self.rank in (None, rank)

    def factor_at(self, iteration: int) -> float:
        """Its factor in an iteration; 1 where it is not active."""
        if not self.active(iteration):
            return 1.0
        share = min(1.0, (iteration - self.start + 1) / self.ramp) if self.ramp else 1.0
        return 1.0 + (self.factor - 1.0) * share


@dataclass(frozen=True)
class Conditions:
    """Durations in seconds.

    noise: of each computation's duration, sigma of a lognormal factor.
    event_delay_s: mean lateness of an event's stamp, exponentially distributed.
    delivery_s: from an event's stamp until the daemon sees it.
    counter_tick_s: how often energy counters move.
    counter_window: the share of each tick's time that the sensor sees: it takes the power of the
        rest to be the same (A100, H100: 0.25). counter_window_last: it sees the end, not the start.
    counter_late_s: what a counter shows is so old.
    poll_s: how often the daemon reads counters.
    planning_s: what a plan takes in virtual time.
    straggler: a replica of another node that makes everybody wait. announced: the daemon is told.
    replicas: data-parallel copies of the pipeline on this node, each with GPUs of its own.
    slow: ranks that are slower than they should be.
    lengths: sigma of a lognormal factor on all computations of a microbatch: sequences differ.
    """

    noise: float = 0.01
    seed: int = 0
    event_delay_s: float = 0.0003
    delivery_s: float = 0.0
    counter_tick_s: float = 0.05
    counter_window: float = 1.0
    counter_window_last: bool = True
    counter_late_s: float = 0.0
    poll_s: float = 0.02
    write_latency_s: float = 0.005
    settle_s: float = 0.001
    planning_s: float = 2.0
    straggler: Straggler | None = None
    announced: bool = True
    replicas: int = 1
    slow: tuple[Slow, ...] = ()
    lengths: float = 0.0
    disturbances: tuple[Disturbance, ...] = ()

    def slowdown(self, where: str, iteration: int, replica: int, rank: int) -> float:
        """All slowness of that rank together, a factor."""
        factor = 1.0
        for slow in self.slow:
            if slow.where == where and slow.concerns(replica, rank):
                factor *= slow.factor_at(iteration)
        return factor

    def reasons(self, iteration: int, replica: int, rank: int) -> frozenset[str]:
        """Why that rank's GPU says that it is slower than it could be."""
        return frozenset(
            slow.reason
            for slow in self.slow
            if slow.reason and slow.concerns(replica, rank) and slow.factor_at(iteration) > 1
        )
