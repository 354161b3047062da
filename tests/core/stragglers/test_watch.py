"""Who is told to be slow, and who is not, in jobs whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from perseusd.core.stragglers import Observation, Straggler, Watch


def fed(observations: Iterable[Observation]) -> Watch:
    watch = Watch()
    for observation in observations:
        watch.observe(observation)
    return watch


def named(stragglers: Iterable[Straggler]) -> list[tuple[int | None, int | None]]:
    return [(s.replica, s.rank) for s in stragglers]


def slow_from(start: int, replica: int, rank: int | None, factor: float, end: int = 10**9):  # type: ignore[no-untyped-def]
    def slow(number: int, of: int, on: int) -> float:
        here = of == replica and rank in (None, on) and start <= number < end
        return factor if here else 1.0

    return slow


def test_a_rank_is_found_in_its_second_slow_iteration_and_its_end_in_the_first(job: type) -> None:
    """One replica, 1.2×: begun after two iterations, ended after one, both dated exactly."""
    watch = Watch()
    told = [
        (observation.number, straggler)
        for observation in job().run(range(60), slow_from(30, 0, 2, 1.2, 50))
        for straggler in watch.observe(observation)
    ]
    begun, ended = told[0], told[-1]
    assert begun[0] == 31
    assert (begun[1].replica, begun[1].stage, begun[1].rank) == (0, 2, 2)
    assert begun[1].since_iteration == 30
    assert begun[1].until_iteration is None
    assert begun[1].cause == "compute"
    assert ended[0] == 50
    assert ended[1].until_iteration == 49
    assert ended[1].factor == pytest.approx(1.2, abs=0.02)
    assert not ended[1].transient
    assert watch.current() == []
    assert named(watch.history()) == [(0, 2)]


def test_long_microbatches_are_not_a_slow_rank_and_do_not_hide_one(job: type) -> None:
    """With lengths that vary by 30 %, only the rank that is slow among its own is named."""
    varying = job(ranks=4)
    varying.lengths = 0.3
    assert fed(varying.run(range(80))).history() == []
    watch = fed(varying.run(range(60), slow_from(30, 0, 1, 1.15)))
    assert named(watch.history()) == [(0, 1)]
    assert watch.current()[0].since_iteration <= 32


def test_two_stages_and_varying_lengths_still_tell_which_is_slow(job: type) -> None:
    """Of two ranks that part, the one that grew is slow: nothing becomes fast by itself."""
    for rank in (0, 1):
        varying = job(ranks=2, microbatches=8)
        varying.lengths = 0.2
        watch = fed(varying.run(range(50), slow_from(30, 0, rank, 1.3)))
        assert named(watch.history()) == [(0, rank)]


def test_one_stage_is_judged_by_its_own_past(job: type) -> None:
    """A plain data-parallel job with one computation per iteration: rank 0 of the slow replica."""
    watch = fed(job(replicas=2, ranks=1, microbatches=1).run(range(60), slow_from(40, 1, 0, 1.3)))
    assert named(watch.current()) == [(1, 0)]


def test_a_whole_replica_is_named_as_such(job: type) -> None:
    """All its ranks alike slow, the peers not: no single rank is blamed."""
    watch = fed(job(replicas=2).run(range(60), slow_from(40, 1, None, 1.3)))
    (straggler,) = watch.current()
    assert (straggler.replica, straggler.stage, straggler.rank) == (1, None, None)
    assert straggler.cause == "replica"


def test_what_happens_to_all_replicas_is_not_a_straggler(job: type) -> None:
    """The work itself grew by 30 % everywhere: nobody is behind anybody."""
    watch = fed(job(replicas=3).run(range(80), lambda n, *_: 1.3 if n >= 40 else 1.0))
    assert watch.history() == []
    watch = fed(job(replicas=2).run(range(80), lambda n, *_: 1.3 if n >= 40 else 1.0))
    assert watch.history() == []


def test_replicas_tell_who_was_slow_from_the_start(job: type) -> None:
    """Without a past, the median peer is the reference; of two replicas it is the faster one, for
    a rank that takes much longer while its replica's other ranks do not. A replica that is slow as
    a whole, or a smaller difference, is nothing that two can tell."""
    watch = fed(job(replicas=3).run(range(3), slow_from(0, 1, 0, 2.0)))
    assert named(watch.current()) == [(1, 0)]
    assert watch.current()[0].since_iteration == 0
    for factor in (1.3, 2.0):
        watch = fed(job(replicas=2).run(range(20), slow_from(0, 1, 0, factor)))
        assert named(watch.current()) == [(1, 0)]
    assert fed(job(replicas=2).run(range(60), slow_from(0, 1, 0, 1.1))).history() == []
    assert fed(job(replicas=2).run(range(60), slow_from(0, 1, None, 2.0))).history() == []


def test_a_rank_that_was_slow_from_the_start_may_recover_without_anybody_being_blamed(
    job: type,
) -> None:
    """It becomes faster than its reference; neither its peer nor its neighbours are slow. With
    peers it was named until then."""
    alone = job(replicas=1, ranks=2).run(range(80), slow_from(0, 0, 0, 1.6, 40))
    assert fed(alone).history() == []
    for replicas in (2, 3):
        with_peers = job(replicas=replicas, ranks=2).run(range(80), slow_from(0, 0, 0, 1.6, 40))
        history = fed(with_peers).history()
        assert named(history) == [(0, 0)]
        assert history[0].until_iteration == 39


def test_a_slow_ramp_is_found_before_it_ends(job: type) -> None:
    """Thermal drift over 60 iterations to 1.2×: the reference does not follow it."""

    def ramp(number: int, replica: int, rank: int) -> float:
        return 1 + 0.2 * min(max(number - 30, 0), 60) / 60 if rank == 1 else 1.0

    watch = Watch()
    begun = [
        observation.number
        for observation in job().run(range(120), ramp)
        if any(s.until_iteration is None for s in watch.observe(observation))
    ]
    assert named(watch.history()) == [(0, 1)]
    assert begun[0] <= 30 + 60 * 0.6


def test_our_own_error_is_never_a_straggler(job: type) -> None:
    """At lowered clocks, 3 % too slow here and 3 % too fast there, changing with each plan."""

    def error(number: int, replica: int, rank: int) -> float:
        if number < 20:
            return 1.0
        return 1 + 0.03 * ((number // 15 * 7 + rank * 5 + replica * 3) % 3 - 1)

    for replicas in (1, 2, 3):
        assert fed(job(replicas=replicas).run(range(150), error)).history() == []


def test_a_factor_at_the_threshold_does_not_flap(job: type) -> None:
    """1.07× under noise, a thousand iterations: begun at most a few times."""
    noisy = job(ranks=2)
    noisy.noise = 0.03
    watch = fed(noisy.run(range(700), slow_from(30, 0, 0, 1.07)))
    assert len(watch.history()) <= 3


def test_single_hiccups_are_not_stragglers(job: type) -> None:
    """Every seventh iteration one rank takes twice as long: no spell."""
    watch = fed(job().run(range(120), lambda n, _, rank: 2.0 if n % 7 == 0 and rank == 1 else 1.0))
    assert watch.history() == []


def test_few_slow_iterations_are_transient_and_a_gap_is_no_end(job: type) -> None:
    """Four iterations stay transient; ten with a gap of two are one spell."""
    assert fed(job().run(range(60), slow_from(30, 0, 1, 1.5, 34))).history()[0].transient

    def gap(number: int, replica: int, rank: int) -> float:
        return 1.5 if rank == 1 and 30 <= number < 42 and number not in (35, 36) else 1.0

    (spell,) = fed(job().run(range(60), gap)).history()
    assert (spell.since_iteration, spell.until_iteration) == (30, 41)
    assert not spell.transient


def test_ranks_whose_correction_is_not_trusted_are_not_judged(job: type) -> None:
    """A rank that only seems slow while its clock is being tried out is never named."""
    plain = job()
    watch = Watch()
    for number in range(90):
        trying = 30 <= number < 60
        seen = plain.iteration(
            number,
            0,
            slow_from(30, 0, 1, 1.4, 60),
            uncertain=frozenset({1}) if trying else frozenset(),
        )
        assert watch.observe(seen) == []


def test_forgetting_a_replica_starts_its_references_anew(job: type) -> None:
    """After a change of batch size, told by forget, the new times are nobody's slowness."""
    plain = job()
    watch = fed(plain.run(range(40), slow_from(30, 0, 1, 1.5)))
    assert named(watch.current()) == [(0, 1)]
    watch.forget(0)
    assert watch.current() == []
    assert watch.history()[0].until_iteration == 39
    for observation in plain.run(range(40, 90), lambda *_: 2.0):
        assert watch.observe(observation) == []


