"""Observing one pipeline without ever writing a clock: what is then still to be decided.

The job stays in baseline for as long as it runs. Its curves at full clock, critical path, slack and
stragglers follow it by themselves, from its newest iterations. What does not is what the iterations
are compared with, so a job whose iterations have become others (a larger batch, longer sequences)
is measured anew; and once it is measured, what acting would save is foretold.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median

from perseusd.core.actions import Notice, RequestPlan
from perseusd.core.jobs.forecast import Forecast, Forecaster, Measured
from perseusd.core.jobs.studying import Studied
from perseusd.core.jobs.understanding import Understanding
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import PlanResult
from perseusd.core.savings.ledger import Record
from perseusd.core.settings import Settings

RECENT = 8
"""Iterations whose median makespan is compared with the baseline's mean."""

CHANGED = 0.02
"""Relative change, beyond noise, that makes the iterations others."""

SIGMAS = 3.0
"""A week has some hundred thousand iterations, and one wrong alarm in it does no harm."""

MEDIAN_SPREAD = 1.25
"""Standard error of a median over that of a mean, for normal noise."""

NEW_NORMAL = 20
"""Iterations in which all of its ranks straggle, after which that is what the job is now: with a
larger batch everything takes longer, too."""

KEPT_ENERGIES = 100


class Observing(Studied):
    """One pipeline as far as it is only observed.

    predicted: what acting would save, or None; no_prediction: why there is none, in words.
    """

    def __init__(
        self, name: str, settings: Settings, gpus: Mapping[str, GpuFacts], replica: int = 0
    ) -> None:
        super().__init__(name, settings, gpus, replica)
        self._forecaster: Forecaster | None = None
        self._forecasts = 0
        """Asked for so far; the planner knows them by negative numbers."""
        self._foreseeing = False
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._energies: deque[float] = deque(maxlen=KEPT_ENERGIES)
        self._observed = self._all_ill = 0
        self._of: Understanding | None = None
        """What the above was counted of."""
        self._last: Record | None = None

    @abstractmethod
    def _writes(self) -> int:
        """Clock writes that an iteration has room for, per GPU."""

    @property
    def predicted(self) -> Forecast | None:
        return self._forecaster.latest if self._forecaster is not None else None

    @property
    def no_prediction(self) -> str:
        return self._forecaster.obstacle if self._forecaster is not None else ""

    def reconfigure(self, settings: Settings) -> None:
        """What was foretold was foretold within other limits."""
        super().reconfigure(settings)
        self._forecaster, self._foreseeing = None, False

    def _observe(self) -> None:
        """Another iteration is whole."""
        self._why = "observe-only mode: no clock is ever written"
        if self._known is not self._of:
            self._begin()
        if (last := self.ledger.last) is not None and last is not self._last:
            self._last = last
            self._note(last)
        if self._is_another():
            self.actions.append(Notice(self.name, "its iterations have changed: measured anew"))
            self._forget()
            self._why = "observe-only mode: the job has changed, and is measured anew"
        elif self.ledger.count("baseline") >= self._settings.baseline_iterations:
            self._foresee()

    def _begin(self) -> None:
        """A pipeline that was not observed before."""
        self._of, self._forecaster = self._known, None
        self._last = self.ledger.last
        self._recent.clear()
        self._energies.clear()
        self._observed = self._all_ill = 0

    def _note(self, last: Record) -> None:
        if last.phase == "baseline":
            self._observed += 1
            self._recent.append(last.makespan_s)
            if last.energy_j is not None:
                self._energies.append(last.energy_j)
        whole = len(self.ill) == (self.roster.stages or 0)
        self._all_ill = self._all_ill + 1 if whole else 0

    def _is_another(self) -> bool:
        """Whether the iterations are not any more those that the baseline was measured on.

        By their makespans: what they wait for after the pipeline's end is others' doing.
        """
        if self._all_ill >= NEW_NORMAL:
            return True
        baseline = self.ledger.sample("baseline")
        if baseline is None or len(self._recent) < RECENT:
            return False
        usual_s = self.ledger.makespan_s("baseline")
        noise = MEDIAN_SPREAD * baseline.relative_spread() / math.sqrt(RECENT)
        change_s = abs(median(self._recent) - usual_s)
        return change_s > (CHANGED + SIGMAS * noise) * usual_s

    # --- what acting would save -----------------------------------------------------------------

    def _foresee(self) -> None:
        known, measured = self._known, self._measured()
        if known is None or measured is None or self._foreseeing:
            return
        if self._forecaster is None or self._forecaster.known is not known:
            self._forecaster = Forecaster(known, self._settings)
        problem = self._forecaster.next_problem(measured)
        if problem is not None:
            self._forecasts += 1
            self._foreseeing = True
            self.actions.append(RequestPlan(self.name, -self._forecast, problem))

    @property
    def _forecast(self) -> int:
        """Number of the newest."""
        return self.first_request + self._forecasts

    def _foreseen(self, request: int, answer: PlanResult | str) -> None:
        """The planner answered a request of `_foresee`."""
        if request != -self._forecast or not self._foreseeing:
            return
        self._foreseeing = False
        measured = self._measured()
        if self._forecaster is not None and measured is not None:
            self._forecaster.answered(answer, measured)
            self._foresee()

    def _measured(self) -> Measured | None:
        baseline = self.ledger.sample("baseline")
        if baseline is None:
            return None
        return Measured(
            iterations=self._observed,
            time_s=baseline.mean,
            makespan_s=self.ledger.makespan_s("baseline"),
            energy_j=fmean(self._energies) if self._energies else None,
            gpus=len(self.roster.all_gpus()),
            writes=self._writes(),
        )

    # --- letting go -----------------------------------------------------------------------------

    def _lose_track(self) -> None:
        super()._lose_track()
        self._foreseeing = False
        self._recent.clear()
