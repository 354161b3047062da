"""`perseusctl plan`: the contract's object checked from outside, files, errors with their fix."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from perseusd.ctl.main import main
from perseusd.traces.profile import read_profile

POWER = 80.0
CLOCKS = (1410, 1305, 1200, 1095)
PIPELINED = ("forward", "backward")

Profile = Callable[..., Path]
Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """profile(stages, instructions): later stages are longer, lower clocks slower and cheaper."""

    def write(stages: int = 3, instructions: tuple[str, ...] = PIPELINED) -> Path:
        rows = ["stage,instruction,frequency,time,energy"]
        for stage in range(stages):
            for k, instruction in enumerate(instructions):
                for clock in CLOCKS:
                    time = 0.05 * (1 + k) * (1 + 0.15 * stage) * (1410 / clock) ** 0.8
                    energy = 18 * (1 + k) * (1 + 0.15 * stage) * (clock / 1410) ** 1.1
                    rows.append(f"{stage},{instruction},{clock},{time:.6f},{energy:.5f}")
        path = tmp_path / "profile.csv"
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


@pytest.fixture
def planned(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Planned:
    """planned(words, path=): the JSON object that `perseusctl plan words --json` prints."""

    def run(words: str, path: Path | None = None) -> dict[str, Any]:
        assert main(_command(words, path or profile())) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def _command(words: str, path: Path) -> list[str]:
    power = [] if "--blocking-power" in words else ["--blocking-power", str(POWER)]
    goal = [] if "--deadline" in words else ["--deadline-ratio", "1"]
    return ["plan", "--profile", str(path), *power, *goal, *words.split(), "--json"]


@pytest.mark.parametrize("ratio", [1.0, 1.05, 1.3])
@pytest.mark.parametrize("writes", ["unlimited", "3", "auto"])
def test_the_contract(planned: Planned, profile: Profile, ratio: float, writes: str) -> None:
    """Everything that is told of a plan follows from its clocks and the profile, by plain sums."""
    told = planned(
        f"--schedule 1f1b --microbatches 4 --deadline-ratio {ratio} --clock-writes {writes}"
    )
    assert told["schema_version"] == 1
    assert (told["stages"], told["microbatches"], told["schedule"]) == (3, 4, "1f1b")
    plan, baseline = told["plan"], told["baseline"]
    full = [[{**c, "clock_mhz": CLOCKS[0]} for c in rank] for rank in told["ranks"]]
    shortest_s, energy_j = replay(full, profile(), until_s=0.0)
    assert baseline["iteration_time_s"] == pytest.approx(shortest_s)
    assert baseline["energy_j"] == pytest.approx(energy_j)
    assert plan["deadline_s"] == pytest.approx(ratio * shortest_s)
    end_s, energy_j = replay(told["ranks"], profile(), until_s=plan["deadline_s"])
    assert plan["iteration_time_s"] == pytest.approx(end_s)
    assert end_s <= plan["deadline_s"] * (1 + 1e-9)
    assert plan["energy_j"] == pytest.approx(energy_j)
    waited_j = replay(full, profile(), until_s=plan["deadline_s"])[1]
    assert plan["saving"] == pytest.approx(1 - energy_j / waited_j)
    assert plan["energy_lower_bound_j"] <= energy_j * (1 + 1e-9)
    assert told["solve_time_s"] > 0
    changes = max(sum(a != b for a, b in cycle(rank)) for rank in told["ranks"])
    assert changes <= plan["clock_writes"]
    if writes == "3":
        assert plan["clock_writes"] <= 3
        assert plan["energy_lower_bound_j"] <= plan["energy_lower_bound_writes_j"] * (1 + 1e-9)
        assert plan["energy_lower_bound_writes_j"] <= energy_j * (1 + 1e-9)


def cycle(rank: list[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Neighbouring clocks of an iteration that recurs."""
    clocks = [c["clock_mhz"] for c in rank]
    return zip(clocks, [*clocks[1:], clocks[0]], strict=True)


