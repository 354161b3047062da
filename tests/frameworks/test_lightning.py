"""Lightning's own Trainer on CPU: what the callback says, and that it changes nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from perseus_hooks.adapters import gradients
from perseus_hooks.adapters.lightning import PerseusCallback, _is_data_parallel
from perseus_hooks.events import Hello, StageStart
from perseus_hooks.log import Once
from perseus_hooks.testing import Recording, record
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.hooks.conftest import _fresh_process  # noqa: F401  each test finds new hooks

pytestmark = [
    # Lightning's hints to users of real data
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    # what its latest version uses of torch and of Python, and they want to be rid of
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]
PATIENCE_S = 200.0  # several processes import torch, on a machine that may be loaded


class Module(LightningModule):
    """A small network with dropout.

    by_hand: it optimizes manually. trouble: the batch that fails. skip_from: that ends the epoch.
    """

    def __init__(self, *, by_hand: bool = False, trouble: int = -1, skip_from: int = -1) -> None:
        super().__init__()
        self.automatic_optimization = not by_hand
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
        self.losses: list[Tensor] = []
        self._trouble = trouble
        self._skip_from = skip_from

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self._skip_from else None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self._trouble:
            raise ArithmeticError
        loss = self.network(batch).square().mean()
        self.losses.append(loss.detach())
        if not self.automatic_optimization:
            self._optimize(loss)
        return loss

    def _optimize(self, loss: Tensor) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).sum()

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _loader(batches: int) -> DataLoader[Any]:
    data = torch.randn(2 * batches, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(data, batch_size=2)  # type: ignore[arg-type]


def _trainer(*callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"enable_checkpointing": False, "accelerator": "cpu", **quiet, **options}
    return Trainer(callbacks=list(callbacks), **chosen)


def _said(recording: Recording) -> list[tuple[str, int | None, int]]:
    return [(s.instruction, s.iteration, s.microbatch) for s in recording.spans]


def _windows(iterations: range, microbatches: int) -> list[tuple[str, int, int]]:
    return [
        (instruction, iteration, microbatch)
        for iteration in iterations
        for microbatch in range(microbatches)
        for instruction in ("forward", "backward")
    ]


def test_training_is_reported_and_nothing_else() -> None:
    """Two epochs of 5 batches, two in an iteration: each epoch's last, of one, is left out.

    Sanity check, validation within and after an epoch, test and prediction say nothing.
    """
    module = Module()
    trainer = _trainer(
        PerseusCallback(), max_epochs=2, accumulate_grad_batches=2, val_check_interval=2
    )
    with record() as recording:
        trainer.fit(module, _loader(5), _loader(2))
        trainer.validate(module, _loader(2), verbose=False)
        trainer.test(module, _loader(2), verbose=False)
        trainer.predict(module, _loader(2))
    assert len(module.losses) == 10
    assert trainer.global_step == 6
    assert _said(recording) == _windows(range(4), 2)
    assert not recording.open
    hello = recording.hello
    assert (hello.stage, hello.stages, hello.replica, hello.replicas) == (0, 1, 0, 1)


def _losses(*callbacks: Any) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(5)
    module = Module()
    _trainer(*callbacks, max_epochs=2, accumulate_grad_batches=2).fit(module, _loader(4))
    return module.losses, torch.get_rng_state()


def test_losses_and_random_state_are_the_same_with_and_without() -> None:
    """Bit by bit."""
    plain, state = _losses()
    with record() as recording:
        reported, state_after = _losses(PerseusCallback())
    assert torch.stack(plain).equal(torch.stack(reported))
    assert state.equal(state_after)
    assert len(recording.spans) == 16


def test_an_error_a_skipped_epoch_and_a_stop_leave_nothing_open() -> None:
    """Whatever ends a batch, its span is ended, and the iterations are counted on."""
    callback = PerseusCallback()
    with record() as recording:
        with pytest.raises(ArithmeticError):
            _trainer(callback, max_epochs=1).fit(Module(trouble=1), _loader(3))
        assert _said(recording) == [*_windows(range(1), 1), ("forward", 1, 0)]
        _trainer(callback, max_epochs=2).fit(Module(skip_from=1), _loader(3))
        assert not recording.open
        before = len(recording.spans)
        _trainer(callback, max_steps=2).fit(Module(), _loader(3))
    assert not recording.open
    assert _said(recording)[before:] == _windows(range(6, 8), 1)


def test_a_module_that_optimizes_by_hand_is_one_iteration() -> None:
    """Nothing tells where its forwards end, so nothing is said of them."""
    with record() as recording:
        _trainer(PerseusCallback(), max_epochs=1).fit(Module(by_hand=True), _loader(3))
    assert _said(recording) == [("iteration", i, 0) for i in range(3)]


def test_resuming_goes_on_without_what_is_left_of_an_iteration(tmp_path: Any) -> None:
    """A checkpoint within an accumulation window: the other half of it is no iteration."""
    trainer = _trainer(max_epochs=1, limit_train_batches=3, accumulate_grad_batches=2)
    trainer.fit(Module(), _loader(6))
    path = tmp_path / "checkpoint"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=False)
    assert not saved["callbacks"]
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    progress["current"] = dict.fromkeys(("ready", "started", "processed", "completed"), 3)
    epochs = saved["loops"]["fit_loop"]["epoch_progress"]["current"]
    epochs["processed"] = epochs["completed"] = 0
    torch.save(saved, path)
    module = Module()
    with record() as recording:
        _trainer(PerseusCallback(), max_epochs=1, accumulate_grad_batches=2).fit(
            module, _loader(6), ckpt_path=path, weights_only=False
        )
    assert len(module.losses) == 3
    assert _said(recording) == _windows(range(1), 2)


def test_only_lightnings_own_data_parallel_strategies_make_replicas() -> None:
    """A derived strategy, or one with tensor parallelism, leaves the topology unknown."""

    class Derived(DDPStrategy):
        """May split models."""

    assert _is_data_parallel(DDPStrategy())
    assert _is_data_parallel(FSDPStrategy())
    assert _is_data_parallel(SingleDeviceStrategy())
    assert not _is_data_parallel(ModelParallelStrategy())
    assert not _is_data_parallel(Derived())


def test_what_a_trainer_does_not_have_is_logged_once_and_training_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version's Trainer may lack anything."""
    monkeypatch.setattr(gradients, "_once", Once())
    monkeypatch.setattr("perseus_hooks.adapters.lightning._place_of", lambda trainer: 1 / 0)
    module = Module()
    with record() as recording:
        _trainer(PerseusCallback(), max_epochs=2).fit(module, _loader(2))
    assert len(recording.spans) == 8
    assert [r.name for r in caplog.records if r.name == "perseus_hooks"] == ["perseus_hooks"]


