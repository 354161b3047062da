"""What iterations took and used, and what was saved: measured, with an interval."""
