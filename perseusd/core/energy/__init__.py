"""From counters that tick to the energy of iterations and the power of every computation."""
