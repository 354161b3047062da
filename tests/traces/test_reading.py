"""Files of other tools: recognised by what is in them, read whole, and refused with the fix."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arro3.core import Array, DataType, Table
from arro3.io import write_parquet

from perseusd.core.model import Computation
from perseusd.core.schedules import one_f_one_b
from perseusd.errors import TraceError
from perseusd.traces.reading import read_trace
from perseusd.traces.trace import Trace

Row = dict[str, Any]
Change = Callable[[list[Row]], Iterable[Row]]

STAGES, MICROBATCHES = 2, 3


def as_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Whole numbers, floats and words as a writer of such traces has them; None stays missing."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kinds = {int: DataType.int64(), float: DataType.float32(), str: DataType.string()}
    arrays = {}
    for name, values in columns.items():
        kind = next(type(value) for value in values if value is not None)
        arrays[name] = Array(values, type=kinds[kind])
    write_parquet(Table.from_pydict(arrays), str(path))
    return path


def bytedance(steps: Sequence[int] = (7, 9)) -> list[Row]:
    """Two replicas of two stages, 1F1B; transfers of 2 ms whose receivers wait longer."""
    rows: list[Row] = []
    for step in steps:
        for replica in range(2):
            for stage, order in enumerate(one_f_one_b(STAGES, MICROBATCHES)):
                start = 0.25
                base = {"dp_rank": replica, "stage": stage, "rank": 4 * stage + replica}
                base["step"] = step
                for computation in order:
                    seconds = 0.5 + 0.25 * stage + 0.125 * replica
                    start += seconds
                    rows.append({
                        **base, "optype": f"{computation.instruction}-compute",
                        "start_ts": start, "duration": seconds, "seq_id": computation.microbatch,
                        "mc": 0, "mb_id": computation.microbatch,
                    })  # fmt: skip
                for k in range(MICROBATCHES):
                    for optype, seconds in (
                        ("forward-send" if stage == 0 else "forward-recv", 0.002 + 0.1 * stage),
                        ("backward-recv" if stage == 0 else "backward-send", 0.102 - 0.1 * stage),
                    ):
                        rows.append({
                            **base, "optype": optype, "start_ts": 0.5, "duration": seconds,
                            "seq_id": k, "mc": -1, "mb_id": -1,
                        })  # fmt: skip
                rows.append({
                    **base, "optype": "optimizer", "start_ts": 9.75, "duration": 0.25, "seq_id": 0,
                    "mc": -1, "mb_id": -1,
                })  # fmt: skip
    return rows


def perseus() -> list[Row]:
    return [
        {
            "plan": plan, "stage": c.rank, "iteration": iteration, "instruction": c.instruction,
            "microbatch": c.microbatch, "time_s": 0.5 + 0.25 * c.rank + 0.125 * iteration,
        }
        for plan in range(2)
        for iteration in range(3)
        for order in one_f_one_b(STAGES, MICROBATCHES)
        for c in order
    ]  # fmt: skip


def perseus_iterations() -> list[Row]:
    return [
        {"plan": plan, "stage": stage, "iteration": iteration, "iteration_time_s": 5.0 + stage}
        for plan in range(2)
        for stage in range(STAGES)
        for iteration in range(3)
    ]


def megatron() -> list[Row]:
    return [{"step": step, "iteration_time_s": 1.0 + step / 64} for step in range(2, 12)]


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_a_bytedance_trace(write: Callable[..., Path], tmp_path: Path) -> None:
    """Every computation with its seconds, in the order of its rank's own clock; transfers as long
    as the shorter of their two ends; the iteration as long as its longest rank, on that rank's
    clock; numbers, replicas and ranks as the trace has them. The file's name says nothing."""
    trace = read_trace(write(tmp_path / "whatever", bytedance()))
    (run,) = trace.runs
    assert "ByteDance" in trace.kind
    assert [(o.number, o.replica) for o in run.observations] == [(7, 0), (7, 1), (9, 0), (9, 1)]
    first = run.observations[0]
    orders = one_f_one_b(STAGES, MICROBATCHES)
    assert [c for c, _ in first.computations] == [c for order in orders for c in order]
    assert [s for _, s in first.computations] == [0.5] * 6 + [0.75] * 6
    assert dict(first.lags) == pytest.approx(
        {(0, 1, "forward"): 0.002, (1, 0, "backward"): 0.002}, abs=1e-6
    )
    assert first.time_s == pytest.approx(9.75 + 0.25 - 0.5)
    assert run.ranks == {(0, 0): 0, (1, 0): 1, (0, 1): 4, (1, 1): 5}
    assert run.replicas_told


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_a_run_of_the_perseus_artifact(write: Callable[..., Path], tmp_path: Path) -> None:
    """Each plan is a run of its own, its first iteration left out and counted; iteration times
    come from the file beside it, the slowest stage's."""
    path = write(tmp_path / "x_computations.parquet", perseus())
    assert [o.time_s for o in read_trace(path).runs[0].observations] == [None, None]
    as_csv(tmp_path / "x_iterations.csv", perseus_iterations())
    trace = read_trace(path)
    assert [run.name for run in trace.runs] == ["plan 0", "plan 1"]
    for run in trace.runs:
        assert [o.number for o in run.observations] == [1, 2]
        assert [o.time_s for o in run.observations] == [6.0, 6.0]
        assert list(run.left_out.values()) == [1]
        assert not run.replicas_told
        assert dict(run.observations[1].computations)[Computation(1, 0, "backward", 2)] == 1.0


