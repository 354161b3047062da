"""perseusd-clock: the only process that writes clocks, and the one that always puts them back."""
