"""A sample of benchmarks/fuzz.py: parsers of what others wrote neither crash nor take forgeries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from perseusd.clock import protocol

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module("fuzz")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("name", "inputs", "kinds"),
    [
        ("wire", 60_000, set("hsegwir")),
        ("clock", 30_000, {message.__name__ for message in protocol._LAYOUTS}),
        ("control", 4_000, {"ok"}),
        ("config", 1_000, {"config"}),
        ("recording", 4_000, {"inputs"}),
    ],
)
def test_a_sample(fuzz: ModuleType, name: str, inputs: int, kinds: set[str]) -> None:
    """No crash, no forgery; and every kind is accepted often enough to have been tried."""
    target = next(target for target in fuzz.TARGETS if target.name == name)
    outcome = fuzz.fuzz(target, inputs, seed=2)
    assert outcome.clean, "\n".join(outcome.failures)
    assert kinds <= set(outcome.accepted)
    assert min(outcome.accepted[kind] for kind in kinds) >= 10


def test_what_the_judges_call_a_forgery(fuzz: ModuleType, monkeypatch) -> None:
    """A parser that takes a field for something else, or raises what it should not, is found."""
    targets = import_module("fuzz_targets")
    honest = targets.decode
    wire = next(target for target in targets.TARGETS if target.name == "wire")

    def forging(data: bytes) -> object:
        event = honest(data)
        if isinstance(event, targets.Hello):
            object.__setattr__(event, "rank", event.rank + 1)
        return event

    monkeypatch.setattr(targets, "decode", forging)
    found = fuzz.fuzz(wire, 500, seed=1)
    assert found.forgeries > 10
    assert not found.clean
    monkeypatch.setattr(targets, "decode", lambda data: 1 / 0)
    assert fuzz.fuzz(wire, 50, seed=1).crashes == 50
