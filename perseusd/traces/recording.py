"""Recordings: everything that a controller was told, in order, so that it can be told again.

    perseusd recording 1\\n          what it is, and the version of the format
    {"perseusd": …, "gpus": …}      a header
    ["stage_event", client, …]      inputs, one after another, until the end of the file

After the first line, msgpack objects follow each other without any frame; a file may be cut off
anywhere and is read up to there. An input is named after the controller's method that takes it, and
carries its arguments. Readers skip inputs and fields they do not know, so that later versions may
add some. docs/recordings.md is for those who read recordings with other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
from perseus_hooks.wire import WireError, decode, encode

from perseusd import __version__
from perseusd.core.learned.knowledge import GpuFacts
from perseusd.core.model import Plan, PlanResult
from perseusd.core.settings import Settings
from perseusd.errors import TraceError

VERSION = 1
MAGIC = b"perseusd recording "
FIRST_LINE = MAGIC + b"%d\n" % VERSION

_LONGEST_LINE = 64
_CHUNK = 1 << 20
_LARGEST = 1 << 28
"""Bytes of one object: a file that claims more is damaged."""


class Input(NamedTuple):
    """One thing that the controller was told; arguments as its method takes them."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Header:
    """What a recording was made of.

    complete: nobody had said hello when it began, so that a fresh controller decides alike.
    start_ns: the daemon's monotonic time when it began.
    patient: whether the controller worked out a piece at each tick what nothing waits for.
    """

    settings: Settings
    gpus: Mapping[str, GpuFacts]
    emulated: bool = False
    complete: bool = True
    start_ns: int = 0
    perseusd: str = __version__
    patient: bool = False


WRITABLE = "writable"
"""Whether clocks can be written from now on: an attribute of the controller's, not a method."""

DROPPED = "dropped"
"""So many inputs are missing here: whoever recorded could not keep up."""

# --- inputs ---------------------------------------------------------------------------------------


class _Codec(NamedTuple):
    """How an argument becomes something that msgpack knows, and back."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _pack_answer(answer: PlanResult | str) -> Any:
    """A plan with all that it promises; a string says why there is none."""
    if isinstance(answer, str):
        return answer
    packed = {f.name: _number(getattr(answer, f.name)) for f in fields(answer)}
    clocks = [[_number(clock) for clock in own] for own in answer.plan.clocks]
    return packed | {"plan": clocks, "warnings": list(answer.warnings)}


def _unpack_answer(packed: Any) -> PlanResult | str:
    if isinstance(packed, str):
        return packed
    known = {f.name: packed[f.name] for f in fields(PlanResult) if f.name in packed}
    clocks = tuple(tuple(own) for own in packed["plan"])
    return PlanResult(**(known | {"plan": Plan(clocks), "warnings": tuple(packed["warnings"])}))


def _number(value: Any) -> Any:
    """Without numpy's own types, which msgpack does not know."""
    return value.item() if hasattr(value, "item") else value


