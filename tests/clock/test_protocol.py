"""The clock protocol: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.clock.protocol import (
    MAX_PACKET,
    Busy,
    Close,
    Disown,
    GpuName,
    Heartbeat,
    HeartbeatLost,
    Hello,
    Lock,
    Reply,
    Request,
    Reset,
    ResultCode,
    WriteResult,
    decode_reply,
    decode_request,
    encode,
)
from perseusd.errors import ProtocolError

ids = st.integers(0, 2**32 - 1)
shorts = st.integers(0, 2**16 - 1)
times = st.integers(0, 2**63 - 1)
uuids = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=96)

requests = st.one_of(
    st.builds(Lock, ids, shorts, shorts),
    st.builds(Reset, ids, shorts),
    st.builds(Disown, shorts),
    st.just(Heartbeat()),
    st.just(Close()),
)
replies = st.one_of(
    st.builds(Hello, shorts, shorts),
    st.builds(GpuName, shorts, uuids, shorts),
    st.builds(Busy, st.integers(0, 2**31 - 1)),
    st.builds(WriteResult, ids, shorts, shorts, st.sampled_from(ResultCode), times, times, shorts),
    st.just(HeartbeatLost()),
)


@given(requests)
def test_request_round_trip(request: Request) -> None:
    """Every request survives the wire, type and values; it is no reply; it fits one packet."""
    packet = encode(request)
    assert len(packet) <= MAX_PACKET
    assert decode_request(packet) == request
    assert type(decode_request(packet)) is type(request)
    with pytest.raises(ProtocolError):
        decode_reply(packet)


@given(replies)
def test_reply_round_trip(reply: Reply) -> None:
    """Every reply survives the wire, type and values; it is no request; it fits one packet."""
    packet = encode(reply)
    assert len(packet) <= MAX_PACKET
    assert decode_reply(packet) == reply
    assert type(decode_reply(packet)) is type(reply)
    with pytest.raises(ProtocolError):
        decode_request(packet)


@given(st.one_of(requests, replies), st.integers(1, 200))
def test_longer_or_shorter_is_refused(message: Request | Reply, change: int) -> None:
    """A packet with bytes missing or added is nothing."""
    packet = encode(message)
    decode = decode_request if isinstance(message, Lock | Reset) else decode_reply
    for damaged in (packet[:-change], packet + bytes(change)):
        with pytest.raises(ProtocolError):
            decode(damaged)


@given(st.binary(max_size=MAX_PACKET))
def test_any_bytes_decode_exactly_or_not_at_all(packet: bytes) -> None:
    """Whatever is accepted encodes to the very same bytes; all else is a ProtocolError."""
    for decode in (decode_request, decode_reply):
        try:
            message = decode(packet)
        except ProtocolError:
            continue
        assert encode(message) == packet


@pytest.mark.parametrize(
    "message",
    [
        Lock(-1, 0, 0),
        Lock(1, 2**16, 1005),
        Reset(2**32, 0),
        GpuName(0, "x" * 97, 0),
        GpuName(0, "é", 0),
    ],
)
def test_values_that_do_not_fit_are_refused(message: Request | Reply) -> None:
    """A value too large for its field is refused when encoding, not cut."""
    with pytest.raises(ProtocolError, match="does not fit"):
        encode(message)


def test_unknown_result_code_is_refused() -> None:
    """A result code of another release is an error, not a number passed on."""
    packet = bytearray(encode(WriteResult(1, 0, 0, ResultCode.OK, 0, 0, 0)))
    packet[9] = 200
    with pytest.raises(ProtocolError, match="200"):
        decode_reply(bytes(packet))


def test_every_result_code_has_words() -> None:
    """A result can always be shown to people."""
    assert all(code.text for code in ResultCode)
