"""Events to bytes and back: one msgpack array per event, its first element a one-letter tag.

`encode` and `decode` check the same table of fields, so whatever one makes the other takes. Input
is hostile until checked: `decode` raises WireError and nothing else. Fields after the known ones
are ignored, so that a later minor version can add some.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Callable

import msgpack  # type: ignore[import-untyped]

from perseus_hooks.events import (
    INSTRUCTIONS,
    TIME_SOURCES,
    WIRE_MAJOR,
    Event,
    Goodbye,
    Hello,
    Introduce,
    Refusal,
    StageEnd,
    StageStart,
    Welcome,
)

MAX_MESSAGE_BYTES = 4096
MAX_STRING_BYTES = 256
MAX_GPUS = 64
MAX_COUNT = 2**20  # ranks, stages, microbatches, …: below this
MAX_INTEGER = 2**63  # sequence numbers, stamps, tokens, iterations: below this

PLACES = (  # in a hello: a place, and how many such places there are
    ("rank", "world_size"),
    ("local_rank", "world_size"),
    ("stage", "stages"),
    ("replica", "replicas"),
)

_INSTRUCTIONS = frozenset(INSTRUCTIONS)
_TIME_SOURCES = frozenset(TIME_SOURCES)


class WireError(ValueError):
    """A message that this protocol does not have. The text names the thing, value and fix.

    code: "malformed", "oversize" or "version"; it can be sent back as a Refusal's code.
    """

    def __init__(self, message: str, code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code


# A check says whether a value may stand in a field; its second half is what the field must be.
_Check = tuple[Callable[[Any], bool], str]


def _is_integer(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_INTEGER  # type(), since a bool is no number here


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _is_text(value: Any) -> bool:
    """Printable, so that a name cannot steer the terminal that shows it."""
    return (
        type(value) is str
        and 0 < len(value) <= MAX_STRING_BYTES
        and value.isprintable()
        and len(value.encode()) <= MAX_STRING_BYTES
    )


def _is_gpus(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) <= MAX_GPUS and all(map(_is_text, value))


def _is_budget(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_instruction(value: Any) -> bool:
    return type(value) is str and value in _INSTRUCTIONS


def _is_time_source(value: Any) -> bool:
    return type(value) is str and value in _TIME_SOURCES


def _or_none(check: _Check) -> _Check:
    test, wanted = check
    return (lambda value: value is None or test(value)), wanted + ", or nil"


_INTEGER: _Check = (_is_integer, "an integer from 0 to 2^63-1")
_COUNT: _Check = (_is_count, f"an integer from 0 to {MAX_COUNT - 1}")
_TEXT: _Check = (_is_text, f"printable text of 1 to {MAX_STRING_BYTES} bytes")
_GPUS: _Check = (_is_gpus, f"an array of at most {MAX_GPUS} printable texts")
_BOOLEAN: _Check = ((lambda value: type(value) is bool), "true or false")
_BUDGET: _Check = (_is_budget, "a number from 0 to 1")
_INSTRUCTION: _Check = (_is_instruction, "one of " + ", ".join(INSTRUCTIONS))
_TIME_SOURCE: _Check = (_is_time_source, "one of " + ", ".join(TIME_SOURCES))


def _is_start(values: Any) -> bool:
    """As its layout's checks, all at once: a daemon is told of thousands a second."""
    sequence, time_ns, token, instruction, microbatch, chunk, stage, iteration = values
    return (
        type(sequence) is int
        and 0 <= sequence < MAX_INTEGER
        and type(time_ns) is int
        and 0 <= time_ns < MAX_INTEGER
        and type(token) is int
        and 0 <= token < MAX_INTEGER
        and type(instruction) is str
        and instruction in _INSTRUCTIONS
        and type(microbatch) is int
        and 0 <= microbatch < MAX_COUNT
        and type(chunk) is int
        and 0 <= chunk < MAX_COUNT
        and (stage is None or (type(stage) is int and 0 <= stage < MAX_COUNT))
        and (iteration is None or (type(iteration) is int and 0 <= iteration < MAX_INTEGER))
    )


def _is_end(values: Any) -> bool:
    """As its layout's checks, all at once."""
    sequence, time_ns, token = values
    return (
        type(sequence) is int
        and 0 <= sequence < MAX_INTEGER
        and type(time_ns) is int
        and 0 <= time_ns < MAX_INTEGER
        and type(token) is int
        and 0 <= token < MAX_INTEGER
    )


class _Layout:
    """One event's fields in wire order, each with its check.

    sound: says of as many values as there are fields, quickly, whether every check holds.
    """

    def __init__(
        self, tag: str, kind: type, sound: Callable[[Any], bool] | None = None, **fields: _Check
    ) -> None:
        self.tag = tag
        self.kind = kind
        self.names = tuple(fields)
        self.tests = tuple(test for test, _ in fields.values())
        self.wanted = tuple(wanted for _, wanted in fields.values())
        self.values = attrgetter(*fields) if len(fields) > 1 else lambda event: ()
        self._sound = sound

    def check(self, values: Any) -> None:
        if self._sound is not None and self._sound(values):
            return
        for test, value in zip(self.tests, values):  # later minors have more values
            if not test(value):
                self._explain(values)

    def _explain(self, values: Any) -> None:
        for name, test, wanted, value in zip(self.names, self.tests, self.wanted, values):
            if not test(value):
                raise WireError(f"{_article(self.kind)}'s {name} is {_shown(value)}: send {wanted}")


