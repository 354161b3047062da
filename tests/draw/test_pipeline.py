from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from perseusd.draw.colours import colour, text_colour
from perseusd.draw.pipeline import Bar, Timeline, pipeline_svg

SVG = "{http://www.w3.org/2000/svg}"


def timeline(title: str = "Before", power_w: float = 400.0, stretch: float = 1.0) -> Timeline:
    bars = [
        Bar(rank, instruction, m, t * stretch, (t + 0.09) * stretch, 1410, power_w)
        for rank in range(2)
        for m in range(3)
        for instruction, t in (("forward", 0.1 * (m + rank)), ("backward", 1 + 0.1 * (m - rank)))
    ]
    return Timeline(title, bars, critical=[0, 1], end_s=1.35 * stretch)


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text.encode())  # noqa: S314 - our own


def test_well_formed_with_a_bar_for_every_computation() -> None:
    """An XML reader takes it; each computation has a bar that says what it is."""
    root = parsed(pipeline_svg("Title", "Sub", [timeline(), timeline("After", 300.0)], 80.0))
    assert root.tag == SVG + "svg"
    hints = [e.findtext(SVG + "title") for e in root.iter(SVG + "rect")]
    assert sum(hint is not None for hint in hints) == 24
    assert "stage 1, backward of microbatch 2: 1410 MHz, 400 W, 90.0 ms" in hints


def test_what_comes_from_outside_is_escaped() -> None:
    """A workload's name may hold anything."""
    root = parsed(pipeline_svg('<b> & "x"', "it's", [timeline("a < b")], 80.0))
    assert '<b> & "x"' in list(root.itertext())


def test_nothing_lies_outside_or_upside_down() -> None:
    """Every bar and every word's anchor is inside the picture; times go to the right."""
    root = parsed(pipeline_svg("Title", "Sub", [timeline(), timeline("After", 300, 1.1)], 80.0))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(SVG + "rect"):
        x, y = float(rect.attrib.get("x", 0)), float(rect.attrib.get("y", 0))
        assert float(rect.attrib["width"]) > 0
        assert 0 <= x <= x + float(rect.attrib["width"]) <= width
        assert 0 <= y <= y + float(rect.attrib["height"]) <= height
    for words in root.iter(SVG + "text"):
        assert 0 <= float(words.attrib["x"]) <= width
        assert 0 <= float(words.attrib["y"]) <= height


def test_names_that_do_not_fit_are_left_out() -> None:
    """Hundreds of microbatches stay readable: bars without names instead of overlapping ones."""
    bars = [Bar(0, "forward", m, m * 0.01, m * 0.01 + 0.01, 1410, 300.0) for m in range(500)]
    root = parsed(pipeline_svg("Many", "", [Timeline("Before", bars, [], 5.0)], 80.0))
    assert not [t for t in root.iter(SVG + "text") if (t.text or "").startswith("F4")]


@pytest.mark.parametrize("span_s", [0.003, 0.7, 3.0, 61.0])
def test_time_axis_has_round_ticks_at_any_length(span_s: float) -> None:
    """Four to eleven ticks, evenly spaced, whatever the iteration's length."""
    bars = [Bar(0, "forward", 0, 0.0, span_s, 1410, 300.0)]
    root = parsed(pipeline_svg("T", "", [Timeline("Before", bars, [0], span_s)], 80.0))
    words = [t.text or "" for t in root.iter(SVG + "text")]
    ticks = [float(word[:-2]) for word in words if word.endswith(" s") and word[0].isdigit()]
    assert 4 <= len(ticks) <= 12
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) - min(steps) < 0.01 * max(steps)


def test_the_colour_scale_darkens_steadily() -> None:
    """More power is darker, so it reads in grey and to colour-blind eyes."""
    grey = []
    for i in range(21):
        c = colour(i / 20)
        r, g, b = (int(c[k : k + 2], 16) for k in (1, 3, 5))
        grey.append(0.299 * r + 0.587 * g + 0.114 * b)
    assert all(a > b for a, b in itertools.pairwise(grey))
    assert text_colour(0.0) != text_colour(1.0)
    assert colour(-1) == colour(0)
    assert colour(2) == colour(1)


def test_an_empty_timeline_is_drawn() -> None:
    """Nothing to show is no error."""
    assert parsed(pipeline_svg("T", "", [Timeline("Before", [], [], 1.0)], 80.0)) is not None
