"""The demo's picture: one iteration before and one after, drawn from what really ran."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perseusd.core.graph import Graph
from perseusd.draw.pipeline import Bar, Timeline, pipeline_svg
from perseusd.emulation.records import IterationRecord, Span
from perseusd.emulation.report import DemoReport, States, state_of
from perseusd.emulation.workloads import Workload


def picture(
    report: DemoReport, workload: Workload, records: Sequence[IterationRecord], states: States
) -> str | None:
    """An SVG of a typical iteration of baseline and of hold; None where there is no baseline."""
    graph = Graph(workload.pipeline(report.microbatches))
    timelines = []
    for state, words in (
        ("baseline", "Before: every computation at full clock"),
        ("hold", "After: clocks planned by perseusd while the job trained"),
    ):
        record = typical(state, records, states)
        phase = next((p for p in report.phases if (p.state, p.straggler) == (state, False)), None)
        if record is not None and phase is not None:
            energy = f"{_thousands(phase.energy_j)} J and {phase.iteration_time_s:.3f} s"
            title = f"{words}. On average {energy} per iteration"
            timelines.append(_timeline(title, record, graph))
    if not timelines:
        return None
    heading, subheading = _headings(report)
    return pipeline_svg(heading, subheading, timelines, workload.blocking_power_w)


def typical(
    state: str, records: Sequence[IterationRecord], states: States
) -> IterationRecord | None:
    """The iteration of median length of that state, without a straggler, the start-up left out."""
    found = [
        r
        for r in records
        if r.iteration > 0 and not r.straggling and state_of(r.iteration, states) == state
    ]
    if not found:
        return None
    return sorted(found, key=lambda r: r.time_s)[(len(found) - 1) // 2]


def _timeline(title: str, record: IterationRecord, graph: Graph) -> Timeline:
    spans = [span for rank in record.spans for span in rank]
    index = {span.computation: i for i, span in enumerate(spans)}
    durations = np.array([spans[index[node]].time_s for node in graph.nodes])
    return Timeline(
        title=title,
        bars=[_bar(span, record.start_ns) for span in spans],
        critical=[index[computation] for computation in graph.critical_path(durations)],
        end_s=record.time_s,
    )


def _bar(span: Span, start_ns: int) -> Bar:
    return Bar(
        rank=span.computation.rank,
        instruction=span.computation.instruction,
        microbatch=span.computation.microbatch,
        start_s=(span.start_ns - start_ns) / 1e9,
        end_s=(span.end_ns - start_ns) / 1e9,
        clock_mhz=span.clock_mhz,
        power_w=span.energy_j / span.time_s,
    )


def _headings(report: DemoReport) -> tuple[str, str]:
    if report.saving is None or report.slowdown is None:
        heading = "No plan was in force long enough to measure a saving"
    else:
        heading = f"{report.saving:z.1%} less energy, {percent_longer(report.slowdown)} iterations"
    return heading.replace("%", " %"), (
        f"{report.title}, 1F1B. Drawn are iterations of median length, as "
        "they ran; averages by the GPUs' counters"
    )


def percent_longer(slowdown: float) -> str:
    """`0.12% longer`, or shorter."""
    return f"{abs(slowdown):.2%} {'longer' if round(slowdown, 4) >= 0 else 'shorter'}"


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u2009")
