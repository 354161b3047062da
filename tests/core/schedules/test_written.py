"""Orders read from text, and schedules by name: what is meant, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.model import Computation
from perseusd.core.schedules import (
    NAMES,
    by_name,
    one_f_one_b,
    orders_from_text,
    pipeline,
    read_orders,
    virtual_stage,
)
from perseusd.errors import PlanningError

LETTERS = {
    "forward": "F",
    "backward": "B",
    "input_gradient": "I",
    "weight_gradient": "W",
    "recompute": "R",
}
PIPELINES = [name for name in NAMES if name != "data-parallel"]


def written(orders: tuple[tuple[Computation, ...], ...]) -> str:
    def token(c: Computation) -> str:
        return f"{virtual_stage(c, len(orders))}{LETTERS[c.instruction]}{c.microbatch}"

    return "\n".join(" ".join(token(c) for c in order) for order in orders)


@given(st.sampled_from(PIPELINES), st.integers(1, 4), st.integers(1, 3))
def test_what_is_written_is_read(name: str, stages: int, groups: int) -> None:
    """Every named schedule, written in torch's notation, is read back as it was."""
    chunks = 2 if name.startswith("interleaved") else 1
    orders = by_name(name, stages, groups * stages, chunks)
    assert orders_from_text(written(orders)) == orders


def test_virtual_stages_comments_and_separators_are_free() -> None:
    """Stages may be left out; commas, brackets, Nones and comments are ignored."""
    text = "# 1F1B\n\n[F0, F1, None, B0, F2, B1, B2, 0REDUCE_GRAD]\n,,1F0,B0,F1,1B1,F2,B2  # last\n"
    assert orders_from_text(text) == one_f_one_b(2, 3)


def test_the_layout_is_who_holds_which_stage() -> None:
    """A V-shape is told by its virtual stages, and an overlap is one after the other."""
    v = "0F0 3F0 0F1 (3F1;3B0)OVERLAP_F_B 0B0 3B1 0B1\n1F0 2F0 1F1 2F1 2I0 2W0 1B0 2B1 1B1"
    orders, layout = read_orders(v)
    assert layout == "v"
    assert orders[0][3:5] == (Computation(0, 1, "forward", 1), Computation(0, 1, "backward", 0))
    assert pipeline(orders, layout=layout).ranks == 2
    assert read_orders(v.replace("3", "2x").replace("2", "3").replace("3x", "2")).layout == "looped"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no computations"),
        ("# nothing\n\n", "names no computations"),
        ("F0 B0\nF0 X0", r"line 2: 'X0' is no computation.*F B I W R"),
        ("F0 B0\n\nF0 B", r"line 3: 'B' is no computation"),
        ("F0 B0 F-1", "'F-1' is no computation"),
        ("(F0;B)OVERLAP_F_B", "'.F0;B.OVERLAP_F_B' is no computation"),
        (
            "0F0 0B0\n0F1 1B0",
            r"line 2: '0F1' is on rank 1, but of 2 ranks it is 0 that holds virtual stage 0",
        ),
        ("0F0 2F0\n1F0 2F1", r"line 2: '2F1' is on rank 1, but of 2 ranks it is 0 that"),
        ("forward 0", "line 1: 'forward'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    """Line and token, and what was expected there."""
    with pytest.raises(PlanningError, match=message):
        read_orders(text)


def test_a_rank_without_computations_is_no_pipeline() -> None:
    """A line of communication alone counts as a rank, which `pipeline` refuses by name."""
    with pytest.raises(PlanningError, match="rank 1 has no computations"):
        pipeline(orders_from_text("F0 B0\n1REDUCE_GRAD"))


@pytest.mark.parametrize("name", NAMES)
def test_schedules_have_names(name: str) -> None:
    """Each makes a pipeline; case, and _ for -, do not matter."""
    chunks = 2 if name == "interleaved-1f1b" else 1
    orders = by_name(name, 4, 8, chunks)
    assert by_name(name.upper().replace("-", "_"), 4, 8, chunks) == orders
    assert pipeline(orders).ranks == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1f1", 4, 8, 1), "called '1f1'; known are 1f1b, interleaved-1f1b, .*rank by rank"),
        (("zb-v", 4, 8, 2), "known are zb-h1, "),
        (("1f1b", 4, 0, 1), "microbatches is 0"),
        (("1f1b", 0, 8, 1), "stages is 0"),
        (("1f1b", 4, 8, 0), "chunks is 0"),
        (("gpipe", 4, 8, 2), "1 chunk per rank, not 2; with several: interleaved-1f1b"),
        (("interleaved-1f1b", 4, 8, 1), "at least 2 chunks"),
        (("interleaved-1f1b", 4, 9, 2), "take 8 or 12"),
    ],
)
def test_what_no_schedule_has_is_refused(
    arguments: tuple[str, int, int, int], message: str
) -> None:
    """Unknown names list what is known, the nearest first; sizes say what would do."""
    with pytest.raises(PlanningError, match=message):
        by_name(*arguments)
