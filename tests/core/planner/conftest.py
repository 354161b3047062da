"""Problems for the planner's tests: real ones from the measurements, and random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perseusd.core.model import Kind, Problem
from perseusd.core.schedules import one_f_one_b, pipeline
from perseusd.traces.profile import read_profile

BLOCKING_W = {"a100_sxm": 83.64, "a40": 70.38}

GptProblem = Callable[..., Problem]


@pytest.fixture
def gpt3(shared_data: Path) -> GptProblem:
    """gpt3(gpu, microbatches, **of Problem): GPT-3 175B, 8 stages, 1F1B."""

    def make(gpu: str, microbatches: int, **settings: object) -> Problem:
        path = shared_data / "perseus-sosp24" / "stage_profile" / f"gpt3-175b_{gpu}.csv"
        curves = {Kind(stage, 0, i): curve for (stage, i), curve in read_profile(path).items()}
        return Problem(
            pipeline(one_f_one_b(8, microbatches)),
            curves,
            [BLOCKING_W[gpu]] * 8,
            **settings,  # type: ignore[arg-type]
        )

    return make
