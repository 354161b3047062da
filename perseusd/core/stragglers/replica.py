"""One replica's ranks against its own past and its peers, iteration by iteration.

Columns of its excesses: first the ranks, then the replica as a whole, then the kinds, each kind's
excess told as what it does to its rank's whole time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseusd.core.model import Computation
from perseusd.core.stragglers.compute import BIAS, Excess, Ranks, common_level, shares
from perseusd.core.stragglers.levels import Array, Layout, Levels, layout_of, levels
from perseusd.core.stragglers.observation import Observation
from perseusd.core.stragglers.past import SEEDS, TRUSTED, Past
from perseusd.core.stragglers.peers import ENOUGH, alike, common_to_all, shared_reference
from perseusd.core.stragglers.spells import Log

SUSPICIOUS = 0.045
"""Excess at which the reference stops learning."""

FASTER = -0.05
FASTER_SINGLE = -0.025
FASTER_FOR = 8
"""A rank that much faster than its reference, that long, was slow when the reference was taken."""

FASTER_CERTAIN = 4.5

MOST_LAYOUTS = 8


class Replica:
    """slow: per column, whether a spell lasts there (the watch keeps it)."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Computation, ...], Layout] = {}
        self.layout = layout_of([])
        self.past = Past(0)
        self.last: Excess | None = None
        self.slow: NDArray[np.bool_] = np.zeros(1, dtype=bool)
        self.judged: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        """Per rank, whether it may be judged this time."""
        self.log = Log()
        self.busiest_s = 0.0
        """How long the busiest rank computed."""
        self._number, self._before = 0, 0
        self._levels: Levels | None = None

    @property
    def whole(self) -> int:
        """The column of the replica as a whole."""
        return len(self.layout.ranks)

    def add(self, observation: Observation) -> bool:
        """Takes an iteration in; whether its kinds are the same as before."""
        self._before, self._number = self._number, observation.number
        names: tuple[Computation, ...]
        seconds: tuple[float, ...]
        names, seconds = zip(*observation.computations, strict=True)
        layout = self._layouts.get(names)
        if layout is None:
            if len(self._layouts) >= MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[names] = layout_of(names)
        same = self.layout.kinds == layout.kinds
        self.layout = layout
        if not same:
            self.past, self.last = Past(len(layout.kinds)), None
            self.slow = np.zeros(self.whole + 1 + len(layout.kinds), dtype=bool)
            self.log = Log()
        self.judged = np.array([rank not in observation.uncertain for rank in layout.ranks])
        valid = self.judged[layout.rank_of].astype(float)
        self.busiest_s = layout.busiest_s(seconds)
        self._levels = levels(layout, seconds, self._levels if same else None)
        self.past.add(self._levels, valid)
        return same

    def judge(self, others: Sequence[Replica]) -> Excess | None:
        """The excesses now, shape (windows, columns); None while there is nothing to judge by."""
        peers = [o for o in others if o.layout.kinds == self.layout.kinds]
        if self.past.healthy < (1 if len(peers) + 1 >= ENOUGH else TRUSTED):
            return None
        references = [p.past.reference for p in peers]
        reference = shared_reference(self.past.reference, references, several=self.whole > 1)
        self.past.sound = reference
        common = [(p.last, p.slow) for p in peers if p.last is not None]
        excess = self.last = self._excess(reference, common)
        if not self.log.count and len(excess.windows) > 1:  # the one before judgement began
            self.log.note(self._before, 2 * excess.mean[1] - excess.mean[0])
        single = excess.mean[0].copy()
        single[: self.whole][~self.judged] = np.nan
        single[self.whole + 1 :][~self.judged[self.layout.rank_of]] = np.nan
        self.log.note(self._number, single)
        return excess

    def learn(self, excess: Excess | None) -> None:
        """The reference learns from an iteration in which nobody was slow, or suspiciously so.

        Where lengths scatter much, only many iterations show that the replica as a whole is slow;
        until they do, a reference that still averages would take its slowness for what is usual.
        A replica of one rank averages on: it has few computations, and is certain of little else.
        """
        if not self.judged.all() or self.slow.any():
            return
        if excess is not None:
            ranks = slice(0, self.whole + 1)
            limit = np.maximum(SUSPICIOUS, 3 * excess.error[:, ranks])
            above = excess.mean[:, ranks] > limit
            settled = self.whole > 1 and self.past.healthy >= SEEDS
            if above[: FASTER_FOR // 2].any() or (settled and above[:, self.whole].any()):
                return
            self._correct(excess)
        latest = self.past.latest()[0][0] - self.past.reference
        share = shares(self.layout, self.past.reference)
        common = float(np.median(latest @ share))
        self.past.settle(latest - common, common)

    def _excess(
        self, reference: Array, peers: Sequence[tuple[Excess, NDArray[np.bool_]]]
    ) -> Excess:
        windows, mean, count = self.past.means(reference)
        share = shares(self.layout, reference)
        seen = np.maximum(count, 1.0)
        first = [int(np.argmax(share[:, rank] > 0)) for rank in range(self.whole)]
        own = self.past.variance @ share**2
        ranks = Ranks(mean @ share, own / seen[:, first], self.judged & ~self.slow[: self.whole])
        shared = common_to_all(windows, peers)
        expected = np.zeros(len(windows))
        if shared is not None:
            expected = np.clip(np.median(ranks.mean, axis=1), 0.0, shared[:, self.whole])
        drawn = self.past.common_variance / np.array(windows)
        common = common_level(ranks, expected, drawn, bool(self.slow[self.whole]))
        level, of_level, borne = common.level, common.variance, common.borne
        averaged, averaged_common = self.past.certainty()
        of_whole = drawn + self.past.common_variance / averaged_common
        if self.whole == 1:  # the rank is the replica: nothing tells it from its lengths
            level, of_level, borne = np.zeros(len(windows)), of_whole, np.zeros(len(windows))
        raw = np.column_stack([ranks.mean - level[:, None], common.free, mean - level[:, None]])
        variance = np.column_stack(
            [
                ranks.noise + own / averaged + of_level[:, None],
                of_whole + common.variance,
                self.past.variance / seen + self.past.variance / averaged + of_level[:, None],
            ]
        )
        taken = raw - (0.0 if shared is None else shared)
        taken[:, self.whole] = raw[:, self.whole] - expected
        bias = np.tile(BIAS * (1 + borne)[:, None], raw.shape[1])
        bias[:, self.whole] = BIAS
        bias = np.hypot(bias, alike(len(peers)) * self._by_peers(reference))
        return self._as_ranks(Excess(windows, taken, np.sqrt(variance), raw, bias), share)

    def _by_peers(self, reference: Array) -> NDArray[np.bool_]:
        """Per column, whether what healthy peers take is its reference: it may differ from them."""
        kinds = reference < self.past.reference
        ranks = np.bincount(self.layout.rank_of, weights=kinds, minlength=self.whole) > 0
        return np.concatenate([ranks, [bool(kinds.all())], kinds])

    def _as_ranks(self, excess: Excess, share: Array) -> Excess:
        """The kinds' columns as what each does to its rank's time, the other kinds being well."""
        kinds = slice(self.whole + 1, None)
        part = share.sum(axis=1)
        times = np.exp(excess.mean[:, kinds])
        whole = 1 + part * (times - 1)
        excess.mean[:, kinds] = np.log(whole)
        excess.error[:, kinds] *= part * times / whole
        excess.bias[:, kinds] *= part
        return excess

    def _correct(self, excess: Excess) -> None:
        """A rank or the replica that has become faster, lastingly, had been slow before."""
        if FASTER_FOR not in excess.windows:
            return
        last = excess.windows.index(FASTER_FOR)
        long, error = excess.raw[last], excess.error[last]
        faster = (long < FASTER) & (long < -FASTER_CERTAIN * error)
        faster &= (excess.raw[:last] < FASTER_SINGLE).all(axis=0)
        by = np.zeros(len(self.layout.kinds))
        if faster[self.whole]:
            by += long[self.whole]
        elif self.whole > 1:
            kinds = faster[: self.whole][self.layout.rank_of]
            by[kinds] = long[self.whole + 1 :][kinds]
        if by.any():
            self.past.shift(by, FASTER_FOR)
