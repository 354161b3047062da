"""What is said to be wrong, and that it is said of nothing else."""

from __future__ import annotations

import pytest

from perseusd.exporter.health import alive, ready


def test_nothing_is_wrong_with_a_daemon_that_works(status, snapshot_of) -> None:
    """Observe-only mode has no clock process, and is ready all the same."""
    assert alive(snapshot_of(status)) == ready(snapshot_of(status)) == []
    status["daemon"] |= {"mode": "observe", "clock_process": "dead"}
    assert ready(snapshot_of(status)) == []


def test_no_answer_is_neither_alive_nor_ready(snapshot_of) -> None:
    """The reason is the one that asking met."""
    silent = snapshot_of(None, "no such socket")
    assert alive(silent) == ready(silent) == ["no such socket"]


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("clock_process", "dead", "perseusd-clock is dead"),
        ("planner", "starting", "planner is starting"),
        ("driver", "free", "an operator has paused the daemon"),
        ("missing_gpus", [{"index": 3, "why": "lost"}], "GPU 3 could not be opened: lost"),
    ],
)
def test_processes_that_are_missing_are_named(status, snapshot_of, part, value, said) -> None:
    """The daemon lives, and cannot do its work."""
    status["daemon"][part] = value
    (wrong,) = ready(snapshot_of(status))
    assert said in wrong
    assert alive(snapshot_of(status)) == []


def test_a_pause_has_no_clock_process_to_miss(status, snapshot_of) -> None:
    """An operator who paused is not sent to look after perseusd-clock."""
    status["daemon"] |= {"driver": "free", "clock_process": "dead"}
    (wrong,) = ready(snapshot_of(status))
    assert "an operator has paused the daemon" in wrong


def test_a_driver_that_does_not_open_after_a_pause_says_why(status, snapshot_of) -> None:
    """An operator who has resumed is not told to."""
    status["daemon"] |= {"driver": "opening", "driver_trouble": "driver not loaded"}
    (wrong,) = ready(snapshot_of(status))
    assert wrong.endswith("driver not loaded")
    assert "perseusctl" not in wrong


def test_every_gpu_that_cannot_be_read_is_named(status, snapshot_of) -> None:
    """With what the driver says, or that it says nothing; and a node without GPUs is not ready."""
    status["gpus"][0] |= {"state": "stuck"}
    status["gpus"][1] |= {"state": "lost", "error": "fell off the bus"}
    stuck, lost = ready(snapshot_of(status))
    assert "GPU 0 (GPU-0) is stuck: no reading" in stuck
    assert "GPU 1 (GPU-1) is lost: fell off the bus" in lost
    status["gpus"] = []
    assert ready(snapshot_of(status)) == ["there is no GPU"]


def test_a_status_that_cannot_be_read_is_not_ready(status, snapshot_of) -> None:
    """Never 200 for want of a field."""
    del status["daemon"]["planner"]
    (wrong,) = ready(snapshot_of(status))
    assert "cannot be read" in wrong
