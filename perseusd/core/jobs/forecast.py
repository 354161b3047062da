"""What acting would save, foretold where clocks are only observed.

Times and powers at full clock are this job's own, measured. How they change at lower clocks is not
known before any was tried: there the prior for the GPU's model stands in, which is published and
not of this job. So a forecast is a prediction: it is labelled with its source, has an interval as
wide as the prior is uncertain, and does not exist for a GPU model that nothing is published about.

The planner answers with the saving on the pipeline's own time; an iteration has more (all-reduce,
optimizer, data), so joules are put over what a whole iteration was measured to use.

The interval is from two more plans, for GPUs that are worse and better than the prior says. With
independent errors in time and power, both are off by 1/√2 of what either alone would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from perseusd.core.jobs.deadline import FEWEST_WRITES
from perseusd.core.jobs.hold import AIM_SHARE
from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.learned.priors import Prior, prior_for
from perseusd.core.model import Curve, PlanResult, Problem
from perseusd.core.savings.samples import Z95
from perseusd.core.settings import Settings
from perseusd.errors import PlanningError

AGAIN = 4
"""A forecast is made anew after this many times the iterations of the last one: times and powers at
full clock are known better then."""

LATEST_AGAIN = 1000
"""Iterations from one forecast to the next, at most."""

TILTS = (0.0, -Z95 / math.sqrt(2), Z95 / math.sqrt(2))
"""In the order in which they are planned, in the prior's standard deviations: as the prior says, a
GPU that slows down more and draws less less, and the opposite."""

MOST_CLOCKS = 40
"""Offered to the planner per kind, as for learned curves."""


@dataclass(frozen=True)
class Forecast:
    """Share of an iteration's energy that acting would save, with what the prior leaves open.

    source: of the prior, in words. iterations: measured when it was made.
    """

    saving: float
    low: float
    high: float
    source: str
    iterations: int


@dataclass(frozen=True)
class Measured:
    """What a forecast needs of a job besides its computations, all at full clock.

    iterations: that were measured. time_s, makespan_s: of an iteration, start to start, and of its
    pipeline alone. energy_j: of an iteration, of all `gpus` together; None where not known.
    writes: that an iteration has room for, per GPU.
    """

    iterations: int
    time_s: float
    makespan_s: float
    energy_j: float | None
    gpus: int
    writes: int


@dataclass
class Forecaster:
    """Of one understood pipeline: the problems to plan, and what their answers foretell.

    latest: None before the first forecast. obstacle: why there is none, in words.
    """

    known: Understanding
    settings: Settings
    latest: Forecast | None = None
    obstacle: str = ""
    _answers: list[float] = field(default_factory=list)
    """Savings, of the first TILTS."""
    _due: int = 0
    """Measured iterations at which to begin."""

    def next_problem(self, measured: Measured) -> Problem | None:
        """What to plan now, while no other answer is awaited; None: nothing."""
        if not self._answers and measured.iterations < self._due:
            return None
        try:
            return self._problem(measured, TILTS[len(self._answers)])
        except PlanningError as error:
            self._give_up(str(error), measured)
            return None

    def answered(self, answer: PlanResult | str, measured: Measured) -> None:
        """The planner's answer to the last problem; a string says why it has none."""
        if isinstance(answer, str):
            self._give_up(answer, measured)
            return
        self._answers.append(share_of_iteration(answer, measured, self.known.pipeline.ranks))
        if len(self._answers) < len(TILTS):
            return
        source = "; ".join(dict.fromkeys(p.source for p in _priors(self.known.gpus).values()))
        self.latest = Forecast(
            self._answers[0], min(self._answers), max(self._answers), source, measured.iterations
        )
        self.obstacle = ""
        self._put_off(measured)

    def _give_up(self, why: str, measured: Measured) -> None:
        self.latest, self.obstacle = None, why
        self._put_off(measured)

    def _put_off(self, measured: Measured) -> None:
        done = measured.iterations
        self._answers.clear()
        self._due = min(AGAIN * max(done, 1), done + LATEST_AGAIN)

    def _problem(self, measured: Measured, tilt: float) -> Problem:
        """Raises PlanningError, saying what is missing."""
        known = self.known
        if known.pipeline.ranks < 2:
            raise PlanningError("nothing in a job of one stage waits for anything else")
        if measured.writes < FEWEST_WRITES:
            raise PlanningError(
                "its iterations are too short: within [limits] max_writes_per_s and "
                "max_node_write_share, not even one lower clock and back fits into one"
            )
        if measured.makespan_s <= 0:
            raise PlanningError("by their stamps, its iterations took no time")
        priors = _priors(known.gpus)
        curves, blocking = known.knowledge.curves(known.graph.kinds)
        least = self.settings.min_clock_fraction
        curves = {
            kind: foretold(curve, priors[kind.rank], known.gpus[kind.rank], least, tilt)
            for kind, curve in curves.items()
        }
        stretch = AIM_SHARE * self.settings.slowdown_budget
        return Problem(
            pipeline=known.pipeline,
            curves=curves,
            blocking_power_w=[blocking[r] for r in range(known.pipeline.ranks)],
            deadline_ratio=1 + stretch * measured.time_s / measured.makespan_s,
            noise=known.knowledge.noise(),
            max_writes=measured.writes,
            time_budget_s=self.settings.planning_s,
        )


def _priors(gpus: Mapping[int, GpuFacts]) -> dict[int, Prior]:
    """By rank. Raises PlanningError where nothing is published about a GPU's model."""
    found = {}
    for rank, gpu in gpus.items():
        prior = prior_for(gpu.model)
        if prior is None:
            raise PlanningError(
                f"how {gpu.model!r} behaves at lower clocks is not published: only acting will tell"
            )
        found[rank] = prior
    return found


def foretold(
    measured: Curve, prior: Prior, gpu: GpuFacts, min_clock_fraction: float, tilt: float = 0.0
) -> Curve:
    """A curve through what was measured at the top clock, below that shaped by the prior.

    tilt: how many of its standard deviations the GPU is better than the prior says.
    """
    top_s, top_j = measured.time_s[-1], measured.energy_j[-1]
    lowest_mhz = gpu.top_mhz * max(min_clock_fraction, 1 / prior.time.reach, 1 / prior.power.reach)
    usable = [c for c in gpu.supported_mhz if c >= lowest_mhz * (1 - 1e-6)]
    step = max(1, -(-len(usable) // MOST_CLOCKS))
    clocks = usable[::-1][::step][::-1]
    x = gpu.top_mhz / np.array(clocks, dtype=float)
    time = prior.time.at(x) ** max(1 - tilt * prior.time_spread, 0.0)
    power = prior.power.at(x) ** max(1 + tilt * prior.power_spread, 0.0)
    seconds, joules = top_s * time, top_j * time * power
    return Curve(tuple(clocks), tuple(seconds.tolist()), tuple(joules.tolist()))


def share_of_iteration(answer: PlanResult, measured: Measured, ranks: int) -> float:
    """The plan's saving as a share of what a whole iteration uses.

    A plan is about one GPU of each rank; the others of a tensor-parallel group do the same.
    """
    if measured.energy_j is None or measured.energy_j <= 0 or answer.saving >= 1:
        return answer.saving
    saved_j = answer.energy_j * answer.saving / (1 - answer.saving)
    return min(answer.saving, saved_j * measured.gpus / ranks / measured.energy_j)
