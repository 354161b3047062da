"""The energy–deadline frontier: energy of an iteration over its time, real plans above the bound.

What lies below the certified bound is shaded: no plan can be there. The energy axis does not begin
at zero; the right-hand axis says what share of the baseline's energy a height stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perseusd.core.model import PlanResult
from perseusd.core.planner.frontier import Frontier
from perseusd.draw import svg

WIDTH, HEIGHT = 900.0, 560.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 92.0, 84.0, 104.0, 108.0
_GRID, _MUTED, _INK = "#d9d9d9", "#555555", "#1a1a1a"
_BOUND, _BELOW, _BASELINE, _CHOSEN = "#0b3c8c", "#eef2f9", "#bd0026", "#e07b00"
_SAMPLES = 240  # of the bound, along the time axis
_BEYOND = 0.6  # how far the axis goes past the least-energy time, of the way there
_ROOM = 0.06  # left free around what is drawn, of its extent


@dataclass(frozen=True)
class _Scales:
    """Seconds and joules to pixels."""

    first_s: float
    last_s: float
    low_j: float
    high_j: float

    def x(self, time_s: float) -> float:
        share = (time_s - self.first_s) / (self.last_s - self.first_s)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * share

    def y(self, energy_j: float) -> float:
        share = (energy_j - self.low_j) / (self.high_j - self.low_j)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share


def frontier_svg(
    heading: str, subheading: str, frontier: Frontier, chosen: PlanResult | None = None
) -> str:
    """An SVG document 900 wide. chosen: a plan to mark on it."""
    scales = _scales(frontier, chosen)
    bound = _bound(frontier, scales.last_s)
    parts = [
        svg.text(_LEFT, 36, heading, 20, font_weight="bold"),
        svg.text(_LEFT, 60, subheading, 13, fill=_MUTED),
        *_below(bound, scales),
        *_axes(scales, frontier),
        svg.polyline(_pixels(bound, scales), stroke=_BOUND, stroke_width=1.5),
        *_least(frontier, scales),
        *_dots(frontier, scales),
        *_baseline(frontier, scales),
        *(_chosen(chosen, scales) if chosen else ()),
        *_legend(chosen is not None),
    ]
    return svg.document(WIDTH, HEIGHT, f"{heading}. {subheading}", parts)


def _last(frontier: Frontier, chosen: PlanResult | None) -> float:
    way = frontier.least_energy_time_s - frontier.shortest_time_s
    last = min(frontier.least_energy_time_s + _BEYOND * way, frontier.longest_useful_time_s)
    return max(last, frontier.baseline_time_s, chosen.deadline_s if chosen else 0.0)


def _bound(frontier: Frontier, last_s: float) -> list[tuple[float, float]]:
    """(s, J) along the certified bound."""
    times = np.linspace(frontier.shortest_time_s, last_s, _SAMPLES).tolist()
    return [(time, frontier.lower_bound_j(time)) for time in times]


def _scales(frontier: Frontier, chosen: PlanResult | None) -> _Scales:
    first_s, last_s = frontier.shortest_time_s, _last(frontier, chosen)
    heights = [frontier.baseline_energy_j, *(energy for _, energy in _bound(frontier, last_s))]
    heights += [p.energy_j for p in frontier.points if p.iteration_time_s <= last_s]
    heights += [chosen.energy_j] if chosen else []
    wide = _ROOM * (last_s - first_s) or _ROOM * first_s
    high = _ROOM * (max(heights) - min(heights)) or _ROOM * max(heights)
    return _Scales(first_s - wide, last_s + wide, min(heights) - 2 * high, max(heights) + high)


def _pixels(points: list[tuple[float, float]], scales: _Scales) -> list[tuple[float, float]]:
    return [(scales.x(time), scales.y(energy)) for time, energy in points]


def _below(bound: list[tuple[float, float]], scales: _Scales) -> Iterator[str]:
    """No plan is left of the shortest time or below the bound."""
    corners = _pixels(bound, scales)
    bottom, right, left = HEIGHT - _BOTTOM, WIDTH - _RIGHT, corners[0][0]
    outline = [
        (_LEFT, _TOP),
        (left, _TOP),
        *corners,
        (right, corners[-1][1]),
        (right, bottom),
        (_LEFT, bottom),
    ]
    joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in outline)
    yield svg.element("polygon", points=joined, fill=_BELOW)


def _axes(scales: _Scales, frontier: Frontier) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for time, label in _ticks(scales.first_s, scales.last_s):
        x = scales.x(time)
        yield svg.line(x, _TOP, x, bottom, stroke=_GRID, stroke_width=1)
        yield svg.text(x, bottom + 18, f"{label} s", 11, text_anchor="middle", fill=_MUTED)
    for energy, label in _ticks(scales.low_j, scales.high_j):
        y = scales.y(energy)
        yield svg.line(_LEFT, y, right, y, stroke=_GRID, stroke_width=1)
        yield svg.text(_LEFT - 8, y + 4, f"{label} J", 11, text_anchor="end", fill=_MUTED)
    percent = frontier.baseline_energy_j / 100
    for share, label in _ticks(scales.low_j / percent, scales.high_j / percent):
        y = scales.y(share * percent)
        yield svg.line(right, y, right + 5, y, stroke=_MUTED, stroke_width=1)
        yield svg.text(right + 9, y + 4, f"{label} %", 11, fill=_MUTED)
    yield svg.text(_LEFT, _TOP - 12, "energy of an iteration", 12)
    yield svg.text(WIDTH - 20, _TOP - 12, "of the baseline's", 12, text_anchor="end")
    middle = (_LEFT + right) / 2
    yield svg.text(middle, bottom + 38, "iteration time", 12, text_anchor="middle")


def _ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Four to ten round values with their words."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(m * magnitude for m in (1.0, 2.0, 5.0) if m * magnitude <= (high - low) / 4)
    digits = max(0, -math.floor(math.log10(step)))
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield i * step, f"{i * step:.{digits}f}"


def _least(frontier: Frontier, scales: _Scales) -> Iterator[str]:
    x, bottom = scales.x(frontier.least_energy_time_s), HEIGHT - _BOTTOM
    yield svg.line(x, _TOP, x, bottom, stroke=_INK, stroke_width=1.2, stroke_dasharray="5 3")
    words = f"T* = {frontier.least_energy_time_s:.3f} s"
    yield svg.text(x + 6, _TOP + 16, words, 12, font_weight="bold")


def _dots(frontier: Frontier, scales: _Scales) -> Iterator[str]:
    """Plans up to T* full; hollow beyond, where only who must wait anyway saves."""
    for point in frontier.points:
        if point.iteration_time_s <= scales.last_s:
            useful = point.iteration_time_s <= frontier.least_energy_time_s
            above = 100 * (point.energy_j / point.energy_lower_bound_j - 1)
            hint = (
                f"{point.iteration_time_s:.4f} s, {point.energy_j:.1f} J, "
                f"at most {above:.2f} % above the least"
            )
            yield _dot(
                scales.x(point.iteration_time_s), scales.y(point.energy_j), useful, _INK, hint
            )


def _dot(x: float, y: float, full: bool, colour: str, hint: str, radius: float = 4.0) -> str:
    return svg.element(
        "circle",
        svg.element("title", hint),
        cx=x,
        cy=y,
        r=radius,
        fill=colour if full else "#ffffff",
        stroke=colour,
        stroke_width=1.5,
    )


def _baseline(frontier: Frontier, scales: _Scales) -> Iterator[str]:
    time, energy = frontier.baseline_time_s, frontier.baseline_energy_j
    x, y = scales.x(time), scales.y(energy)
    yield _dot(x, y, True, _BASELINE, f"baseline: {time:.4f} s, {energy:.1f} J", 5.5)


def _chosen(chosen: PlanResult, scales: _Scales) -> Iterator[str]:
    x, y = scales.x(chosen.deadline_s), scales.y(chosen.energy_j)
    hint = f"this plan: {chosen.deadline_s:.4f} s, {chosen.energy_j:.1f} J"
    yield svg.line(x, y, x, HEIGHT - _BOTTOM, stroke=_CHOSEN, stroke_width=1.2)
    yield _dot(x, y, True, _CHOSEN, hint, 6.0)


def _legend(chosen: bool) -> Iterator[str]:
    y = HEIGHT - 34
    entries = [("baseline, full clock", _BASELINE, True), ("plan on real clocks", _INK, True)]
    entries += [("beyond T*: while waiting anyway", _INK, False)]
    entries += [("this plan", _CHOSEN, True)] if chosen else []
    x = _LEFT
    for words, colour, full in entries:
        yield _dot(x, y, full, colour, words)
        yield svg.text(x + 12, y + 4, words, 12)
        x += 34 + 6.4 * len(words)
    y += 22
    yield svg.element("rect", x=_LEFT - 6, y=y - 7, width=24, height=14, fill=_BELOW, stroke=_BOUND)
    yield svg.text(_LEFT + 26, y + 4, "no plan can be here: certified bound", 12)
