"""Which clocks to try next, and where that teaches most and costs nothing."""
