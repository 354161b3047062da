"""What was learned of a job, as it outlives the job, and whether to believe it at the next start.

A job is found again by its signature: the kinds of computation on each rank, each rank's GPU, and
the schedule. That does not say which model is trained, on how long a sequence or in how large a
microbatch, so what was remembered under it is believed in two steps.

1. *At full clock*, once the baseline is measured: does every kind take as long as remembered (and
   draw as much, as far as that is known by then)? `Recollection.fits`.
2. *At lower clocks*, in the learner's own first trials, whose windows are chosen as if nothing were
   remembered, so that a wrong memory cannot make an iteration longer: does every kind slow down as
   remembered? `Recollection.contradicted`, until `Recollection.confirmed`.

Only then it joins the knowledge. What is contradicted is discarded, and the trials that found it
out count as learning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

import numpy as np

from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.learned.plausible import implausible
from perseusd.core.model import Kind, Pipeline
from perseusd.errors import PerseusError

VERSION = 1
"""Of what `learned` makes; another one is not read."""

SIGNATURE_DIGITS = 32

SAME_TIME = 0.03
"""Relative change of one kind's time at full clock that may be another GPU of the same model, a
warmer day, other data: how times depend on the clock stays the same."""

SAME_TIMES = 0.02
"""The same of all kinds together: what slows down everything is more likely another job."""

SAME_SLOWING = 0.03
"""Relative error of a predicted time at a lower clock that is no reason to learn anew: a learned
curve may itself be off by as much, and what is learned in hold corrects it."""

SAME_POWER = 0.15
"""The same of a power: powers come out of a regression, and a wrong one costs no time."""

OF_MIDDLE = 1.2
"""Variance of the mean of the middle half of normal deviates over that of the mean of all."""

SIGMAS = 3.5
"""Standard errors beyond which a mean deviates: some dozens of means are looked at."""

FEWEST_SAMPLES = 4
"""At lower clocks, before anything is contradicted: one of them may have been held up."""

ENOUGH_PER_GROUP = 8
"""Samples at lower clocks, over the kinds of one shape, before it is believed."""

SURE = 0.04
"""Deviation of a group that must show above the noise before it is believed."""


class ForgottenError(PerseusError):
    """What was remembered cannot be used; the message says why."""


def signature(pipeline: Pipeline, gpus: Mapping[int, GpuFacts], schedule: str | None) -> str:
    """Under what the curves of this pipeline are kept: a stable hex digest. `gpus` by rank.

    Of the orders only the kinds count. How many microbatches there are, and in which order they
    come, changes no curve, and a job that is started again on fewer nodes has more of them; what
    else their number may stand for, such as their size, shows in the times at full clock.
    """
    ranks = [
        {
            "kinds": sorted({(c.chunk, c.instruction) for c in order}),
            "gpu": gpus[rank].model,
            "clocks_mhz": [gpus[rank].supported_mhz[0], gpus[rank].top_mhz],
        }
        for rank, order in enumerate(pipeline.orders)
    ]
    text = json.dumps({"ranks": ranks, "schedule": schedule}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:SIGNATURE_DIGITS]


def learned(knowledge: Knowledge, schedule: str | None) -> dict[str, object]:
    """What to remember: JSON-able; what stands beside `knowledge` is for people to read."""
    return {
        "version": VERSION,
        "stages": len(knowledge.gpus),
        "gpus": list(dict.fromkeys(gpu.model for gpu in knowledge.gpus.values())),
        "schedule": schedule,
        "knowledge": knowledge.snapshot(),
    }


class Part(NamedTuple):
    """How far something seen is from what was remembered: the logarithm of their ratio.

    variance: its own; shared: what it has in common with its like, which no mean lowers.
    """

    log_ratio: float
    variance: float
    shared: float


class Deviation(NamedTuple):
    """A mean of parts, its standard error, and how many there are."""

    what: str
    mean: float
    error: float
    size: int

    def beyond(self, tolerance: float) -> bool:
        return abs(self.mean) > tolerance + SIGMAS * self.error

    @property
    def excess(self) -> float:
        return abs(self.mean) - SIGMAS * self.error

    @property
    def in_words(self) -> str:
        return f"{abs(math.expm1(self.mean)):.1%} {'more' if self.mean > 0 else 'less'}"


class Recollection:
    """What was remembered of a job of this signature, to be compared with this job."""

    def __init__(self, remembered: Mapping[str, object], gpus: Mapping[int, GpuFacts]) -> None:
        """remembered: what `learned` once made. Raises ForgottenError where it is not that."""
        self.snapshot = _snapshot(remembered)
        then = Knowledge(gpus)
        try:
            then.recall(self.snapshot)
            self._model, self._powers = then.time_model(), then.powers()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ForgottenError(f"it is damaged: {error!r}") from None

    # --- at full clock ----------------------------------------------------------------------

    def fits(self, now: Knowledge) -> str | None:
        """None if computations at full clock are those remembered; else, in words, why not.

        Whatever slows all kinds alike, such as larger microbatches, is another job: it may have
        left the range in which a kind is bound by memory or sits at the power cap.
        """
        times = dict(self._times(now))
        unknown = sorted(now.time_model().top_s.keys() ^ times.keys())
        if unknown or not times:
            return f"it lacks {_named(unknown[0])}" if unknown else "nothing was timed yet"
        together = _pooled("everything", times.values())
        if together.beyond(SAME_TIMES):
            return f"everything takes {together.in_words} time than remembered"
        each = (_pooled(_named(kind), [part]) for kind, part in times.items())
        return _worst(each, SAME_TIME, "time") or self._power_differs(now)

    def _times(self, now: Knowledge) -> Iterator[tuple[Kind, Part]]:
        """Time at full clock now over then; what is remembered rests on as much as there is now."""
        noise = now.noise()
        for kind, seconds in now.time_model().top_s.items():
            count = now.durations.count(kind, now.gpus[kind.rank].top_mhz)
            if count and (then := self._model.top_s.get(kind)) is not None:
                yield kind, Part(math.log(seconds / then), 2 * noise**2 / count, 0.0)

    def _power_differs(self, now: Knowledge) -> str | None:
        """By group: one kind's power comes out of the regression too uncertain."""
        model, pools = now.power_model(), dict[str, list[Part]]()
        for rank, columns in self._powers.items():
            for column, power in columns.items():
                kind = None if column is None else column.kind
                at_top = column is not None and column.clock_mhz == now.gpus[rank].top_mhz
                if kind is None or not at_top or not model.knows(kind) or power.watts <= 0:
                    continue
                one = np.ones(1)
                ratio = float(model.watts(kind, one)[0]) / power.watts
                part = Part(math.log(ratio), 0.0, float(model.error(kind, one)[0]) ** 2)
                pools.setdefault(self._model.group[kind], []).append(part)
        pooled = (_pooled(what, parts) for what, parts in pools.items())
        return _worst(pooled, SAME_POWER, "power")

    # --- at lower clocks --------------------------------------------------------------------

    def contradicted(self, now: Knowledge) -> str | None:
        """None as long as what was seen at lower clocks agrees; else, in words, what does not.

        now: what this start has seen itself, nothing of it recalled.
        """
        pools: dict[str, list[Part]] = {}
        for kind, clock, part in self._slowings(now):
            group = self._model.group[kind]
            for what in (_named(kind), group, f"{group} at {clock} MHz"):
                pools.setdefault(what, []).append(part)
        pooled = (_pooled(what, parts) for what, parts in pools.items())
        return _worst(
            (deviation for deviation in pooled if deviation.size >= FEWEST_SAMPLES),
            SAME_SLOWING,
            "time at lower clocks",
        )

    def confirmed(self, now: Knowledge) -> bool:
        """Whether enough was seen at lower clocks to believe what does not contradict it."""
        seen: dict[str, list[Part]] = {group: [] for group in self._model.shapes}
        for kind, _, part in self._slowings(now):
            seen[self._model.group[kind]].append(part)
        pooled = [_pooled(group, parts) for group, parts in seen.items() if parts]
        return len(pooled) == len(seen) and all(
            deviation.size >= ENOUGH_PER_GROUP and SIGMAS * deviation.error <= SURE
            for deviation in pooled
        )

    def _slowings(self, now: Knowledge) -> Iterator[tuple[Kind, int, Part]]:
        """Every computation seen at a lower clock: its time over what was remembered.

        Predicted from its time at full clock as it is now, so that a small drift is no deviation.
        """
        noise, top_s = now.noise(), now.time_model().top_s
        for kind, clocks in now.durations.seen.items():
            if kind not in top_s or kind not in self._model.top_s:
                continue
            top = now.gpus[kind.rank].top_mhz
            at_top = max(now.durations.count(kind, top), 1)
            for clock, samples in clocks.items():
                x = top / clock
                if x <= 1 or x > self._model.reach(kind) + 1e-6 or not samples:
                    continue
                predicted = top_s[kind] * float(self._model.ratio(kind, x))
                for seconds in samples:
                    log_ratio = math.log(max(seconds, 1e-9) / predicted)
                    yield kind, clock, Part(log_ratio, noise**2, noise**2 / at_top)


