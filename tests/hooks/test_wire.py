"""The wire: what goes out comes back, and nothing hostile gets through."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_hooks import events, wire
from perseus_hooks.events import Goodbye, Hello, Introduce, Refusal, StageEnd, StageStart, Welcome
from perseus_hooks.wire import WireError, decode, encode

HELLO = Hello(
    job="7.0",
    rank=3,
    world_size=8,
    local_rank=3,
    stage=1,
    stages=4,
    replica=0,
    replicas=2,
    schedule="1f1b",
    gpus=("GPU-0",),
    time_source="host",
    uses_cuda=False,
    slowdown_budget=None,
    hostname="node1",
)

counts = st.integers(0, wire.MAX_COUNT - 1)
integers = st.integers(0, wire.MAX_INTEGER - 1)
texts = st.text(min_size=1, max_size=wire.MAX_STRING_BYTES).filter(
    lambda text: text.isprintable() and len(text.encode()) <= wire.MAX_STRING_BYTES
)
hellos = st.builds(
    Hello,
    job=texts,
    rank=counts,
    world_size=st.none(),
    local_rank=st.none() | counts,
    stage=st.none() | counts,
    stages=st.none(),
    replica=st.none() | counts,
    replicas=st.none(),
    schedule=st.none() | texts,
    gpus=st.lists(texts, max_size=3).map(tuple),
    time_source=st.sampled_from(events.TIME_SOURCES),
    uses_cuda=st.booleans(),
    slowdown_budget=st.none() | st.floats(0, 1),
    hostname=texts,
    major=st.just(events.WIRE_MAJOR),
    minor=counts,
)
starts = st.builds(
    StageStart,
    integers,
    integers,
    integers,
    st.sampled_from(events.INSTRUCTIONS),
    counts,
    counts,
    st.none() | counts,
    st.none() | integers,
)
ends = st.builds(StageEnd, integers, integers, integers)
goodbyes = st.builds(Goodbye, integers, integers)
answers = st.builds(Welcome, counts, counts) | st.builds(Refusal, texts, texts)
anything = hellos | starts | ends | goodbyes | answers | st.just(Introduce())

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


whatever = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-1, 2**64)
    | counts
    | st.sampled_from([0, wire.MAX_COUNT - 1, wire.MAX_COUNT, wire.MAX_INTEGER - 1])
    | st.sampled_from([*events.INSTRUCTIONS, "fly", ""])
)


@given(layout=st.sampled_from([wire._BY_KIND[StageStart], wire._BY_KIND[StageEnd]]), data=st.data())
def test_the_quick_check_is_the_tables(layout: wire._Layout, data: st.DataObject) -> None:
    """Of whatever values: sound if and only if each field's own check says so."""
    fitting = data.draw(st.booleans())
    values = [
        data.draw((st.sampled_from([0, 7, "forward"]) if fitting else whatever).filter(test))
        if fitting
        else data.draw(whatever)
        for test in layout.tests
    ]
    assert layout._sound is not None
    assert layout._sound(values) == all(t(v) for t, v in zip(layout.tests, values, strict=True))


@given(anything)
def test_what_is_encoded_is_decoded(event: events.Event) -> None:
    """Every event that can be made comes back equal, whatever its values."""
    assert decode(encode(event)) == event


def harmless(data: bytes) -> None:
    """Decode, where WireError is the only thing that may be raised."""
    try:
        event = decode(data)
    except WireError as error:
        assert str(error).isprintable()  # noqa: PT017  most inputs raise, and some must not
    else:
        assert decode(encode(event)) == event


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_wire_error(data: bytes) -> None:
    """No bytes make decode raise anything else, or return what cannot be encoded again."""
    harmless(data)


@given(st.sampled_from("hsegwir"), st.lists(values, max_size=20))
def test_well_formed_nonsense_raises_nothing_but_wire_error(tag: str, fields: list[object]) -> None:
    """The right envelope with any msgpack value in any field is refused or fully checked."""
    harmless(msgpack.packb([tag, *fields]))


