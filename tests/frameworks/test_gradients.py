"""Backward in data-parallel jobs: the span has this replica's computing, and not the wait."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from perseus_hooks import stage
from perseus_hooks.adapters import gradients
from perseus_hooks.calls import find
from perseus_hooks.events import Hello, StageEnd, StageStart
from perseus_hooks.log import Once
from perseus_hooks.testing import Recording, record
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.hooks.conftest import _fresh_process  # noqa: F401  each test finds new hooks

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_ddp.py"
PATIENCE_S = 200.0  # several processes import torch, on a machine that may be loaded


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Slow:
    """A replica whose gradients come only when `until` says so: DDP's wait, made visible."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.waited_for: list[list[str]] = []  # what had been said when the wait ended

    def reduce(self, state, bucket):  # type: ignore[no-untyped-def]  # torch takes no text for one
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        threading.Thread(target=self._answer, args=(future, bucket.buffer())).start()
        return future

    def _answer(self, future: Any, gradient: torch.Tensor) -> None:
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.01)):
            if self._recording.spans and not self._recording.open:
                break
            pause.wait(0.01)
        self.waited_for.append([span.instruction for span in self._recording.spans])
        future.set_result(gradient)


def test_the_span_of_a_backward_ends_before_ddp_waits(alone: None) -> None:
    """A peer that answers only after the span's end gets to answer: the wait is outside."""
    model = DistributedDataParallel(nn.Linear(3, 1))
    with record() as recording:
        peer = Slow(recording)
        model.register_comm_hook(None, peer.reduce)
        loss = model(torch.ones(2, 3)).sum()
        with gradients.backward(loss, microbatch=5, iteration=7):
            loss.backward()
    assert peer.waited_for == [["backward"]]
    assert [(s.microbatch, s.iteration) for s in recording.spans] == [(5, 7)]


def test_a_gradient_ends_the_span_where_the_loss_is_out_of_sight(alone: None) -> None:
    """So does a parameter's gradient, with the same outcome; removed, it ends nothing any more."""
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model = DistributedDataParallel(network)
    with record() as recording:
        peer = Slow(recording)
        model.register_comm_hook(None, peer.reduce)
        computing = gradients.Computing()
        hook = computing.end_with_gradient_of(network[0].weight)
        computing.start("iteration", microbatch=0, iteration=0)
        model(torch.ones(2, 3)).sum().backward()
        hook.remove()
        computing.start("iteration", microbatch=0, iteration=1)
        network(torch.ones(2, 3)).sum().backward()
        assert computing.instruction == "iteration"
        computing.end()
    assert peer.waited_for == [["iteration"]]
    assert len(recording.spans) == 2


def test_fsdp_is_reported_too(alone: None) -> None:
    """Its callbacks run after ours: the span has ended when backward returns."""
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for module in (*network, network):
        fully_shard(module)
    with record() as recording:
        loss = network(torch.ones(2, 3)).sum()
        with gradients.backward(loss):
            loss.backward()
            assert [span.instruction for span in recording.spans] == ["backward"]
    assert not recording.open


def test_gradients_are_the_same_with_and_without() -> None:
    """Bit by bit, over accumulation; and the random state is untouched."""
    plain, state = _gradients(contextlib.nullcontext)
    with record() as recording:
        reported, state_after = _gradients(gradients.backward)
    assert all(torch.equal(a, b) for a, b in zip(plain, reported, strict=True))
    assert torch.equal(state, state_after)
    assert [s.instruction for s in recording.spans] == ["forward", "backward"] * 3


def _gradients(around: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
    for _ in range(3):
        with stage("forward"):
            loss = network(torch.randn(5, 4)).square().mean()
        with around(loss):
            loss.backward()
    return [p.grad for p in network.parameters() if p.grad is not None], torch.get_rng_state()


def test_what_cannot_be_watched_is_reported_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss without gradient, or none: torch's own error alone is seen, and no span stays open."""
    monkeypatch.setattr(gradients, "_once", Once())
    with caplog.at_level(logging.WARNING, "perseus_hooks"), record() as recording:
        loss = torch.zeros(())
        with pytest.raises(RuntimeError, match="does not require grad"), gradients.backward(loss):
            loss.backward()
        with gradients.backward(None):
            pass
    assert [s.instruction for s in recording.spans] == ["backward", "backward"]
    assert not recording.open
    assert len(caplog.records) == 2


def test_an_error_inside_a_backward_ends_the_span() -> None:
    """The engine then runs no callback, and the block's end closes what is open."""

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError

    weight = torch.ones(2, requires_grad=True)
    doubled = weight * 2
    doubled.register_hook(fail)
    loss = doubled.sum()
    with record() as recording:
        with pytest.raises(ArithmeticError), gradients.backward(loss):
            loss.backward()
        assert len(recording.spans) == 1
    assert not recording.open


@pytest.mark.timeout(PATIENCE_S + 60)
def test_the_example_reports_two_replicas(daemon: Any, runtime_dir: str) -> None:
    """Under torchrun: one job, two replicas of one stage, and every microbatch of both."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(EXAMPLE), "--iterations", "3"),
    ]
    environ = {"PATH": "/usr/bin:/bin", "PERSEUS_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "after 3 iterations" in ended.stdout
    events = daemon.receive()
    hellos = {e.replica: e for e in events if isinstance(e, Hello) and e.replicas == 2}
    assert sorted(hellos) == [0, 1]
    assert len({hello.job for hello in hellos.values()}) == 1
    assert all((h.stage, h.stages, h.rank) == (0, 1, r) for r, h in hellos.items())
    starts = [(e.iteration, e.microbatch, e.instruction) for e in events if type(e) is StageStart]
    of_one = [(i, m, kind) for i in range(3) for m in range(4) for kind in ("backward", "forward")]
    assert sorted(starts) == sorted(2 * of_one)
    assert sum(type(e) is StageEnd for e in events) == len(starts)


def test_a_later_training_that_is_not_data_parallel_does_not_inherit_a_place() -> None:
    """What an adapter leaves out stays, so where a rank stands is said to be unknown."""
    with record() as recording:
        find(**gradients.place(True, 1, 2))
        assert (recording.hello.stage, recording.hello.replica) == (0, 1)
        find(**gradients.place(False, 1, 2))
    hello = recording.hello
    assert (hello.stage, hello.stages, hello.replica, hello.replicas) == (None,) * 4
