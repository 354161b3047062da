"""Who is slow, since when and why: the spells of all ranks, replicas and links of one job.

Each iteration of each replica is judged when it comes, against that replica's own past and its
peers' latest. Nothing is judged against other stages.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from math import exp
from typing import NamedTuple

import numpy as np

from perseusd.core.stragglers.causes import Reasons
from perseusd.core.stragglers.communication import Links, added_seconds
from perseusd.core.stragglers.compute import Excess
from perseusd.core.stragglers.levels import SHORTEST_S
from perseusd.core.stragglers.observation import Observation, Straggler
from perseusd.core.stragglers.replica import Replica
from perseusd.core.stragglers.series import Series
from perseusd.core.stragglers.spells import (
    CERTAIN,
    CHANGED,
    Log,
    Spell,
    Sureness,
    Track,
    certainty,
)

KEPT = 1000
"""Spells that the history holds."""

OF_RANKS = Sureness()
OF_SERIES = Sureness(begin=3, end=2)
"""Iteration times alone: a hiccup often takes two iterations, and a slow spell has gaps."""

SILENT = 3
"""Iterations after which a replica that is not heard of tells nothing of the others."""

COLD = 16
"""Iterations of a spell in which its cause may still be found."""


class Key(NamedTuple):
    """scope: "rank", "replica", "link" or "series"; which: the rank, or the link's ranks."""

    scope: str
    replica: int = -1
    which: tuple[int, ...] = ()


class Member:
    """What is known of one replica."""

    def __init__(self) -> None:
        self.ranks = Replica()
        self.links = Links()
        self.reasons = Reasons()
        self.heard = 0
        """Which of the watch's observations was its last one."""


