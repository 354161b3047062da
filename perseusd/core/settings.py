"""The numbers that decisions depend on; the shell builds them from the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """All durations in seconds, all shares as fractions of 1."""

    observe: bool = False
    slowdown_budget: float = 0.005
    learning_slowdown: float = 0.01
    min_clock_fraction: float = 0.5
    max_writes_per_s: float = 3.0
    """Planned clock writes per GPU."""
    max_node_write_share: float = 0.2
    """Of an iteration, spent in clock writes by all GPUs of this node together."""
    silence_s: float = 5.0
    silence_iterations: float = 2.0
    baseline_iterations: int = 5
    max_learning_iterations: int = 11
    remember: bool = False
    """Whether what was learned is kept for the next job of the same signature."""
    planning_s: float = 1.5
    """Time the planner may take for one plan."""

    def changed_to(self, new: Settings) -> Settings:
        """The new ones, but for what a controller and its jobs cannot change while they run."""
        return replace(
            new,
            observe=self.observe,
            min_clock_fraction=self.min_clock_fraction,
            remember=self.remember,
        )