def test_iteration_times_alone(tmp_path: Path) -> None:
    """Of the artifact, and of any trainer: nothing but times, nobody named."""
    of_plans = read_trace(as_csv(tmp_path / "a", perseus_iterations()))
    assert [len(run.observations) for run in of_plans.runs] == [2, 2]
    (run,) = read_trace(as_csv(tmp_path / "b", megatron())).runs
    assert [o.number for o in run.observations] == list(range(2, 12))
    assert run.observations[3].time_s == 1.0 + 5 / 64
    assert not any(o.computations for o in run.observations)
    assert (run.ranks, run.replicas_told) == ({}, False)


def test_columns_are_what_counts(tmp_path: Path) -> None:
    """A byte order mark, spaces, blank lines, other columns and another order change nothing."""
    text = "\ufeffnote, iteration_time_s ,step\nx, 1.5, 3\n\ny, 2.5, 4\n"
    (tmp_path / "x").write_text(text, encoding="utf-8")
    (run,) = read_trace(tmp_path / "x").runs
    assert [(o.number, o.time_s) for o in run.observations] == [(3, 1.5), (4, 2.5)]


def _set(row: int, **values: Any) -> Change:
    def change(rows: list[Row]) -> list[Row]:
        rows[row] = rows[row] | values
        return rows

    return change


def _without(row: int) -> Change:
    return lambda rows: rows[:row] + rows[row + 1 :]


def _twice(row: int) -> Change:
    return lambda rows: [*rows, rows[row]]


