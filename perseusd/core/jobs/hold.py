"""Keeps iterations within the slowdown budget while a plan is held.

The plan is asked to end at (1 + command) × the baseline's mean iteration time. What the iterations
then really take is compared with the aim, AIM_SHARE of the budget, and the command corrected by
the difference: curves are estimates, and the aim is about what is measured. What single iterations
may not do is the guard's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from perseusd.core.savings.samples import Sample

AIM_SHARE = 0.4
"""Of the budget: the rest is for what the baseline's mean is uncertain by."""

FEWEST_ITERATIONS = 6
"""Under one plan before it is corrected; fewer are mostly noise."""

DOUBLINGS = 3
"""After each correction twice as many iterations as before are waited for, so many times: what is
left to correct becomes smaller, and a plan costs seconds of a processor."""

MOST_ITERATIONS = FEWEST_ITERATIONS << DOUBLINGS
"""Looked back on under one plan."""

FAR = 0.002
"""An error beyond noise that does not wait for more than FEWEST_ITERATIONS."""

CORRECTION_GAIN = 0.8
LARGEST_CORRECTION = 0.01
LEAST_COMMAND = -0.01
"""As a share of the baseline's time. Tighter than full clock's own time only means believing less
of the curves, and a plan that needs more doubt than this is better let go of."""

MOST_COMMAND = 2.0
"""Of the budget. A job that has become faster than its baseline must not be slowed to the old one:
however far the iterations stay below the aim, the deadline is not moved further than this."""

DEADBAND = 0.0007
"""Differences smaller than this are left alone: a new plan costs an iteration of change."""

OUTGROWN = 0.01
"""Faster than the baseline by more than this beyond noise, under a plan that slows: the job itself
has become faster, and neither its baseline nor its curves hold any more."""


@dataclass
class HoldControl:
    """Feedback on the deadline of one job."""

    budget: float
    command: float = field(init=False)
    _corrections: int = 0
    """In a row."""
    _times: list[float] = field(default_factory=list)
    _computed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.command = self.aim

    @property
    def aim(self) -> float:
        return AIM_SHARE * self.budget

    def start_plan(self) -> None:
        """Another plan is in force from the next iteration on."""
        self._times.clear()
        self._computed.clear()

    def iteration(self, time_s: float, waited_s: float = 0.0) -> None:
        """An iteration wholly under the plan took this long.

        waited_s: of that, more than usual from its last computation's end on, which no plan has
        done and none can mend.
        """
        self._times = [*self._times[1 - MOST_ITERATIONS :], time_s]
        self._computed = [*self._computed[1 - MOST_ITERATIONS :], time_s - waited_s]

    def outgrown(self, baseline: Sample) -> bool:
        """Whether the iterations are faster than the baseline, which no plan can make them."""
        n = len(self._computed)
        if n < FEWEST_ITERATIONS:
            return False
        spread = baseline.relative_spread()
        expected = 1 - OUTGROWN - 2 * spread / math.sqrt(n)
        return sum(self._computed) / n < baseline.mean * expected

    def be_cautious(self, by: float = LARGEST_CORRECTION) -> None:
        """After a breach: plan tighter than it was, by this share of the baseline's time."""
        self.command = max(self.command - min(by, LARGEST_CORRECTION), LEAST_COMMAND)
        self._corrections = 0
        self.start_plan()

    def rebudget(self, budget: float) -> None:
        """Another budget from now on; what was learned about the aim holds for the new one."""
        learned = self.command - self.aim
        self.budget = budget
        most = max(MOST_COMMAND * budget, self.aim)
        self.command = min(max(self.aim + learned, LEAST_COMMAND), most)
        self._corrections = 0
        self.start_plan()

    @property
    def exhausted(self) -> bool:
        """Whether plans cannot be made tighter any more."""
        return self.command <= LEAST_COMMAND

    def wants_plan(self, baseline: Sample) -> bool:
        """Whether a corrected plan is worth asking for; corrects the command if so."""
        n = len(self._times)
        if n < FEWEST_ITERATIONS:
            return False
        held = Sample(list(self._computed))
        error = held.mean / baseline.mean - 1 - self.aim
        noise = math.sqrt(held.relative_variance_of_mean())
        patience = FEWEST_ITERATIONS << min(self._corrections, DOUBLINGS)
        if abs(error) < max(DEADBAND, noise) or (n < patience and abs(error) < max(FAR, 2 * noise)):
            return False
        change = min(max(CORRECTION_GAIN * error, -LARGEST_CORRECTION), LARGEST_CORRECTION)
        most = MOST_COMMAND * self.budget
        self.command = min(max(self.command - change, LEAST_COMMAND), most)
        self._corrections += 1
        return True
