"""Recordings: what is told is written whole, read as far as it goes, and replays to the same."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from perseus_hooks.events import Goodbye, Hello, StageEnd, StageStart

from perseusd.core.actions import SetClock
from perseusd.core.controller import Controller
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Plan, PlanResult
from perseusd.core.settings import Settings
from perseusd.errors import TraceError
from perseusd.traces.recording import (
    _INPUTS,
    DROPPED,
    FIRST_LINE,
    METHODS,
    WRITABLE,
    Header,
    Input,
    Reader,
    pack,
    pack_header,
    read_recording,
)
from perseusd.traces.replay import RecordedController, fresh_controller, replay

HELLO = Hello(
    job="job", rank=0, world_size=1, local_rank=0, stage=0, stages=1, replica=0, replicas=1,
    schedule=None, gpus=("GPU-0",), time_source="emulated", uses_cuda=False,
    slowdown_budget=0.01, hostname="here",
)  # fmt: skip

PLAN = PlanResult(
    Plan(((1410, None, 900), (600,))), 1.5, 1.25, 1000.5, 900.25, 950.0, 1.0, 1200.0, 0.1, 3, 0.01,
    1.9, ("one warning",),
)  # fmt: skip

HEADER = Header(Settings(observe=True), {"GPU-0": GpuFacts("GPU-0", "A100", (600, 900, 1410), 0)})

EVERY_INPUT = [
    Input("hello", ("12:ab", "me", HELLO, 12)),
    Input("stage_event", ("12:ab", StageStart(1, 5, 7, "forward", 3, 1, 0, 9), 10)),
    Input("stage_event", ("12:ab", StageEnd(2, 15, 7), 16)),
    Input("stage_event", ("12:ab", Goodbye(3, 17), 18)),
    Input("client_lost", ("12:ab", "has ended")),
    Input("energy", ("GPU-0", 20, 1234.5678901234)),
    Input("gpu_state", ("GPU-0", frozenset({"sw_thermal", "sw_power_cap"}))),
    Input("written", ("GPU-0", None, 1, 2)),
    Input("written", ("GPU-0", 900, 1, 2)),
    Input("release_all", ("why",)),
    Input("release_gpu", ("GPU-0", "why")),
    Input("withhold", ("GPU-0", "why")),
    Input("withhold", ("me:job", None)),
    Input("relearn_all", ("this machine has slept",)),
    Input("gpu_here", ("GPU-7", "A100", (600, 900, 1305), 7)),
    Input("planned", ("me:job", 4, PLAN)),
    Input("planned", ("me:job", 5, "no plan")),
    Input("recalled", ("me:job", "signature", {"a": [1.5, None], "b": {"1": "x"}})),
    Input("recalled", ("me:job", "signature", None)),
    Input("announce_straggler", ("me:job", 1.3, 5_000_000_000)),
    Input("announce_straggler", ("me:job", None, None)),
    Input("reconfigure", (Settings(slowdown_budget=0.02, silence_iterations=3),)),
    Input("tick", (2**62,)),
    Input(WRITABLE, (False,)),
    Input(DROPPED, (17,)),
]


def test_every_input_is_read_as_it_was_written() -> None:
    """Every method of the controller that is recorded, and what stands beside them, comes back
    equal, plans to the last field; the header too."""
    reader = Reader()
    found = list(reader.feed(pack_header(HEADER) + b"".join(map(pack, EVERY_INPUT))))
    assert found == EVERY_INPUT
    assert reader.header == HEADER
    assert {told.name for told in EVERY_INPUT} == {*METHODS, WRITABLE, DROPPED}


def test_a_plan_of_numpy_numbers_is_written() -> None:
    """The planner's numbers may be numpy's; what is read back are plain ones of the same value."""
    values = {f.name: getattr(PLAN, f.name) for f in fields(PLAN)}
    numbers: dict[str, Any] = {
        name: np.float64(value) if isinstance(value, float) else value
        for name, value in values.items()
    }
    plan = Plan(((np.int64(1410), None, np.int64(900)), (np.int64(600),)))  # type: ignore[arg-type]
    told = Input("planned", ("me:job", 4, PlanResult(**(numbers | {"plan": plan}))))
    reader = Reader()
    (found,) = reader.feed(pack_header(HEADER) + pack(told))
    assert found.arguments[2] == PLAN
    assert type(found.arguments[2].saving) is float


def test_bytes_may_come_in_any_pieces() -> None:
    """A recording that arrives byte by byte is the same recording."""
    data = pack_header(HEADER) + b"".join(map(pack, EVERY_INPUT))
    reader = Reader()
    found = [told for k in range(len(data)) for told in reader.feed(data[k : k + 1])]
    assert found == EVERY_INPUT


def test_a_cut_recording_is_read_up_to_the_cut(tmp_path: Path) -> None:
    """Wherever a file ends, everything whole before is read, and nothing raises; without a whole
    header there is nothing to read, and the error says so."""
    head = pack_header(HEADER)
    data = head + b"".join(map(pack, EVERY_INPUT))
    path = tmp_path / "cut"
    for length in range(len(head), len(data) + 1, 7):
        path.write_bytes(data[:length])
        header, inputs = read_recording(path)
        found = list(inputs)
        assert header == HEADER
        assert found == EVERY_INPUT[: len(found)]
        assert len(b"".join(map(pack, found))) <= length - len(head)
    for length in (len(FIRST_LINE), len(head) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(TraceError, match="cut off before its header"):
            read_recording(path)


def test_what_a_later_version_adds_is_passed_over() -> None:
    """An input, a setting, a header's field and an argument that this version does not know."""
    head = msgpack.unpackb(pack_header(HEADER)[len(FIRST_LINE) :])
    head["settings"]["of_tomorrow"] = 1
    head["weather"] = "fine"
    data = FIRST_LINE + msgpack.packb(head)
    data += msgpack.packb(["of_tomorrow", 1, 2]) + msgpack.packb(["tick", 5, "more"])
    reader = Reader()
    assert list(reader.feed(data)) == [Input("tick", (5,))]
    assert reader.header == HEADER


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"something else\n", "begin like a recording"),
        (b"perseusd recording x\n", "begin like a recording"),
        (b"perseusd recording " + b"1" * 100, "begin like a recording"),
        (b"perseusd recording 2\n", "version 2"),
        (FIRST_LINE + msgpack.packb([1, 2]), "header"),
        (FIRST_LINE + msgpack.packb({"settings": {}}), "header"),
        (pack_header(HEADER) + msgpack.packb(7), "array"),
        (pack_header(HEADER) + msgpack.packb([]), "array"),
        (pack_header(HEADER) + msgpack.packb(["tick"]), "lacks"),
        (pack_header(HEADER) + msgpack.packb(["stage_event", "c", b"xx", 1]), "damaged"),
        (pack_header(HEADER) + msgpack.packb(["planned", "j", 1, {"plan": 3}]), "damaged"),
        (pack_header(HEADER) + msgpack.packb(["planned", "j", 1, {}]), "damaged"),
        (
            pack_header(HEADER) + msgpack.packb(["planned", "j", 1, {"plan": [], "warnings": []}]),
            "d",
        ),
        (pack_header(HEADER) + msgpack.packb(["gpu_state", "G", 5]), "damaged"),
        (pack_header(HEADER) + msgpack.packb(["client_lost", ["c"], "x"]), "stands where"),
        (pack_header(HEADER) + msgpack.packb(["tick", None]), "stands where"),
        (pack_header(HEADER) + msgpack.packb(["dropped", "x"]), "stands where"),
        (pack_header(HEADER).replace(b"\xa7observe\xc3", b"\xa7observe\x01"), "header"),
        (pack_header(HEADER) + b"\xc1", "damaged"),
    ],
)
def test_damage_is_told(data: bytes, why: str, tmp_path: Path) -> None:
    """What no recorder has written is refused, naming the file, and never with another error."""
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=why) as refused:
        list(read_recording(path)[1])
    assert str(path) in str(refused.value)


