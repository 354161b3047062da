"""The parsers that are fuzzed, each with a judge of its own that says what a right answer is."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import msgpack
from fuzz_seeds import wire_seeds
from perseus_hooks.events import Hello
from perseus_hooks.wire import MAX_MESSAGE_BYTES, WireError, decode, encode

from perseusd.clock import protocol
from perseusd.config import Config, load_config
from perseusd.core.controller import Controller
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.settings import Settings
from perseusd.daemon.access import Access, Caller
from perseusd.daemon.control import Control
from perseusd.daemon.questions import reply
from perseusd.daemon.quotas import QuestionQuotas
from perseusd.errors import ConfigurationError, ProtocolError
from perseusd.traces.recording import Header, Input, Reader, pack, pack_header

Judge = Callable[[bytes], str]
"""An input → the kind of what was accepted, empty where it was refused as documented."""


class ForgeryError(Exception):
    """Something was accepted that the bytes do not say."""


@dataclass(frozen=True)
class Target:
    name: str
    opened: Callable[[Random], AbstractContextManager[tuple[list[bytes], Judge]]]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ForgeryError(what)


# --- the hooks' wire ------------------------------------------------------------------------------

_ALIKE = (list, tuple)


@contextlib.contextmanager
def _wire(random: Random) -> Iterator[tuple[list[bytes], Judge]]:
    yield wire_seeds(random), judge_wire


def judge_wire(data: bytes) -> str:
    """What was accepted says field by field what an independent reader finds in the bytes."""
    try:
        event = decode(data)
    except WireError as error:
        _require(error.code in ("malformed", "oversize", "version"), f"code {error.code}")
        return ""
    _require(len(data) <= MAX_MESSAGE_BYTES, "longer than allowed")
    tag, *sent = msgpack.unpackb(data)
    told = [getattr(event, name) for name in type(event).__annotations__]
    if isinstance(event, Hello):  # its versions come first on the wire
        told = told[-2:] + told[:-2]
    _require(len(sent) >= len(told), "fields that were not sent")
    for mine, theirs in zip(told, sent, strict=False):
        _require(_same(mine, theirs), f"{theirs!r} was taken for {mine!r}")
    _require(decode(encode(event)) == event, "not the same once more")
    return str(tag)


def _same(told: Any, sent: Any) -> bool:
    if isinstance(told, tuple):
        return type(sent) in _ALIKE and list(told) == list(sent)
    if isinstance(told, float):
        return type(sent) in (int, float) and told == sent
    return type(told) is type(sent) and told == sent


# --- the clock protocol ---------------------------------------------------------------------------


@contextlib.contextmanager
def _clock(random: Random) -> Iterator[tuple[list[bytes], Judge]]:
    results = [
        protocol.WriteResult(random.randrange(2**32), 3, 1200, code, 1, 2, 1185)
        for code in protocol.ResultCode
    ]
    messages: list[Any] = [
        protocol.Lock(random.randrange(2**32), 0, 1410), protocol.Reset(1, 0xFFFF),
        protocol.Disown(3), protocol.Heartbeat(), protocol.Close(), protocol.HeartbeatLost(),
        protocol.Hello(1, 8), protocol.GpuName(0, "GPU-" + "0" * 32, 1410), protocol.Busy(4242),
        *results,
    ]  # fmt: skip
    yield [protocol.encode(message) for message in messages], judge_clock


def judge_clock(data: bytes) -> str:
    """A packet is a request or a reply, never both, and its message has these very bytes."""
    found: list[Any] = []
    for read in (protocol.decode_request, protocol.decode_reply):
        with contextlib.suppress(ProtocolError):
            found.append(read(data))
    if not found:
        return ""
    _require(len(found) == 1, "both a request and a reply")
    _require(protocol.encode(found[0]) == data, f"{found[0]} is another packet")
    return type(found[0]).__name__


# --- control and status ---------------------------------------------------------------------------

_REQUESTS: tuple[Any, ...] = (
    {"command": "status"},
    {"command": "straggler_announce", "job": "alice:train", "factor": 1.2},
    {"command": "straggler_announce", "job": "train", "factor": 2, "in_s": 30},
    {"command": "straggler_end", "job": "alice:train"},
    {"command": "memory_list"},
    {"command": "nested", "job": [[[{}]]], "factor": 1e308, "in_s": None},
    [], "text", 1e999, None,
)  # fmt: skip


@contextlib.contextmanager
def _control(random: Random) -> Iterator[tuple[list[bytes], Judge]]:
    gpu = GpuFacts("GPU-0", "A100", (1200, 1410), 0)
    controller = Controller(Settings(), {"GPU-0": gpu})
    controller.hello("1:a", "alice", _trainer())
    control = Control(controller, lambda _actions: None, Access(admin_group="nobody has this"))

    def judge(data: bytes) -> str:
        answer = json.loads(reply(Caller(0, 0, os.getpid()), data, control.answer, _Unlimited()))
        _require(type(answer.get("ok")) is bool, f"an answer without ok: {answer}")
        _require(answer["ok"] or {"code", "error"} <= set(answer), f"no reason: {answer}")
        other = json.loads(reply(Caller(64000, 64000, 2), data, control.answer, _Unlimited()))
        _require(other["code"] in ("not_permitted", "bad_request"), f"served a stranger: {other}")
        unknown = json.loads(reply(None, data, control.answer, _Unlimited()))
        _require(unknown["code"] == "not_permitted", f"served nobody: {unknown}")
        return "ok" if answer["ok"] else ""

    yield [json.dumps(request).encode() for request in _REQUESTS], judge


class _Unlimited(QuestionQuotas):
    def take(self, uid: int, now_s: float) -> bool:
        return True


def _trainer() -> Hello:
    return Hello(
        "train", 0, 1, 0, 0, 1, 0, 1, None, ("GPU-0",), "emulated", False, None, "node"
    )  # fmt: skip


# --- configuration --------------------------------------------------------------------------------

_SHIPPED = Path(__file__).parents[1] / "systemd" / "perseusd.toml"


@contextlib.contextmanager
def _config(random: Random) -> Iterator[tuple[list[bytes], Judge]]:
    shipped = _SHIPPED.read_text()
    uncommented = shipped.replace("# ", "")
    lines = [line for line in shipped.splitlines() if "=" in line or line.startswith("[")]
    each = [line.removeprefix("# ") for line in lines]
    seeds = [shipped, uncommented, "\n".join(each), *_sections(each)]
    with tempfile.TemporaryDirectory(prefix="perseusd-fuzz-") as folder:
        file = Path(folder) / "perseusd.toml"

        def judge(data: bytes) -> str:
            file.write_bytes(data)
            try:
                config = load_config(file, {}, {})
            except ConfigurationError as error:
                _require(str(file) in str(error) or "socket's path" in str(error), str(error))
                return ""
            return _allowed(config)

        yield [text.encode() for text in seeds], judge


def _sections(lines: list[str]) -> Iterator[str]:
    section = ""
    for line in lines:
        if line.startswith("["):
            section = line
        else:
            yield f"{section}\n{line}\n"


def _allowed(config: Config) -> str:
    """Every value is one that its option takes: what was accepted is taken again as it is."""
    for option in fields(config):
        value = getattr(config, option.name)
        if isinstance(value, frozenset):
            value = sorted(value)
        if value is not None:
            again = option.metadata["kind"].check(value)
            _require(again == getattr(config, option.name), f"{option.name} = {value!r}")
    return "config"


# --- recordings -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _recording(random: Random) -> Iterator[tuple[list[bytes], Judge]]:
    gpus = {"GPU-0": GpuFacts("GPU-0", "A100", (1200, 1410), 0)}
    inputs = [
        Input("hello", ("1:a", "alice", _trainer(), 7)), Input("tick", (5,)),
        Input("energy", ("GPU-0", 5, 1.5)), Input("written", ("GPU-0", None, 1, 2)),
        Input("gpu_state", ("GPU-0", frozenset({"idle"}))), Input("client_lost", ("1:a", "gone")),
    ]  # fmt: skip
    whole = pack_header(Header(Settings(), gpus)) + b"".join(map(pack, inputs))
    yield [whole], judge_recording


def judge_recording(data: bytes) -> str:
    """Inputs, or ValueError with a reason."""
    reader = Reader()
    try:
        found = list(reader.feed(data))
    except ValueError as error:
        _require(bool(str(error)), "no reason")
        return ""
    return "inputs" if found else ""


TARGETS = (
    Target("wire", _wire),
    Target("clock", _clock),
    Target("control", _control),
    Target("config", _config),
    Target("recording", _recording),
)
