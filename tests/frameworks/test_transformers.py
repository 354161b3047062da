"""Hugging Face's own Trainer on CPU, with a tiny random model: what the callback says."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from perseus_hooks.adapters import gradients
from perseus_hooks.adapters.transformers import PerseusCallback, _is_data_parallel
from perseus_hooks.events import Hello, StageStart
from perseus_hooks.log import Once
from perseus_hooks.testing import Recording, record
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from tests.hooks.conftest import _fresh_process  # noqa: F401  each test finds new hooks

pytestmark = [
    # a CPU has no use for pinned memory, which the Trainer asks for as it does on a GPU
    pytest.mark.filterwarnings("ignore:.*'pin_memory' argument is set as true"),
]
PATIENCE_S = 200.0  # several processes import torch, on a machine that may be loaded


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """So many texts of eight tokens. trouble: the one that cannot be read."""

    def __init__(self, texts: int, trouble: int = -1) -> None:
        self._tokens = torch.randint(0, 16, (texts, 8), generator=torch.Generator().manual_seed(1))
        self._trouble = trouble

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


class Losses(TrainerCallback):
    """Every logged loss, and what stops the training, if anything."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **known: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class StopWithin(TrainerCallback):
    """Ends training within an accumulation window."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        control.should_training_stop = True


def _fail_in_second_forward(model: GPT2LMHeadModel) -> None:
    calls: list[int] = []

    def fail(*known: Any) -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ArithmeticError

    model.transformer.register_forward_pre_hook(fail)


def _model() -> GPT2LMHeadModel:
    torch.manual_seed(2)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


def _trainer(folder: Path, model: Any, texts: int, *callbacks: Any, **options: Any) -> Trainer:
    chosen = {"per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **chosen | options
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Tokens(texts),
        eval_dataset=Tokens(4),
        callbacks=list(callbacks),
    )


def _said(recording: Recording) -> list[tuple[int | None, int]]:
    assert {span.instruction for span in recording.spans} <= {"iteration"}
    return [(span.iteration, span.microbatch) for span in recording.spans]


def _windows(iterations: range, microbatches: int) -> list[tuple[int | None, int]]:
    return [(i, m) for i in iterations for m in range(microbatches)]


def test_training_is_reported_and_nothing_else(tmp_path: Path) -> None:
    """Two epochs of 5 batches, two in an iteration: each epoch's last, of one, is left out.

    Evaluation at the start, within and after the epochs, checkpoints and prediction say nothing.
    """
    trainer = _trainer(
        *(tmp_path, _model(), 10, PerseusCallback()),
        num_train_epochs=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        save_strategy="epoch",
    )
    with record() as recording:
        trainer.train()
        trainer.evaluate()
        trainer.predict(Tokens(4))
    assert trainer.state.global_step == 6
    assert _said(recording) == _windows(range(4), 2)
    assert not recording.open
    hello = recording.hello
    assert (hello.stage, hello.stages, hello.replica, hello.replicas) == (0, 1, 0, 1)
    _resumed_within_an_epoch(tmp_path)


def _resumed_within_an_epoch(folder: Path) -> None:
    """From the first epoch's end, in a fresh Trainer: the second epoch alone, counted from 0."""
    trainer = _trainer(
        *(folder, _model(), 10, PerseusCallback()),
        num_train_epochs=2,
        gradient_accumulation_steps=2,
    )
    with record() as recording:
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert _said(recording) == _windows(range(2), 2)


def _trained(folder: Path, *callbacks: Any) -> tuple[list[float], torch.Tensor, list[torch.Tensor]]:
    model, losses = _model(), Losses()
    _trainer(folder, model, 8, losses, *callbacks, gradient_accumulation_steps=2).train()
    return losses.losses, torch.get_rng_state(), [p.detach() for p in model.parameters()]