def test_numbers_may_jump_start_again_and_replicas_come_late(job: type) -> None:
    """Numbering is only told on; a replica that joins later is judged like the others."""
    plain = job(replicas=3)
    watch = Watch()
    for number in [*range(30), *range(100, 130), *range(20)]:
        for replica in (2, 0):
            assert watch.observe(plain.iteration(number, replica)) == []
    slow = slow_from(0, 1, 3, 1.5)
    for number in range(20, 25):
        for replica in (1, 0, 2):
            watch.observe(plain.iteration(number, replica, slow))
    assert named(watch.current()) == [(1, 3)]


def test_a_replica_that_fell_silent_does_not_excuse_the_others(job: type) -> None:
    """Its last iteration was a slow one; when the other slows down much later, that is its own."""
    plain = job(replicas=2)
    watch = fed(plain.run(range(40), slow_from(39, 1, None, 1.6)))
    for number in range(40, 80):
        watch.observe(plain.iteration(number, 0, slow_from(60, 0, None, 1.3)))
    (straggler,) = watch.current()
    assert (straggler.replica, straggler.cause) == (0, "replica")
    assert straggler.since_iteration == 60


def test_a_change_of_kinds_is_another_job(job: type) -> None:
    """Other ranks or instructions than before: references anew, nobody slow."""
    watch = fed(job(ranks=4).run(range(40)))
    for observation in job(ranks=2).run(range(40, 80), lambda *_: 3.0):
        assert watch.observe(observation) == []


