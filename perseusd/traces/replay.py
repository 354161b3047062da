"""Recording what a controller is told, and telling another one the same again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

from perseusd.core.actions import Action
from perseusd.core.controller import Controller
from perseusd.traces.recording import METHODS, WRITABLE, Header, Input


@dataclass
class RecordedController(Controller):
    """A controller that tells `sink` of every input before it acts on it; None: nobody listens.

    Where nobody does, its methods are the controller's own.
    """

    sink: Callable[[Input], None] | None = None
    _inside: bool = field(default=False, init=False)
    """Where one input causes another, only the first is one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == WRITABLE and value != self.writable and self.sink is not None:
            self.sink(Input(WRITABLE, (value,)))
        super().__setattr__(name, value)
        if name == "sink":
            for method in METHODS:
                if value is None:
                    self.__dict__.pop(method, None)
                else:
                    self.__dict__[method] = MethodType(_TELLING[method], self)

    def present(self) -> list[Input]:
        """Who is there and what holds, as inputs: what a recording that begins now begins with."""
        hellos = [
            Input("hello", (member.client, name.partition(":")[0], member.hello, member.process))
            for name, job in self.jobs.items()
            for member in job.roster.members.values()
        ]
        withheld = [Input("withhold", told) for told in self.withheld.items()]
        return [*hellos, *withheld, Input(WRITABLE, (self.writable,))]


def _told(name: str) -> Callable[..., Any]:
    """The controller's method of that name, the sink told of it first."""
    act = getattr(Controller, name)
    signature = inspect.signature(act)

    @wraps(act)
    def tell_and_act(self: RecordedController, *arguments: Any, **named: Any) -> Any:
        if self.sink is None or self._inside:
            return act(self, *arguments, **named)
        bound = signature.bind(self, *arguments, **named)
        bound.apply_defaults()
        self.sink(Input(name, bound.args[1:]))
        self._inside = True
        try:
            return act(self, *arguments, **named)
        finally:
            self._inside = False

    return tell_and_act


_TELLING = {name: _told(name) for name in METHODS}


def replay(inputs: Iterable[Input], controller: Controller) -> Iterator[tuple[Input, list[Action]]]:
    """Tell a controller everything again; each input with the actions that it asks for."""
    for told in inputs:
        yield told, tell(controller, told)


def tell(controller: Controller, told: Input) -> list[Action]:
    """One input; what is none of a controller's, or about no job of its, is passed over."""
    if told.name == WRITABLE:
        controller.writable = told.arguments[0]
    elif told.name == "announce_straggler" and told.arguments[0] not in controller.jobs:
        pass  # its hello is missing
    elif told.name in METHODS:
        actions: list[Action] | None = getattr(controller, told.name)(*told.arguments)
        return actions or []
    return []


def fresh_controller(header: Header) -> Controller:
    """As the recorded one was when it began, if the recording is complete."""
    return Controller(header.settings, header.gpus, patient=header.patient)