def test_losses_weights_and_random_state_are_the_same_with_and_without(tmp_path: Path) -> None:
    """Bit by bit, with dropout and accumulation."""
    plain, state, weights = _trained(tmp_path)
    with record() as recording:
        reported, state_after, weights_after = _trained(tmp_path, PerseusCallback())
    assert len(plain) == 6
    assert plain == reported
    assert state.equal(state_after)
    assert all(a.equal(b) for a, b in zip(weights, weights_after, strict=True))
    assert _said(recording) == _windows(range(6), 2)


def test_an_iteration_ends_where_its_gradients_are_computed(tmp_path: Path) -> None:
    """Before anything of the Trainer's that follows, and so before DDP's wait."""
    model = _model()
    ended: list[int] = []

    class AfterBackward(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            ended.append(len(recording.spans))
            return loss

    trainer = _trainer(tmp_path, model, 4, PerseusCallback(), num_train_epochs=1)
    trainer.__class__ = AfterBackward
    with record() as recording:
        trainer.train()
    assert ended == [1, 2]
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_an_error_and_a_stop_leave_nothing_open(tmp_path: Path) -> None:
    """The Trainer tells of no error: the next event ends what it left open; the model copies."""
    callback = PerseusCallback()
    model = _model()
    _fail_in_second_forward(model)
    with record() as recording:
        with pytest.raises(ArithmeticError):
            _trainer(tmp_path, model, 8, callback, num_train_epochs=1).train()
        assert len(recording.open) == 1
        copy.deepcopy(model)
        trainer = _trainer(
            *(tmp_path, _model(), 8, callback, StopWithin()), gradient_accumulation_steps=2
        )
        trainer.train()
        assert not recording.open
        assert _said(recording)[:3] == [(0, 0), (1, 0), (2, 0)]
        before = len(recording.spans)
        _trainer(tmp_path, model, 8, callback, max_steps=2).train()
    assert not recording.open
    assert _said(recording)[before:] == _windows(range(3, 5), 1)


def test_a_split_model_leaves_the_topology_unknown(tmp_path: Path) -> None:
    """Tensor-parallel, over several devices, or with accelerate's parallelism: no replica."""
    model = _model()
    arguments = _trainer(tmp_path, model, 4).args
    assert _is_data_parallel(arguments, model)
    model._tp_size = 2
    assert not _is_data_parallel(arguments, model)
    model._tp_size = None
    model.hf_device_map = {"transformer": 0, "lm_head": 1}
    assert not _is_data_parallel(arguments, model)


def test_what_goes_wrong_is_logged_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version's Trainer may lack anything; the spans then end where the Trainer says so."""
    monkeypatch.setattr(gradients, "_once", Once())
    monkeypatch.setattr("perseus_hooks.adapters.transformers._place_of", lambda *known: 1 / 0)
    with record() as recording:
        _trainer(tmp_path, _model(), 4, PerseusCallback(), num_train_epochs=2).train()
    assert _said(recording) == _windows(range(4), 1)
    assert [r.name for r in caplog.records if r.name == "perseus_hooks"] == ["perseus_hooks"]


DDP = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import perseus_hooks.calls, perseus_hooks.connection
perseus_hooks.calls.CONNECT_MS = perseus_hooks.connection.GOODBYE_MS = 5000
from test_transformers import PerseusCallback, _model, _trainer
_trainer(
    sys.argv[2], _model(), 8, PerseusCallback(), max_steps=2, gradient_accumulation_steps=2
).train()
"""


@pytest.mark.timeout(PATIENCE_S + 60)
def test_two_processes_under_torchrun(daemon: Any, runtime_dir: str, tmp_path: Path) -> None:
    """DDP: one job, each rank a replica of one stage."""
    script = tmp_path / "train.py"
    script.write_text(DDP)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    ended = subprocess.run(
        [*launcher, "--nproc-per-node", "2", script, Path(__file__).parent, tmp_path],
        env={"PATH": "/usr/bin:/bin", "PERSEUS_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"},
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
        assert (hello.stage, hello.stages, hello.replica, hello.replicas) == (0, 1, rank, 2)
    starts = [e for e in events if isinstance(e, StageStart)]
    assert sorted((e.iteration or 0, e.microbatch) for e in starts) == sorted(
        2 * _windows(range(2), 2)
    )
