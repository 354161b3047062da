"""Local search over real clocks, against the iteration time over the samples of the noise.

Simulated annealing (Kirkpatrick et al. 1983) of cost + price · lateness from each of a few starts,
then longer and longer from the best plan found. Runs are changed at random (annealing.py); free
clocks are drawn one by one given all others (sweeping.py). The price follows the plan: up while it
is late, down while it is early, so that it stays about on time whatever a second turns out to be
worth; towards the end of a round it only rises.

All rounds are counted in steps. Time only ends the search: what it is stopped at is what it would
have had by then with any budget, so that more time is never worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner.annealing import Annealing
from perseusd.core.planner.instance import Instance
from perseusd.core.planner.sweeping import Sweeping

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

# First and last temperature, in units of the mean difference in cost between neighbouring clocks.
_HOT, _COLD = 2.0, 0.1
# A round has so many parts, between which price and temperature change; what it ends with is
# cold, and being early earns nothing then.
_PARTS, _LAST = 64, 0.75
_UP, _DOWN = 1.3, 1.2  # of the price after a part, while late and while not
_EARLY = 0.8  # of the price, what a second less than the deadline allows is worth
_ROUNDS = 8  # at most, each twice as long as the one before up to the last few
_LONGEST = 8  # times the first round
_IN_VAIN = 3  # rounds that found nothing, after which the search ends
_GAIN = 1e-6  # of the energy at full clock: less is nothing
_REPAIRS = 16  # parts in which a start that is late must get on time
_LATE = 1e-12  # relative; sums in another order differ by about 1e-15


class Walk(Protocol):
    """A plan that changes at random."""

    @property
    def late(self) -> bool:
        """Is it late now?"""

    @property
    def best(self) -> Ints:
        """(n,) options of the best so far that was not late."""

    @property
    def best_value(self) -> float:
        """What these cost, with the price of their writes."""

    def steps(self) -> int:
        """Steps of a first round that is worth its time: some hundredths of a second."""

    def begin(self, option: Ints) -> None:
        """Go on from (n,) options."""

    def go(self, steps: int, late_price: float, early_price: float, heat: float) -> None:
        """So many steps at one temperature. Prices in J/s, heat in J."""


class Search:
    """The best plan on time near some that may be late.

    starts: (n,) options each.  safe: (n,) options which are not late.
    late_price: J per second beyond the deadline, to begin with.
    write_price_j: what one clock write must save.
    more_time: asked before each part of a round; the search ends when it says no.
    """

    def __init__(
        self,
        inst: Instance,
        starts: Sequence[Ints],
        safe: Ints,
        late_price: float,
        write_price_j: float,
        more_time: Callable[[], bool],
    ) -> None:
        self._starts, self._more_time = starts, more_time
        latest = inst.deadline_s * (1 + _LATE)
        power = inst.energy(inst.total_cost(inst.full)) / inst.deadline_s
        self._price = max(late_price, power)
        self._walk: Walk
        if inst.problem.max_writes is None:
            self._walk = Sweeping(inst, safe, latest)
        else:
            self._walk = Annealing(inst, safe, latest, write_price_j)
        differences = np.abs(np.diff(inst.kind_cost, axis=1))
        self._unit = float(differences[differences > 0].mean()) if differences.any() else 1.0
        self._least_gain = _GAIN * power * inst.deadline_s

    def improve(self) -> Ints:
        """The best options found that are not late."""
        walk, price = self._walk, self._price
        first = walk.steps() // _PARTS
        for start in self._starts:
            self._price = price
            walk.begin(start)
            self._repair(first)
            self._round(first)
        in_vain = 0
        for count in range(_ROUNDS):
            before = walk.best_value
            walk.begin(walk.best)
            self._round(first * min(2 << count, _LONGEST))
            in_vain = 0 if walk.best_value < before - self._least_gain else in_vain + 1
            if in_vain == _IN_VAIN or not self._more_time():
                break
        return walk.best

    def _repair(self, steps: int) -> None:
        """Raise the price until the plan is on time."""
        for _ in range(_REPAIRS):
            if not self._walk.late or not self._more_time():
                return
            self._walk.go(steps, self._price, 0.0, _COLD * self._unit)
            self._price *= _UP

    def _round(self, steps: int) -> None:
        for part in range(_PARTS):
            if not self._more_time():
                return
            done = part / (_LAST * _PARTS)
            ending = done >= 1.0
            heat = _HOT * (_COLD / _HOT) ** min(1.0, done) * self._unit
            early = 0.0 if ending else _EARLY * self._price
            self._walk.go(steps, self._price, early, heat)
            if self._walk.late:
                self._price *= _UP
            elif not ending:
                self._price /= _DOWN
