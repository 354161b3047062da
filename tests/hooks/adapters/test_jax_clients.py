"""One process that speaks for several stages: who each of its clients says that it is."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_hooks import connection
from perseus_hooks.adapters import jax_clients
from perseus_hooks.adapters.jax_clients import stage_clients
from perseus_hooks.events import Goodbye, Hello


@pytest.fixture(autouse=True)
def _here(runtime_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSEUS_RUNTIME_DIR", runtime_dir)


def hellos(daemon: Any) -> list[Hello]:
    found = [event for event in daemon.receive() if isinstance(event, Hello)]
    return sorted(found, key=lambda hello: hello.rank)


def test_each_stage_is_a_rank_of_one_job_with_a_gpu_of_its_own(daemon: Any) -> None:
    """GPUs in CUDA's order where none are told; the times are those of when results were ready."""
    clients = stage_clients(3, schedule="gpipe")
    found = hellos(daemon)
    assert [(h.rank, h.stage, h.stages, h.world_size) for h in found] == [
        (0, 0, 3, 3),
        (1, 1, 3, 3),
        (2, 2, 3, 3),
    ]
    assert [h.gpus for h in found] == [("cuda-index:0",), ("cuda-index:1",), ("cuda-index:2",)]
    assert len({h.job for h in found}) == 1
    assert {(h.time_source, h.schedule, h.replica, h.replicas) for h in found} == {
        ("ready", "gpipe", 0, 1)
    }
    for client in clients:
        client.close()


def test_a_process_may_have_some_of_the_stages(
    daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first has the first GPU that it sees; GPUs that are told are taken as told."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    clients = stage_clients(4, own=[2, 3], job="job")
    clients += stage_clients(4, own=[0, 1], job="job", gpus=["GPU-a", ["GPU-b", "GPU-c"]])
    found = hellos(daemon)
    assert [h.stage for h in found] == [0, 1, 2, 3]
    assert [h.gpus for h in found] == [
        ("GPU-a",),
        ("GPU-b", "GPU-c"),
        ("cuda-index:6",),
        ("cuda-index:7",),
    ]
    for client in clients:
        client.close()


def test_a_wrong_argument_is_told() -> None:
    """As by configure: here is where a trainer may still be stopped."""
    with pytest.raises(ValueError, match="gpus has 1 entries: pass 2"):
        stage_clients(2, gpus=[0])
    with pytest.raises(ValueError, match="schedule is ''"):
        stage_clients(2, schedule="")


def test_switched_off_nothing_is_said(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PERSEUS_ENABLED=0 holds for these clients too."""
    monkeypatch.setenv("PERSEUS_ENABLED", "0")
    for client in stage_clients(2):
        with client.stage("forward"):
            pass
        client.close()
    assert not [event for event in daemon.receive() if not isinstance(event, Goodbye)]


def test_at_exit_all_goodbyes_get_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a daemon is stopped each would wait for it, and the interpreter for each."""
    now_s, given = 0.0, []

    class Waiting:
        def close(self, wait_ms: int) -> None:
            nonlocal now_s
            given.append(wait_ms)
            now_s += min(wait_ms, 80) / 1000

    monkeypatch.setattr(connection, "GOODBYE_MS", 100)
    monkeypatch.setattr(jax_clients.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(jax_clients, "_open", [Waiting() for _ in range(4)])
    jax_clients._close_all()
    assert given == [100, 20, 0, 0]