def _snapshot(remembered: object) -> Mapping[str, object]:
    if not isinstance(remembered, Mapping):
        raise ForgottenError("it is damaged: no object")
    version, snapshot = remembered.get("version"), remembered.get("knowledge")
    if version != VERSION:
        raise ForgottenError(f"it is of version {version!r}, and this is version {VERSION}")
    if not isinstance(snapshot, Mapping):
        raise ForgottenError("it is damaged: no curves in it")
    if (wrong := implausible(snapshot)) is not None:
        raise ForgottenError(f"it is damaged: {wrong}")
    return snapshot


def _pooled(what: str, parts: Iterable[Part]) -> Deviation:
    """The mean of the middle half: one computation that was held up says nothing of a curve."""
    log_ratios, variances, shared = zip(*parts, strict=True)
    size = len(log_ratios)
    aside = size // 4
    inner = sorted(log_ratios)[aside : size - aside]
    variance = (OF_MIDDLE if aside else 1.0) * fmean(variances) / size + max(shared)
    return Deviation(what, fmean(inner), math.sqrt(variance), size)


def _worst(deviations: Iterable[Deviation], tolerance: float, of: str) -> str | None:
    worst = max(deviations, key=lambda deviation: deviation.excess, default=None)
    if worst is None or not worst.beyond(tolerance):
        return None
    return f"{worst.what} takes {worst.in_words} {of} than remembered"


def _named(kind: Kind) -> str:
    return f"{kind.instruction} of stage {kind.rank}"
