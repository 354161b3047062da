"""What benchmarks/chaos.py is made of: the rig, its observer, the faults, and schedules of them."""