def replay(ranks: list[list[dict[str, Any]]], path: Path, until_s: float) -> tuple[float, float]:
    """(end, energy until `until_s` or the end) of a 1F1B iteration, from the profile alone."""
    curves = read_profile(path)
    end: dict[tuple[int, str, int], float] = {}
    free, busy, energy = [0.0] * len(ranks), 0.0, 0.0
    todo = [list(rank) for rank in ranks]
    while any(todo):
        for stage, rank in enumerate(todo):
            if not rank:
                continue
            first, m = rank[0]["instruction"], rank[0]["microbatch"]
            needs = needed(stage, first, m, len(ranks))
            if any(n not in end for n in needs):
                continue
            curve = curves[stage, first]
            at = curve.clock_mhz.index(rank.pop(0)["clock_mhz"])
            start = max([free[stage], *(end[n] for n in needs)])
            end[stage, first, m] = free[stage] = start + curve.time_s[at]
            busy, energy = busy + curve.time_s[at], energy + curve.energy_j[at]
    finish = max(free)
    return finish, energy + POWER * (len(ranks) * max(finish, until_s) - busy)


def needed(stage: int, instruction: str, m: int, stages: int) -> list[tuple[int, str, int]]:
    if instruction == "forward":
        return [(stage - 1, "forward", m)] if stage else []
    after = [(stage + 1, "backward", m)] if stage + 1 < stages else []
    return [(stage, "forward", m), *after]


def test_a_deadline_in_seconds_is_the_same(planned: Planned) -> None:
    """--deadline S is --deadline-ratio S / the baseline's time, and rounding does not matter."""
    by_ratio = planned("--microbatches 4 --deadline-ratio 1.1")
    by_time = planned(f"--microbatches 4 --deadline {by_ratio['plan']['deadline_s']}")
    assert by_time["plan"] == pytest.approx(by_ratio["plan"])
    shortest = by_ratio["baseline"]["iteration_time_s"]
    assert planned(f"--microbatches 4 --deadline {shortest * (1 - 1e-9)}")["plan"][
        "deadline_s"
    ] == pytest.approx(shortest)


def test_a_deadline_past_all_use_is_waited_for(planned: Planned) -> None:
    """The plan is that of the longest useful iteration, the energy includes the waiting."""
    long, longer = (planned(f"--microbatches 4 --deadline-ratio {r}") for r in (3, 4))
    assert long["ranks"] == longer["ranks"]
    waited_s = longer["plan"]["deadline_s"] - long["plan"]["deadline_s"]
    more_j = longer["plan"]["energy_j"] - long["plan"]["energy_j"]
    assert more_j == pytest.approx(3 * POWER * waited_s)
    assert "the rest is waiting" in " ".join(longer["warnings"])


def test_the_frontier(planned: Planned) -> None:
    """From the shortest to the least-energy time, energy falling, never below its bound."""
    told = planned("--microbatches 4 --frontier")
    points = told["frontier"]
    times = [p["iteration_time_s"] for p in points]
    energies = [p["energy_j"] for p in points]
    assert times == sorted(times)
    assert times[0] == pytest.approx(told["baseline"]["iteration_time_s"])
    assert energies == sorted(energies, reverse=True)
    assert all(p["energy_lower_bound_j"] <= p["energy_j"] * (1 + 1e-9) for p in points)


def test_noise_has_a_margin(planned: Planned) -> None:
    """What noise takes is told beside figures that are noise-free; without it, there is none."""
    told = planned("--microbatches 4 --noise 0.02 --confidence 0.9")
    margin, plan = told["margin"], told["plan"]
    assert (margin["noise"], margin["confidence"]) == (0.02, 0.9)
    assert plan["deadline_s"] == pytest.approx(told["baseline"]["iteration_time_s"])
    late = margin["expected_baseline_time_s"] * (1 + 1e-9)
    assert margin["expected_iteration_time_s"] <= late
    assert plan["energy_lower_bound_j"] <= plan["energy_j"] * (1 + 1e-9)
    assert margin["saving_without_margin"] > 0
    assert planned("--microbatches 4")["margin"] is None


def test_whole_iterations_need_no_schedule(planned: Planned, profile: Profile) -> None:
    """Pure data parallelism: the shorter ranks wait, and are slowed."""
    told = planned("--deadline-ratio 1.0", profile(3, ("iteration",)))
    assert (told["schedule"], told["microbatches"]) == ("data-parallel", 1)
    assert [len(rank) for rank in told["ranks"]] == [1, 1, 1]
    assert told["ranks"][2][0]["clock_mhz"] == CLOCKS[0]
    assert told["plan"]["saving"] > 0


def test_chunks_are_stages_of_the_profile(planned: Planned, profile: Profile) -> None:
    """Four profiled stages, two a rank; early stages, which are shorter, are slowed most."""
    words = "--schedule interleaved-1f1b --chunks 2 --microbatches 4"
    told = planned(words, profile(4))
    assert (told["stages"], told["chunks"]) == (2, 2)
    assert {c["chunk"] for rank in told["ranks"] for c in rank} == {0, 1}
    assert [len(rank) for rank in told["ranks"]] == [16, 16]


