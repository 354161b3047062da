"""Iterations of a pipeline as timelines one above another: a row a stage, a bar a computation.

Bars are coloured by power; what lies between them is waiting, at blocking power. The critical path
runs as a line through the lower half of its computations, so that their names stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from perseusd.draw import svg
from perseusd.draw.colours import colour, text_colour

WIDTH = 1400.0
_LEFT, _RIGHT = 92.0, 40.0
_ROW, _BAR = 34.0, 28.0
_HEADER, _TITLE, _AXIS, _LEGEND = 76.0, 34.0, 44.0, 64.0
_GRID, _WAITING, _PATH, _MUTED = "#d9d9d9", "#f1f1f1", "#0b3c8c", "#555555"
_CHARACTER = 5.6  # width of one character of a bar's name
_SCALE_STEPS = 48


@dataclass(frozen=True)
class Bar:
    """One computation as it ran; times from the iteration's start."""

    rank: int
    instruction: str
    microbatch: int
    start_s: float
    end_s: float
    clock_mhz: int
    power_w: float


@dataclass(frozen=True)
class Timeline:
    """One iteration. critical: indices of `bars` along the critical path, first one first."""

    title: str
    bars: Sequence[Bar]
    critical: Sequence[int]
    end_s: float


@dataclass(frozen=True)
class _Scales:
    """Seconds to pixels and watts to shares of the colour scale, the same for all timelines."""

    span_s: float
    low_w: float
    high_w: float

    def x(self, time_s: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * time_s / self.span_s

    def share(self, power_w: float) -> float:
        return (power_w - self.low_w) / max(self.high_w - self.low_w, 1e-9)


def pipeline_svg(
    heading: str, subheading: str, timelines: Sequence[Timeline], blocking_power_w: float
) -> str:
    """An SVG document 1400 wide that shows `timelines` on one time axis and one colour scale."""
    scales = _scales(timelines, blocking_power_w)
    parts = [
        svg.text(_LEFT, 36, heading, 22, font_weight="bold"),
        svg.text(_LEFT, 60, subheading, 14, fill=_MUTED),
    ]
    top = _HEADER
    for timeline in timelines:
        parts += _timeline(timeline, scales, top)
        top += _height(timeline)
    parts += _legend(scales, blocking_power_w, top)
    return svg.document(WIDTH, top + _LEGEND, f"{heading}. {subheading}", parts)


def _scales(timelines: Sequence[Timeline], blocking_power_w: float) -> _Scales:
    """Colours from blocking power up: small differences in power shall look small."""
    powers = [bar.power_w for timeline in timelines for bar in timeline.bars]
    ends = [timeline.end_s for timeline in timelines]
    high = max(powers, default=blocking_power_w + 1)
    return _Scales(max(ends, default=1.0) * 1.01, blocking_power_w, high)


def _rows(timeline: Timeline) -> int:
    return 1 + max((bar.rank for bar in timeline.bars), default=0)


def _height(timeline: Timeline) -> float:
    return _TITLE + _rows(timeline) * _ROW + _AXIS


def _timeline(timeline: Timeline, scales: _Scales, top: float) -> Iterator[str]:
    first = top + _TITLE
    bottom = first + _rows(timeline) * _ROW
    yield svg.text(_LEFT, top + 20, timeline.title, 15, font_weight="bold")
    for rank in range(_rows(timeline)):
        yield from _row(rank, timeline, scales, first + rank * _ROW)
    yield from _axis(scales, first, bottom)
    for bar in timeline.bars:
        yield _drawn(bar, scales, first + bar.rank * _ROW)
    yield from _critical_path(timeline, scales, first)
    for bar in timeline.bars:
        yield from _named(bar, scales, first + bar.rank * _ROW)
    yield from _end(timeline, scales, first, bottom)


def _row(rank: int, timeline: Timeline, scales: _Scales, y: float) -> Iterator[str]:
    yield svg.text(_LEFT - 12, y + 19, f"stage {rank}", 13, text_anchor="end")
    width = scales.x(timeline.end_s) - _LEFT
    yield svg.element("rect", x=_LEFT, y=y, width=width, height=_BAR, fill=_WAITING)


def _axis(scales: _Scales, first: float, bottom: float) -> Iterator[str]:
    step = _tick(scales.span_s)
    digits = max(0, -math.floor(math.log10(step)))
    for i in range(int(scales.span_s / step) + 1):
        x = scales.x(i * step)
        yield svg.line(x, first - 2, x, bottom, stroke=_GRID, stroke_width=1)
        label = f"{i * step:.{digits}f} s"
        yield svg.text(x, bottom + 14, label, 11, text_anchor="middle", fill=_MUTED)


def _tick(span: float) -> float:
    """A round step of which four to ten fit."""
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    return max(m * magnitude for m in (1.0, 2.0, 5.0) if m * magnitude <= span / 4)


def _round_between(low: float, high: float) -> Iterator[float]:
    """Round values of the scale, few enough to be written side by side."""
    step = _tick(2 * (high - low))
    first = math.ceil(low / step)
    return (i * step for i in range(first, math.floor(high / step) + 1))


def _drawn(bar: Bar, scales: _Scales, y: float) -> str:
    x, width = scales.x(bar.start_s), scales.x(bar.end_s) - scales.x(bar.start_s)
    hint = (
        f"stage {bar.rank}, {bar.instruction} of microbatch {bar.microbatch}: "
        f"{bar.clock_mhz} MHz, {bar.power_w:.0f} W, {1000 * (bar.end_s - bar.start_s):.1f} ms"
    )
    return svg.element(
        "rect",
        svg.element("title", escape(hint)),
        x=x,
        y=y,
        width=max(width, 0.5),
        height=_BAR,
        fill=colour(scales.share(bar.power_w)),
        stroke="#ffffff",
        stroke_width=0.8,
    )


def _named(bar: Bar, scales: _Scales, y: float) -> Iterator[str]:
    left, right = scales.x(bar.start_s), scales.x(bar.end_s)
    if name := _name(bar, right - left):
        fill = text_colour(scales.share(bar.power_w))
        yield svg.text((left + right) / 2, y + 13, name, 10, text_anchor="middle", fill=fill)


def _name(bar: Bar, width: float) -> str:
    """The longest name that fits: F12, else 12, else none."""
    number = str(bar.microbatch)
    for name in (bar.instruction[0].upper() + number, number):
        if len(name) * _CHARACTER + 3 <= width:
            return name
    return ""


def _critical_path(timeline: Timeline, scales: _Scales, first: float) -> Iterator[str]:
    points = []
    for index in timeline.critical:
        bar = timeline.bars[index]
        y = first + bar.rank * _ROW + _BAR - 7
        points += [(scales.x(bar.start_s) + 1, y), (scales.x(bar.end_s) - 1, y)]
    if points:
        yield svg.polyline(points, stroke="#ffffff", stroke_width=5, stroke_linejoin="round")
        yield svg.polyline(points, stroke=_PATH, stroke_width=2.5, stroke_linejoin="round")


def _end(timeline: Timeline, scales: _Scales, first: float, bottom: float) -> Iterator[str]:
    x = scales.x(timeline.end_s)
    yield svg.line(
        x, first - 8, x, bottom + 18, stroke="#1a1a1a", stroke_width=1.5, stroke_dasharray="5 3"
    )
    label = f"iteration ends after {timeline.end_s:.3f} s"
    yield svg.text(x, bottom + 31, label, 12, text_anchor="end", font_weight="bold")


def _legend(scales: _Scales, blocking_power_w: float, top: float) -> Iterator[str]:
    y, width = top + 14, 280.0
    step = width / _SCALE_STEPS
    yield svg.text(_LEFT, y + 13, "power of one GPU", 12)
    left = _LEFT + 116
    for i in range(_SCALE_STEPS):
        fill = colour((i + 0.5) / _SCALE_STEPS)
        yield svg.element("rect", x=left + i * step, y=y, width=step + 0.5, height=16, fill=fill)
    for watts in _round_between(scales.low_w, scales.high_w):
        x = left + scales.share(watts) * width
        yield svg.line(x, y + 16, x, y + 20, stroke=_MUTED, stroke_width=1)
        yield svg.text(x, y + 33, f"{watts:.0f} W", 11, text_anchor="middle", fill=_MUTED)
    x = left + width + 50
    yield svg.element("rect", x=x, y=y, width=26, height=16, fill=_WAITING, stroke=_GRID)
    yield svg.text(x + 34, y + 13, f"waiting ({blocking_power_w:.0f} W)", 12)
    x += 190
    yield svg.line(x, y + 8, x + 36, y + 8, stroke=_PATH, stroke_width=2.5)
    yield svg.text(x + 44, y + 13, "critical path", 12)
    x += 160
    yield svg.text(x, y + 13, "F3, B3: forward, backward of microbatch 3", 12)
