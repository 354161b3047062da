"""How a demo shows where it is: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perseusd.draw.colours import colour

_LINE_EVERY_S = 10.0
_BAR_WIDTH = 30


@dataclass(frozen=True)
class StageReading:
    """One stage's GPU now. requested_mhz: None where its clock is unlocked."""

    clock_mhz: int
    requested_mhz: int | None
    power_w: float


@dataclass(frozen=True)
class Snapshot:
    """What is known now; None where it is not known yet."""

    elapsed_s: float
    total_s: float
    state: str
    iteration: int | None = None
    iteration_time_s: float | None = None
    power_w: float | None = None
    saving: float | None = None
    slowdown: float | None = None
    straggling: bool = False
    why: str | None = None
    stages: Sequence[StageReading] = field(default=())


class Progress(Protocol):
    """Told where the demo is, some times a second; a context manager around the run."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...


class Lines:
    """A line when the state changes, and every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: tuple[str, bool] | None = None
        self._last_s = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def show(self, snapshot: Snapshot) -> None:
        now, key = time.monotonic(), (snapshot.state, snapshot.straggling)
        if key == self._last and now - self._last_s < _LINE_EVERY_S:
            return
        self._last, self._last_s = key, now
        words = ", ".join(f"{name} {value}" for name, value in _facts(snapshot))
        self._stream.write(f"[emulated] {snapshot.elapsed_s:5.0f} s  {words}\n")
        self._stream.flush()


class Panels:
    """A panel that is redrawn in place."""

    def __init__(self, console: Console, title: str, full_power_w: float) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._title = title
        self._full_power_w = full_power_w

    def __enter__(self) -> Panels:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        parts = Group(
            _facts_table(snapshot),
            Text(),
            *(_stage_line(i, s, self._full_power_w) for i, s in enumerate(snapshot.stages)),
            Text(),
            ProgressBar(snapshot.total_s, min(snapshot.elapsed_s, snapshot.total_s), width=60),
        )
        self._live.update(Panel(parts, title=f"{self._title} · emulated", title_align="left"))


def _facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    facts = [("state", snapshot.state)]
    if snapshot.iteration is not None:
        facts.append(("iteration", str(snapshot.iteration)))
    if snapshot.iteration_time_s is not None:
        facts.append(("iteration time", f"{snapshot.iteration_time_s:.3f} s"))
    if snapshot.power_w is not None:
        facts.append(("power", f"{snapshot.power_w:.0f} W"))
    if snapshot.saving is not None:
        facts.append(("saving", f"{100 * snapshot.saving:z.1f} %"))
    if snapshot.slowdown is not None:
        facts.append(("slowdown", f"{100 * snapshot.slowdown:z.2f} %"))
    if snapshot.straggling:
        facts.append(("straggler", "another replica is slower"))
    return facts


def _facts_table(snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(snapshot):
        table.add_row(Text(name, style="dim"), Text(value, style="bold"))
    if snapshot.why:
        table.add_row(Text("why", style="dim"), Text(snapshot.why))
    return table


def _stage_line(stage: int, reading: StageReading, full_power_w: float) -> Text:
    share = min(reading.power_w / full_power_w, 1.0) if full_power_w else 0.0
    filled = round(share * _BAR_WIDTH)
    lock = "full clock" if reading.requested_mhz is None else f"locked at {reading.requested_mhz}"
    line = Text(f"stage {stage:<2} ")
    line.append("█" * filled, style=colour(share))
    line.append("·" * (_BAR_WIDTH - filled), style="dim")
    line.append(f" {reading.power_w:4.0f} W  {reading.clock_mhz:4d} MHz  ")
    line.append(lock, style="dim")
    return line
