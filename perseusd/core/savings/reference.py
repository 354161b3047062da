"""When a held job runs one iteration at full clock, so that its saving is measured and not assumed.

A window costs what its iteration would have saved and part of what the two iterations beside it
would have, in which clocks change: together about WINDOW_COST iterations' saving. One window in
every EVERY held iterations therefore costs WINDOW_COST / EVERY of the saving, whenever one looks.

Where it lies among them is drawn at random: stratified sampling (Cochran, Sampling Techniques,
1977, ch. 5). A fixed spacing could keep step with something periodic in the job (evaluation,
checkpoints, a scheduler) and see only that; independent draws would do too, but leave long
stretches unobserved. More windows early would narrow a young job's interval at a cost that a short
job never earns back: its baseline already is as many full-clock iterations as WINDOW_COST allows
in its first two thousand.
"""

from __future__ import annotations

import random

EVERY = 480
"""Held iterations to one window: with WINDOW_COST at 0.27 % of the saving."""

WINDOW_COST = 1.3
"""Iterations' savings that a window costs: its own, and some of its neighbours'."""


def due(seed: int, number: int) -> bool:
    """Whether a held iteration of this number is to be at full clock: one in each EVERY.

    By the seed and the number alone, so that all replicas of a job draw the same.
    """
    stratum, place = divmod(number, EVERY)
    return random.Random(f"{seed}:{stratum}").randrange(EVERY) == place
