"""From stage events to whole iterations, and clock writes in time for them."""
