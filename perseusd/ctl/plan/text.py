"""The plan in words and two tables: what it saves, what bounds it, which clocks each rank runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from perseusd.core.planner.frontier import Frontier
from perseusd.ctl.output import counted, percent, safe
from perseusd.ctl.plan.answer import clocks_mhz, warnings
from perseusd.ctl.plan.job import Job
from perseusd.ctl.plan.solution import Margin, Solution, saving

PIPED_WIDTH = 140
"""Columns where no terminal says how many."""
_WAITING = ", waiting until the deadline"


def show(job: Job, solution: Solution, *, on_stderr: bool = False) -> None:
    console = Console(highlight=False, stderr=on_stderr)
    if not console.is_terminal:
        console = Console(highlight=False, stderr=on_stderr, width=PIPED_WIDTH)
    console.print(rendered(job, solution))


def rendered(job: Job, solution: Solution) -> RenderableType:
    return Group(
        Text(_headline(job), style="bold"),
        _summary(job, solution),
        *(Text(line) for line in _lines(job, solution)),
        Text("\nClocks in MHz: lowest, mean, highest", style="bold"),
        _clock_table(job, solution),
        *(Text(f"note: {safe(words)}", style="yellow") for words in warnings(job, solution)),
    )


def _headline(job: Job) -> str:
    found = job.ordered
    parts = [counted(len(found.orders), "rank")]
    if found.chunks > 1:
        parts.append(f"{found.chunks} chunks each")
    parts.append(counted(found.microbatches, "microbatch", "microbatches"))
    return f"{safe(found.name)}: {', '.join(parts)}"


def _summary(job: Job, solution: Solution) -> Table:
    result = solution.result
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for heading in ("iteration s", "energy J", "saved"):
        table.add_column(heading, justify="right")
    table.add_row("full clock", *_figures(job.baseline_time_s, job.baseline_energy_j))
    waiting = "" if job.deadline_s <= job.baseline_time_s else _WAITING
    if waiting:
        waited = result.energy_j / (1 - result.saving)
        table.add_row(f"full clock{waiting}", *_figures(job.baseline_time_s, waited))
    plan = _figures(result.iteration_time_s, result.energy_j)
    table.add_row(f"plan{waiting}", *plan, percent(result.saving), style="bold")
    bounds = [("no plan uses less", result.energy_lower_bound_j)]
    if _counts(solution):
        bounds.append(("… with so few clock writes", result.energy_lower_bound_writes_j))
    for words, bound_j in bounds:
        table.add_row(words, "", f"{bound_j:.1f}", percent(saving(job, bound_j)))
    return table


def _counts(solution: Solution) -> bool:
    """Whether fewer clock writes than pay keep a plan from saving more."""
    result = solution.result
    return solution.budgeted and result.energy_lower_bound_writes_j > result.energy_lower_bound_j


def _figures(time_s: float, energy_j: float) -> tuple[str, str]:
    return f"{time_s:.3f}", f"{energy_j:.1f}"


def _lines(job: Job, solution: Solution) -> Iterator[str]:
    result = solution.result
    best_j, with_writes = result.energy_lower_bound_j, ""
    if _counts(solution):
        best_j, with_writes = result.energy_lower_bound_writes_j, ", with so few clock writes"
    yield (
        f"Deadline {result.deadline_s:.3f} s. The plan is within {result.energy_j / best_j - 1:.2%}"
        f" of the least energy possible by then{with_writes}."
    ).replace("%", " %")
    yield (
        f"Clock writes: at most {result.clock_writes} per GPU and iteration. "
        f"Planned in {result.solve_time_s:.3f} s."
    )
    if solution.margin is not None:
        yield from _margin(solution.margin, job.deadline_s / job.baseline_time_s)
    if solution.frontier is not None:
        yield from _frontier(solution.frontier)


def _margin(margin: Margin, deadline_ratio: float) -> Iterator[str]:
    """The deadline moves as full clock's iteration does."""
    takes = "an iteration takes on average"
    if margin.confidence is not None:
        takes = f"{margin.confidence:.4g} of all iterations take at most"
    yield (
        f"Noise of {margin.noise:.2%} a computation: {takes} "
        f"{margin.expected_iteration_time_s:.4f} s, at full clock "
        f"{margin.expected_baseline_time_s:.4f} s, by a deadline of as much more, "
        f"{deadline_ratio * margin.expected_baseline_time_s:.4f} s."
    ).replace("%", " %")
    yield (
        f"Without a margin for it: {margin.expected_iteration_time_without_margin_s:.4f} s, and "
        f"{margin.saving_without_margin:.1%} saved."
    ).replace("%", " %")


def _frontier(frontier: Frontier) -> Iterator[str]:
    yield (
        f"Frontier: iterations of {frontier.shortest_time_s:.3f} s to, with the least energy, "
        f"{frontier.least_energy_time_s:.3f} s; behind a straggler, up to "
        f"{frontier.longest_useful_time_s:.3f} s."
    )


def _clock_table(job: Job, solution: Solution) -> Table:
    # in the order in which they run, the first chunk's first
    seen = dict.fromkeys(c[1:3] for order in job.ordered.orders for c in order)
    kinds = sorted(seen, key=lambda kind: kind[0])
    table = Table(box=SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    for chunk, instruction in kinds:
        of_chunk = f" {chunk}" if job.ordered.chunks > 1 else ""
        table.add_column(f"{instruction}{of_chunk}", justify="right")
    table.add_column("different", justify="right")
    for rank, clocks in enumerate(clocks_mhz(job, solution)):
        order = job.ordered.orders[rank]
        cells = [
            _range([m for c, m in zip(order, clocks, strict=True) if c[1:3] == kind])
            for kind in kinds
        ]
        table.add_row(str(rank), *cells, str(len(set(clocks))))
    return table


def _range(clocks: Sequence[int]) -> str:
    if not clocks:
        return ""
    if min(clocks) == max(clocks):
        return str(clocks[0])
    return f"{min(clocks)}  {sum(clocks) / len(clocks):.0f}  {max(clocks)}"
