"""Functions of a framework with ours around them: nothing of theirs changes, and all comes back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from perseus_hooks.adapters.attachment import Attachment, attached, tell


class Engine:
    def double(self, number: int, *, plus: int = 0) -> int:
        """Twice a number."""
        if number < 0:
            raise ArithmeticError(number)
        return 2 * number + plus


class Seen:
    """What `around` was called with, and whether its block was entered and left."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.left = 0

    def around(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        self.calls.append((*args, *sorted(kwargs.items())))
        return self._block()

    @contextlib.contextmanager
    def _block(self) -> Iterator[None]:
        yield
        self.left += 1


def test_a_method_of_one_object_is_surrounded_on_that_object_alone() -> None:
    """Arguments and results pass through as they are; another object of the class is untouched."""
    engine, other, seen = Engine(), Engine(), Seen()
    with Attachment() as attachment:
        attachment.surround(engine, "double", seen.around)
        assert engine.double(3, plus=1) == 7
        assert other.double(1) == 2
    assert seen.calls == [(3, ("plus", 1))]
    assert seen.left == 1


def test_a_method_of_a_class_is_surrounded_for_every_object() -> None:
    """`around` then gets the object first, and the function keeps its name and docstring."""
    seen = Seen()
    with Attachment() as attachment:
        attachment.surround(Engine, "double", seen.around)
        engine = Engine()
        assert engine.double(2) == 4
        assert Engine.double.__name__ == "double"
        assert Engine.double.__doc__ == "Twice a number."
    assert seen.calls == [(engine, 2)]


def test_removing_puts_back_exactly_what_was_there() -> None:
    """No instance attribute stays behind, and removing twice does nothing more."""
    engine, before = Engine(), Engine.double
    attachment = Attachment()
    attachment.surround(engine, "double", Seen().around)
    attachment.surround(Engine, "double", Seen().around)
    assert "double" in vars(engine)
    attachment.remove()
    attachment.remove()
    assert Engine.double is before
    assert vars(engine) == {}


def test_what_somebody_put_around_ours_stays() -> None:
    """Taking it away would take theirs away too."""
    engine, attachment = Engine(), Attachment()
    attachment.surround(engine, "double", Seen().around)
    ours = engine.double

    def theirs(number: int) -> int:
        return ours(number) + 100

    engine.double = theirs  # type: ignore[method-assign,assignment]
    attachment.remove()
    assert engine.double(1) == 102


def test_an_exception_of_the_function_passes_and_the_block_is_left() -> None:
    """A computation that fails has ended all the same."""
    engine, seen = Engine(), Seen()
    with Attachment() as attachment:
        attachment.surround(engine, "double", seen.around)
        with pytest.raises(ArithmeticError):
            engine.double(-1)
    assert seen.left == 1


def test_our_own_mistakes_never_reach_training(caplog: pytest.LogCaptureFixture) -> None:
    """`around` and its block may raise: the result is the same, and it is logged once."""
    engine = Engine()

    def around(number: int) -> None:
        raise KeyError(number)

    with caplog.at_level(logging.WARNING, "perseus_hooks"), Attachment() as attachment:
        attachment.surround(engine, "double", around)
        assert [engine.double(n) for n in range(3)] == [0, 2, 4]
    assert len(caplog.records) == 1
    assert "double" in caplog.text


def test_around_may_decline_a_call() -> None:
    """None instead of a block: the call is none of ours."""
    engine = Engine()
    with Attachment() as attachment:
        attachment.surround(engine, "double", lambda number: None)
        assert engine.double(5) == 10


def test_what_is_instrumented_already_is_not_instrumented_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second says so once and reports nothing; the first goes on, also when the second goes."""
    engine, first, second = Engine(), Seen(), Seen()
    with Attachment() as outer:
        outer.surround(engine, "double", first.around)
        with caplog.at_level(logging.WARNING, "perseus_hooks"), Attachment() as inner:
            inner.surround(engine, "double", second.around)
            engine.double(1)
        engine.double(2)
    assert "instrumented already" in caplog.text
    assert first.calls == [(1,), (2,)]
    assert second.calls == []
    outer.surround(engine, "double", first.around)  # once the first is gone, another may
    engine.double(3)
    assert first.calls[-1] == (3,)


def test_what_cannot_be_attached_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """A framework of another version: training goes on as it was, and the log says so."""
    engine = Engine()

    def attach(attachment: Attachment) -> None:
        attachment.surround(engine, "double", Seen().around)
        attachment.surround(engine, "no_such_method", Seen().around)

    with caplog.at_level(logging.WARNING, "perseus_hooks"):
        attached(attach).remove()
        tell(lambda: {"stage": 1 // 0})
    assert vars(engine) == {}
    assert len(caplog.records) == 2
