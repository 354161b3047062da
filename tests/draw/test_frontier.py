from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from perseusd.core.model import Computation, Curve, Kind, Pipeline, Problem
from perseusd.core.planner.frontier import Frontier, frontier
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.draw.frontier import frontier_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def found() -> Frontier:
    """Two uneven stages, three microbatches."""
    clocks = (900, 1000, 1100, 1200, 1300)
    curves = {
        Kind(rank, 0, instruction): Curve(
            clocks,
            tuple(base * (0.4 + 0.6 * 1300 / c) for c in clocks),
            tuple(300 * base * (0.3 + 0.7 * (c / 1300) ** 3) for c in clocks),
        )
        for rank in range(2)
        for instruction, base in (("forward", 0.1 + 0.03 * rank), ("backward", 0.2))
    }
    return frontier(Problem(pipeline(one_f_one_b(2, 3)), curves, [60.0, 60.0]))


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text.encode())  # noqa: S314 - our own


def hints(root: ET.Element) -> list[str]:
    return [e.findtext(SVG + "title") or "" for e in root.iter(SVG + "circle")]


def test_every_plan_drawn_is_a_dot_that_says_what_it_is(found: Frontier) -> None:
    """The printed points, the baseline, and a chosen plan; each with its numbers."""
    plain = hints(parsed(frontier_svg("Title", "Sub", found)))
    for point in found.printed:
        said = f"{point.iteration_time_s:.4f} s, {point.energy_j:.1f} J, at most"
        assert sum(hint.startswith(said) for hint in plain) == 1
    assert any(h.startswith(f"baseline: {found.baseline_time_s:.4f} s") for h in plain)
    assert not any(hint.startswith("this plan: ") for hint in plain)
    chosen = found.plan(1.05 * found.shortest_time_s)
    marked = hints(parsed(frontier_svg("Title", "Sub", found, chosen)))
    assert f"this plan: {chosen.deadline_s:.4f} s, {chosen.energy_j:.1f} J" in marked


@pytest.mark.parametrize("ratio", [None, 1.0, 1.05, 3.0])
def test_nothing_lies_outside(found: Frontier, ratio: float | None) -> None:
    """Whatever the chosen deadline, even far beyond the frontier, everything is in the picture."""
    chosen = None if ratio is None else found.plan(ratio * found.shortest_time_s)
    root = parsed(frontier_svg("Title", "Sub", found, chosen))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for dot in root.iter(SVG + "circle"):
        assert 0 <= float(dot.attrib["cx"]) <= width
        assert 0 <= float(dot.attrib["cy"]) <= height
    for words in root.iter(SVG + "text"):
        assert 0 <= float(words.attrib["x"]) <= width
        assert 0 <= float(words.attrib["y"]) <= height
    for shape in (*root.iter(SVG + "polyline"), *root.iter(SVG + "polygon")):
        for pair in shape.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_no_dot_lies_below_the_bound(found: Frontier) -> None:
    """In pixels too: every real plan is on or above the line (y grows downwards)."""
    root = parsed(frontier_svg("Title", "Sub", found))
    line = next(root.iter(SVG + "polyline")).attrib["points"].split()
    bound = [tuple(map(float, pair.split(","))) for pair in line]
    for dot in root.iter(SVG + "circle"):
        at = float(dot.attrib["cx"])
        near = [y for x, y in bound if abs(x - at) < 3]
        if " J" in (dot.findtext(SVG + "title") or ""):  # not of the legend
            assert float(dot.attrib["cy"]) <= max(near) + 0.5


def test_what_comes_from_outside_is_escaped(found: Frontier) -> None:
    """A workload's name may hold anything."""
    root = parsed(frontier_svg('<b> & "x"', "it's", found))
    assert '<b> & "x"' in list(root.itertext())


def test_a_frontier_of_one_point_is_drawn() -> None:
    """Where the fastest clock is the cheapest there is no curve, and no division by its length."""
    one = Pipeline(((Computation(0, 0, "iteration", 0),),), ())
    curve = Curve((1000, 1400), (2.0, 1.0), (90.0, 80.0))
    single = frontier(Problem(one, {Kind(0, 0, "iteration"): curve}, [10.0]))
    assert len(hints(parsed(frontier_svg("T", "", single)))) >= 2
