"""A job's second start in virtual time: what was remembered is believed, or found out."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import pytest

from perseusd.core.learned.family import KNOTS
from perseusd.core.settings import Settings
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, counted
from perseusd.emulation.workloads import load_workload

Memory = dict[str, Any]

MICROBATCHES = 8
"""Of GPT-3: fewer than were published, so that the tests are quick."""


def start(
    workload: str, gpu: str, seed: int, memory: Memory, microbatches: int | None = None
) -> FastTime:
    return FastTime(
        load_workload(workload, gpu),
        counted,
        Conditions(noise=0.01, seed=seed),
        Settings(remember=True),
        microbatches=microbatches,
        memory=memory,
    )


def held_from(done: Sequence[FastIteration]) -> int:
    return next(i.number for i in done if i.state == "hold")


def saving(done: Sequence[FastIteration]) -> float:
    return 1 - mean(i.energy_j for i in done) / mean(i.full_energy_j for i in done)


def longest_slow(done: Sequence[FastIteration], limit: float = 0.01) -> int:
    """The most iterations in a row that lowered clocks made longer than that."""
    runs = itertools.groupby(done, lambda i: i.slowdown > limit)
    return max((len(list(run)) for slow, run in runs if slow), default=0)


@pytest.fixture(scope="module")
def first() -> tuple[FastTime, Memory]:
    """GPT-3's first start, and what it left behind: something from the first held iterations on,
    and more later."""
    memory: Memory = {}
    run = start("gpt3-175b", "a100-sxm", 77, memory, MICROBATCHES)
    while run.job_of(0) is None or run.job.state.value != "hold":
        assert memory == {}
        run.run(len(run.done) + 1)
    run.run(len(run.done) + 2)
    early = copy.deepcopy(memory)
    run.run(40)
    assert early.keys() == memory.keys()
    assert len(memory) == 1
    assert early != memory  # what was learned in hold is kept too
    return run, memory


def test_the_second_start_is_held_sooner(first: tuple[FastTime, Memory]) -> None:
    """The same job with other noise: two trial iterations at most instead of many, no iteration 1 %
    longer for it, and then nine tenths of what the first start saved, or more."""
    run, memory = first
    second = start("gpt3-175b", "a100-sxm", 5, dict(memory), MICROBATCHES)
    done = second.run(40)
    trials = [len([i for i in d if i.state == "learn"]) for d in (run.done, done)]
    assert held_from(done) <= held_from(run.done) - 4, trials
    assert any("still holds" in notice for notice in second.notices)
    assert longest_slow(done) <= 1
    held = [i for i in done if i.state == "hold"]
    assert mean(i.slowdown for i in held) <= 0.005
    assert saving(done[20:]) >= 0.9 * saving(run.done[20:])


def test_another_number_of_microbatches_is_the_same_job(first: tuple[FastTime, Memory]) -> None:
    """Started again with more microbatches of the same size: recognised and held as soon."""
    run, memory = first
    done = start("gpt3-175b", "a100-sxm", 6, dict(memory), MICROBATCHES + 2).run(18)
    assert held_from(done) <= held_from(run.done) - 4
    assert longest_slow(done) <= 1


def scaled(kept: Any, what: str, factor: float, beyond: float = 1.0) -> None:
    """Ratios to the top clock's, at all clocks below a part 1/beyond of it."""
    for group in kept["knowledge"]["groups"].values():
        group[what] = [
            value + (math.log(factor) if x > beyond else 0.0)
            for value, x in zip(group[what], KNOTS, strict=True)
        ]


def optimistic(kept: Any) -> None:
    scaled(kept, "time", 0.9)
    scaled(kept, "power", 0.8)


def optimistic_about_low_clocks(kept: Any) -> None:
    scaled(kept, "time", 0.9, beyond=1.3)


def optimistic_about_one_stage(kept: Any) -> None:
    for kind in kept["knowledge"]["kinds"]:
        if kind["rank"] == 0:
            kind["time_bend"] *= 0.5


@pytest.mark.parametrize(
    "wrong", [optimistic, optimistic_about_low_clocks, optimistic_about_one_stage]
)
def test_a_wrong_memory_is_found_out_before_it_does_harm(
    first: tuple[FastTime, Memory], wrong: Callable[[Any], None]
) -> None:
    """Times at lower clocks 10 % off, energies too, everywhere, at the lowest clocks or at one
    stage: contradicted within two trial iterations and discarded, then learned as if there had
    been nothing; no two iterations in a row 1 % longer; and the truth is remembered."""
    ((key, kept),) = copy.deepcopy(first[1]).items()
    wrong(kept)
    memory = {key: kept}
    run = start("gpt3-175b", "a100-sxm", 5, memory, MICROBATCHES)
    done = run.run(26)
    (found,) = (notice for notice in run.notices if "remembered" in notice)
    assert "what was remembered is wrong: " in found
    trials = [i.number for i in done if i.state == "learn"]
    assert int(found.split(":")[0]) <= trials[1]
    assert longest_slow(done) <= 1
    assert done[-1].state == "hold"
    assert memory[key] != kept


def test_wrong_energies_slow_nothing(first: tuple[FastTime, Memory]) -> None:
    """Powers a fifth too low cannot be told from two trials; the plan they make saves somewhat
    less, and takes no longer."""
    ((key, kept),) = copy.deepcopy(first[1]).items()
    scaled(kept, "power", 0.8)
    done = start("gpt3-175b", "a100-sxm", 5, {key: kept}, MICROBATCHES).run(24)
    assert longest_slow(done) <= 1
    assert saving([i for i in done if i.state == "hold"]) >= 0.1


def test_another_model_of_the_same_shape_is_told_apart() -> None:
    """T5 and Wide-ResNet, four stages on the same GPUs, share a signature and nothing else: the
    second does not take the first's curves for its own, and is remembered in its place."""
    memory: Memory = {}
    start("t5-3b", "a100-pcie", 0, memory).run(20)
    ((key, kept),) = memory.items()
    run = start("wide-resnet-1.5b", "a100-pcie", 0, memory)
    done = run.run(28)
    assert any("this is not the job remembered" in notice for notice in run.notices)
    assert done[-1].state == "hold"
    assert longest_slow(done) <= 1
    assert memory.keys() == {key}
    assert memory[key] != kept


def test_a_damaged_memory_is_no_memory(first: tuple[FastTime, Memory]) -> None:
    """What the disk gives back is not what was kept: told, and learned anew, as without."""
    ((key, kept),) = copy.deepcopy(first[1]).items()
    del kept["knowledge"]["groups"]
    damaged = start("gpt3-175b", "a100-sxm", 5, {key: kept}, MICROBATCHES)
    without = start("gpt3-175b", "a100-sxm", 5, {}, MICROBATCHES)
    assert damaged.run(12) == without.run(12)
    assert any("what was remembered cannot be used" in notice for notice in damaged.notices)


def test_nothing_is_remembered_where_that_is_switched_off() -> None:
    """remember = false: nothing is asked for and nothing is kept."""
    memory: Memory = {}
    workload = load_workload("t5-3b", "a100-pcie")
    run = FastTime(workload, counted, Conditions(), Settings(remember=False), memory=memory)
    run.run(20)
    assert run.job.state.value == "hold"
    assert memory == {}