_LAYOUTS = (
    _Layout(
        "h",
        Hello,
        major=_COUNT,
        minor=_COUNT,
        job=_TEXT,
        rank=_COUNT,
        world_size=_or_none(_COUNT),
        local_rank=_or_none(_COUNT),
        stage=_or_none(_COUNT),
        stages=_or_none(_COUNT),
        replica=_or_none(_COUNT),
        replicas=_or_none(_COUNT),
        schedule=_or_none(_TEXT),
        gpus=_GPUS,
        time_source=_TIME_SOURCE,
        uses_cuda=_BOOLEAN,
        slowdown_budget=_or_none(_BUDGET),
        hostname=_TEXT,
    ),
    _Layout(
        "s",
        StageStart,
        _is_start,
        sequence=_INTEGER,
        time_ns=_INTEGER,
        token=_INTEGER,
        instruction=_INSTRUCTION,
        microbatch=_COUNT,
        chunk=_COUNT,
        stage=_or_none(_COUNT),
        iteration=_or_none(_INTEGER),
    ),
    _Layout("e", StageEnd, _is_end, sequence=_INTEGER, time_ns=_INTEGER, token=_INTEGER),
    _Layout("g", Goodbye, sequence=_INTEGER, time_ns=_INTEGER),
    _Layout("w", Welcome, major=_COUNT, minor=_COUNT),
    _Layout("i", Introduce),
    _Layout("r", Refusal, code=_TEXT, reason=_TEXT),
)
_BY_TAG = {layout.tag: layout for layout in _LAYOUTS}
_BY_KIND = {layout.kind: layout for layout in _LAYOUTS}


def encode(event: Event) -> bytes:
    """The bytes of an event. Raises WireError where a field's value is not allowed."""
    layout = _BY_KIND.get(type(event))
    if layout is None:
        raise WireError(f"{_shown(event)} is no event: send one of perseus_hooks.events")
    values = layout.values(event)
    layout.check(values)
    if layout.kind is Hello:
        _check_hello(event)
    data: bytes = msgpack.packb((layout.tag, *values))
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(_oversize(len(data)), "oversize")
    return data


def decode(data: bytes) -> Event:
    """The event in one message. Raises WireError, and nothing else, whatever the bytes are."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(_oversize(len(data)), "oversize")
    layout, values = _opened(_unpacked(data))
    if layout.kind is Hello:
        return _hello(layout, values)
    layout.check(values)
    event: Event = layout.kind(*values)
    return event


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except Exception as error:  # noqa: BLE001  msgpack raises many kinds over foreign bytes
        raise WireError(
            f"the message {data[:16].hex()}… is no msgpack value ({type(error).__name__}): "
            "send one msgpack array"
        ) from None


def _opened(message: Any) -> tuple[_Layout, list[Any]]:
    """The layout that the tag names, and as many values as it has."""
    if type(message) is not list or not message:
        raise WireError(f"the message is {_shown(message)}: send a msgpack array with a tag")
    tag = message[0]
    layout = _BY_TAG.get(tag) if type(tag) is str else None
    if layout is None:
        raise WireError(f"the tag is {_shown(tag)}: send one of {', '.join(_BY_TAG)}")
    size = len(layout.names)
    if len(message) <= size and not (layout.kind is Hello and _is_foreign(message)):
        raise WireError(
            f"{_article(layout.kind)} has {len(message) - 1} fields: send at least {size}"
        )
    return layout, message[1 : size + 1]


def _is_foreign(message: list[Any]) -> bool:
    """Another major version may have fewer fields: its version is what to complain of."""
    return len(message) > 1 and _is_count(message[1]) and message[1] != WIRE_MAJOR


def _hello(layout: _Layout, values: list[Any]) -> Hello:
    if _is_count(values[0]) and values[0] != WIRE_MAJOR:
        raise WireError(_foreign(values[0]), "version")
    layout.check(values)
    named = dict(zip(layout.names, values))  # exactly as many, by _opened
    named["gpus"] = tuple(named["gpus"])
    if named["slowdown_budget"] is not None:
        named["slowdown_budget"] = float(named["slowdown_budget"])
    hello = Hello(**named)
    _check_hello(hello)
    return hello


def _check_hello(hello: Any) -> None:
    if hello.major != WIRE_MAJOR:
        raise WireError(_foreign(hello.major), "version")
    for place, places in PLACES:
        number, count = getattr(hello, place), getattr(hello, places)
        if number is not None and count is not None and number >= count:
            raise WireError(f"a hello's {place} is {number} of {count} {places}: count from 0")


def _foreign(major: int) -> str:
    return (
        f"a hello's major version is {major} and this side speaks {WIRE_MAJOR}: "
        "install perseus-hooks and perseusd of the same major version"
    )


def _oversize(size: int) -> str:
    return f"the message has {size} bytes: send at most {MAX_MESSAGE_BYTES}"


def _article(kind: type) -> str:
    return {Hello: "a hello", StageStart: "a start", StageEnd: "an end"}.get(
        kind, "a " + kind.__name__.lower()
    )


def _shown(value: Any) -> str:
    """A short ASCII picture of any value, for an error's text."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