@pytest.mark.parametrize(
    ("reasons", "cause"),
    [
        ({"sw_thermal"}, "thermal"),
        ({"hw_slowdown", "hw_thermal"}, "thermal"),
        ({"power_brake", "hw_slowdown"}, "power_brake"),
        ({"hw_slowdown"}, "hardware_slowdown"),
        (set(), "compute"),
    ],
)
def test_the_cause_is_the_reason_that_came_with_it(
    job: type, reasons: set[str], cause: str
) -> None:
    """A power cap that was active all along explains nothing; what came with the slowness does."""
    plain = job()
    watch = Watch()
    for number in range(45):
        active = {"sw_power_cap"} | (reasons if number >= 30 else set())
        told = {0: frozenset({"sw_power_cap"}), 1: frozenset(active)}
        watch.observe(plain.iteration(number, 0, slow_from(30, 0, 1, 1.3), reasons=told))
    assert [s.cause for s in watch.current()] == [cause]


def test_a_power_cap_that_becomes_active_is_a_cause(job: type) -> None:
    """The same reason, but new with the slowness."""
    plain = job()
    watch = Watch()
    for number in range(45):
        active = {1: frozenset({"sw_power_cap"} if number >= 30 else set())}
        watch.observe(plain.iteration(number, 0, slow_from(30, 0, 1, 1.3), reasons=active))
    assert [s.cause for s in watch.current()] == ["power_cap"]


def test_a_slow_link_is_communication_and_names_its_lower_rank(job: type) -> None:
    """Lags between ranks 2 and 3 grow until the iteration is a fifth longer; ranks are well."""
    plain = job()
    watch = Watch()
    for number in range(50):
        lags = {}
        for rank in range(3):
            slow = 0.01 if rank == 2 and number >= 30 else 0.0
            lags[rank, rank + 1, "forward"] = 0.001 + slow
            lags[rank + 1, rank, "backward"] = 0.001 + slow
        watch.observe(plain.iteration(number, 0, lags=lags, time_s=0.6))
    (straggler,) = watch.current()
    assert (straggler.rank, straggler.cause) == (2, "communication")
    assert straggler.factor == pytest.approx(1 + 2 * 6 * 0.01 / 0.6, abs=0.01)
    assert straggler.since_iteration == 30


def test_clocks_of_two_hosts_that_drift_apart_are_not_a_slow_link(job: type) -> None:
    """One direction's lag seems to grow as the other's shrinks: their sum tells the truth."""
    plain = job()
    watch = Watch()
    for number in range(200):
        drift = 2e-5 * number
        lags = {(0, 1, "forward"): 0.01 + drift, (1, 0, "backward"): 0.01 - drift}
        watch.observe(plain.iteration(number, 0, lags=lags, time_s=0.6))
    assert watch.history() == []


def test_the_worst_comes_first_and_all_are_kept_in_order(job: type) -> None:
    """Two slow ranks at once: current by factor, history by onset."""

    def slow(number: int, replica: int, rank: int) -> float:
        if number >= 30 and rank == 0:
            return 1.2
        return 1.6 if number >= 35 and rank == 3 else 1.0

    watch = fed(job(ranks=6).run(range(50), slow))
    assert named(watch.current()) == [(0, 3), (0, 0)]
    assert named(watch.history()) == [(0, 0), (0, 3)]


def test_the_same_observations_give_the_same_reports(job: type) -> None:
    """Deterministic: a replayed recording tells the same."""

    def reports(make: Callable[[], Iterable[Observation]]) -> list[list[Straggler]]:
        watch = Watch()
        return [watch.observe(observation) for observation in make()]

    def stream() -> Iterable[Observation]:
        return job(replicas=2).run(range(50), slow_from(30, 1, 2, 1.1))

    assert reports(stream) == reports(stream)
