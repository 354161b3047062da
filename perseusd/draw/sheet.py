"""Several drawings on one sheet, one below the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perseusd.draw import svg

_ROOT = re.compile(r'<svg [^>]*\bwidth="([\d.]+)" height="([\d.]+)"[^>]*>')


def sheet(title: str, documents: Sequence[str]) -> str:
    """One SVG document of several that svg.document() made, as wide as the widest."""
    parts, width, top = [], 0.0, 0.0
    for document in documents:
        root = _ROOT.search(document)
        if root is None:
            raise ValueError("not an SVG document with width and height on its root element")
        parts.append(f'<svg y="{top:g}" ' + document[root.start() + len("<svg ") :])
        width, top = max(width, float(root[1])), top + float(root[2])
    return svg.document(width, top, title, parts)
