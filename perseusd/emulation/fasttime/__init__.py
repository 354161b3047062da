"""The closed loop in virtual time: an emulated job, its GPUs and the daemon's core, no waiting.

The same core that runs in the daemon is fed with the events that an emulated job would send, and
its clock writes act on GPUs that follow `gpus.physics`. Hundreds of iterations take seconds, so
decisions can be studied over many seeds. What real processes, sockets and timers add is emulated
only as a random delay of events; what can go wrong is data (`disturbances`).

    run = FastTime(load_workload("gpt3-175b"), counted, Conditions(noise=0.01, seed=0))
    slow = [i.number for i in run.run(60) if i.slowdown > 0.01]

Start reading at `run`; `training` is the job, `shell` the daemon's side, `conditions` what the node
is like.
"""

from perseusd.emulation.fasttime.clocks import Write
from perseusd.emulation.fasttime.conditions import Conditions, Slow
from perseusd.emulation.fasttime.run import FastTime
from perseusd.emulation.fasttime.solver import Solver, counted
from perseusd.emulation.fasttime.truth import FastIteration, ReplicaIteration

__all__ = [
    "Conditions",
    "FastIteration",
    "FastTime",
    "ReplicaIteration",
    "Slow",
    "Solver",
    "Write",
    "counted",
]
