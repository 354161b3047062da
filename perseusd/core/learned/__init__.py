"""What is known of a job's computations: curves, how uncertain they are, and what outlives it."""
