"""One pipeline whose settings may change while it runs.

What becomes tighter is obeyed at once: a plan that was made within wider limits does not go on.
What becomes wider is used from the next plan on. The job's own budget comes before the settings'.
"""

from __future__ import annotations

from perseusd.core.actions import Notice
from perseusd.core.jobs.deadline import FEWEST_WRITES
from perseusd.core.jobs.guarding import Guarding
from perseusd.core.jobs.states import CLOCKS_MAY_BE_LOWERED, State
from perseusd.core.settings import Settings


class Adjusting(Guarding):
    """One replica's pipeline as far as its settings change."""

    def reconfigure(self, settings: Settings) -> None:
        """From now on these settings hold."""
        budget, writes = self._budget(), self._writes()
        super().reconfigure(settings)
        if (wanted := self._budget()) != budget:
            self._guard.budget = wanted
            self._hold.rebudget(wanted)
        now = self._writes()
        if wanted < budget or now < writes:
            self._tighter(wanted < budget, now)
        elif (wanted > budget or now > writes) and self._follows_plan():
            self._request_plan()

    def _tighter(self, budget: bool, writes: int) -> None:
        self._resumable = None
        if self.state not in CLOCKS_MAY_BE_LOWERED:
            return
        if writes < FEWEST_WRITES:
            self.release(
                "its iterations are too short for the limits of clock writes since the reload"
            )
        elif self._follows_plan():
            what = "slowdown budget" if budget else "number of clock writes"
            told = f"a smaller {what}: full clocks until there is a plan for it"
            self.actions.append(Notice(self.name, told))
            self._start_over()
        else:  # still learning: a plan that was asked for would be one within wider limits
            self._void_requests()

    def _start_over(self) -> None:
        """Full clocks now, and another plan."""
        assert self._episode is not None
        self._void_requests()
        self._parked, self._episode.normal = True, None
        self._guard.clear()
        self._adopt(None, at_once=True)
        self._request_plan()

    def _follows_plan(self) -> bool:
        return self.state is State.HOLD and self._episode is not None and self._pacer is not None
