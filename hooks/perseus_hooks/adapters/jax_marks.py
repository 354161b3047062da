"""Marks inside a jitted pipeline: the only way to see a stage there, and one with a price.

A pipeline that is one jitted function (`shard_map` over a mesh of stages) has no host boundary
inside. A mark is an identity function whose forward and backward passes each call the host, at the
price of a callback on the device's way: see docs/frameworks/jax.md before using them.

Order: a mark's callback takes a number made of its operands, so it runs after them, and what it
gives back decides (always the same way) where the operands come from, so all that uses them runs
after it. Values pass through a select and keep every bit. The callbacks themselves are unordered:
the devices of a mesh have no order among each other.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from perseus_hooks.client import Client


class Marks:
    """Marks for the stages of one pipeline of this process.

    clients: one for each stage, from `stage_clients`. microbatches: of one iteration; what a stage
    computes in a bubble, for a microbatch below 0 or from there on, is not told.

    Around a stage's function, inside `shard_map`:

        x, weights = marks.start(x, weights, stage=stage, microbatch=m)
        y = marks.end(stage_function(weights, x), stage=stage, microbatch=m)
    """

    def __init__(self, clients: Sequence[Client], *, microbatches: int) -> None:
        self._clients = clients
        self._microbatches = microbatches
        self._open: dict[int, int] = {}  # stage → token
        self._start = _marked(self, "forward starts", "backward ends")
        self._end = _marked(self, "forward ends", "backward starts")

    def start(self, x: Any, weights: Any = None, *, stage: Any, microbatch: Any) -> Any:
        """x and weights as they are: forward starts here, and backward ends.

        x: a pytree of arrays that the stage received. weights: one of what else it computes with;
        backward ends when their gradients are there too. stage, microbatch: integers, of the host
        or of the device.
        """
        return self._start(x, weights, stage, microbatch)

    def end(self, y: Any, *, stage: Any, microbatch: Any) -> Any:
        """y as it is, a pytree of arrays that the stage sends on: forward ends here, and backward
        starts.
        """
        return self._end(y, None, stage, microbatch)[0]

    def _heard(self, what: str, packed: Any) -> Any:
        """On the host, when a device has come so far."""
        with contextlib.suppress(Exception):
            stage, microbatch = packed.tolist()[:2]
            self._tell(what, stage, microbatch)
        return True

    def _tell(self, what: str, stage: int, microbatch: int) -> None:
        if not (0 <= stage < len(self._clients) and 0 <= microbatch < self._microbatches):
            return
        instruction, _, moment = what.partition(" ")
        client = self._clients[stage]
        if moment == "starts":
            self._open[stage] = client.stage_start(instruction, microbatch=microbatch)
        elif (token := self._open.pop(stage, None)) is not None:
            client.stage_end(token)


def _marked(marks: Marks, forward: str, backward: str) -> Any:
    """An identity of (x, rest, stage, microbatch) on x and rest that tells of both passes."""
    import jax

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def mark(x: Any, rest: Any, stage: Any, microbatch: Any) -> Any:
        return _passed(marks, forward, x, (), stage, microbatch), rest

    def pass_forward(x: Any, rest: Any, stage: Any, microbatch: Any) -> Any:
        return mark(x, rest, stage, microbatch), (stage, microbatch)

    def pass_backward(place: Any, gradients: Any) -> Any:
        x, rest = gradients
        return _passed(marks, backward, x, rest, *place), rest, None, None

    mark.defvjp(pass_forward, pass_backward)
    return mark


def _passed(marks: Marks, what: str, x: Any, rest: Any, stage: Any, microbatch: Any) -> Any:
    """x, after the host has heard of it; it hears when x and rest are computed."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import io_callback

    leaves = [leaf for leaf in jax.tree_util.tree_leaves((x, rest)) if _is_value(leaf)]
    trace = functools.reduce(jnp.bitwise_xor, map(_bits, leaves), jnp.int32(0))
    packed = jnp.stack([jnp.int32(stage), jnp.int32(microbatch), trace])
    heard = io_callback(
        functools.partial(marks._heard, what), jax.ShapeDtypeStruct((), jnp.bool_), packed
    )

    def gated(leaf: Any) -> Any:
        return jnp.where(heard, leaf, jnp.zeros_like(leaf)) if _is_value(leaf) else leaf

    return jax.tree_util.tree_map(gated, x)


def _is_value(leaf: Any) -> bool:
    """Not the empty gradient of an integer, nor a random key."""
    import jax

    odd = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return bool(leaf.size) and leaf.dtype != jax.dtypes.float0 and not odd


def _bits(leaf: Any) -> Any:
    """A number that cannot be known before the leaf is computed."""
    import jax
    import jax.numpy as jnp

    value = leaf.ravel()[0]
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = value.real
    if jnp.issubdtype(value.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.int32)
    return value.astype(jnp.int32)
