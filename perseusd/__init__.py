"""perseusd: less energy for the same training time, by slowing what is not on the critical path."""

__version__ = "0.1.0"
