from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from pathlib import Path

from perseusd.emulation.job import EmulatedJob, JobOptions
from perseusd.emulation.picture import picture, typical
from perseusd.emulation.report import Setting, report
from perseusd.emulation.workloads import Workload
from perseusd.gpus.simulated import SimulatedNode

STATES = (("baseline", 0), ("hold", 2))


def wait_for_iterations(job: EmulatedJob, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(job.iterations()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_picture_shows_before_and_after_and_says_emulated(
    small: Workload, node: SimulatedNode, tmp_path: Path
) -> None:
    """Drawn from iterations that ran: both timelines, the saving, and the word "emulated"."""
    with (job := EmulatedJob(small, node.path, tmp_path, JobOptions(microbatches=4))):
        wait_for_iterations(job, 4)
    records = job.iterations()
    setting = Setting("small", "a100-sxm", 3, 4, small.blocking_power_w)
    found = report(setting, records, STATES, None)
    drawn = picture(found, small, records, STATES)
    assert drawn is not None
    words = " ".join(ET.fromstring(drawn.encode()).itertext())  # noqa: S314 - our own
    for expected in ("mulated", "less energy", "Before", "After", "critical path", "stage 2"):
        assert expected in words


def test_the_typical_iteration_is_of_median_length(small: Workload) -> None:
    """No records, no picture; the start-up is never shown."""
    assert typical("hold", [], STATES) is None
    empty = report(Setting("small", "a100-sxm", 3, 4, 80.0), [], STATES, None)
    assert picture(empty, small, [], STATES) is None
