from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from perseusd.emulation.curves import falling_times
from perseusd.emulation.tables import PROFILES, STAGE_TIMES
from perseusd.emulation.workloads import (
    Workload,
    listing,
    load_profile_workload,
    load_workload,
    names,
)
from perseusd.errors import PerseusError, UsageError
from perseusd.gpus.simulated import SPECS

EVERY = sorted(names())


@pytest.mark.parametrize(("name", "gpu"), EVERY)
def test_time_falls_and_power_is_above_blocking(name: str, gpu: str) -> None:
    """Every curve of every workload is one that a GPU could have."""
    workload = load_workload(name, gpu)
    for curve in workload.curves.values():
        assert len(curve.time_s) == len(SPECS[gpu].supported_clocks_mhz)
        assert all(a > b for a, b in itertools.pairwise(curve.time_s))
        powers = [e / t for e, t in zip(curve.energy_j, curve.time_s, strict=True)]
        assert min(powers) > workload.blocking_power_w


@pytest.mark.parametrize("gpu", ["a100-sxm", "a40"])
def test_gpt3_175b_is_as_measured(gpu: str) -> None:
    """Its curves go through the measured points; few were left out for wobbling."""
    workload = load_workload("gpt3-175b", gpu)
    clocks = workload.clocks_mhz
    for stage, kind in ((0, "inner"), (6, "inner"), (7, "last")):
        for instruction in ("forward", "backward"):
            points = PROFILES[gpu.split("-")[0], kind, instruction]
            kept = falling_times(points)
            assert len(kept) >= 0.7 * len(points)
            assert kept[-1] == points[-1]
            curve = workload.curves[stage, instruction]
            for clock, time, energy in kept:
                assert curve.time_s[clocks.index(clock)] == pytest.approx(time)
                assert curve.energy_j[clocks.index(clock)] == pytest.approx(energy)


@pytest.mark.parametrize(("name", "gpu"), sorted(STAGE_TIMES))
def test_borrowed_curves_have_the_measured_stage_times(name: str, gpu: str) -> None:
    """At the highest clock the ten others take as long as they were measured to, and say so."""
    workload = load_workload(name, gpu)
    for stage, (forward_s, backward_s) in enumerate(STAGE_TIMES[name, gpu]):
        assert workload.curves[stage, "forward"].time_s[-1] == pytest.approx(forward_s)
        assert workload.curves[stage, "backward"].time_s[-1] == pytest.approx(backward_s)
    assert "borrowed" in workload.source


def test_the_contract_s_twelve_are_there() -> None:
    """The names and GPUs of the demo's contract, each with an iteration of a few seconds."""
    pcie = {"gpt3-1.3b", "bloom-3b", "bert-1.3b", "t5-3b", "wide-resnet-1.5b"}
    a40 = {"gpt3-175b", "gpt3-2.7b", "bloom-3b", "bert-1.3b", "t5-3b", "wide-resnet-1.5b"}
    expected = {("gpt3-175b", "a100-sxm")} | {(n, "a100-pcie") for n in pcie}
    assert set(EVERY) == expected | {(n, "a40") for n in a40}
    assert all(2 < workload.full_clock_time_s() < 6 for workload in listing())


def test_full_clock_time_is_the_longest_path(small: Workload) -> None:
    """Checked by hand for one microbatch: down the stages and up again."""
    once = sum(small.curves[s, i].time_s[-1] for s in range(3) for i in ("forward", "backward"))
    assert small.full_clock_time_s(1) == pytest.approx(once + 4 * small.communication_s)


@pytest.mark.parametrize(
    ("name", "gpu", "words"),
    [
        ("gpt3-1.3", None, ("'gpt3-1.3'", "did you mean 'gpt3-1.3b'", "known are bert-1.3b")),
        ("nonsense", None, ("'nonsense'", "t5-3b")),
        ("gpt3-175b", "a400", ("'a400'", "did you mean 'a40'")),
        ("gpt3-1.3b", "a40", ("'gpt3-1.3b'", "'a40'", "a100-pcie", "--gpu")),
    ],
)
def test_an_unknown_name_is_answered_with_the_known(
    name: str, gpu: str | None, words: tuple[str, ...]
) -> None:
    """The error names what was asked for, what there is, and the nearest."""
    with pytest.raises(UsageError) as caught:
        load_workload(name, gpu)
    assert all(word in str(caught.value) for word in words)


def profile(path: Path, *rows: str) -> Path:
    path.write_text("stage,instruction,frequency,time,energy\n" + "\n".join(rows) + "\n")
    return path


ROWS = [
    f"{stage},{instruction},{clock},{time * (1 + stage)},{time * (1 + stage) * power}"
    for stage in (0, 1)
    for instruction in ("forward", "backward")
    for clock, time, power in ((900, 0.03, 200), (1200, 0.025, 260), (1410, 0.02, 300))
]

SPLIT = [f"{stage},weight_gradient,{clock},0.01,4" for stage in (0, 1) for clock in (1000, 1300)]


def test_a_profile_becomes_a_job(tmp_path: Path) -> None:
    """Stages behave as the file says; the GPU is the first that has its clocks."""
    workload = load_profile_workload(profile(tmp_path / "mine.csv", *ROWS), None, 80.0)
    assert (workload.name, workload.gpu, workload.stages) == ("mine", "a100-sxm", 2)
    assert workload.curves[1, "forward"].time_s[-1] == pytest.approx(0.04)
    assert workload.curves[1, "forward"].energy_j[-1] == pytest.approx(12.0)
    assert workload.microbatches >= 4


@pytest.mark.parametrize(
    ("rows", "gpu", "blocking_w", "words"),
    [
        (ROWS[:9], None, 80.0, ("stage 1", "backward")),
        (ROWS, "h900", 80.0, ("'h900'", "known are")),
        (ROWS, None, 250.0, ("250 W", "--blocking-power")),
        ([*ROWS, "0,forward,1980,0.01,4"], None, 80.0, ("1980 MHz", "--gpu")),
        ([*ROWS, *SPLIT], None, 80.0, ("'weight_gradient'", "1F1B")),
        (SPLIT, None, 80.0, ("stage 0", "'backward'", "1F1B")),
    ],
)
def test_a_profile_that_does_not_fit_says_why(
    tmp_path: Path, rows: list[str], gpu: str | None, blocking_w: float, words: tuple[str, ...]
) -> None:
    """The error names the file, the value and the fix."""
    path = profile(tmp_path / "mine.csv", *rows)
    with pytest.raises(PerseusError) as caught:
        load_profile_workload(path, gpu, blocking_w)
    assert all(word in str(caught.value) for word in words)