@given(anything, st.data())
def test_damaged_messages_raise_nothing_but_wire_error(
    event: events.Event, data: st.DataObject
) -> None:
    """A good message with any one byte changed or its end cut off is refused or fully checked."""
    good = bytearray(encode(event))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    harmless(bytes(good))
    harmless(bytes(good[:place]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": -1}, "rank is -1"),
        ({"rank": wire.MAX_COUNT}, "rank"),
        ({"rank": True}, "rank is True"),
        ({"rank": 1.0}, "rank is 1.0"),
        ({"rank": None}, "rank is None"),
        ({"stage": 4}, "stage is 4 of 4 stages"),
        ({"world_size": 3}, "rank is 3 of 3 world_size"),
        ({"job": ""}, "job is ''"),
        ({"job": "\x1b[2J"}, "job"),
        ({"job": "j" * 257}, "job"),
        ({"job": "é" * 129}, "job"),
        ({"job": 7}, "job is 7"),
        ({"gpus": ("GPU-0",) * 65}, "gpus"),
        ({"gpus": "GPU-0"}, "gpus"),
        ({"gpus": (0,)}, "gpus"),
        ({"time_source": "gps"}, "time_source is 'gps'"),
        ({"uses_cuda": 1}, "uses_cuda is 1"),
        ({"slowdown_budget": float("nan")}, "slowdown_budget is nan"),
        ({"slowdown_budget": 1.5}, "slowdown_budget is 1.5"),
        ({"major": 2}, "major version is 2"),
    ],
)
def test_a_wrong_hello_names_the_field_and_its_value(change: dict[str, object], named: str) -> None:
    """Both sides refuse the same values, and say which field held what."""
    wrong = replace(HELLO, **change)
    with pytest.raises(WireError, match=named.replace("[", r"\[")):
        encode(wrong)
    layout = wire._BY_KIND[Hello]
    with pytest.raises(WireError, match=named.replace("[", r"\[")):
        decode(msgpack.packb(["h", *layout.values(wrong)]))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (["s", 1, 2, 3, "sideways", 0, 0, None, None], "instruction is 'sideways'"),
        (["s", 1, 2, 3, "forward", 0, 0, None, 2**63], "iteration"),
        (["s", 1, 2, 3, "forward", 0, 0], "at least 8"),
        (["e", 2**63, 2, 3], "sequence"),
        (["e", 1, "2", 3], "time_ns is '2'"),
        (["x", 1], "tag is 'x'"),
        ([b"s", 1], "tag is b's'"),
        ([["s"], 1], "tag"),
        ([], "array"),
        ({"s": 1}, "array"),
        (None, "array"),
    ],
)
def test_a_malformed_message_is_named(message: object, named: str) -> None:
    """An error names the thing and its value, for whoever writes another client."""
    with pytest.raises(WireError, match=named) as caught:
        decode(msgpack.packb(message))
    assert caught.value.code == "malformed"


def test_trailing_fields_of_a_later_minor_version_are_ignored() -> None:
    """A newer client of the same major version is understood as far as this side goes."""
    newer = replace(HELLO, minor=9)
    for event in (newer, StageEnd(1, 2, 3), StageStart(1, 2, 3, "forward", 0, 0, None, None)):
        message = msgpack.unpackb(encode(event))
        assert decode(msgpack.packb([*message, "new", {"field": 1}])) == event


def test_a_foreign_major_version_is_told_from_garbage() -> None:
    """Whatever else another major version has changed, its version is what is complained of."""
    for fields in ([2], [2, 0], [2, 0, None, "?"]):
        with pytest.raises(WireError, match="major version is 2 and this side speaks 1") as caught:
            decode(msgpack.packb(["h", *fields]))
        assert caught.value.code == "version"


def test_oversize_messages_are_refused_unread() -> None:
    """Size is checked before anything is parsed, and before anything is sent."""
    with pytest.raises(WireError, match="4097 bytes") as caught:
        decode(b"\xc0" * 4097)
    assert caught.value.code == "oversize"
    with pytest.raises(WireError, match="at most 4096"):
        encode(replace(HELLO, gpus=("G" * 250,) * 20))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32-1 values
        b"\xdb\xff\xff\xff\xff",  # a string of as many bytes
        b"\x91" * 4000 + b"\xc0",  # nested deeper than any stack
        b"\x91\xa1\xff",  # no UTF-8
        b"\xc7\x00\xff",  # a timestamp of no length
        b"\x81\x90\xc0",  # a map whose key cannot be one
        b"",
    ],
)
def test_bombs_raise_wire_error(data: bytes) -> None:
    """Lengths, depths and types made to break a parser are malformed messages like any other."""
    with pytest.raises(WireError):
        decode(data)


def test_only_events_are_encoded() -> None:
    """Encoding something else names it, rather than sending it."""
    with pytest.raises(WireError, match="'hello' is no event"):
        encode("hello")  # type: ignore[arg-type]
