"""The messages between perseusd and perseusd-clock: one packet each on a SOCK_SEQPACKET socket.

A packet is a type byte and fixed fields in network byte order. Anything else is a ProtocolError:
the clock process then hangs up and puts every clock back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TypeAlias, cast

from perseusd.errors import ProtocolError

PROTOCOL_VERSION = 2
MAX_PACKET = 256
UNASKED = 0  # the request id of a reset that the clock process decided on itself
UNLOCKED = 0  # as a clock: no lock


class ResultCode(IntEnum):
    """How a request ended."""

    OK = 0
    SUPERSEDED = 1
    UNKNOWN_GPU = 2
    UNSUPPORTED_CLOCK = 3
    BELOW_FLOOR = 4
    MIG = 5
    TOO_MANY_WRITES = 6
    NO_HEARTBEAT = 7
    INTENT_NOT_WRITTEN = 8
    FAILED = 9
    NO_PERMISSION = 10
    NOT_SUPPORTED = 11
    LOST = 12
    NOT_SENT = 13

    @property
    def text(self) -> str:
        """What it means, for people."""
        return _TEXTS[self]


_TEXTS = {
    ResultCode.OK: "done",
    ResultCode.SUPERSEDED: "replaced by a newer request before it was started",
    ResultCode.UNKNOWN_GPU: "there is no GPU of this index",
    ResultCode.UNSUPPORTED_CLOCK: "the GPU does not support this clock",
    ResultCode.BELOW_FLOOR: "below the lowest clock that is allowed",
    ResultCode.MIG: "the GPU is divided by MIG, whose parts share one clock",
    ResultCode.TOO_MANY_WRITES: "too many clock writes on this GPU in a short time",
    ResultCode.NO_HEARTBEAT: "no clock is lowered without the daemon's heartbeat",
    ResultCode.INTENT_NOT_WRITTEN: "the intent file could not be written, so nothing was locked",
    ResultCode.FAILED: "the driver failed",
    ResultCode.NO_PERMISSION: "the driver does not permit it",
    ResultCode.NOT_SUPPORTED: "the GPU or its driver cannot do it",
    ResultCode.LOST: "the GPU is lost",
    ResultCode.NOT_SENT: "the clock process took no request",
}


class Lock(NamedTuple):
    request_id: int
    gpu_index: int
    clock_mhz: int


class Reset(NamedTuple):
    request_id: int
    gpu_index: int


class Disown(NamedTuple):
    """Another tool has set this GPU's clock: what stands is not ours, and is not put back."""

    gpu_index: int


class Heartbeat(NamedTuple):
    """The daemon's loop is alive. Without it no lock stays for long."""


class Close(NamedTuple):
    """The daemon is done: put every clock back, then hang up."""


class Hello(NamedTuple):
    """The first reply; `gpus` GpuName replies follow."""

    version: int
    gpus: int


class GpuName(NamedTuple):
    """Which GPU an index means here. It may come later than the others.

    standing_mhz: the site's own lock, which is full clock on this GPU; UNLOCKED: none.
    """

    gpu_index: int
    uuid: str
    standing_mhz: int


class WriteResult(NamedTuple):
    """How a request ended for one GPU.

    clock_mhz: what was asked for, UNLOCKED for a reset. start_ns and end_ns: CLOCK_MONOTONIC around
    the driver call; equal when none was made. observed_mhz: the clock right after it, which may
    not have settled; 0 when not read.

    A lock that ended neither OK nor SUPERSEDED leaves no older one in force: the GPU is reset.
    """

    request_id: int
    gpu_index: int
    clock_mhz: int
    code: ResultCode
    start_ns: int
    end_ns: int
    observed_mhz: int


class HeartbeatLost(NamedTuple):
    """No heartbeat came in time: every clock is put back, and locks wait for the next one."""


class Busy(NamedTuple):
    """Another daemon, of this process id, is served: this one is not."""

    pid: int


Request: TypeAlias = Lock | Reset | Disown | Heartbeat | Close
Reply: TypeAlias = Hello | GpuName | WriteResult | HeartbeatLost | Busy

_MAX_UUID = 96
_LAYOUTS: dict[Callable[..., Request | Reply], tuple[int, struct.Struct]] = {
    Lock: (1, struct.Struct("!BIHH")),
    Reset: (2, struct.Struct("!BIH")),
    Disown: (3, struct.Struct("!BH")),
    Heartbeat: (4, struct.Struct("!B")),
    Close: (5, struct.Struct("!B")),
    Hello: (65, struct.Struct("!BHH")),
    GpuName: (66, struct.Struct(f"!BH{_MAX_UUID}sH")),
    WriteResult: (67, struct.Struct("!BIHHBqqH")),
    HeartbeatLost: (68, struct.Struct("!B")),
    Busy: (69, struct.Struct("!Bi")),
}
_BY_NUMBER = {number: (make, layout) for make, (number, layout) in _LAYOUTS.items()}


def encode(message: Request | Reply) -> bytes:
    """The packet of a message; ProtocolError if a value does not fit its field."""
    number, layout = _LAYOUTS[type(message)]
    fields: tuple[object, ...] = message
    try:
        if isinstance(message, GpuName):
            fields = (message.gpu_index, _encoded_uuid(message.uuid), message.standing_mhz)
        return layout.pack(number, *fields)
    except (struct.error, UnicodeError) as error:
        raise ProtocolError(f"{message} does not fit the clock protocol: {error}") from error


def decode_request(packet: bytes) -> Request:
    """What the daemon said; ProtocolError for anything that is not exactly a request."""
    message = _decode(packet)
    if not isinstance(message, Lock | Reset | Disown | Heartbeat | Close):
        raise ProtocolError(f"clock protocol: {message} is a reply, not a request")
    return message


def decode_reply(packet: bytes) -> Reply:
    """What the clock process said; ProtocolError for anything that is not exactly a reply."""
    message = _decode(packet)
    if not isinstance(message, Hello | GpuName | WriteResult | HeartbeatLost | Busy):
        raise ProtocolError(f"clock protocol: {message} is a request, not a reply")
    return message


def _decode(packet: bytes) -> Request | Reply:
    make, layout = _BY_NUMBER.get(packet[0] if packet else 0, (None, None))
    if make is None or layout is None or len(packet) != layout.size:
        raise ProtocolError(
            f"clock protocol: {packet[:16]!r} ({len(packet)} bytes) is no message of version "
            f"{PROTOCOL_VERSION}; do perseusd and perseusd-clock come from one release?"
        )
    message = make(*layout.unpack(packet)[1:])
    try:
        if isinstance(message, WriteResult):
            return message._replace(code=ResultCode(message.code))
        if isinstance(message, GpuName):  # its uuid is still the packed field
            return message._replace(uuid=_decoded_uuid(cast(bytes, message.uuid)))
    except ValueError as error:
        raise ProtocolError(f"clock protocol: a damaged message: {error}") from error
    return message


def _encoded_uuid(uuid: str) -> bytes:
    encoded = uuid.encode("ascii")
    if len(encoded) > _MAX_UUID or b"\0" in encoded:
        raise struct.error(f"a UUID has at most {_MAX_UUID} bytes and no zero byte")
    return encoded


def _decoded_uuid(field: bytes) -> str:
    uuid = field.rstrip(b"\0")
    if b"\0" in uuid:
        raise ValueError("a zero byte inside a UUID")
    return uuid.decode("ascii")
