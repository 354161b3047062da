"""Orders as torch has them: ours are equal, and those that only torch knows can be planned.

The files were recorded by `record.py`, which says how.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from perseusd.core.model import Computation, Pipeline
from perseusd.core.schedules import by_name, pipeline, pipelines, read_orders, virtual_stage
from perseusd.errors import PlanningError

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.txt"))
OURS = {
    "GPipe-printed": "gpipe",
    "1F1B-executed": "1f1b",
    "Interleaved1F1B-printed": "interleaved-1f1b",
    "ZBH1-built": "zb-h1",
}
LAYOUTS = {"ZBVZeroBubble": "v", "DualPipeV": "v"}


def named(*names: str) -> list[Path]:
    return [path for path in RECORDED if path.name.startswith(names)]


def sizes(path: Path) -> tuple[int, int, int]:
    """(ranks, microbatches, chunks)."""
    ranks, microbatches, chunks = path.stem.split("-")[2:]
    return int(ranks), int(microbatches), int(chunks)


def what(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", named(*OURS), ids=what)
def test_known_orders_equal_torchs(path: Path) -> None:
    """GPipe, 1F1B as executed, interleaved 1F1B, and torch's zero-bubble order of one chunk."""
    name = OURS["-".join(path.stem.split("-")[:2])]
    assert by_name(name, *sizes(path)) == read_orders(path.read_text()).orders


@pytest.mark.parametrize("path", named("1F1B-printed"), ids=what)
def test_1f1b_is_also_what_torch_prints_but_for_its_off_by_one(path: Path) -> None:
    """On the last rank alone, torch prints forward m + 1 where forward m is executed."""
    printed = read_orders(path.read_text()).orders
    *others, last = by_name("1f1b", *sizes(path))
    assert printed[:-1] == tuple(others)
    assert printed[-1] == tuple(
        c._replace(microbatch=c.microbatch + (c.instruction == "forward")) for c in last
    )
    with pytest.raises(PlanningError, match="is missing"):
        pipeline(printed)


@pytest.mark.parametrize(
    "path", [path for path in RECORDED if not path.name.startswith("1F1B-printed")], ids=what
)
def test_every_order_of_torch_makes_one_pipeline(path: Path) -> None:
    """V-shaped, split, overlapped or not: everything once, and only the true layout can run."""
    ranks, microbatches, chunks = sizes(path)
    orders, layout = read_orders(path.read_text())
    assert layout == LAYOUTS.get(path.stem.split("-")[0], "looped")
    (built,) = pipelines(orders)
    assert built == pipeline(orders, layout=layout)
    for instructions in (("forward",), ("backward", "input_gradient")):
        passed = [c for order in orders for c in order if c.instruction in instructions]
        stages = sorted((virtual_stage(c, ranks, layout), c.microbatch) for c in passed)
        assert stages == [(v, m) for v in range(ranks * chunks) for m in range(microbatches)]
    assert weighed(built) == split(built)


def weighed(built: Pipeline) -> set[Computation]:
    """The weight gradients, as the input gradients that they complete."""
    return {
        c._replace(instruction="input_gradient")
        for order in built.orders
        for c in order
        if c.instruction == "weight_gradient"
    }


def split(built: Pipeline) -> set[Computation]:
    return {c for order in built.orders for c in order if c.instruction == "input_gradient"}
