"""`perseusctl analyze`: real traces with known answers, and the forms in which it answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perseusd.core.model import Computation
from perseusd.core.schedules import one_f_one_b
from perseusd.core.stragglers import Observation
from perseusd.ctl.analyze.analysis import analyse, medians_of_like
from perseusd.ctl.main import main
from perseusd.traces.trace import Run

Capture = pytest.CaptureFixture[str]


def analyze(capsys: Capture, path: Path) -> dict[str, Any]:
    assert main(["analyze", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer: dict[str, Any] = json.loads(out)
    assert answer["schema_version"] == 1
    return answer


def benchmark() -> ModuleType:
    """benchmarks/analyze.py, which can tell a slowdown from time stamps alone."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "analyze.py"
    spec = importlib.util.spec_from_file_location("benchmark_analyze", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lasting(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [s for s in answer["stragglers"] if not s["transient"]]


def test_the_slow_worker_of_a_production_job(shared_data: Path, capsys: Capture) -> None:
    """AR: the injected worker and nobody else, from the first sampled step on; 96 % of the critical
    path there. The paper's own S, 1.97, puts every operation at the mean, the slow worker's
    included; medians, which the slow one does not move, make it 2.02."""
    path = shared_data / "bytedance-stragglers" / "trace-AR.parquet"
    answer = analyze(capsys, path)
    (straggler,) = answer["stragglers"]
    named = {key: straggler[key] for key in ("replica", "stage", "rank", "cause", "transient")}
    assert named == {"replica": 0, "stage": 0, "rank": 0, "cause": "compute", "transient": False}
    assert straggler["since_iteration"] == 16
    assert straggler["until_iteration"] is None
    assert 2.2 < straggler["factor"] < 2.6
    assert answer["iterations"] == 44
    assert answer["slowdown"] == pytest.approx(benchmark().observed_slowdown(path), rel=0.005)
    first = answer["critical_path_share"][0]
    assert (first["replica"], first["stage"]) == (0, 0)
    assert first["share"] == pytest.approx(0.96, abs=0.01)


def test_the_heavy_stage_of_a_production_job(shared_data: Path, capsys: Capture) -> None:
    """ST: the last stage is heavy by design, in both replicas: 69 % of the path, no straggler."""
    answer = analyze(capsys, shared_data / "bytedance-stragglers" / "trace-ST.parquet")
    assert answer["stragglers"] == []
    by_stage: dict[int, float] = {}
    for place in answer["critical_path_share"]:
        by_stage[place["stage"]] = by_stage.get(place["stage"], 0.0) + place["share"]
    assert by_stage[3] == pytest.approx(0.69, abs=0.01)
    assert answer["slowdown"] == pytest.approx(1, abs=0.02)


def test_a_run_without_stragglers_under_thirty_plans(shared_data: Path, capsys: Capture) -> None:
    """BERT: 870 iterations under plans that lower clocks here and there: nobody is slow."""
    name = "bert-1.3b_a100_pcie_pp4_mb32_computations.parquet"
    answer = analyze(capsys, shared_data / "perseus-sosp24" / "runs" / name)
    assert answer["iterations"] == 30 * 29
    assert answer["stragglers"] == []
    assert len(answer["runs"]) == 30
    assert {place["replica"] for place in answer["critical_path_share"]} == {None}
    assert answer["left_out"] == {"the first of each plan warms up": 30}


@pytest.mark.parametrize(("name", "spells"), [("gb200", [(214, 244), (1406, 1425)]), ("h100", [])])
def test_series_of_iteration_times(
    name: str, spells: list[tuple[int, int]], shared_data: Path, capsys: Capture
) -> None:
    """Megatron: spells that last are reported, begun within 3 iterations and ended within 5, and
    nothing else that lasts; hiccups at most as transients."""
    path = shared_data / "megatron-iteration-times" / f"gpt3_tp2_pp2_{name}.csv"
    answer = analyze(capsys, path)
    found = lasting(answer)
    assert len(found) == len(spells)
    for straggler, (begin, end) in zip(found, spells, strict=True):
        assert begin <= straggler["since_iteration"] <= begin + 3
        assert abs(straggler["until_iteration"] - end) <= 5
        assert (straggler["replica"], straggler["stage"], straggler["rank"]) == (None, None, None)
    assert answer["critical_path_share"] == []
    assert 1 < answer["slowdown"] < 1.1


def observations(
    slow: Mapping[int, float], replicas: int = 2, iterations: int = 12, time_s: bool = False
) -> list[Observation]:
    """1F1B of 3 stages and 6 microbatches; replica → factor of its stage 1."""
    orders = one_f_one_b(3, 6)
    made = []
    for number in range(iterations):
        for replica in range(replicas):

            def seconds(c: Computation, of: int = replica) -> float:
                plain = 1.0 if c.instruction == "forward" else 2.0
                return plain * (slow.get(of, 1.0) if c.rank == 1 else 1.0)

            computations = tuple((c, seconds(c)) for order in orders for c in order)
            told_s = 30.0 if time_s else None
            made.append(Observation(replica, number, computations, time_s=told_s))
    return made


def test_slowdown_is_what_one_slow_replica_costs() -> None:
    """With one of two replicas slow throughout, what is usual is the other one; where iteration
    times are told, what lies beside the path stays as it was."""
    run = Run(None, observations({1: 1.5}), replicas_told=True)
    verdict = analyse(run)
    healthy = analyse(Run(None, observations({}), replicas_told=True))
    assert healthy.slowdown == pytest.approx(1)
    length_s, usual_s = verdict.actual_s / 12, healthy.actual_s / 12
    assert length_s > usual_s
    assert verdict.slowdown == pytest.approx(length_s / usual_s)
    assert {replica for (replica, _), _ in verdict.shares} == {1}
    told = analyse(Run(None, observations({1: 1.5}, time_s=True), replicas_told=True))
    assert told.slowdown is not None
    beside_s = max(30.0, length_s) - length_s
    assert told.slowdown == pytest.approx((length_s + beside_s) / (usual_s + beside_s))


def test_medians_are_the_faster_half() -> None:
    """Of as many slow as healthy ones, the healthy are the like."""
    found = medians_of_like(observations({0: 3.0}))
    assert {kind.rank: s for kind, s in found.items() if kind.instruction == "forward"} == {
        0: 1.0, 1: 1.0, 2: 1.0,
    }  # fmt: skip


def test_what_cannot_be_followed_is_told() -> None:
    """An iteration with a computation missing has no path; it is counted, with the reason, and by
    its time."""
    whole = observations({}, replicas=1, time_s=True)
    broken = [Observation(0, o.number, o.computations[1:], time_s=40.0) for o in whole[:2]]
    verdict = analyse(Run(None, [*broken, *whole[2:]]))
    assert sum(verdict.not_followed.values()) == 2
    assert any("forward of microbatch" in reason for reason in verdict.not_followed)
    assert len(verdict.numbers) == 12
    assert verdict.slowdown == pytest.approx((2 * 40 + 10 * 30) / (12 * 30))


def shown(capsys: Capture, path: Path) -> str:
    assert main(["analyze", str(path)]) == 0
    return capsys.readouterr().out


def write_times(path: Path, times: Sequence[float]) -> Path:
    rows = "".join(f"{step},{time_s}\n" for step, time_s in enumerate(times))
    path.write_text(f"step,iteration_time_s\n{rows}")
    return path


def test_people_read_what_where_and_since_when(tmp_path: Path, capsys: Capture) -> None:
    """A spell of a series: a headline that counts, and a row with factor, begin and end."""
    times = [1.0 + 0.001 * (n % 7) for n in range(200)]
    for n in range(100, 130):
        times[n] *= 1.5
    text = shown(capsys, write_times(tmp_path / "times.csv", times))
    assert "times.csv: iteration times, 200 iterations" in text
    assert "1 straggler" in text
    (row,) = [line for line in text.splitlines() if "the job" in line]
    assert row.split()[:5] == ["the", "job", "1.50", "100", "129"]
    assert "Critical path" not in text
    quiet = shown(capsys, write_times(tmp_path / "quiet.csv", times[:90]))
    assert "No straggler" in quiet


@pytest.mark.parametrize("as_json", [False, True])
def test_errors_are_of_usage(as_json: bool, tmp_path: Path, capsys: Capture) -> None:
    """A file that is no trace: exit code 2, one line that names it; with --json one object too."""
    (tmp_path / "x").write_text("a,b\n1,2\n")
    assert main(["analyze", str(tmp_path / "x"), *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("perseusctl: ")
    assert str(tmp_path / "x") in err
    assert (json.loads(out)["exit_code"] == 2) if as_json else (out == "")
