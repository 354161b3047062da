"""What iterations took and used, sorted by what the job was doing."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.events.iterations import JobIteration
from perseusd.core.events.tracking import RankIteration, Span, Step
from perseusd.core.savings.ledger import Ledger

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
        ledger.iteration(iteration(number, number * S, S * 9 // 10), phase, [gpus])
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
    assert ledger.energy_saved_j == pytest.approx(20 * ledger.count("hold"), rel=0.2)


def test_an_iteration_that_was_missed_is_not_counted_into_its_neighbours() -> None:
    """After a gap in numbers or an interruption the time between is nobody's."""
    ledger = Ledger()
    for number, at in ((0, 0), (1, 1), (3, 3), (4, 4)):
        ledger.iteration(iteration(number, at * S, S // 2), "baseline", [()])
    assert [ledger.count("baseline"), ledger.last and ledger.last.number] == [2, 3]
    ledger.interrupt()
    assert ledger.iteration(iteration(5, 50 * S, S // 2), "baseline", [()]) is None
    assert ledger.count("baseline") == 2


def test_an_unread_counter_leaves_energy_unknown() -> None:
    """Times are kept; no saving is claimed."""
    ledger = Ledger()
    for number in range(6):
        phase = "baseline" if number < 3 else "hold"
        record = ledger.iteration(iteration(number, number * S, S // 2), phase, [("A",)])
        assert record is None or record.energy_j is None
    assert ledger.saving() is None
    assert ledger.energy_saved_j is None


def test_dropping_a_phase_measures_it_anew_and_clearing_keeps_saved_joules() -> None:
    """A breached baseline is forgotten alone; joules once saved stay saved."""
    ledger = lived({"baseline": 100.0, "hold": 80.0}, ["baseline"] * 5 + ["hold"] * 8)
    saved = ledger.energy_saved_j
    assert saved is not None
    assert saved > 50
    ledger.drop("baseline")
    assert ledger.sample("baseline") is None
    assert ledger.count("hold") > 0
    ledger.clear()
    assert ledger.count("hold") == 0
    assert ledger.energy_saved_j == saved


LEARNT = ["baseline"] * 6 + ["learn"] * 4 + ["hold"] * 10


def test_learning_and_changes_of_plans_are_paid_for() -> None:
    """Sixteen held iterations saved 10 J each, learning cost 4 × 20 J, one change saved 40 J."""
    watts = {"baseline": 100.0, "learn": 120.0, "hold": 90.0, "change": 60.0}
    ledger = lived(watts, [*LEARNT, "change", *["hold"] * 7])
    saved = ledger.savings().energy_saved_j
    assert saved is not None
    assert saved.value == pytest.approx(16 * 10 - 4 * 20 + 40, abs=8)
    assert saved.low < saved.value < saved.high


def test_reference_windows_are_counted_and_what_they_cost_is_told() -> None:
    """One of eleven held iterations, and 5 J of the 10 in the iteration after it."""
    watts = {"baseline": 100.0, "learn": 100.0, "hold": 90.0, "reference": 100.0, "change": 95.0}
    ledger = lived(watts, [*LEARNT, "reference", "change", *["hold"] * 10])
    told = ledger.savings()
    assert told.references == 1
    assert told.reference_cost == pytest.approx(15 / 210, abs=0.01)
    assert told.saving is not None
    assert told.saving.value == pytest.approx(0.1, abs=0.003)


def test_iterations_behind_a_straggler_count_for_nothing() -> None:
    """What waiting uses has nothing to compare it with."""
    watts = {"baseline": 100.0, "learn": 100.0, "hold": 90.0, "straggler": 10.0}
    with_it = lived(watts, [*LEARNT, *["straggler"] * 5, *["hold"] * 7]).savings()
    assert with_it.energy_saved_j is not None
    assert with_it.energy_saved_j.value == pytest.approx(16 * 10, abs=3)


def test_a_stall_weighs_in_the_shares_and_not_in_the_comparison() -> None:
    """A held iteration of 1.5 times the energy saved what the others did, of more in all."""
    watts = {"baseline": 100.0, "learn": 100.0, "hold": 90.0, "stalled": 135.0}
    phases = [*LEARNT, *["hold"] * 20]
    ledger, joules = Ledger(), 0.0
    for number, phase in enumerate(phases):
        drawn = watts["stalled" if number == 20 else phase]
        for part in range(20):
            ledger.poll("A", number * S + part * S // 20, joules)
            joules += drawn / 20
        ledger.iteration(iteration(number, number * S, S * 9 // 10), phase, [["A"]])
    told = ledger.savings()
    assert told.saving is not None
    assert told.saving.value == pytest.approx(290 / (29 * 100 + 45), abs=0.002)


def test_what_was_saved_before_a_job_changed_is_added_with_its_uncertainty() -> None:
    """Nothing is known of the new job yet; then both are there."""
    watts = {"baseline": 100.0, "learn": 100.0, "hold": 90.0}
    ledger = lived(watts, LEARNT)
    before = ledger.savings()
    ledger.clear()
    assert ledger.savings().saving is None
    assert ledger.savings().energy_saved_j == before.energy_saved_j
    joules = 5000.0
    for number, phase in enumerate(LEARNT, start=40):
        for part in range(20):
            ledger.poll("A", number * S + part * S // 20, joules)
            joules += watts[phase] / 20
        ledger.iteration(iteration(number, number * S, S * 9 // 10), phase, [["A"]])
    assert before.energy_saved_j is not None
    assert ledger.energy_saved_j == pytest.approx(2 * before.energy_saved_j.value, rel=0.1)


def noisy(seed: int) -> tuple[Ledger, float]:
    """A job of 5 baseline, 6 learning and 60 held iterations at 1 % noise, and its true saving."""
    random = np.random.default_rng(seed)
    phases = ["baseline"] * 5 + ["learn"] * 6 + ["hold"] * 61
    lengths_s = 0.6 * np.exp(random.normal(0, 0.01, len(phases)))
    watts = np.array([180.0 if phase == "hold" else 200.0 for phase in phases])
    starts_s = np.cumsum([0.0, *(lengths_s + 0.02)])[:-1]
    edges_s = np.column_stack([starts_s, starts_s + lengths_s]).ravel()
    used_j = np.cumsum(np.column_stack([np.full(len(phases), 1.0), lengths_s * watts]).ravel())
    ledger, told_ns = Ledger(), 0
    for number, (start_s, length_s) in enumerate(zip(starts_s, lengths_s, strict=True)):
        end_ns = round((start_s + length_s) * S)
        while told_ns < end_ns:
            ticked_s = told_ns // (S // 20) * 0.05
            ledger.poll("A", told_ns, float(np.interp(ticked_s, edges_s, used_j)))
            told_ns += S // 50
        whole = iteration(number, round(start_s * S), round(length_s * S))
        ledger.iteration(whole, phases[number], [["A"]])
    held_s, gap_j = lengths_s[11:-1].sum(), 60 * 1.0
    return ledger, 1 - (held_s * 180 + gap_j) / (held_s * 200 + gap_j)


def test_the_stated_interval_holds_the_true_saving() -> None:
    """Thirty seeded jobs, counters and all: as often as chance allows at 95 %, and narrow enough
    to be of use. The whole suite is benchmarks/savings.py."""
    covered, widths = 0, []
    for seed in range(30):
        ledger, true = noisy(seed)
        saving = ledger.saving()
        assert saving is not None
        covered += saving.low <= true <= saving.high
        widths.append(saving.high - saving.low)
    assert covered >= 26
    assert np.median(widths) / 2 < 0.018