def test_orders_come_from_a_file(planned: Planned, profile: Profile, tmp_path: Path) -> None:
    """As observed, V-shaped here: rank 0 holds the first and the last stage of the profile."""
    orders = tmp_path / "observed.txt"
    orders.write_text("# V\n0F0 3F0 3B0 0B0\n1F0 2F0 2B0 1B0\n")
    told = planned(f"--schedule {orders}", profile(4))
    assert (told["schedule"], told["stages"], told["chunks"]) == ("observed.txt", 2, 2)
    assert [c["chunk"] for c in told["ranks"][0]] == [0, 1, 1, 0]


def test_gpus_of_two_kinds(planned: Planned, tmp_path: Path) -> None:
    """Clocks may differ between stages, and each rank has its own blocking power."""
    rows = ["stage,instruction,frequency,time,energy"]
    for stage, clocks in enumerate([(1410, 1200), (1740, 1500, 1300)]):
        for instruction in PIPELINED:
            rows += [f"{stage},{instruction},{c},{60 / c},{c / 60}" for c in clocks]
    path = tmp_path / "mixed.csv"
    path.write_text("\n".join(rows))
    told = planned("--microbatches 3 --deadline-ratio 1.1 --blocking-power 80,60", path)
    used = [{c["clock_mhz"] for c in rank} for rank in told["ranks"]]
    assert used[0] <= {1410, 1200}
    assert used[1] <= {1740, 1500, 1300}
    assert told["plan"]["saving"] > 0


def test_zeus_export(planned: Planned, tmp_path: Path) -> None:
    """The file holds the same plan, as Zeus reads it."""
    path = tmp_path / "freqs.py"
    told = planned(f"--microbatches 4 --export zeus --output {path}")
    expected = [[(c["instruction"], c["clock_mhz"]) for c in rank] for rank in told["ranks"]]
    assert ast.literal_eval(path.read_text()) == expected
    assert ast.literal_eval(planned("--microbatches 4 --export zeus")["export"]) == expected


def test_zeus_export_to_standard_output(profile: Profile, capsys) -> None:
    """Without --output the plan alone is on standard output, and the summary beside it."""
    words = _command("--microbatches 4 --export zeus", profile())[:-1]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert len(ast.literal_eval(shown.out)) == 3
    assert "saved" in shown.err


def test_zeus_has_two_instructions(planned: Planned, profile: Profile) -> None:
    """What Zeus's own integrations cannot run is said."""
    split = profile(3, ("forward", "input_gradient", "weight_gradient"))
    told = planned("--microbatches 4 --schedule zb-h1 --export zeus", split)
    assert "input_gradient and weight_gradient, too" in " ".join(told["warnings"])


def test_plot(planned: Planned, tmp_path: Path) -> None:
    """One SVG with the pipeline before and after, and the frontier."""
    path = tmp_path / "plan.svg"
    planned(f"--microbatches 4 --plot {path}")
    text = path.read_text()
    ElementTree.fromstring(text)  # noqa: S314  # we wrote it
    for words in ("at full clock", "As planned", "Least energy for each iteration time"):
        assert words in text