def _kept(*kinds: type) -> _Codec:
    """A value that msgpack knows; what is read must be one of these kinds."""

    def unpack(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise ValueError(f"{str(value)[:40]!r} stands where it cannot")
        return value

    return _Codec(_same, unpack)


_TEXT = _kept(str)
_WHOLE = _kept(int)
_WHOLE_OR_NONE = _kept(int, type(None))
_NUMBER = _kept(int, float)
_NUMBER_OR_NONE = _kept(int, float, type(None))
_TEXT_OR_NONE = _kept(str, type(None))
_MAP_OR_NONE = _kept(dict, type(None))
_CLOCKS = _Codec(list, lambda clocks: tuple(map(int, clocks)))
_EVENT = _Codec(encode, lambda packed: decode(_kept(bytes).unpack(packed)))
_ANSWER = _Codec(_pack_answer, _unpack_answer)
_SETTINGS = _Codec(asdict, lambda found: _settings(found))
_SET = _Codec(sorted, lambda names: frozenset(map(str, names)))

_INPUTS: Mapping[str, tuple[_Codec, ...]] = {
    "hello": (_TEXT, _TEXT, _EVENT, _WHOLE),
    "stage_event": (_TEXT, _EVENT, _WHOLE),
    "client_lost": (_TEXT, _TEXT),
    "energy": (_TEXT, _WHOLE, _NUMBER),
    "gpu_state": (_TEXT, _SET),
    "written": (_TEXT, _WHOLE_OR_NONE, _WHOLE, _WHOLE),
    "release_all": (_TEXT,),
    "release_gpu": (_TEXT, _TEXT),
    "withhold": (_TEXT, _TEXT_OR_NONE),
    "relearn_all": (_TEXT,),
    "gpu_here": (_TEXT, _TEXT, _CLOCKS, _WHOLE),
    "planned": (_TEXT, _WHOLE, _ANSWER),
    "recalled": (_TEXT, _TEXT, _MAP_OR_NONE),
    "announce_straggler": (_TEXT, _NUMBER_OR_NONE, _WHOLE_OR_NONE),
    "reconfigure": (_SETTINGS,),
    "tick": (_WHOLE,),
    WRITABLE: (_kept(bool),),
    DROPPED: (_WHOLE,),
}
"""By the controller's method that takes it: how an input's arguments are written."""

METHODS = tuple(name for name in _INPUTS if name not in (WRITABLE, DROPPED))


def pack(told: Input) -> bytes:
    """An input as it stands in a recording."""
    codecs = _INPUTS[told.name]
    arguments = (codec.pack(a) for codec, a in zip(codecs, told.arguments, strict=True))
    packed: bytes = msgpack.packb([told.name, *arguments])
    return packed


def _unpack(found: Any) -> Input | None:
    """None for what this version does not know. Raises ValueError for what is no input at all."""
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise ValueError("an input must be an array that begins with its name")
    name, *arguments = found
    if name not in _INPUTS:
        return None
    codecs = _INPUTS[name]
    if len(arguments) < len(codecs):
        raise ValueError(f"{name} lacks an argument")
    unpacked = (codec.unpack(a) for codec, a in zip(codecs, arguments, strict=False))
    return Input(name, tuple(unpacked))


def pack_header(header: Header) -> bytes:
    """How a recording begins."""
    packed = {
        "perseusd": header.perseusd,
        "emulated": header.emulated,
        "complete": header.complete,
        "start_ns": header.start_ns,
        "patient": header.patient,
        "settings": asdict(header.settings),
        "gpus": [asdict(gpu) for gpu in header.gpus.values()],
    }
    body: bytes = msgpack.packb(packed)
    return FIRST_LINE + body


def _unpack_header(found: Any) -> Header:
    try:
        settings = _settings(found["settings"])
        gpus = [_gpu(each) for each in found["gpus"]]
        return Header(
            settings, {gpu.uuid: gpu for gpu in gpus}, bool(found["emulated"]),
            bool(found["complete"]), int(found["start_ns"]), str(found["perseusd"]),
            bool(found.get("patient", False)),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = repr(error.args[0]) if isinstance(error, KeyError) else "what it should say"
        raise ValueError(f"its header lacks or misstates {told}") from None


def _settings(found: Mapping[str, Any]) -> Settings:
    return Settings(**dict(_known_settings(found)))


def _known_settings(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those that this version has; numbers for numbers."""
    for name, usual in asdict(Settings()).items():
        if name in found:
            if not isinstance(found[name], bool if isinstance(usual, bool) else int | float):
                raise ValueError(name)
            yield name, found[name]


def _gpu(found: Mapping[str, Any]) -> GpuFacts:
    clocks = tuple(int(clock) for clock in found["supported_mhz"])
    return GpuFacts(str(found["uuid"]), str(found["model"]), clocks, int(found["index"]))


# --- reading --------------------------------------------------------------------------------------


def is_recording(beginning: bytes) -> bool:
    return beginning.startswith(MAGIC)


class Reader:
    """Objects out of bytes as they come; holds back what is not whole yet.

    header: None until it has come. Raises ValueError for what is no recording, or damaged.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self._line: bytes | None = b""
        self._unpacker = msgpack.Unpacker(max_buffer_size=_LARGEST, strict_map_key=False)

    def feed(self, data: bytes) -> Iterator[Input]:
        if self._line is not None:
            data = self._first_line(self._line + data)
        self._unpacker.feed(data)
        try:
            for found in self._unpacker:
                if self.header is None:
                    self.header = _unpack_header(found)
                elif (told := _unpack(found)) is not None:
                    yield told
        except (msgpack.UnpackException, WireError, ValueError, TypeError, KeyError) as error:
            raise ValueError(str(error) or type(error).__name__) from None

    def _first_line(self, data: bytes) -> bytes:
        line, end, rest = data.partition(b"\n")
        whole = bool(end)
        if not whole and len(data) < _LONGEST_LINE:
            self._line = data
            return b""
        version = line.removeprefix(MAGIC)
        if not whole or not is_recording(line) or not version.isdigit():
            raise ValueError("it does not begin like a recording")
        if int(version) > VERSION:
            raise _NewerError(
                f"its format is version {int(version)}, and this perseusd reads up to {VERSION}: "
                "read it with the version that made it"
            )
        self._line = None
        return rest


class _NewerError(ValueError):
    """Nothing is wrong with the recording."""


def read_recording(path: Path) -> tuple[Header, Iterator[Input]]:
    """The header, and the inputs as they are read. Raises TraceError, also while they are read."""
    reader = Reader()
    for data in _chunks(path):
        any(_fed(path, reader, data))  # as far as the first input, for which the header is needed
        if reader.header is not None:
            return reader.header, _inputs(path)
    raise TraceError(f"{path}: cut off before its header ended: record it again")


def _inputs(path: Path) -> Iterator[Input]:
    reader = Reader()
    for data in _chunks(path):
        yield from _fed(path, reader, data)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                yield data
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None


def _fed(path: Path, reader: Reader, data: bytes) -> Iterator[Input]:
    try:
        yield from reader.feed(data)
    except _NewerError as error:
        raise TraceError(f"{path}: {error}") from None
    except ValueError as error:
        raise TraceError(f"{path}: a damaged recording ({error}): record it again") from None
