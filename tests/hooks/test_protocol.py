"""docs/protocol.md says what the code does: its vectors, its tables, its limits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from perseus_hooks import events, wire
from perseus_hooks.wire import WireError, decode, encode

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def block(name: str) -> list[str]:
    """The lines of one fenced block; fails where there is none."""
    found = re.search(rf"^```{name}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, name
    return found.group(1).splitlines()


def pairs(name: str) -> list[tuple[bytes, events.Event]]:
    lines = block(name)
    return [
        (bytes.fromhex(data), event(json.loads(said)))
        for data, said in zip(lines[::2], lines[1::2], strict=True)
    ]


def event(said: dict[str, object]) -> events.Event:
    if "gpus" in said:
        said["gpus"] = tuple(said["gpus"])  # type: ignore[arg-type]
    return getattr(events, str(said.pop("event")))(**said)


@pytest.mark.parametrize(("data", "said"), pairs("vectors"))
def test_vectors_are_made_and_understood(data: bytes, said: events.Event) -> None:
    """The documented bytes are exactly what is sent, and mean what the document says."""
    assert encode(said) == data
    assert decode(data) == said


@pytest.mark.parametrize(("data", "said"), pairs("vectors-understood"))
def test_other_forms_are_understood(data: bytes, said: events.Event) -> None:
    """Later minor versions and other encoders are understood as documented."""
    assert encode(said) != data
    assert decode(data) == said


@pytest.mark.parametrize("line", block("vectors-refused"))
def test_refused_vectors_are_refused(line: str) -> None:
    """The documented errors are errors, with the documented code."""
    data, code = line.split()
    with pytest.raises(WireError) as caught:
        decode(b"" if data == "-" else bytes.fromhex(data))
    assert caught.value.code == code


def test_every_event_has_a_vector() -> None:
    """A kind of event that is added to the code is missing here until it is documented."""
    assert {type(said) for _, said in pairs("vectors")} == set(wire._BY_KIND)


@pytest.mark.parametrize("layout", wire._LAYOUTS, ids=lambda layout: layout.kind.__name__)
def test_tables_list_the_fields_in_wire_order(layout: wire._Layout) -> None:
    """Each message's table has its fields, in order, and every field of the event is sent."""
    section = re.search(rf"^### `{layout.tag}` .*?(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", section.group(0), re.MULTILINE)
    expected = [(str(number), name) for number, name in enumerate(layout.names, 1)]
    assert rows == expected
    assert set(layout.kind.__annotations__) == set(layout.names)


def test_limits_and_names_are_the_codes() -> None:
    """Numbers and names in the document are those that are checked."""
    for number in (wire.MAX_MESSAGE_BYTES, wire.MAX_STRING_BYTES, wire.MAX_GPUS):
        assert f"{number}" in DOCUMENT
    assert f"0 to {wire.MAX_COUNT - 1}" in DOCUMENT
    assert f"version **{events.WIRE_MAJOR}.{events.WIRE_MINOR}**" in DOCUMENT
    for name in (*events.INSTRUCTIONS, *events.TIME_SOURCES):
        assert f"`{name}`" in DOCUMENT
