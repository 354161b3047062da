"""`perseusctl analyze` from the file to what is shown: read downward."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from perseusd.ctl.analyze.analysis import analyse
from perseusd.ctl.analyze.answer import answer
from perseusd.ctl.analyze.text import render
from perseusd.ctl.output import print_json
from perseusd.exits import DONE
from perseusd.traces.reading import read_trace

PIPED_WIDTH = 120
"""Columns where no terminal says how many: narrower ones would cut the tables short."""


def run(path: Path, *, as_json: bool) -> int:
    """Analyse a trace and print. Raises TraceError for a file that cannot be read."""
    trace = read_trace(path)
    verdicts = [analyse(own) for own in trace.runs]
    if as_json:
        print_json(answer(trace, verdicts))
        return DONE
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    console.print(render(trace, verdicts))
    return DONE
