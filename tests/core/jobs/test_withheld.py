"""A job whose clocks are withheld: full at once, watched, and slowed again when they are free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perseusd.core.jobs.why import WhyCode, code_of

NodeOf = Callable[..., Any]


@pytest.mark.parametrize("name", ["GPU-1", "me:job"])
def test_withheld_means_full_clocks_until_it_is_over(node: NodeOf, name: str) -> None:
    """By one of its GPUs or by its id: nothing is lowered in twenty iterations, the reason is
    told; afterwards it is held again, by what it had learned."""
    made = node()
    made.join()
    made.until("hold")
    made.do(made.controller.withhold(name, "GPU-1 is stuck: for a test"))
    before = len(made.log)
    made.iterate(20)
    assert made.state == "baseline"
    assert not [write for write in made.writes(before) if write.clock_mhz is not None]
    job = made.controller.jobs["me:job"]
    assert job.reason == "GPU-1 is stuck: for a test"
    assert code_of(job.reason) is WhyCode.GPU_STUCK
    made.do(made.controller.withhold(name, None))
    assert code_of(job.reason) is WhyCode.MEASURING  # at once, not when an iteration ends
    made.until("hold")


def test_what_is_still_withheld_is_still_told(node: NodeOf) -> None:
    made = node()
    made.join()
    made.until("hold")
    for name in ("GPU-0", "GPU-1"):
        made.do(made.controller.withhold(name, "paused by an operator"))
    made.do(made.controller.withhold("GPU-0", None))
    assert code_of(made.job.reason) is WhyCode.PAUSED
    made.do(made.controller.withhold("GPU-1", None))
    assert code_of(made.job.reason) is WhyCode.MEASURING


def test_a_gpu_of_no_job_withholds_nothing(node: NodeOf) -> None:
    """A job on other GPUs goes on as it is."""
    made = node()
    made.join()
    made.until("hold")
    made.do(made.controller.withhold("GPU-9", "it is stuck"))
    made.iterate(3)
    assert made.state == "hold"


def test_after_a_sleep_everything_is_learned_anew(node: NodeOf) -> None:
    """Full clocks at once; the baseline is measured again, and lower clocks are tried again."""
    made = node()
    made.join()
    made.until("hold")
    before = len(made.log)
    made.do(made.controller.relearn_all("this machine has slept for 60 s"))
    assert not made.lowered
    job = made.controller.jobs["me:job"]
    assert job.progress() is None
    assert job.ledger.count("baseline") == 0
    made.until("hold")
    states = [state.value for state, _ in job.states]
    assert states[-4:] == ["release", "baseline", "learn", "hold"]
    assert made.writes(before)
