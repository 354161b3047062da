"""Stragglers that begin and end while jobs are held, and how soon the daemon acts, in virtual time.

One run of a job of several replicas has one straggler after the other, each well before the next.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from perseusd.core.actions import Action, Notice
from perseusd.core.events.paced import PacedPlan
from perseusd.core.settings import Settings
from perseusd.emulation.fasttime import Conditions, FastIteration, FastTime, Slow, counted
from perseusd.emulation.workloads import Workload

FIRST = 36
LASTS = 9
APART = 9
"""Iterations: until the first, of each, and between them."""

RAMPS = (0, 0, 0, 4, 8)

SLOWER = 0.01
"""An iteration longer than this because of us is not yet at normal speed."""

NS = 1e-9


@dataclass(frozen=True)
class Onset:
    """What came of one straggler. Iterations count whole ones; times are in seconds.

    detected: iterations until it was told, that in which it began included; None: never.
    written: more until a GPU ran at a clock of another plan.
    reaction_s: from its beginning until then.
    late: iterations from its end on that our clocks still made longer than they had to be.
    saved, before: share of the energy at full clock from then until its end, and before it began.
    in_a_row: the most iterations in a row that our clocks made more than 1 % longer.
    """

    slow: Slow
    detected: int | None
    written: int | None
    reaction_s: float | None
    late: int
    saved: float | None
    before: float
    in_a_row: int


@dataclass
class _Seen:
    """What was told and adopted when: (time in ns, iteration)."""

    run: FastTime
    told: list[tuple[int, int]] = field(default_factory=list)
    adopted: list[tuple[int, int, str]] = field(default_factory=list)
    plans: dict[str, PacedPlan | None] = field(default_factory=dict)

    def watch(self) -> None:
        act = self.run.shell.act

        def watched(now: int, actions: Sequence[Action]) -> None:
            act(now, actions)
            self._look(now, actions)

        self.run.shell.act = watched  # type: ignore[method-assign]

    def _look(self, now: int, actions: Sequence[Action]) -> None:
        iteration = self.run.time.iteration
        for action in actions:
            if isinstance(action, Notice) and action.text.startswith("straggler: "):
                self.told.append((now, iteration))
        for name, job in self.run.controller.jobs.items():
            plan = job.plan_in_force
            if self.plans.get(name) is not plan:
                self.plans[name] = plan
                self.adopted.append((now, iteration, name))


def onsets(workload: Workload, replicas: int, count: int, seed: int, noise: float) -> list[Onset]:
    """`count` stragglers, one after the other."""
    slow = tuple(_drawn(random.Random(f"{seed} onsets"), workload, replicas, count))
    conditions = Conditions(noise=noise, seed=seed, replicas=replicas, slow=slow)
    run = FastTime(workload, counted, conditions, Settings())
    seen = _Seen(run)
    seen.watch()
    last = slow[-1].end
    assert last is not None
    done = run.run(last + APART)
    return [_onset(each, run, seen, done) for each in slow]


def _drawn(draw: random.Random, workload: Workload, replicas: int, count: int) -> Iterator[Slow]:
    start = FIRST
    for _ in range(count):
        ramp = draw.choice(RAMPS)
        whole = draw.random() < 0.5
        yield Slow(
            replica=draw.randrange(replicas),
            rank=None if whole else draw.randrange(workload.stages),
            factor=round(1.2 * 2.5 ** draw.random(), 2),
            start=start,
            end=start + LASTS + ramp,
            ramp=ramp,
        )
        start += LASTS + ramp + APART


def _onset(slow: Slow, run: FastTime, seen: _Seen, done: Sequence[FastIteration]) -> Onset:
    assert slow.end is not None
    during = done[slow.start : slow.end]
    begun_ns, ended_ns = during[0].start_s / NS, done[slow.end].start_s / NS
    told = next((t for t in seen.told if begun_ns <= t[0] < ended_ns), None)
    wrote = _new_clock(run, seen, told[0], ended_ns) if told is not None else None
    after = [i for i in during if wrote is not None and i.number > wrote[1]]
    energy, full = sum(i.energy_j for i in after), sum(i.full_energy_j for i in after)
    usual = done[slow.start - 4 : slow.start]
    return Onset(
        slow=slow,
        detected=told[1] - slow.start + 1 if told is not None else None,
        written=wrote[1] - told[1] if wrote is not None and told is not None else None,
        reaction_s=(wrote[0] - begun_ns) * NS if wrote is not None else None,
        late=_late(done[slow.end : slow.end + APART]),
        saved=1 - energy / full if after else None,
        before=1 - sum(i.energy_j for i in usual) / sum(i.full_energy_j for i in usual),
        in_a_row=_in_a_row(done[slow.start - 2 : slow.end + APART]),
    )


def _new_clock(
    run: FastTime, seen: _Seen, since_ns: float, until_ns: float
) -> tuple[int, int] | None:
    """When the first write of a plan adopted since then was done, and in which iteration."""
    jobs = {r.uuid: run.job_of(r.replica) for r in run.ranks}
    adopted: dict[str, int] = {}
    for at, _, name in seen.adopted:
        if since_ns <= at < until_ns:
            adopted.setdefault(name, at)
    wrote = [
        (write.end_ns, write.iteration)
        for write in run.writes
        if (job := jobs[write.uuid]) is not None
        and adopted.get(job.name, until_ns) <= write.asked_ns < until_ns
    ]
    return min(wrote, default=None)


def _late(after: Sequence[FastIteration]) -> int:
    return max((n + 1 for n, i in enumerate(after) if i.slowdown > SLOWER), default=0)


def _in_a_row(done: Sequence[FastIteration]) -> int:
    longest = now = 0
    for iteration in done:
        now = now + 1 if iteration.slowdown > SLOWER else 0
        longest = max(longest, now)
    return longest
