"""When a spell of slowness begins and when it ends: a sequential test with hysteresis.

What comes in is, per iteration, the excess (log of how many times as long) of one rank, replica or
link, as means over several windows that end now, with their standard errors. A spell begins when
some window's mean is both material and certain and the window's single iterations agree (one
iteration, however slow, is no straggler); it ends when the mean since then is small and certainly
below the spell's level. Between the two thresholds nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from perseusd.core.stragglers.compute import Excess
from perseusd.core.stragglers.levels import Array

MATERIAL = log(1.07)
"""Excess from which a spell begins. Ranks whose clocks are lowered may seem 3 % slower, their peers
3 % faster, by our own model's error alone."""

OVER = log(1.045)
"""Excess below which it may end."""

MARGIN = 1.5
"""Standard errors that it must exceed MATERIAL by."""

CERTAIN = 4.5
"""Standard errors above our own error that begin a spell."""

CERTAINLY_OVER = 3.5
"""Standard errors below the spell's level that end it."""

TRANSIENT = 5
"""Iterations up to which a spell is transient."""

RESUMES = 8
"""Iterations after an end within which a new spell is the same one: it had a gap."""

CHANGED = 0.05
"""Change of a spell's level worth telling again."""

RECENT = 6
"""Fewest iterations whose median is a lasting spell's level."""

EXACT = 0.015
"""Standard error that makes more of them unnecessary."""

REMEMBERED = 64


class Log:
    """The last iterations' own excesses, one row of all columns each; NaN where not judged."""

    def __init__(self) -> None:
        self.count = 0
        """Iterations ever noted."""
        self._numbers: list[int] = []
        self._rows: list[Array] = []

    def note(self, number: int, row: Array) -> None:
        self.count += 1
        self._numbers.append(number)
        self._rows.append(row)
        if len(self._rows) > REMEMBERED:
            del self._numbers[0], self._rows[0]

    def last(self, most: int, columns: Sequence[int]) -> tuple[list[int], Array]:
        """Places (in order of noting) and the largest excess over the columns, latest last."""
        most = min(most, len(self._rows))
        values = np.array([row[columns].max() for row in self._rows[len(self._rows) - most :]])
        judged = np.flatnonzero(~np.isnan(values))
        return [self.count - most + int(i) for i in judged], values[judged]

    def number(self, place: int) -> int:
        """The iteration's number at that place, or the oldest remembered."""
        return self._numbers[max(place - self.count, -len(self._numbers))]


@dataclass
class Spell:
    """since, until: numbers of iterations, until null while it lasts. level: log factor."""

    since: int
    level: float
    first: int
    """Its place in the log."""
    last: int
    """The place of the last slow iteration."""
    column: int = 0
    until: int | None = None
    told: float = 0.0
    """The level last told."""
    told_transient: bool = True
    told_cause: str | None = None

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    @property
    def transient(self) -> bool:
        return self.length <= TRANSIENT


@dataclass(frozen=True)
class Sureness:
    """How many iterations it takes: fewest in general, and fewest where the excess is large."""

    begin: int = 2
    begin_large: int = 2
    large: float = log(1.17)
    end: int = 1


class Track:
    """One rank, replica or link.

    columns: where the excesses tell of it; the first is all of it, the others parts.
    """

    def __init__(self, log_: Log, columns: Sequence[int], sureness: Sureness) -> None:
        self._log = log_
        self._columns = list(columns)
        self._sureness = sureness
        self.spell: Spell | None = None
        self._ended: Spell | None = None
        self._free_from = 0
        """The place in the log from which on it has been well."""

    def begin(self, excess: Excess) -> bool:
        """Whether a spell begins now."""
        windows, mean = excess.windows, excess.mean[:, self._columns]
        lengths = np.asarray(windows)[:, None]
        least = np.where(
            mean >= self._sureness.large, self._sureness.begin_large, self._sureness.begin
        )
        score = certainty(excess)[:, self._columns]
        sure = (score >= CERTAIN) & (lengths >= least)
        sure &= lengths <= self._log.count - self._free_from
        score = np.where(sure, score, 0.0)
        for place in np.argsort(-score, axis=None)[: int(sure.sum())]:
            window, column = np.unravel_index(place, score.shape)
            if self._agreed(windows[window], self._columns[column]):
                self._begun(float(mean[window, column]), self._columns[column])
                return True
        return False

    def go_on(self, now: Excess) -> bool:
        """Carries the present spell one iteration on; whether it has ended now."""
        spell = self.spell
        assert spell is not None
        both = [self._columns[0], spell.column]
        excess, sigma = now.mean[:, both].max(axis=1), now.error[:, both].max(axis=1)
        spell.last = self._log.count - 1
        below = (excess < OVER) & (spell.level - excess >= CERTAINLY_OVER * sigma)
        lengths = np.asarray(now.windows)
        below &= (lengths >= self._sureness.end) & (lengths < spell.length)
        if below.any():
            self._end(spell)
            return True
        recent = lengths[(lengths >= RECENT) & (sigma <= EXACT)]
        most = int(recent[0]) if len(recent) else REMEMBERED
        _, values = self._log.last(min(spell.length, most), both)
        spell.level = max(float(np.median(values)), OVER)
        return False

    def close(self) -> None:
        """Nothing more will be heard of it: what lasts has ended with what was seen last."""
        if self.spell is not None:
            self.spell.until, self.spell = self._log.number(self.spell.last), None

    def _agreed(self, length: int, column: int) -> bool:
        values = np.sort(self._log.last(length, [column])[1])
        if len(values) <= 3:
            return len(values) > 1 and float(values[0]) >= 0.9 * MATERIAL
        return float(values[(len(values) - 1) // 2]) >= 0.7 * MATERIAL

    def _begun(self, level: float, column: int) -> None:
        places, values = self._log.last(self._log.count - self._free_from, [column])
        gains = np.cumsum(np.minimum(values[::-1], 1.5 * level) - level / 2)
        first, last = places[len(places) - 1 - int(np.argmax(gains))], self._log.count - 1
        if self._ended is not None and first - self._ended.last <= RESUMES:
            self.spell, self._ended = self._ended, None
            self.spell.until, self.spell.column = None, column
            self.spell.level, self.spell.last = level, last
        else:
            self.spell = Spell(self._log.number(first), level, first, last, column)

    def _end(self, spell: Spell) -> None:
        both = [self._columns[0], spell.column]
        places, values = self._log.last(spell.length, both)
        slow = np.flatnonzero(values >= max(spell.level / 2, OVER))
        latest = int(slow[-1]) if len(slow) else 0
        spell.last = places[latest]
        spell.until = self._log.number(spell.last)
        spell.level = max(log(float(np.mean(np.exp(values[: latest + 1])))), OVER)
        self._ended, self.spell, self._free_from = spell, None, spell.last + 1


def certainty(excess: Excess) -> Array:
    """Standard errors beyond our own error, where the excess is material, else 0."""
    above: Array = (excess.mean - excess.bias) / excess.error
    return np.where(excess.mean - MARGIN * excess.error >= MATERIAL, above, 0.0)
