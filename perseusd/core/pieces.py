"""Work that may be done a piece at a time, so that nothing waits long for it.

It is written as a generator that yields between its pieces; what it returns is the result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Pieces = Generator[None, None, T]


def whole(pieces: Pieces[T]) -> T:
    """All of it at once."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            result: T = done.value
            return result
