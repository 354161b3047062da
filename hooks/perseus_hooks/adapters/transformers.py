"""Hugging Face's Trainer: one line reports what each process trains.

    trainer = Trainer(callbacks=[PerseusCallback()], …)

The Trainer tells of no boundary between forward and backward, so each microbatch is one
`iteration` from its start to where its gradients are computed, without the wait for other replicas.
"""

from __future__ import annotations

import contextlib
from typing import Any

from transformers import TrainerCallback

from perseus_hooks import calls
from perseus_hooks.adapters.gradients import Computing, place, quietly

_DATA_PARALLEL = frozenset(("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"))
"""accelerate's distributed types of which each rank is a replica, where no more is configured."""

_PROCESS_PER_RANK = frozenset(("not_parallel", "distributed"))


class PerseusCallback(TrainerCallback):  # type: ignore[misc]
    """Reports training to perseusd, and nothing else: no evaluation and no prediction.

    The Trainer tells its callbacks of no exception; what one leaves open ends with the next event.
    """

    def __init__(self) -> None:
        self._computing = Computing()
        self._iteration = -1  # counted through, over epochs and calls of train
        self._microbatch = 0
        self._whole = False
        self._hook: Any = None

    @quietly
    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._stop()
        model = known["model"]
        calls.find(**_place_of(args, model))
        last_gradient = next((p for p in model.parameters() if p.requires_grad), None)
        if last_gradient is not None:
            self._hook = self._computing.end_with_gradient_of(last_gradient)

    @quietly
    def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        # A shorter one, at an epoch's end, is no iteration like the others.
        self._whole = not _is_shorter(args, state, known.get("train_dataloader"))
        self._iteration += self._whole
        self._microbatch = 0
        self._start()

    @quietly
    def on_substep_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._computing.end()
        self._microbatch += 1
        if not (control.should_training_stop or control.should_epoch_stop):
            self._start()

    @quietly
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._computing.end()

    @quietly
    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._computing.end()

    @quietly
    def on_epoch_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._computing.end()

    @quietly
    def on_prediction_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._computing.end()

    @quietly
    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._stop()

    def _start(self) -> None:
        if self._whole:
            self._computing.start(
                "iteration", microbatch=self._microbatch, iteration=self._iteration
            )

    def _stop(self) -> None:
        self._computing.end()
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.remove()


def _is_shorter(args: Any, state: Any, dataloader: Any) -> bool:
    """Whether the accumulation window that starts has fewer microbatches than the others."""
    window = args.gradient_accumulation_steps
    with contextlib.suppress(TypeError):  # a stream has no length: then nobody knows
        whole, rest = divmod(len(dataloader), window)
        return bool(rest and state.global_step % (whole + 1) == whole)
    return False


def _place_of(args: Any, model: Any) -> dict[str, Any]:
    """What the Trainer knows of this process, named as in `Found`."""
    ranks = args.world_size
    found = {
        "rank": args.process_index,
        "world_size": ranks,
        "local_rank": args.local_process_index if ranks > 1 else None,  # alone: by its device
        "device": args.device.index if args.device.type == "cuda" else None,
    }
    return {**found, **place(_is_data_parallel(args, model), args.process_index, ranks)}


def _is_data_parallel(args: Any, model: Any) -> bool:
    """Whether each rank has the whole model to itself, or FSDP's shard of it, and nothing else."""
    from accelerate.state import AcceleratorState

    state = AcceleratorState()
    kind = state.distributed_type.name
    if args.parallel_mode.value not in _PROCESS_PER_RANK or kind not in _DATA_PARALLEL:
        return False
    return not (
        getattr(state, "parallelism_config", None) is not None
        or (getattr(model, "_tp_size", None) or 1) > 1
        or len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1
        or (kind != "FSDP" and any(hasattr(p, "device_mesh") for p in model.parameters()))
    )
