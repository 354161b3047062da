"""Who takes part, who times a stage, and why a pipeline cannot be planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from perseus_hooks.events import Hello

from perseusd.core.jobs.roster import NAMED_STAGES, Member, Roster

HELLO = Hello(
    job="job", rank=0, world_size=2, local_rank=0, stage=0, stages=2, replica=0, replicas=1,
    schedule=None, gpus=(), time_source="host", uses_cuda=False, slowdown_budget=None,
    hostname="here",
)  # fmt: skip


def roster(*changes: dict[str, object], gpus: bool = True) -> Roster:
    made = Roster()
    for i, change in enumerate(changes):
        hello = replace(HELLO, **{"rank": i, "stage": i, **change})  # type: ignore[arg-type]
        made.add(Member(str(i), hello, (f"GPU-{i}",) if gpus else ()))
    return made


def test_a_complete_pipeline_has_no_obstacle() -> None:
    """Every stage present, each with its own GPU."""
    assert roster({}, {}).obstacle() is None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (roster({}), "waiting for the ranks of stage 1"),
        (roster({"stages": None}, {}), "its topology is not known"),
        (roster({"stage": None, "stages": None}), "its topology is not known"),
        (roster({}, {"stage": None}), "rank 1 did not say its stage: configure(stage=…)"),
        (roster({"world_size": 4}, {"world_size": 4}), "waiting for 2 of 4 ranks"),
        (roster({}, {}, gpus=False), "did not say which GPU"),
        (roster({}, {"uses_cuda": True}), "times of launch and not of computation"),
    ],
)
def test_every_obstacle_is_told_in_words(made: Roster, words: str) -> None:
    """What a user reads in doctor says what is missing and what to do."""
    assert words in (made.obstacle() or "")


def test_device_times_lift_the_obstacle_of_cuda() -> None:
    """CUDA with device times is planned on, and with times of when results were ready."""
    for source in ("cuda_event", "ready"):
        both = {"uses_cuda": True, "time_source": source}
        assert roster(both, both).obstacle() is None


def test_replicas_divide_the_world() -> None:
    """Eight processes in four replicas: two a pipeline."""
    both = {"world_size": 8, "replicas": 4}
    assert roster(both, both).obstacle() is None


def test_a_gpu_that_two_stages_share_is_an_obstacle() -> None:
    """It has one clock: lowered for the light stage it would slow the critical one."""
    made = roster({}, {})
    made.add(replace(made.members["1"], gpus=("GPU-0",)))
    assert "stages 0 and 1 say that they use the same GPU GPU-0" in (made.obstacle() or "")


def test_processes_of_one_stage_may_share_and_the_lowest_rank_times_it() -> None:
    """Tensor parallel: four ranks, two stages; GPUs of a stage are all its members', each once."""
    made = roster(
        {"world_size": 4, "stage": 0}, {"world_size": 4, "stage": 0},
        {"world_size": 4, "stage": 1}, {"world_size": 4, "stage": 1},
    )  # fmt: skip
    assert made.obstacle() is None
    leader = made.leader(1)
    assert leader is not None
    assert leader.hello.rank == 2
    assert made.gpus(0) == ["GPU-0", "GPU-1"]
    assert made.all_gpus() == [f"GPU-{i}" for i in range(4)]


def test_a_claim_of_a_million_stages_costs_nothing() -> None:
    """Only some missing stages are named: the reason is made at every iteration's end."""
    made = roster({"stages": 2**20 - 1})
    assert made.missing_stages() == list(range(1, NAMED_STAGES + 1))
    assert len(made.obstacle() or "") < 200


def test_a_schedule_is_what_all_who_name_one_name() -> None:
    """Some may not know; two names are none."""
    assert roster({"schedule": "zbv"}, {}).schedule == "zbv"
    assert roster({"schedule": "zbv"}, {"schedule": "1f1b"}).schedule is None
    assert roster({}, {}).schedule is None
