"""Foreign writers: suspected by what contradicts our intent, never where power or heat explains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.foreign import (
    FRESH_NS,
    GONE_NS,
    LOOKED_AT,
    MOST,
    ForeignWatch,
    Intent,
    Reading,
)

TOP = 1410
STEP_NS = 250_000_000
FULL = Intent(None, 0)


class Reads:
    """A watch, and readings of it at the sampler's pace."""

    def __init__(self, full_mhz: int = TOP) -> None:
        self.watch = ForeignWatch(full_mhz)
        self.now_ns = STEP_NS

    def see(
        self, clock_mhz: int, intent: Intent | None = FULL, times: int = 1, limited: bool = False
    ) -> int | None:
        for _ in range(times):
            self.watch.read(Reading(self.now_ns, clock_mhz, limited), intent)
            self.now_ns += STEP_NS
        return self.watch.suspected_mhz


@pytest.fixture
def reads() -> Reads:
    return Reads()


def test_a_lock_where_none_is_asked(reads: Reads) -> None:
    """After some loaded readings far below full; a single one, or few, say nothing."""
    assert reads.see(1005, times=MOST - 1) is None
    assert reads.see(1005) == 1005
    assert reads.watch.agrees(reads.now_ns) is False


@pytest.mark.parametrize(("clock_mhz", "suspected"), [(1005, 1005), (1410, 1410), (1200, None)])
def test_another_clock_than_ours(reads: Reads, clock_mhz: int, suspected: int | None) -> None:
    """Below ours, or back at full though ours was seen to work: another tool; as asked: nobody."""
    assert reads.see(1200, Intent(1200, 0), times=LOOKED_AT) is None
    assert reads.see(clock_mhz, Intent(1200, 0), times=LOOKED_AT) == suspected


def test_a_gpu_that_obeys_nobody_is_no_foreign_writer(reads: Reads) -> None:
    """No lock has ever moved it: it differs, and no other tool is blamed."""
    assert reads.see(1410, Intent(1200, 0), times=5 * LOOKED_AT) is None
    assert reads.watch.agrees(reads.now_ns) is False


def test_what_power_or_heat_explains_is_nobodys_lock(reads: Reads) -> None:
    """With a reason bit, during our own writes, and just after them: not compared."""
    reads.see(900, times=5 * LOOKED_AT, limited=True)
    reads.see(900, None, times=5 * LOOKED_AT)
    reads.see(900, Intent(None, 10**15), times=5 * LOOKED_AT)
    assert reads.watch.suspected_mhz is None
    assert reads.watch.agrees(reads.now_ns) is None


def test_a_gpu_that_never_reaches_its_highest_clock(reads: Reads) -> None:
    """Full is what it shows when it is free; well below that, something holds it."""
    assert reads.see(1260, times=3 * LOOKED_AT) is None
    assert reads.see(1155, times=LOOKED_AT) == 1155


def test_clocks_that_wander_are_no_lock(reads: Reads) -> None:
    """A lock pins the clock: contradictions that differ from each other are none."""
    for step in range(10 * LOOKED_AT):
        reads.see(600 + 90 * (step % 5))
    assert reads.watch.suspected_mhz is None


def test_respected_until_it_is_gone(reads: Reads) -> None:
    """Full clock for a while ends it; the next time it has to be twice as long."""
    for patience in (1, 2):
        reads.see(1005, times=LOOKED_AT)
        assert reads.see(TOP, times=patience * GONE_NS // STEP_NS) is not None
        assert reads.see(TOP) is None


def test_one_look_below_full_starts_the_wait_anew(reads: Reads) -> None:
    """Unless the GPU's own limits explain it."""
    reads.see(1005, times=LOOKED_AT)
    reads.see(TOP, times=GONE_NS // STEP_NS)
    reads.see(900, limited=True)
    reads.see(1005)
    assert reads.see(TOP, times=GONE_NS // STEP_NS) is not None


def test_an_operators_word_ends_it_at_once(reads: Reads) -> None:
    """And what was seen before counts no more."""
    reads.see(1005, times=LOOKED_AT)
    reads.watch.forgive()
    assert reads.see(1005, times=MOST - 1) is None


def test_a_standing_lock_is_full_clock() -> None:
    """The site's own lock is no foreign one; below it, there is one."""
    reads = Reads(full_mhz=1200)
    assert reads.see(1200, times=3 * LOOKED_AT) is None
    assert reads.watch.agrees(reads.now_ns) is True
    assert reads.see(900, times=LOOKED_AT) == 900


def test_what_was_seen_long_ago_tells_nothing(reads: Reads) -> None:
    """A GPU that has not computed for a minute neither agrees nor differs."""
    reads.see(TOP, times=LOOKED_AT)
    assert reads.watch.agrees(reads.now_ns) is True
    assert reads.watch.agrees(reads.now_ns + FRESH_NS) is None


clocks = st.sampled_from(range(705, TOP + 1, 15))


@given(st.lists(st.tuples(clocks, st.integers(1, 6)), max_size=40), st.randoms())
def test_a_gpu_that_does_as_it_is_told_is_never_suspected(runs, random) -> None:
    """Whatever we write, in whatever rhythm; limits of its own and readings during writes too."""
    reads = Reads()
    for clock_mhz, times in runs:
        written = None if clock_mhz == TOP else clock_mhz
        since_ns = reads.now_ns + STEP_NS // 2
        reads.see(random.choice((705, TOP)), None)
        for _ in range(times):
            if random.random() < 0.2:
                reads.see(random.randrange(300, clock_mhz), Intent(written, since_ns), limited=True)
            else:
                reads.see(clock_mhz, Intent(written, since_ns))
    assert reads.watch.suspected_mhz is None


@given(clocks, st.integers(210, 690))
def test_a_lock_that_stays_is_always_found(clock_mhz: int, theirs_mhz: int) -> None:
    """Within LOOKED_AT comparable readings, whatever we have written."""
    reads = Reads()
    written = None if clock_mhz == TOP else clock_mhz
    reads.see(clock_mhz, Intent(written, 0), times=LOOKED_AT)
    assert reads.see(theirs_mhz, Intent(written, 0), times=LOOKED_AT) == theirs_mhz
