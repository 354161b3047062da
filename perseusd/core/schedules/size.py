"""What every schedule asks of its sizes."""

from __future__ import annotations

from perseusd.errors import PlanningError


def check_size(**sizes: int) -> None:
    """Raises PlanningError, naming it, for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise PlanningError(f"{name} is {value}: a schedule needs at least 1")