class Watch:
    """One job's. Feed it every replica's iterations; deterministic."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._observed = 0
        self._series = Series()
        self._leader: int | None = None
        """The replica whose iteration times stand for all."""
        self._led = 0
        self._tracks: dict[Key, Track] = {}
        self._history: deque[tuple[Key, Spell]] = deque(maxlen=KEPT)

    def observe(self, observation: Observation) -> list[Straggler]:
        """Takes in one replica's iteration; who began, changed or ceased to be slow now."""
        if not observation.computations:
            return self._observe_time(observation)
        member = self._members.setdefault(observation.replica, Member())
        self._observed += 1
        member.heard = self._observed
        self._hush()
        member.reasons.note(observation.reasons)
        told = self._observe_ranks(observation, member)
        if observation.lags:
            told += self._observe_links(observation, member)
        return told

    def current(self) -> list[Straggler]:
        """Those that last now, the worst first."""
        lasting = [
            self._as_straggler(key, track.spell)
            for key, track in self._tracks.items()
            if track.spell is not None
        ]
        return sorted(lasting, key=lambda straggler: -straggler.factor)

    def history(self) -> list[Straggler]:
        """All, oldest first; the last KEPT of them."""
        return [self._as_straggler(key, spell) for key, spell in self._history]

    def forget(self, replica: int) -> None:
        """That replica's job has changed: its references start anew, what lasted has ended."""
        self._members.pop(replica, None)
        self._drop(lambda key: key.replica == replica)

    def _hush(self) -> None:
        """A replica that fell silent no longer tells what happens to all."""
        for member in self._members.values():
            if self._observed - member.heard > SILENT * len(self._members):
                member.ranks.last = member.links.last = None

    def _drop(self, gone: Callable[[Key], bool]) -> None:
        for key in [key for key in self._tracks if gone(key)]:
            self._tracks.pop(key).close()

    def _observe_ranks(self, observation: Observation, member: Member) -> list[Straggler]:
        ranks, replica = member.ranks, observation.replica
        if not ranks.add(observation):
            self._drop(lambda key: key.replica == replica and key.scope in ("rank", "replica"))
        excess = ranks.judge([m.ranks for r, m in self._members.items() if r != replica])
        told: list[Straggler] = []
        if excess is not None:
            may = (certainty(excess) >= CERTAIN).any(axis=0) | ranks.slow
            for place, rank in enumerate(ranks.layout.ranks):
                columns = list(ranks.layout.columns[place])
                if ranks.judged[place] and may[columns].any():
                    key = Key("rank", replica, (rank,))
                    told += self._step(key, ranks.log, excess, columns)
                    ranks.slow[columns] = self._lasts(key)
            if ranks.whole > 1 and ranks.judged.any() and may[ranks.whole]:
                key = Key("replica", replica)
                told += self._step(key, ranks.log, excess, [ranks.whole])
                ranks.slow[ranks.whole] = self._lasts(key)
        ranks.learn(excess)
        return told

    def _observe_links(self, observation: Observation, member: Member) -> list[Straggler]:
        links, replica = member.links, observation.replica
        iteration_s = max(observation.time_s or member.ranks.busiest_s, SHORTEST_S)
        seconds = added_seconds(observation.lags, member.ranks.layout.crossings)
        if not links.add(seconds, iteration_s):
            self._drop(lambda key: key.replica == replica and key.scope == "link")
        others = [m.links for r, m in self._members.items() if r != replica]
        excess = links.judge(observation.number, others)
        told: list[Straggler] = []
        if excess is not None:
            may = (certainty(excess) >= CERTAIN).any(axis=0) | links.slow
            for column in np.flatnonzero(may & (links.valid > 0)):
                key = Key("link", replica, links.links[column])
                told += self._step(key, links.log, excess, [int(column)])
                links.slow[column] = self._lasts(key)
        links.learn(excess)
        return told

    def _observe_time(self, observation: Observation) -> list[Straggler]:
        """Replicas wait for each other, so the first one's times stand for all."""
        if observation.time_s is None:
            return []
        leads = self._leader == observation.replica or self._leader is None
        if not leads and abs(observation.number - self._led) <= SILENT:
            return []
        self._leader, self._led = observation.replica, observation.number
        self._series.add(observation.time_s)
        excess = self._series.judge(observation.number)
        key, told = Key("series"), list[Straggler]()
        if excess is not None:
            told = self._step(key, self._series.log, excess, [0])
        self._series.learn(excess, self._lasts(key))
        return told

    def _lasts(self, key: Key) -> bool:
        return key in self._tracks and self._tracks[key].spell is not None

    def _step(self, key: Key, log: Log, excess: Excess, columns: Sequence[int]) -> list[Straggler]:
        """One iteration of one track; what there is to tell of it."""
        track = self._tracks.get(key)
        if track is None:
            sureness = OF_SERIES if key.scope == "series" else OF_RANKS
            track = self._tracks[key] = Track(log, columns, sureness)
        spell = track.spell
        if spell is None:
            if not track.begin(excess):
                return []
            assert track.spell is not None
            if not any(kept is track.spell for _, kept in self._history):
                self._history.append((key, track.spell))
            return [self._tell(key, track.spell)]
        ended = track.go_on(excess)
        return [self._tell(key, spell)] if ended or self._is_news(key, spell) else []

    def _is_news(self, key: Key, spell: Spell) -> bool:
        return (
            abs(spell.level - spell.told) > CHANGED
            or spell.transient != spell.told_transient
            or self._cause(key, spell) != spell.told_cause
        )

    def _tell(self, key: Key, spell: Spell) -> Straggler:
        spell.told_cause = self._cause(key, spell)
        spell.told, spell.told_transient = spell.level, spell.transient
        return self._as_straggler(key, spell)

    def _as_straggler(self, key: Key, spell: Spell) -> Straggler:
        series = key.scope == "series"
        rank = None if series or key.scope == "replica" else key.which[0]
        return Straggler(
            replica=None if series else key.replica,
            stage=rank,
            rank=rank,
            factor=exp(spell.level),
            since_iteration=spell.since,
            until_iteration=spell.until,
            transient=spell.transient,
            cause=spell.told_cause,
        )

    def _cause(self, key: Key, spell: Spell) -> str | None:
        if key.scope == "series":
            return "iteration"
        if key.scope == "link":
            return "communication"
        if spell.told_cause is not None and (spell.length > COLD or spell.until is not None):
            return spell.told_cause
        member = self._members[key.replica]
        if key.scope == "rank":
            return member.reasons.cause(key.which[0], spell.length) or "compute"
        causes = Counter(member.reasons.cause(r, spell.length) for r in member.ranks.layout.ranks)
        cause, often = causes.most_common(1)[0]
        return cause if cause is not None and 2 * often > causes.total() else "replica"
