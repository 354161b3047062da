"""A mutation fuzzer for what parses what somebody else wrote. Seeded: the same each time.

    python benchmarks/fuzz.py [--only wire] [--inputs N] [--seed S] [--json]

Each target takes valid inputs, changes them a little or a lot (`fuzz_seeds`), and looks at what
becomes of them. A *crash* is any exception but the documented one. A *forgery* is an input that is
taken for something that its bytes do not say: each target's judge reads them by itself.

    wire      a training process's message: WireError, or an event of exactly the fields sent
    clock     a packet to or from perseusd-clock: ProtocolError, or a message of these very bytes
    control   a request to the control and status sockets: an answer that is JSON, and "ok" for
              nobody but who may control
    config    a configuration file: ConfigurationError, or values that each option allows
    recording a file of `perseusctl record`: ValueError, or inputs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_seeds import mutated
from fuzz_targets import TARGETS, ForgeryError, Target

USUAL = {"wire": 10_000_000, "clock": 2_000_000, "control": 200_000, "config": 60_000}
FEWEST = 200_000
KEPT_FAILURES = 5


@dataclass
class Outcome:
    """What became of one target's inputs. accepted: by kind of what was accepted."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    accepted: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    forgeries: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.crashes and not self.forgeries

    def failed(self, data: bytes, error: BaseException) -> None:
        if len(self.failures) < KEPT_FAILURES:
            where = "".join(traceback.format_exception(error)[-2:])
            self.failures.append(f"{data!r}\n{where}")


def fuzz(target: Target, inputs: int, seed: int) -> Outcome:
    """Throw so many inputs at a target."""
    random = Random(f"{target.name} {seed}")
    outcome = Outcome(target.name, seed)
    began = time.perf_counter()
    with target.opened(random) as (seeds, judge):
        for _ in range(inputs):
            data = mutated(random, seeds)
            _throw(judge, data, outcome)
    outcome.inputs, outcome.seconds = inputs, round(time.perf_counter() - began, 1)
    return outcome


def _throw(judge: Callable[[bytes], str], data: bytes, outcome: Outcome) -> None:
    try:
        kind = judge(data)
    except ForgeryError as error:
        outcome.forgeries += 1
        outcome.failed(data, error)
    except Exception as error:  # noqa: BLE001 - finding these is what this is for
        outcome.crashes += 1
        outcome.failed(data, error)
    else:
        if kind:
            outcome.accepted[kind] += 1


def main() -> int:
    """0 where nothing crashed and nothing was forged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[target.name for target in TARGETS])
    parser.add_argument("--inputs", type=int, help="for each target (default: see USUAL)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    outcomes = []
    for target in TARGETS:
        if told.only in (None, target.name):
            count = told.inputs or USUAL.get(target.name, FEWEST)
            outcomes.append(fuzz(target, count, told.seed))
            if not told.json:
                _show(outcomes[-1])
    if told.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "targets": [vars(o) | {"accepted": dict(o.accepted)} for o in outcomes],
                }
            )
        )
    return int(not all(outcome.clean for outcome in outcomes))


def _show(outcome: Outcome) -> None:
    taken = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.accepted.items()))
    print(
        f"{outcome.target}: {outcome.inputs} inputs in {outcome.seconds} s, seed {outcome.seed}: "
        f"{outcome.crashes} crashes, {outcome.forgeries} forgeries; accepted: {taken or 'none'}",
        flush=True,
    )
    for failure in outcome.failures:
        print(failure, flush=True)


if __name__ == "__main__":
    sys.exit(main())
