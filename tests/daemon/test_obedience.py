"""Whether a GPU's clock follows what was asked: only readings that can be compared count."""

from __future__ import annotations

import pytest

from perseusd.daemon.obedience import LOOKED_AT, SETTLE_NS, Follows, Obedience
from perseusd.daemon.sampler import GpuState

UUID = "GPU-0"
ASKED = 1110


def seen(clock_mhz: int, *reasons: str, at_ns: int = 10 * SETTLE_NS) -> GpuState:
    return GpuState(UUID, at_ns, clock_mhz, frozenset(reasons))


@pytest.fixture
def locked() -> Obedience:
    """A GPU whose clock was locked a while ago."""
    obedience = Obedience()
    obedience.written(UUID, ASKED, 0)
    return obedience


@pytest.mark.parametrize(
    ("clock_mhz", "follows"),
    [(1110, Follows.YES), (1095, Follows.YES), (1410, Follows.ABOVE), (900, Follows.BELOW)],
)
def test_readings_that_agree_tell(locked, clock_mhz: int, follows: Follows) -> None:
    """As asked, a step beside it, far above, far below; nothing while there are few readings."""
    for _ in range(LOOKED_AT - 1):
        locked.read(seen(clock_mhz), ASKED)
    assert locked.follows(UUID) is None
    locked.read(seen(clock_mhz), ASKED)
    assert locked.follows(UUID) is follows


def test_single_readings_are_no_disobedience(locked) -> None:
    """A third of the readings elsewhere: it follows."""
    for n in range(3 * LOOKED_AT):
        locked.read(seen(1410 if n % 3 == 0 else 1110), ASKED)
    assert locked.follows(UUID) is Follows.YES


@pytest.mark.parametrize(
    ("state", "requested_mhz"),
    [
        (seen(1410, at_ns=SETTLE_NS - 1), ASKED),  # the write has just ended
        (seen(210, "idle"), ASKED),
        (seen(1410), None),  # not locked: it runs as it likes
        (seen(1410), 900),  # another clock was asked for, and is not written yet
    ],
)
def test_what_cannot_be_compared_is_not(locked, state: GpuState, requested_mhz) -> None:
    """Readings beside a write, of an idle GPU, of one that is not locked."""
    for _ in range(2 * LOOKED_AT):
        locked.read(state, requested_mhz)
    assert locked.follows(UUID) is None


def test_it_may_come_to_follow(locked) -> None:
    """What was long ago is forgotten."""
    for clock_mhz in (1410, 1110):
        for _ in range(LOOKED_AT):
            locked.read(seen(clock_mhz), ASKED)
    assert locked.follows(UUID) is Follows.YES
