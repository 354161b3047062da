"""A sequential colour scale, pale to dark, that reads in grey and to colour-blind eyes too."""

from __future__ import annotations

# ColorBrewer's nine-class YlOrRd without its palest and its darkest class.
_STOPS = ("#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#bd0026")
_DARK_BELOW = 0.45  # relative luminance under which text on the colour is white

Rgb = tuple[int, int, int]


def colour(share: float) -> str:
    """The colour at `share` of the scale, 0 palest to 1 darkest; clipped outside."""
    return "#{:02x}{:02x}{:02x}".format(*_rgb(share))


def text_colour(share: float) -> str:
    """Black or white, whichever reads better on `colour(share)`."""
    red, green, blue = _rgb(share)
    luminance = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    return "#ffffff" if luminance < _DARK_BELOW else "#1a1a1a"


def _rgb(share: float) -> Rgb:
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    weight = place - low
    below, above = _parsed(_STOPS[low]), _parsed(_STOPS[low + 1])
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(below, above, strict=True))
    return red, green, blue


def _parsed(stop: str) -> Rgb:
    return int(stop[1:3], 16), int(stop[3:5], 16), int(stop[5:7], 16)