def test_the_summary(profile: Profile, capsys) -> None:
    """In words: baseline, plan, bound, saving, writes, margin, and each rank's clocks."""
    path = profile(3, ("forward", "backward", "recompute"))
    options = "--microbatches 4 --deadline-ratio 1.05 --clock-writes 2 --noise 0.01 --frontier"
    assert main(_command(options, path)[:-1]) == 0
    shown = capsys.readouterr().out
    for words in (
        "1f1b: 3 ranks, 4 microbatches",
        "full clock, waiting until the deadline",
        "no plan uses less",
        "Clock writes: at most 2 per GPU",
        "Noise of 1.00 % a computation",
        "by a deadline of as much more, ",
        "Frontier: iterations of",
        "1410",
        "note: recompute is in the profile",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--microbatches is missing"),
        ("--microbatches 0", "--microbatches 0: must be a whole number, 1 or more"),
        ("--microbatches x", "--microbatches x: must be a whole number"),
        ("--microbatches 100000", "more than 262144 computations"),
        ("--microbatches 4 --deadline 0.1", "below the shortest iteration, which is 1.102501 s"),
        ("--microbatches 4 --deadline-ratio 0.99", "below the shortest iteration, which is 1.1"),
        ("--microbatches 4 --deadline-ratio nan", "--deadline-ratio nan: must be finite"),
        ("--microbatches 4 --deadline 0", "--deadline 0: must be above 0"),
        ("--microbatches 4 --deadline soon", "--deadline soon: is not a number"),
        ("--microbatches 4 --blocking-power 1,2", "2 values for 3 ranks: give one for all"),
        ("--microbatches 4 --blocking-power=-1", "--blocking-power -1: must be 0 or more"),
        ("--microbatches 4 --clock-writes few", "--clock-writes few: give a whole number"),
        ("--microbatches 4 --clock-writes -1", "--clock-writes -1: give a whole number"),
        ("--microbatches 4 --noise 2", "--noise 2: a share of a computation's time"),
        ("--microbatches 4 --confidence 0.9", "--confidence says something of noise only"),
        ("--microbatches 4 --noise 0.01 --confidence 1", "--confidence 1: a share of iterations"),
        ("--microbatches 4 --time-budget 0", "--time-budget 0: must be above 0"),
        ("--microbatches 4 --write-latency inf", "--write-latency inf: must be finite"),
        ("--microbatches 4 --output a.py", "--output a.py is where --export writes"),
        ("--microbatches 4 --export zeus --output a.txt", "named *.py only"),
        ("--microbatches 4 --plot a.png", "what is drawn is SVG"),
        ("--microbatches 4 --plot /no/such/a.svg", "there is no folder /no/such"),
        ("--microbatches 4 --schedule 2f2b", "no schedule is called '2f2b'; known are 1f1b"),
        ("--microbatches 4 --schedule no.txt", "cannot be read as orders (No such file"),
        ("--microbatches 4 --chunks 2", "--chunks 2: the profile's 3 stages are no multiple"),
        ("--microbatches 4 --chunks 3", "1f1b has 1 chunk per rank, not 3"),
        ("--microbatches 4 --schedule zb-h1", "measure backward's two halves"),
        ("--microbatches 4 --schedule early-recompute-1f1b", "no recompute, which"),
        ("--schedule data-parallel", "measure whole iterations, or plan a pipeline's schedule"),
    ],
)
def test_errors_name_the_fix(profile: Profile, capsys, words: str, message: str) -> None:
    """Exit code 2, one JSON object that says what and how, and the same on standard error."""
    assert main(_command(words, profile())) == 2
    shown = capsys.readouterr()
    assert message in json.loads(shown.out)["error"]
    assert message in shown.err


@pytest.mark.parametrize(
    ("instructions", "words", "message"),
    [
        (("forward",), "", "no backward, which 1f1b needs: measure it for every stage"),
        (("iteration",), "--schedule 1f1b", "leave --schedule out, or measure"),
        (("forward", "input_gradient"), "", "plan a schedule that splits it, such as zb-h1"),
    ],
)
def test_a_profile_that_does_not_fit_the_schedule(
    profile: Profile, capsys, instructions: tuple[str, ...], words: str, message: str
) -> None:
    """What is measured says what can be planned."""
    assert main(_command(f"--microbatches 4 {words}", profile(3, instructions))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("0F0 1F0", "", "orders.txt 2, with 1 rank of 2 chunks"),
        ("F0 B0\nF0 B0\n", "", "has 3 stages, and orders.txt 2, with 2 ranks of 1 chunk"),
        (
            "F0 B0\nF0 B0\nF0\n",
            "",
            "backward or input_gradient of microbatch 0 is missing on rank 2",
        ),
        ("F0 B0\nF0 B0\nF0 B0\n", "--microbatches 2", "have 1; leave --microbatches out"),
        ("B0 F0\nF0 B0\nF0 B0\n", "", "comes before"),
    ],
)
def test_orders_that_are_no_pipeline(
    profile: Profile, capsys, tmp_path: Path, text: str, words: str, message: str
) -> None:
    """A file of orders is checked before anything is planned."""
    path = tmp_path / "orders.txt"
    path.write_text(text)
    assert main(_command(f"--schedule {path} {words}", profile())) == 2
    assert message in capsys.readouterr().err


def test_a_bad_profile_is_the_users(tmp_path: Path, capsys) -> None:
    """File, line, value and fix, as tests/traces/test_profile.py has them; exit code 2."""
    path = tmp_path / "bad.csv"
    path.write_text("stage,instruction,frequency,time,energy\n0,forward,1410,-1,5\n")
    assert main(_command("--microbatches 4", path)) == 2
    assert "bad.csv:2: time is -1: must be > 0" in capsys.readouterr().err
