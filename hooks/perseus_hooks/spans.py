"""Which computations are open in which thread: tokens, and a stack of them per thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

MAX_DEPTH = 64  # spans of one thread; older ones were never ended and are given up


_tokens = itertools.count(1)  # of the process: a later client's are never an earlier one's


class Spans:
    """Thread-safe without a lock: a stack is its thread's own, and a dict's pop is atomic.

    given_up: called where a span was not ended for so long that it no longer counts as open.
    """

    def __init__(self, given_up: Callable[[], None] = lambda: None) -> None:
        self._given_up = given_up
        self._local = threading.local()
        self._stacks: dict[int, list[int]] = {}  # open token → the stack that it is on

    def start(self) -> int:
        token = next(_tokens)
        stack = self._stack()
        if len(stack) >= MAX_DEPTH and self._stacks.pop(stack.pop(0), None) is not None:
            self._given_up()
        stack.append(token)
        self._stacks[token] = stack
        return token

    @property
    def any_open(self) -> bool:
        return bool(self._stacks)

    def reserve(self) -> int:
        """A token for a span that is on no stack: it is over when it is told."""
        return next(_tokens)

    def end(self, token: int | None = None) -> int | None:
        """The token that ends: the given one, else this thread's innermost. None: none is open."""
        if token is None:
            return self._end_innermost()
        stack = self._stacks.pop(token, None)
        if stack is None:
            return None
        try:
            stack.remove(token)
        except ValueError:  # its own thread has just taken it
            return None
        return token

    def _end_innermost(self) -> int | None:
        stack = self._stack()
        while stack:
            token = stack.pop()
            if self._stacks.pop(token, None) is not None:
                return token
        return None

    def _stack(self) -> list[int]:
        try:
            stack: list[int] = self._local.stack
        except AttributeError:
            stack = self._local.stack = []
        return stack
