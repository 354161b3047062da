"""Lightning's Trainer: one line reports what each process trains.

    trainer = Trainer(callbacks=[PerseusCallback()], strategy="ddp", …)

With automatic optimization each microbatch is a `forward` and a `backward`, and an accumulation
window is an iteration. The step of a module that optimizes by hand is one `iteration`, since
nothing tells where its forwards end.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from perseus_hooks import calls
from perseus_hooks.adapters.gradients import Computing, place, quietly
from perseus_hooks.launchers import launcher_of

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same code under two names

_DATA_PARALLEL = frozenset(("SingleDeviceStrategy", "DDPStrategy", "FSDPStrategy"))
"""Lightning's own strategies of which each rank is a replica; one derived may do anything else."""


def _callback_classes() -> tuple[Any, ...]:
    """The base classes of the Lightning that this process has imported, else of what is there."""
    loaded = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    return tuple(package.Callback for package in loaded or [_installed()])


def _installed() -> Any:
    try:
        return importlib.import_module(_PACKAGES[0])
    except ImportError:
        return importlib.import_module(_PACKAGES[1])


class PerseusCallback(*_callback_classes()):  # type: ignore[misc]
    """Reports training to perseusd, and nothing else: no evaluation, no test, no prediction."""

    def __init__(self) -> None:
        super().__init__()
        self._computing = Computing()
        self._iteration = -1  # counted through, over epochs and fits
        self._microbatch = 0
        self._whole = False

    @quietly
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._computing.end()
        self._whole = False
        if stage == "fit":
            calls.find(**_place_of(trainer))

    @quietly
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        window = trainer.accumulate_grad_batches
        self._microbatch = batch_idx % window
        if self._microbatch == 0:
            # A shorter one, at an epoch's end, is no iteration like the others.
            self._whole = batch_idx + window <= trainer.num_training_batches
            self._iteration += self._whole
        if self._whole:
            self._start("forward" if pl_module.automatic_optimization else "iteration")

    @quietly
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self._computing.instruction == "forward":
            self._start("backward")
            self._computing.end_with_backward_of(loss)

    @quietly
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._computing.instruction == "backward":
            self._computing.end()

    @quietly
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._computing.end()

    @quietly
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._computing.end()  # on_train_batch_start may end an epoch, and then no batch ends

    @quietly
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._computing.end()

    def _start(self, instruction: str) -> None:
        self._computing.start(instruction, microbatch=self._microbatch, iteration=self._iteration)


def _place_of(trainer: Any) -> dict[str, Any]:
    """What the Trainer knows of this process, named as in `Found`."""
    ranks = trainer.world_size
    found = {
        "job": _job_of(trainer),
        "rank": trainer.global_rank,
        "world_size": ranks,
        "local_rank": trainer.local_rank if ranks > 1 else None,  # alone: by its device
        "device": _device_of(trainer.strategy.root_device),
    }
    return {**found, **place(_is_data_parallel(trainer.strategy), trainer.global_rank, ranks)}


def _is_data_parallel(strategy: Any) -> bool:
    kind = type(strategy)
    return kind.__name__ in _DATA_PARALLEL and kind.__module__.startswith(_PACKAGES)


def _job_of(trainer: Any) -> str | None:
    """Lightning starts ranks without the variables by which a launcher is known."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size == 1 or environment is None or launcher_of(os.environ) is not None:
        return None
    return f"{environment.main_address}:{environment.main_port}"


def _device_of(device: Any) -> int | None:
    return device.index if device.type == "cuda" else None
