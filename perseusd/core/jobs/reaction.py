"""What stragglers ask of one pipeline.

Another replica that is slow is waited for at every iteration's end, so this pipeline may take as
long as that one: its deadline is T′. A slow rank of this very pipeline makes its iterations longer
whatever the others do; its curves grow, and the others gain slack. Deadlines follow with
hysteresis: an earlier one at once, a later one only where it is worth a plan. What an earlier one
may fall by without being noticed is kept as a margin, so that no deadline is ever later than T′.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from perseusd.core.jobs.announced import AnnouncedStraggler

CAUTION = 0.004
"""Share of a detected straggler's makespan by which plans stay ahead of it."""

WORTH = 0.012
"""A deadline later by less than this share is not worth a plan of its own."""

EARLIER = 0.005
"""A T′ that has fallen by more than this, or than noise, is obeyed at once."""

LATER = 0.03
"""A T′ that has risen by less than this is left for later: a new plan costs an iteration. So is a
change of an own slow rank's pace."""

SIGMAS = 3.0
"""Changes smaller than this many standard deviations are noise."""

MOST_FALL = 0.03
"""However noisy T′ is, this much less is obeyed at once."""

MOST_CAUTION = 0.05


class Change(Enum):
    """What a word about stragglers changes for the plan."""

    NONE = "none"
    SOONER = "sooner"
    """There is less time, or other curves, now: the normal plan at once."""
    LATER = "later"
    """There is more time now."""


class Others(NamedTuple):
    """The slowest other replica's makespan: the mean of late, and the longest of the last two."""

    usual_s: float = 0.0
    newest_s: float = 0.0


NOBODY = Others()


@dataclass
class Reaction:
    """The stragglers that one pipeline reckons with.

    elsewhere_s: makespan of the slowest other replica that straggles, T′; margin: the share by
        which plans end before it.
    slow: own ranks that are slow, by how much longer they take.
    inflation: this pipeline's full-clock makespan with its slow ranks over the one without.
    others_s: what the slowest other replica took while the baseline was measured; newest_s: what
        it took just now.
    version: another one after every change, so that plans made for the last are known as stale.
    sooner: the version that left less time last: plans for an older one may end too late; those for
        this or a newer one end in time, though a newer one may allow more.
    """

    announced: AnnouncedStraggler = field(default_factory=AnnouncedStraggler)
    elsewhere_s: float | None = None
    margin: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    inflation: float = 1.0
    others_s: float = 0.0
    newest_s: float = 0.0
    caution: float = CAUTION
    version: int = 0
    sooner: int = 0

    @property
    def active(self) -> bool:
        return self.waits or bool(self.slow)

    @property
    def eased(self) -> bool:
        """Whether plans are others than without stragglers."""
        return self.elsewhere_s is not None or self.announced.in_force or bool(self.slow)

    @property
    def waits(self) -> bool:
        """Whether another replica is waited for."""
        return self.elsewhere_s is not None or self.announced.factor is not None

    def announce(self, factor: float | None) -> Change:
        """Word of mouth: another replica takes `factor` times its usual time; None: no more."""
        before, after = self.announced.factor or 1.0, factor or 1.0
        self.announced.announce(factor)
        return self._changed(Change.SOONER if after < before else Change.LATER)

    def doubt(self) -> None:
        """An announced straggler is not waited for: plans for it are void until it is seen."""
        self._changed(Change.SOONER)

    def expect(self, elsewhere_s: float | None, makespan_s: float, noise: float) -> Change:
        """Another replica is seen to take so long.

        makespan_s: this pipeline's own at full clock; noise: relative, of `elsewhere_s`.
        """
        before, fall = self.elsewhere_s, min(max(EARLIER, SIGMAS * noise), MOST_FALL)
        worth_s = makespan_s * self.inflation * (1 + WORTH) / (1 - self.caution - fall)
        if before is None:
            worth = elsewhere_s is not None and elsewhere_s > worth_s
            change = Change.LATER if worth else Change.NONE
        elif elsewhere_s is None or elsewhere_s < before * (1 - self.margin + self.caution):
            change = Change.SOONER
            if elsewhere_s is not None and elsewhere_s < worth_s:
                elsewhere_s = None
        else:
            rise = max(LATER, 2 * fall)
            change = Change.LATER if elsewhere_s > before * (1 + rise) else Change.NONE
        if change is not Change.NONE:
            self.elsewhere_s, self.margin = elsewhere_s, self.caution + fall
            self._changed(change)
        return change

    def slowed(self, slow: Mapping[int, float], inflation: float, noise: float = 0.0) -> Change:
        """Own ranks take so much longer; none: all are well. noise: relative, of these.

        SOONER whatever changes: plans for the ranks as they were may slow down the slowest.
        """
        tolerance = 1 + max(LATER, SIGMAS * noise)
        same = slow.keys() == self.slow.keys() and all(
            1 / tolerance < factor / self.slow[rank] < tolerance for rank, factor in slow.items()
        )
        if same:
            return Change.NONE
        self.slow, self.inflation = dict(slow), inflation
        return self._changed(Change.SOONER)

    def _changed(self, change: Change) -> Change:
        self.version += 1
        if change is Change.SOONER:
            self.sooner = self.version
        return change

    def be_cautious(self, share: float) -> None:
        """Plans ended later than what they wait for, by this share."""
        self.caution = min(self.caution + share, MOST_CAUTION)
        self.margin = min(self.margin + share, MOST_CAUTION)

    def stretch(self, command: float, baseline_s: float, makespan_s: float) -> float:
        """How much later than its full-clock makespan, slow ranks included, the pipeline may end.

        command: what the slowdown budget allows. Both as shares of the baseline's iteration time.
        """
        own_s = makespan_s * self.inflation
        allowed = [command]
        if self.elsewhere_s is not None:
            allowed.append((self.elsewhere_s * (1 - self.margin) - own_s) / baseline_s)
        if self.announced.in_force:
            allowed.append(self.announced.stretch + (makespan_s - own_s) / baseline_s)
        return max(allowed)

    def until_s(self, baseline_s: float, makespan_s: float) -> float:
        """A makespan that costs nobody time: its own at full clock, or what it waits for."""
        until = [makespan_s * self.inflation, self.elsewhere_s or 0.0]
        if self.announced.factor is not None:
            until.append(makespan_s + (self.announced.factor - 1) * baseline_s)
        return max(until)

    def scale(self, baseline_s: float, makespan_s: float) -> float:
        """How many times the baseline's iteration time stragglers make it, whatever our clocks.

        A replica that was as slow when the baseline was measured makes it no longer.
        """
        waited_s = max(0.0, min(self.others_s, baseline_s) - makespan_s)
        until_s = max(self.until_s(baseline_s, makespan_s), self.newest_s)
        later_s = until_s - makespan_s - waited_s
        return 1 + max(0.0, later_s) / baseline_s
