"""The faults: what befalls processes, the driver, the disk and the clocks. See also inputs."""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable

from nvml_faults import ANY_FUNCTION, ANY_GPU, HANG, Fault

from chaosparts import inputs
from chaosparts.hand import (
    ALL,
    CLOCK_DEATH_S,
    HANG_S,
    LOOKED_FOR_S,
    End,
    Event,
    Hand,
    all_of,
    nothing,
)
from chaosparts.observer import Cause, gpus
from chaosparts.rig import GPUS, STAGES
from perseusd.gpus.base import ClockReason

SET = "nvmlDeviceSetGpuLockedClocks"
RESET = "nvmlDeviceResetGpuLockedClocks"
READS = (
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetTemperatureV",
)
OPENING_DRIVER = ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2")  # are about no GPU
OPENING = (*OPENING_DRIVER, "nvmlDeviceGetHandleByIndex_v2")
CODES = (3, 4, 10, 15, 16, 18, 999)


def kill_daemon(hand: Hand, _event: Event) -> End:
    return hand.end_daemon("kill -9 of perseusd", signal.SIGKILL)


def end_daemon(hand: Hand, _event: Event) -> End:
    return hand.end_daemon("SIGTERM of perseusd", signal.SIGTERM)


def stop_daemon(hand: Hand, _event: Event) -> End:
    cause = Cause("SIGSTOP of perseusd", ALL, time.monotonic(), HANG_S, lasting=False)
    hand.of_daemon(cause)
    end = hand.stop(hand.daemon_pid)

    def go_on() -> None:
        cause.until_s = cause.until_s or time.monotonic()
        end()

    return go_on


def kill_clock(hand: Hand, _event: Event) -> End:
    now_s = time.monotonic()
    if hand.kill(hand.rig.children().get("clock")):
        cause = Cause("kill -9 of perseusd-clock", ALL, now_s, CLOCK_DEATH_S)
        cause.until_s = now_s
        hand.observer.cause(cause)
    return nothing


def stop_clock(hand: Hand, _event: Event) -> End:
    over = hand.no_resets("SIGSTOP of perseusd-clock", ALL, 1.0)
    end = hand.stop(hand.rig.children().get("clock"))
    return all_of(over, end)


def kill_both(hand: Hand, event: Event) -> End:
    """The clock process first, while the daemon is stopped: locks stay. Then as systemd does."""
    clock = hand.rig.children().get("clock")
    go_on = hand.stop(hand.daemon_pid)
    hand.kill(clock)
    hand.clock = clock or hand.clock
    again = hand.end_daemon("kill -9 of perseusd and perseusd-clock", signal.SIGKILL)
    go_on()

    def restart() -> None:
        if event.picks[0] < 0.5:
            over = hand.no_resets("no clock process", ALL, 0.5)
            hand.rig.restore()
            over()
        again()

    return restart


def kill_planner(hand: Hand, _event: Event) -> End:
    hand.kill(hand.rig.children().get("planner"))
    return nothing


def stop_planner(hand: Hand, _event: Event) -> End:
    return hand.stop(hand.rig.children().get("planner"))


def kill_rank(hand: Hand, event: Event) -> End:
    rank = event.choice(0, tuple(range(STAGES)))
    return hand.end_ranks("kill -9 of a rank", (rank,), signal.SIGKILL)


def end_job(hand: Hand, event: Event) -> End:
    number = event.choice(0, (signal.SIGKILL, signal.SIGTERM))
    return hand.end_ranks("the end of the job", tuple(range(STAGES)), number)


def kill_daemon_and_rank(hand: Hand, event: Event) -> End:
    ends = kill_rank(hand, event), kill_daemon(hand, event)
    return all_of(*ends)


def stop_rank(hand: Hand, event: Event) -> End:
    return hand.stop_ranks("SIGSTOP of a rank", (event.choice(0, tuple(range(STAGES))),))


def suspend(hand: Hand, event: Event) -> End:
    """Everything stands still, and goes on in the time that came meanwhile."""
    over = hand.no_resets("suspend", ALL, 2.0)
    ends = [hand.stop_ranks("suspend", tuple(range(STAGES)))]
    pids = (hand.daemon_pid, *hand.rig.children().values())
    ends += [hand.stop(pid) for pid in pids]
    if event.picks[0] < 0.5:
        ends.reverse()
    return all_of(over, *ends)


def driver_error(hand: Hand, event: Event) -> End:
    gpu, code = event.choice(0, tuple(range(GPUS))), event.choice(1, CODES)
    function = event.choice(2, (SET, SET, RESET, RESET, *READS, *OPENING))
    gpu, which = _reach(function, gpu)
    ends = [hand.put(Fault(function, gpu, code))]
    if function in (RESET, *OPENING):
        again = function == RESET or gpu == ANY_GPU  # tried again less and less often
        after_s = 1.5 + 2 * event.lasts_s if again else LOOKED_FOR_S
        ends.append(hand.no_resets(f"error {code} of {function}", which, after_s))
    return all_of(*ends)


