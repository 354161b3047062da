"""A few SVG elements as strings. Everything that came from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """`<name …>content</name>`. `content` is markup already; underscores become hyphens."""
    pairs = " ".join(
        f'{key.rstrip("_").replace("_", "-")}="{escape(_written(value))}"'
        for key, value in attributes.items()
    )
    opening = f"{name} {pairs}" if pairs else name
    return f"<{opening}>{content}</{name}>" if content else f"<{opening}/>"


def text(x: float, y: float, words: str, size: float = 13, **attributes: str | float) -> str:
    attributes |= {"x": x, "y": y, "font_size": size}
    return element("text", escape(words), **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: str | float) -> str:
    attributes |= {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **attributes)


def polyline(points: Iterable[tuple[float, float]], **attributes: str | float) -> str:
    joined = " ".join(f"{_written(x)},{_written(y)}" for x, y in points)
    attributes |= {"points": joined, "fill": "none"}
    return element("polyline", **attributes)


def document(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole SVG document on a white ground; `title` is its accessible name."""
    ground = element("rect", width=width, height=height, fill="#ffffff")
    body = "\n".join((element("title", escape(title)), ground, *parts))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + element(
        "svg",
        "\n" + body + "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_written(width)} {_written(height)}",
        width=width,
        height=height,
        font_family=FONT,
        fill="#1a1a1a",
        role="img",
    )


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
