"""Several drawings on one sheet."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from perseusd.draw import svg
from perseusd.draw.sheet import sheet

SVG = "{http://www.w3.org/2000/svg}"


def test_drawings_are_one_below_the_other() -> None:
    """Each keeps its size and content; the sheet is as wide as the widest and as high as all."""
    first = svg.document(300, 100.5, "first <1>", [svg.text(1, 2, "one & only")])
    second = svg.document(500, 40, "second", [])
    root = ElementTree.fromstring(sheet("both", [first, second]))  # noqa: S314  # we wrote it
    assert (root.get("width"), root.get("height")) == ("500", "140.5")
    nested = root.findall(f"{SVG}svg")
    assert [(n.get("y"), n.get("width"), n.get("height")) for n in nested] == [
        ("0", "300", "100.5"),
        ("100.5", "500", "40"),
    ]
    assert nested[0].findtext(f"{SVG}title") == "first <1>"
    assert nested[0].findtext(f"{SVG}text") == "one & only"


def test_what_is_no_drawing_is_refused() -> None:
    """A document without a size could not be placed."""
    with pytest.raises(ValueError, match="width and height"):
        sheet("none", ["<svg/>"])