def _reach(function: str, gpu: int) -> tuple[int, frozenset[int]]:
    """The GPU to put the fault at, and those that cannot be put back meanwhile: who has not opened
    the driver resets nothing."""
    return (ANY_GPU, ALL) if function in OPENING_DRIVER else (gpu, gpus([gpu]))


def driver_hang(hand: Hand, event: Event) -> End:
    gpu = event.choice(0, tuple(range(GPUS)))
    function = event.choice(2, (SET, SET, RESET, RESET, *READS, *OPENING, ANY_FUNCTION))
    gpu, which = _reach(function, gpu)  # one GPU's calls wait for each other
    ends = [hand.put(Fault(function, gpu, HANG))]
    after_s = LOOKED_FOR_S if function in (ANY_FUNCTION, *OPENING) else 1.5
    ends.append(hand.no_resets(f"hang of {function}", which, after_s))
    return all_of(*ends)


def lost_gpu(hand: Hand, event: Event) -> End:
    gpu = event.choice(0, tuple(range(STAGES)))
    ends = [hand.put(Fault(ANY_FUNCTION, gpu, event.choice(1, (15, 16))))]
    ends.append(hand.no_resets("a lost GPU", gpus([gpu]), LOOKED_FOR_S))
    return all_of(*ends)


def slow_driver(hand: Hand, event: Event) -> End:
    delay_s = event.choice(0, (0.02, 0.1, 0.3))
    ends = [hand.put(Fault(SET, delay_s=delay_s), Fault(RESET, delay_s=delay_s))]
    ends.append(hand.no_resets("a slow driver", ALL, 1.0 + delay_s))
    return all_of(*ends)


def limited(hand: Hand, event: Event) -> End:
    """Power or heat below the lock."""
    gpu = hand.rig.node.gpus[event.choice(0, tuple(range(STAGES)))]
    reason = event.choice(1, (ClockReason.SW_THERMAL, ClockReason.SW_POWER_CAP))
    limit = _beside(gpu.limit_clock, event.choice(2, (705, 900, 1110)), reason)

    def lift() -> None:
        limit.join()
        gpu.limit_clock(None)

    return lambda: _beside(lift) and None


def foreign_writer(hand: Hand, event: Event) -> End:
    """Somebody else resets a GPU, or locks it and resets it later."""
    index = event.choice(0, tuple(range(STAGES)))
    gpu = hand.rig.node.gpus[index]
    if event.picks[1] < 0.5:
        _beside(gpu.reset_clock)
        return nothing
    over = hand.no_resets("a foreign lock", gpus([index]), 1.0)
    lock = _beside(gpu.lock_clock, event.choice(2, (705, 900, 1110)))

    def undo() -> None:
        lock.join()
        gpu.reset_clock()
        over()

    return lambda: _beside(undo) and None


def _beside(call: Callable[..., object], *arguments: object) -> threading.Thread:
    """Writes wait for each other, also for one of a clock process that is stopped."""
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def full_disk(hand: Hand, _event: Event) -> End:
    """No file of the daemon's and the clock process's can grow: as on a full disk, without root."""
    ends = []
    for pid in (hand.daemon_pid, hand.rig.children().get("clock")):
        if pid is not None:
            ends.append(_no_space(pid))
    return all_of(*ends)


def _no_space(pid: int) -> End:
    try:
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    except (ProcessLookupError, ValueError, PermissionError):
        return nothing

    def space() -> None:
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        except ProcessLookupError:
            return

    return space


def wall_clock(hand: Hand, event: Event) -> End:
    """The wall clock of the daemon and of what it starts jumps, and back."""
    hand.rig.set_wall_clock(event.choice(0, (-(10**8), -3600, -5, 5, 3600, 10**8)))
    return lambda: hand.rig.set_wall_clock(0)


FAULTS: dict[str, tuple[int, Callable[[Hand, Event], End]]] = {
    "kill daemon": (3, kill_daemon),
    "end daemon": (1, end_daemon),
    "stop daemon": (3, stop_daemon),
    "kill clock": (3, kill_clock),
    "stop clock": (2, stop_clock),
    "kill both": (1, kill_both),
    "kill planner": (2, kill_planner),
    "stop planner": (1, stop_planner),
    "kill rank": (2, kill_rank),
    "end job": (1, end_job),
    "kill daemon and rank": (1, kill_daemon_and_rank),
    "stop rank": (2, stop_rank),
    "suspend": (2, suspend),
    "driver error": (5, driver_error),
    "driver hang": (4, driver_hang),
    "lost GPU": (2, lost_gpu),
    "slow driver": (2, slow_driver),
    "limited": (2, limited),
    "foreign writer": (2, foreign_writer),
    "full disk": (3, full_disk),
    "wall clock": (2, wall_clock),
    "flood": (2, inputs.flood),
    "garbage": (3, inputs.garbage),
    "forgery": (2, inputs.forgery),
    "crowd": (2, inputs.crowd),
    "bad questions": (2, inputs.bad_questions),
}
"""By name: how often, and what."""
