"""`perseusctl selftest`: do clocks that are asked for arrive on this node's real GPUs?"""

from perseusd.ctl.selftest.command import add_arguments, main

__all__ = ["add_arguments", "main"]
