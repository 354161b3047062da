"""Kernels: loops over a graph that numpy cannot express, compiled by numba to one thread's code.

A kernel is compiled when its module is imported, for the one signature it names, and kept on disk
beside the module (or, where that cannot be written, in numba's cache folder, NUMBA_CACHE_DIR): only
the first import on a machine takes its time, and no plan ever waits for a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_kept: list[Any] = []
"""Kernels that are on disk."""


def compiled_anew() -> bool:
    """Whether this process has compiled kernels that the next one finds on disk.

    Such a process keeps the compiler's memory, some 150 MB.
    """
    return any(kernel.stats.cache_misses for kernel in _kept)


def compiled(signature: str, *, inner: bool = False) -> Callable[[Function], Function]:
    """Compile a function for `signature`, in numba's words: "f8(f8[::1], i8[::1])".

    inner: only other kernels call it; it compiles faster.
    """

    def decorate(function: Function) -> Function:
        try:
            return _jit(signature, function, inner, cache=True)
        except RuntimeError:  # numba finds no folder that it may write to
            return _jit(signature, function, inner, cache=False)

    return decorate


def _jit(signature: str, function: Function, inner: bool, *, cache: bool) -> Function:
    made: Function = numba.njit(
        signature,
        cache=cache,
        error_model="numpy",  # a division by zero is an inf and needs no branch
        nogil=True,
        no_cfunc_wrapper=True,
        no_cpython_wrapper=inner,
    )(function)
    if cache:
        _kept.append(made)
    return made
