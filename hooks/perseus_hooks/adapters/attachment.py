"""Functions of a framework with ours around them, and the way back."""

from __future__ import annotations

import contextlib
import functools
from types import TracebackType
from typing import Any, Callable, ContextManager

from perseus_hooks.calls import find
from perseus_hooks.log import Once, warn

Around = Callable[..., "ContextManager[Any] | None"]
_ABSENT = object()
_OURS = "_perseus_hooks_around"  # marks functions that have ours around them


class Attachment:
    """What an adapter's `instrument` returns. `remove` puts the framework's own functions back.

    Also a context manager that removes itself. Removing twice does nothing.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._once = Once()

    def surround(self, owner: Any, name: str, around: Around) -> None:
        """Let every call of owner.name run inside `with around(*args, **kwargs)`, if that is one.

        What the function takes, returns and raises stays as it is, whatever `around` raises; that
        is logged once. owner: an object (the function is replaced on that object alone), a class,
        or a module. A function that another attachment surrounds already is left as it is, since
        spans within spans are no computations.
        """
        function = getattr(owner, name)
        if hasattr(function, _OURS):
            self._complain_once(name, RuntimeError("it is instrumented already"))
            return

        @functools.wraps(function)
        def surrounded(*args: Any, **kwargs: Any) -> Any:
            block = self._entered(name, around, args, kwargs)
            try:
                return function(*args, **kwargs)
            finally:
                if block is not None:
                    self._left(name, block)

        setattr(surrounded, _OURS, True)
        self.replace(owner, name, surrounded)

    def _entered(
        self, name: str, around: Around, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ContextManager[Any] | None:
        try:
            block = around(*args, **kwargs)
            if block is not None:
                block.__enter__()
        except Exception as error:  # noqa: BLE001  a hook never raises
            self._complain_once(name, error)
            return None
        return block

    def _left(self, name: str, block: ContextManager[Any]) -> None:
        try:
            block.__exit__(None, None, None)
        except Exception as error:  # noqa: BLE001  a hook never raises
            self._complain_once(name, error)

    def _complain_once(self, name: str, error: Exception) -> None:
        self._once.warn(name, "perseusd does not hear of some calls of %s: %r", name, error)

    def replace(self, owner: Any, name: str, function: Any) -> None:
        """Set owner.name until this is removed, and then what was there, or nothing, again."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, function)
        self._undo.callback(_put_back, owner, name, function, before)

    def remove(self) -> None:
        self._undo.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def attached(attach: Callable[[Attachment], None]) -> Attachment:
    """What `attach` has put into a framework; nothing, and a warning, where it raised."""
    attachment = Attachment()
    try:
        attach(attachment)
    except Exception as error:  # noqa: BLE001  a hook never raises
        attachment.remove()
        warn("perseusd does not hear of this training: %r", error)
    return attachment


def tell(place: Callable[[], dict[str, Any]]) -> None:
    """`find` what this returns, named as in `Found`; a warning where it raises."""
    try:
        find(**place())
    except Exception as error:  # noqa: BLE001  a hook never raises
        warn("perseusd does not hear which stage this process is: %r", error)


def _put_back(owner: Any, name: str, ours: Any, before: Any) -> None:
    if vars(owner).get(name) is not ours:
        return  # somebody has replaced it since: theirs may call ours, which then goes on
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
