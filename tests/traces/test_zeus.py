"""Zeus's plan format: what its server would read."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from perseusd.traces.zeus import zeus_plan

RANKS = st.lists(
    st.lists(st.tuples(st.sampled_from(["forward", "backward"]), st.integers(1, 3000)), min_size=1),
    min_size=1,
)


@given(RANKS)
def test_what_is_written_is_one_expression(ranks: list[list[tuple[str, int]]]) -> None:
    """Read as Zeus reads it, but by literal_eval: a list per rank of (instruction, MHz)."""
    text = zeus_plan(ranks, ["a note", "another"])
    assert ast.literal_eval(text) == ranks
    assert len(ast.parse(text, mode="eval").body.elts) == len(ranks)  # type: ignore[attr-defined]


def test_notes_are_comments_whatever_is_in_them() -> None:
    """Nothing in a note, such as a file's name with a line break, can become part of the plan."""
    text = zeus_plan([[("forward", 1410)]], ["evil\n] + [1", "\r__import__('os')"])
    assert ast.literal_eval(text) == [[("forward", 1410)]]
    assert text.splitlines()[-2:] == ["# evil ] + [1", "# __import__('os')"]
