"""What iterations took and used, sorted by what the job was doing."""

from __future__ import annotations

import pytest

from perseusd.core.iterations import JobIteration
from perseusd.core.ledger import Ledger
from perseusd.core.tracking import RankIteration, Span, Step

S = 1_000_000_000


def iteration(number: int, start_ns: int, length_ns: int) -> JobIteration:
    span = Span(Step(0, "forward", 0), start_ns, start_ns + length_ns)
    return JobIteration(number, (RankIteration(number, (span,)),))


def lived(watts: dict[str, float], phases: list[str], gpus: tuple[str, ...] = ("A",)) -> Ledger:
    """Iterations of 1 s, 0.9 s of it computing, at the phase's watts per GPU."""
    ledger, joules = Ledger(), 0.0
    for number, phase in enumerate(phases):
        for part in range(20):
            for uuid in gpus:
                ledger.poll(uuid, number * S + part * S // 20, joules)
            joules += watts[phase] / 20
        ledger.iteration(iteration(number, number * S, S * 9 // 10), phase, gpus)
    return ledger


def test_an_iteration_lasts_until_the_next_one_starts() -> None:
    """What no span covers belongs to it; the last one is still open and is not counted."""
    ledger = lived({"baseline": 100.0}, ["baseline"] * 5)
    assert ledger.count("baseline") == 4
    sample = ledger.sample("baseline")
    assert sample is not None
    assert sample.mean == 1.0
    assert ledger.makespan_s("baseline") == pytest.approx(0.9)


def test_saving_and_slowdown_compare_hold_with_baseline() -> None:
    """Ten per cent less power at the same time over two GPUs, and the joules that it makes."""
    phases = ["baseline"] * 8 + ["hold"] * 12
    ledger = lived({"baseline": 100.0, "hold": 90.0}, phases, ("A", "B"))
    saving, slowdown = ledger.saving(), ledger.slowdown()
    assert saving is not None
    assert slowdown is not None
    assert saving.value == pytest.approx(0.1, abs=0.01)
    assert saving.low <= saving.value <= saving.high
    assert slowdown.value == pytest.approx(0.0, abs=1e-9)
    assert ledger.energy_saved_j == pytest.approx(
        20 * len(ledger._energies["hold"].values), rel=0.2
    )


def test_an_iteration_that_was_missed_is_not_counted_into_its_neighbours() -> None:
    """After a gap in numbers or an interruption the time between is nobody's."""
    ledger = Ledger()
    for number, at in ((0, 0), (1, 1), (3, 3), (4, 4)):
        ledger.iteration(iteration(number, at * S, S // 2), "baseline", ())
    assert [ledger.count("baseline"), ledger.last and ledger.last.number] == [2, 3]
    ledger.interrupt()
    assert ledger.iteration(iteration(5, 50 * S, S // 2), "baseline", ()) is None
    assert ledger.count("baseline") == 2


def test_an_unread_counter_leaves_energy_unknown() -> None:
    """Times are kept; no saving is claimed."""
    ledger = Ledger()
    for number in range(6):
        phase = "baseline" if number < 3 else "hold"
        record = ledger.iteration(iteration(number, number * S, S // 2), phase, ("A",))
        assert record is None or record.energy_j is None
    assert ledger.saving() is None
    assert ledger.energy_saved_j == 0


def test_dropping_a_phase_measures_it_anew_and_clearing_keeps_saved_joules() -> None:
    """A breached baseline is forgotten alone; joules once saved stay saved."""
    ledger = lived({"baseline": 100.0, "hold": 80.0}, ["baseline"] * 5 + ["hold"] * 5)
    saved = ledger.energy_saved_j
    assert saved > 50
    ledger.drop("baseline")
    assert ledger.sample("baseline") is None
    assert ledger.count("hold") > 0
    ledger.clear()
    assert ledger.count("hold") == 0
    assert ledger.energy_saved_j == saved
