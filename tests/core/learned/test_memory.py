"""What is remembered of a job: under what, what of it is believed, and that nothing else is."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseusd.core.learned.knowledge import GpuFacts, Knowledge
from perseusd.core.learned.memory import ForgottenError, Recollection, learned, signature
from perseusd.core.learned.plausible import implausible
from perseusd.core.model import Computation, Kind
from perseusd.core.schedules import gpipe, one_f_one_b, pipeline
from tests.core.energy.activity import Activity, together

CLOCKS = tuple(range(705, 1411, 15))
TOP = CLOCKS[-1]
STAGES = 4
GPUS = {r: GpuFacts(f"GPU-{r}", "NVIDIA A100-SXM4-80GB", CLOCKS) for r in range(STAGES)}
KINDS = [Kind(r, 0, i) for r in range(STAGES) for i in ("forward", "backward")]
_S = 1_000_000_000
TICK_NS = 50_000_000


@dataclass
class Life:
    """A job that runs its kinds one after another, each at clocks that are told.

    slower: by kind or instruction, what multiplies its times; steeper: how much of them depends on
    the clock; watts: of the backward at the highest clock.
    """

    noise: float = 0.01
    seed: int = 0
    slower: Mapping[object, float] = field(default_factory=dict)
    steeper: float = 0.75
    watts: float = 300.0
    fall: float = 2.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.knowledge = Knowledge(GPUS)
        self._now_ns = dict.fromkeys(GPUS, _S)
        self._joules = dict.fromkeys(GPUS, 0.0)
        self._tick_ns = dict.fromkeys(GPUS, _S)

    def seconds(self, kind: Kind, clock: int) -> float:
        top = (0.06 if kind.instruction == "backward" else 0.03) * (1 + 0.05 * kind.rank)
        factor = self.slower.get(kind, 1.0) * self.slower.get(kind.instruction, 1.0)
        return top * factor * (1 - self.steeper + self.steeper * TOP / clock)

    def power(self, kind: Kind, clock: int) -> float:
        top = self.watts * (1.0 if kind.instruction == "backward" else 0.9)
        return top * (0.3 + 0.7 * (clock / TOP) ** self.fall)

    def live(self, iterations: int, clock: Callable[[Kind, int], int]) -> Life:
        """clock(kind, microbatch): where it runs."""
        for _ in range(iterations):
            for rank in GPUS:
                done = list(self._iteration(rank, clock))
                self.knowledge.add_activities(rank, together(done))
        return self

    def _iteration(self, rank: int, clock: Callable[[Kind, int], int]) -> Iterator[Activity]:
        for microbatch in range(6):
            for kind in (k for k in KINDS if k.rank == rank):
                mhz = clock(kind, microbatch)
                seconds = self.seconds(kind, mhz) * self.random.lognormal(0, self.noise)
                self.knowledge.durations.add(kind, mhz, seconds)
                yield self._run(rank, kind, mhz, int(seconds * _S), self.power(kind, mhz))
        yield self._run(rank, None, TOP, _S // 10, 80.0)

    def _run(self, rank: int, kind: Kind | None, mhz: int, lasts_ns: int, watts: float) -> Activity:
        start_ns = self._now_ns[rank]
        end_ns = start_ns + lasts_ns
        while self._tick_ns[rank] + TICK_NS <= end_ns:
            self._tick_ns[rank] += TICK_NS
            at_ns = self._tick_ns[rank]
            joules = self._joules[rank] + watts * (at_ns - start_ns) / _S
            self.knowledge.poll_counter(rank, at_ns - 1_000_000, self._last(rank))
            self.knowledge.poll_counter(rank, at_ns + 1_000_000, joules)
            self._seen = getattr(self, "_seen", {}) | {rank: joules}
        self._joules[rank] += watts * lasts_ns / _S
        self._now_ns[rank] = end_ns
        return Activity(start_ns, end_ns, kind, mhz)

    def _last(self, rank: int) -> float:
        return getattr(self, "_seen", {}).get(rank, 0.0)


def at_top(kind: Kind, microbatch: int) -> int:
    return TOP


LADDER = (1305, 1185, 1080, 975)


def trials(kind: Kind, microbatch: int) -> int:
    """Most of an iteration at full clock, and a window of two lower clocks."""
    return TOP if microbatch < 4 else LADDER[(kind.rank + microbatch) % 3]


def everywhere(kind: Kind, microbatch: int) -> int:
    return (TOP, TOP, *LADDER)[microbatch]


@pytest.fixture(scope="module")
def remembered() -> dict[str, object]:
    """Of a job that was learned well, through the text of a file."""
    knowledge = Life(seed=99).live(5, at_top).live(12, everywhere).knowledge
    kept: dict[str, object] = json.loads(json.dumps(learned(knowledge, "1f1b"), allow_nan=False))
    return kept


@pytest.fixture(scope="module")
def now() -> Knowledge:
    """What this start has seen: a baseline and one trial iteration."""
    return Life(seed=5).live(5, at_top).live(1, trials).knowledge


# -- under what it is kept -------------------------------------------------------------------------


def order(microbatches: int) -> Any:
    return pipeline(one_f_one_b(STAGES, microbatches), 0.0005)


def test_the_same_job_has_the_same_signature() -> None:
    """On other GPUs of the same model, with another number of microbatches; and from one version to
    the next, so that an update forgets nothing: the digest itself is fixed here."""
    elsewhere = {r: replace(g, uuid=f"GPU-x{r}", index=7 - r) for r, g in GPUS.items()}
    first = signature(order(8), GPUS, "1f1b")
    assert signature(order(12), elsewhere, "1f1b") == first
    assert first == "3c9e12652fda8d4e4da2f162fb892dc0"


def test_another_job_has_another_signature() -> None:
    """Another schedule, GPU, range of clocks, number of stages, chunk or instruction."""
    model = {**GPUS, 2: replace(GPUS[2], model="A40")}
    clocks = {**GPUS, 2: replace(GPUS[2], supported_mhz=CLOCKS[1:])}
    fewer = pipeline(one_f_one_b(STAGES - 1, 8), 0.0005)
    more = replace(
        order(8), orders=(*order(8).orders[:3], (*order(8).orders[3], Computation(3, 1, "x", 0)))
    )
    digests = [
        signature(order(8), GPUS, "1f1b"),
        signature(order(8), GPUS, None),
        signature(order(8), model, "1f1b"),
        signature(order(8), clocks, "1f1b"),
        signature(fewer, GPUS, "1f1b"),
        signature(more, GPUS, "1f1b"),
    ]
    assert len(set(digests)) == len(digests)


def test_an_order_without_a_name_is_told_by_its_kinds() -> None:
    """GPipe's and 1F1B's computations are the same, and so are their curves."""
    other = pipeline(gpipe(STAGES, 8), 0.0005)
    assert signature(other, GPUS, None) == signature(order(8), GPUS, None)


# -- at full clock ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_the_same_job_fits(remembered: dict[str, object], noise: float, seed: int) -> None:
    """After a baseline of five iterations, at any usual noise."""
    now = Life(noise=noise, seed=seed).live(5, at_top).knowledge
    assert Recollection(remembered, GPUS).fits(now) is None


@pytest.mark.parametrize("seed", range(4))
def test_other_gpus_of_the_model_fit(remembered: dict[str, object], seed: int) -> None:
    """One stage 2 % slower, another 2 % faster: no two GPUs are the same."""
    life = Life(seed=seed, slower={KINDS[0]: 1.02, KINDS[1]: 1.02, KINDS[2]: 0.98, KINDS[3]: 0.98})
    assert Recollection(remembered, GPUS).fits(life.live(5, at_top).knowledge) is None


@pytest.mark.parametrize(
    ("slower", "watts", "part"),
    [
        ({"forward": 1.06, "backward": 1.06}, 300.0, "everything takes"),
        ({"forward": 0.94, "backward": 0.94}, 300.0, "% less time than remembered"),
        ({"forward": 2.0, "backward": 2.0}, 300.0, "everything takes"),
        ({KINDS[3]: 1.1}, 300.0, "backward of stage 1 takes"),
        ({"backward": 1.1, "forward": 0.91}, 300.0, "than remembered"),
        ({}, 200.0, "less power than remembered"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_another_job_does_not_fit(
    remembered: dict[str, object],
    slower: Mapping[object, float],
    watts: float,
    part: str,
    seed: int,
) -> None:
    """Larger or smaller microbatches (one factor for everything), other layers on a stage, another
    make-up of the same total, other work in the same time: not this job, and in words why."""
    now = Life(seed=seed, slower=slower, watts=watts).live(5, at_top).knowledge
    assert part in (Recollection(remembered, GPUS).fits(now) or "")


def test_nothing_fits_before_anything_was_seen(remembered: dict[str, object]) -> None:
    """No measurement is no agreement."""
    assert Recollection(remembered, GPUS).fits(Knowledge(GPUS)) == "nothing was timed yet"


def test_a_kind_that_is_not_remembered(remembered: dict[str, object]) -> None:
    """What was cut out by hand is missed."""
    kept = copy.deepcopy(remembered)
    kept["knowledge"]["kinds"].pop()  # type: ignore[index]
    now = Life().live(5, at_top).knowledge
    assert "it lacks forward of stage 3" in (Recollection(kept, GPUS).fits(now) or "")


# -- at lower clocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_the_same_job_is_confirmed(remembered: dict[str, object], noise: float, seed: int) -> None:
    """Never contradicted, in any of six trial iterations; believed after the second at the latest;
    and not before anything was tried."""
    life, memory = Life(noise=noise, seed=seed).live(5, at_top), Recollection(remembered, GPUS)
    assert not memory.confirmed(life.knowledge)
    for trial in range(6):
        life.live(1, trials)
        assert memory.contradicted(life.knowledge) is None
        assert memory.confirmed(life.knowledge) or trial < 1


@pytest.mark.parametrize("noise", [0.01, 0.03])
@pytest.mark.parametrize("steeper", [0.35, 1.15])
@pytest.mark.parametrize("seed", range(8))
def test_a_wrong_curve_is_found_out(
    remembered: dict[str, object], noise: float, steeper: float, seed: int
) -> None:
    """A job of the same times at full clock that slows down by some 10 % more or less than
    remembered: contradicted within two trial iterations, and not confirmed before."""
    life, memory = Life(noise=noise, seed=seed, steeper=steeper), Recollection(remembered, GPUS)
    assert memory.fits(life.live(5, at_top).knowledge) is None
    life.live(1, trials)
    if (found := memory.contradicted(life.knowledge)) is None:
        found = memory.contradicted(life.live(1, trials).knowledge)
    assert found is not None
    assert ("more time" if steeper > 1 else "less time") in found


def test_one_wrong_stage_is_found_out(remembered: dict[str, object]) -> None:
    """Ten per cent at one stage only, which hardly moves the mean of its like, and it is named."""
    life, memory = Life(seed=1).live(5, at_top), Recollection(remembered, GPUS)
    life.slower = {}
    original = life.seconds
    life.seconds = lambda kind, clock: (  # type: ignore[method-assign]
        original(kind, clock) * (1.1 if kind.rank == 2 and clock < TOP else 1.0)
    )
    found = memory.contradicted(life.live(2, trials).knowledge) or ""
    assert "of stage 2 takes" in found


@pytest.mark.parametrize("clock", [LADDER[0], 1050])
def test_a_held_up_computation_contradicts_nothing(
    remembered: dict[str, object], clock: int
) -> None:
    """One computation at a lower clock that took three times as long is an accident, also where it
    is the only one at that clock."""
    life, memory = Life(seed=1).live(5, at_top).live(2, trials), Recollection(remembered, GPUS)
    life.knowledge.durations.add(KINDS[3], clock, 3 * life.seconds(KINDS[3], clock))
    assert memory.contradicted(life.knowledge) is None


def test_what_is_believed_is_known(remembered: dict[str, object]) -> None:
    """Once recalled, curves reach as far as they were learned, within 3 % of the truth in time and
    5 % in energy, though this start has only tried a few clocks."""
    life = Life(seed=3).live(5, at_top).live(1, trials)
    life.knowledge.recall(Recollection(remembered, GPUS).snapshot)
    curves, _ = life.knowledge.curves(KINDS)
    for kind, curve in curves.items():
        assert curve.clock_mhz[0] == LADDER[-1]
        times = [life.seconds(kind, clock) for clock in curve.clock_mhz]
        energies = [life.power(kind, c) * s for c, s in zip(curve.clock_mhz, times, strict=True)]
        assert curve.time_s == pytest.approx(times, rel=0.03)
        assert curve.energy_j == pytest.approx(energies, rel=0.05)


# -- what is read ----------------------------------------------------------------------------------


def test_what_is_kept_is_small_and_plausible(remembered: dict[str, object]) -> None:
    """A few kilobytes, and the check of everything read finds no fault with what is written."""
    assert len(json.dumps(remembered)) < 20_000
    assert implausible(remembered["knowledge"]) is None
    assert (remembered["stages"], remembered["schedule"]) == (STAGES, "1f1b")
    assert remembered["gpus"] == ["NVIDIA A100-SXM4-80GB"]


@pytest.mark.parametrize(
    ("kept", "part"),
    [
        (None, "no object"),
        ([], "no object"),
        ({}, "version None"),
        ({"version": 2, "knowledge": {}}, "version 2, and this is version 1"),
        ({"version": True}, "damaged"),
        ({"version": 1}, "no curves in it"),
        ({"version": 1, "knowledge": []}, "no curves in it"),
        ({"version": 1, "knowledge": {}}, "damaged"),
        ({"version": 1, "knowledge": {"version": 1}}, "damaged"),
    ],
)
def test_what_is_no_memory_is_refused(kept: Any, part: str) -> None:
    """Other versions and things that are missing, in words."""
    with pytest.raises(ForgottenError, match=part):
        Recollection(kept, GPUS)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in what was remembered."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def put(kept: Any, path: tuple[Any, ...], value: object) -> Any:
    kept = copy.deepcopy(kept)
    if not path:
        return value
    inner = kept
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return kept


ODD = st.sampled_from(
    [None, True, "", "x", -1, 0, 1, 2, 10**9, 1e-320, 1e308, -1e308, math.nan, math.inf, [], {},
     [1.0], {"a": 1}, 10**400, "9" * 5000]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_whatever_stands_anywhere_is_refused_or_usable(
    remembered: dict[str, object], now: Knowledge, data: st.DataObject
) -> None:
    """Any value at any place of a sound memory: refused in words, or what is recalled of it can be
    compared and gives curves of finite positive numbers; nothing else is raised."""
    path = data.draw(st.sampled_from(sorted(places(remembered), key=repr)))
    kept = put(remembered, path, data.draw(ODD))
    try:
        memory = Recollection(kept, GPUS)
    except ForgottenError:
        return
    assert isinstance(memory.fits(now), str | None)
    assert isinstance(memory.contradicted(now), str | None)
    memory.confirmed(now)
    recalled = Knowledge(GPUS, now.durations, now.counters, now.ledgers)
    recalled.recall(memory.snapshot)
    curves, blocking = recalled.curves(KINDS)
    numbers = [v for c in curves.values() for v in (*c.time_s, *c.energy_j)] + [*blocking.values()]
    assert all(math.isfinite(v) and v > 0 for v in numbers)
