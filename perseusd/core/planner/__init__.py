"""The planner: least energy by a deadline, with clocks that exist. Start reading at deadline.py."""

from perseusd.core.planner.auto import solve_auto
from perseusd.core.planner.deadline import lower_bound, solve
from perseusd.core.planner.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate", "lower_bound", "solve", "solve_auto"]