DDP = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
import pytorch_lightning as pl
from perseus_hooks.adapters.lightning import PerseusCallback
assert issubclass(PerseusCallback, pl.Callback)
assert "lightning.pytorch" not in sys.modules

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.network(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

import perseus_hooks.calls, perseus_hooks.connection
perseus_hooks.calls.CONNECT_MS = perseus_hooks.connection.GOODBYE_MS = 5000
torch.set_num_threads(1)
pl.Trainer(
    callbacks=PerseusCallback(), strategy="ddp", devices=2, accelerator="cpu", max_epochs=1,
    accumulate_grad_batches=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
).fit(Module(), torch.utils.data.DataLoader(torch.ones(16, 4), batch_size=2))
"""


@pytest.mark.timeout(PATIENCE_S + 60)
def test_two_processes_of_the_package_s_other_name(
    daemon: Any, runtime_dir: str, tmp_path: Any
) -> None:
    """pytorch_lightning, DDP, started by itself: one job, each rank a replica of one stage."""
    script = tmp_path / "train.py"
    script.write_text(DDP)
    environ = {"PATH": "/usr/bin:/bin", "PERSEUS_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    events = daemon.receive()
    hellos = {event.rank: event for event in events if isinstance(event, Hello)}
    assert sorted(hellos) == [0, 1]
    assert len({hello.job for hello in hellos.values()}) == 1
    for rank, hello in hellos.items():
        assert (hello.stage, hello.stages, hello.world_size) == (0, 1, 2)
        assert (hello.replica, hello.replicas, hello.local_rank) == (rank, 2, rank)
    starts = [e for e in events if isinstance(e, StageStart)]
    told = sorted((e.instruction, e.iteration, e.microbatch) for e in starts)
    assert told == sorted(2 * _windows(range(2), 2))  # type: ignore[type-var]


def test_the_callback_is_of_the_lightning_that_is_imported() -> None:
    """Here lightning.pytorch; its Trainer takes one callback of its own kind without a list."""
    assert issubclass(PerseusCallback, lightning.pytorch.Callback)