@pytest.mark.parametrize("write", [as_csv, as_parquet])
@pytest.mark.parametrize(
    ("rows", "change", "wanted"),
    [
        (bytedance, _set(4, duration=float("nan")), "{line}: duration is nan: must be a finite"),
        (bytedance, _set(4, duration=-0.5), "{line}: duration is -0.5"),
        (bytedance, _set(4, start_ts=float("inf")), "{line}: start_ts is inf"),
        (bytedance, _set(4, mb_id=-1), "{line}: mb_id is -1: a computation needs its microbatch"),
        (bytedance, _set(4, mb_id=-2), "{line}: mb_id is -2: must be a whole number ≥ -1"),
        (bytedance, _twice(0), "is there twice in step 7 of dp_rank 0"),
        (bytedance, lambda rows: rows[-1:], "no operation is one of forward-compute"),
        (perseus, _set(4, time_s=0.0), "{line}: time_s is 0.0: must be a finite number"),
        (perseus, _set(4, instruction="idle"), "{line}: instruction is idle: forward or backward"),
        (perseus, _without(4), "iteration 0 of plan 0 lacks backward 1 of stage 0"),
        (perseus, _twice(4), "backward 1 of stage 0 is there twice in iteration 0 of plan 0"),
        (megatron, _set(4, iteration_time_s=0.0), "{line}: iteration_time_s is 0.0"),
        (megatron, _set(4, step=3), "{line}: step is 3 and comes after 5: put rows in order"),
        (megatron, _set(4, step=-3), "{line}: step is -3"),
        (megatron, _set(4, step=None), "{line}: step is n"),  # nothing, or not a number
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    write: Callable[..., Path],
    rows: Callable[[], list[Row]],
    change: Change,
    wanted: str,
    tmp_path: Path,
) -> None:
    """Row, column, value and fix, counting as people do: lines of text, rows of a table from 1."""
    path = write(tmp_path / "x", list(change(rows())))
    with pytest.raises(TraceError) as refused:
        read_trace(path)
    place = "line 6" if write is as_csv else "row 5"
    assert str(path) in str(refused.value)
    assert wanted.format(line=place) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "is empty"),
        (b"\x00\x01\x02", "neither a recording nor Parquet nor text"),
        (b"\xff\xfe\xfd\n", "cannot be read as a CSV file"),
        (b"a,b\n1,2\n", "its columns are a,b, which is no known trace"),
        (b"step,iteration_time_s\n", "no rows"),
        (b"step,iteration_time_s\n1,0,5\n", "line 2: more values than columns"),
        (b"step,step,iteration_time_s\n1,1,5\n", "column step is there twice"),
        (b"step,iteration_time_s\n1,x\n", "line 2: iteration_time_s is x: must be a number"),
        (b"step,iteration_time_s\n1,1.0\n2\n", "line 3: iteration_time_s is nothing"),
        (b"PAR1", "cut off after 4 bytes"),
        (b"PAR1" + bytes(64), "cut off after 68 bytes"),
        (b"PAR1" + bytes(60) + (20).to_bytes(4, "little") + b"PAR1", "damaged Parquet"),
    ],
)
def test_what_is_no_trace_is_told(content: bytes, wanted: str, tmp_path: Path) -> None:
    """Empty, binary, foreign and broken files: an error that names the file, and what it lacks."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TraceError, match=wanted) as refused:
        read_trace(tmp_path / "x")
    assert str(tmp_path / "x") in str(refused.value)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """Nothing there, or a folder."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TraceError, match="cannot be read"):
            read_trace(path)


def test_a_cut_parquet_file_never_passes(tmp_path: Path) -> None:
    """Cut off anywhere, a table is refused, and nothing else comes out, standard error included."""
    data = as_parquet(tmp_path / "whole", bytedance()).read_bytes()
    for length in range(4, len(data) - 1, len(data) // 9):
        (tmp_path / "x").write_bytes(data[:length])
        with pytest.raises(TraceError):
            read_trace(tmp_path / "x")


def test_a_damaged_parquet_file_is_an_error_of_ours_or_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bytes flipped at random: a TraceError, or values that passed every check; the reader's own
    panics and their backtraces stay inside."""
    data = as_parquet(tmp_path / "whole", bytedance()).read_bytes()
    random = np.random.default_rng(5)
    for _ in range(12):
        broken = bytearray(data)
        for at in random.integers(4, len(data) - 8, 3).tolist():
            broken[at] ^= 1 << int(random.integers(8))
        (tmp_path / "x").write_bytes(broken)
        with contextlib.suppress(TraceError):
            assert isinstance(read_trace(tmp_path / "x"), Trace)
    assert capfd.readouterr() == ("", "")


def test_the_csv_of_a_table_says_the_same(tmp_path: Path) -> None:
    """Which of the two a trace is kept in makes no difference to what is read."""
    for rows in (bytedance(), perseus(), perseus_iterations(), megatron()):
        text = read_trace(as_csv(tmp_path / "text", rows))
        table = read_trace(as_parquet(tmp_path / "table", rows))
        for one, other in zip(text.runs, table.runs, strict=True):
            numbers = [
                (o.replica, o.number, *(c for c, _ in o.computations)) for o in one.observations
            ]
            assert numbers == [
                (o.replica, o.number, *(c for c, _ in o.computations)) for o in other.observations
            ]
            assert one.ranks == other.ranks
