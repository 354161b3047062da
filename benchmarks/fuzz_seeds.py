"""Valid inputs to begin with, and how they are changed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgpack
from perseus_hooks.events import (
    INSTRUCTIONS,
    TIME_SOURCES,
    Event,
    Goodbye,
    Hello,
    Introduce,
    Refusal,
    StageEnd,
    StageStart,
    Welcome,
)
from perseus_hooks.wire import encode

EDGES = bytes.fromhex(
    "00 01 7f 80 8f 90 9f a0 bf c0 c1 c2 c3 c4 c7 ca cb cc cf d0 d3 d9 dc dd de df e0 ff"
)
"""Where msgpack's and UTF-8's ranges begin and end, and its every kind of header."""

INTEGERS = (0, 1, 2**7, 2**8 - 1, 2**16, 2**20 - 1, 2**20, 2**31, 2**32, 2**53, 2**63 - 1, 2**63)
TEXTS = ("a", "trainer", "é" * 128, "a" * 256, "a" * 257, "\x1b[31m", "\u202e", "\ud7ff", "")


def mutated(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, changed by one to four steps; now and then as it is."""
    data = bytearray(seeds[random.randrange(len(seeds))])
    for _ in range(random.randrange(5)):
        _step(random, data, seeds)
    return bytes(data)


def _step(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    choice = random.randrange(10)
    at = random.randrange(len(data) + 1)
    if choice < 3 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif choice < 5 and at < len(data):
        data[at] = EDGES[random.randrange(len(EDGES))]
    elif choice == 5:
        data[at:at] = random.randbytes(random.randrange(1, 9))
    elif choice == 6:
        del data[at : at + random.randrange(1, 9)]
    elif choice == 7:
        data[at:at] = data[at : at + random.randrange(1, 17)]
    elif choice == 8:
        other = seeds[random.randrange(len(seeds))]
        data[at:] = other[random.randrange(len(other) + 1) :]
    else:
        del data[at:]


def wire_seeds(random: Random, count: int = 4000) -> list[bytes]:
    """Events of every kind, and arrays that are almost events."""
    made = [encode(_event(random)) for _ in range(count // 2)]
    return made + [_almost(random, made) for _ in range(count // 2)]


def _event(random: Random) -> Event:
    whole, count = random.choice(INTEGERS[:-1]), random.randrange(2**20)
    kind = random.randrange(8)
    if kind < 3:
        return _hello(random)
    if kind < 5:
        instruction = random.choice(INSTRUCTIONS)
        stage, iteration = random.choice((None, count)), random.choice((None, whole))
        return StageStart(whole, whole, count, instruction, count, 0, stage, iteration)
    if kind == 5:
        return StageEnd(whole, whole, count)
    return random.choice((Goodbye(whole, count), Welcome(), Introduce(), Refusal("code", "why")))


def _hello(random: Random) -> Hello:
    places = random.randrange(1, 64)
    place = random.randrange(places)
    return Hello(
        job=random.choice(TEXTS[:4]),
        rank=place,
        world_size=random.choice((None, places)),
        local_rank=random.choice((None, place)),
        stage=random.choice((None, place)),
        stages=random.choice((None, places)),
        replica=random.choice((None, 0)),
        replicas=random.choice((None, 1)),
        schedule=random.choice((None, "1f1b")),
        gpus=tuple(f"GPU-{number}" for number in range(random.randrange(9))),
        time_source=random.choice(TIME_SOURCES),
        uses_cuda=random.random() < 0.5,
        slowdown_budget=random.choice((None, 0.0, 0.25, 1.0)),
        hostname="node",
    )


def _almost(random: Random, made: Sequence[bytes]) -> bytes:
    """One field replaced, left out or added."""
    values = msgpack.unpackb(random.choice(made))
    at = random.randrange(len(values) + 1)
    if random.random() < 0.2:
        del values[at:]
    else:
        values[at : at + random.randrange(2)] = [_value(random)]
    packed: bytes = msgpack.packb(values)
    return packed


def _value(random: Random, depth: int = 0) -> Any:
    plain = (
        random.choice(INTEGERS),
        -random.choice(INTEGERS[:-1]),
        random.choice(TEXTS),
        random.randbytes(3),
        random.choice((None, True, False)),
        random.choice((0.5, 1.5, -0.0, float("nan"), float("inf"))),
    )
    kind = random.randrange(8 if depth < 3 else 6)
    if kind < 6:
        return plain[kind]
    inner = [_value(random, depth + 1) for _ in range(random.randrange(4))]
    return inner if kind == 6 else {"key": inner}
