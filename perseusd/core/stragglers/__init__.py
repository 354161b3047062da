"""Who is slow, since when, and why: stragglers found from the iterations alone."""

from perseusd.core.stragglers.observation import Observation, Straggler
from perseusd.core.stragglers.watch import Watch

__all__ = ["Observation", "Straggler", "Watch"]