def test_a_run_replays_to_the_same_actions(whole_run: Any) -> None:
    """Everything the controller of a run was told (baseline, learning, plans, hold, a straggler),
    written, read, and told a fresh one: it asks for the same, in the same order."""
    reader = Reader()
    inputs = list(reader.feed(whole_run.bytes()))
    assert reader.header is not None
    again = [
        action for _, asked in replay(inputs, fresh_controller(reader.header)) for action in asked
    ]
    assert again == whole_run.actions
    assert sum(isinstance(action, SetClock) for action in again) > 50


def test_only_what_comes_from_outside_is_recorded() -> None:
    """A goodbye makes the controller forget its client: that is its own doing and told once."""
    found: list[Input] = []
    controller = RecordedController(HEADER.settings, HEADER.gpus, sink=found.append)
    controller.hello("c", "me", HELLO)
    controller.stage_event("c", Goodbye(1, 5), 6)
    assert [told.name for told in found] == ["hello", "stage_event"]
    assert found[0].arguments == ("c", "me", HELLO, 0)  # what was left out is written out


def test_writability_is_recorded_when_it_changes() -> None:
    """It is set on every turn of the daemon's loop, and told only when it is another."""
    found: list[Input] = []
    controller = RecordedController(HEADER.settings, HEADER.gpus, sink=found.append)
    for writable in (True, True, False, False, True):
        controller.writable = writable
    assert found == [Input(WRITABLE, (False,)), Input(WRITABLE, (True,))]


def test_nothing_is_recorded_without_a_sink() -> None:
    """Nobody listens: nothing is kept, and the controller acts as ever."""
    controller = RecordedController(HEADER.settings, HEADER.gpus)
    controller.hello("c", "me", HELLO)
    assert controller.knows("c")
    assert [told.name for told in controller.present()] == ["hello", WRITABLE]


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_of_an_input_has_its_codec(name: str) -> None:
    """A method that gains an argument would otherwise fail only where somebody records."""
    parameters = list(inspect.signature(getattr(Controller, name)).parameters)[1:]
    assert len(parameters) == len(_INPUTS[name])
