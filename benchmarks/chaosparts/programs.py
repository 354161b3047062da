"""Programs of the rig's own: a wall clock that can be set, and a client whose calls are timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "nvmlfake"))
import nvml_build

WALL_CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *offset_s;
__attribute__((constructor)) static void find(void) {
    const char *path = getenv("CHAOS_WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
    offset_s = mapped == MAP_FAILED ? NULL : mapped;
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = (int)syscall(SYS_clock_gettime, clock, now);
    if (!code && clock == CLOCK_REALTIME && offset_s)
        now->tv_sec += *offset_s;
    return code;
}
"""

PROBE = """
import mmap, os, struct, sys, time
import perseus_hooks
calls, longest_ns = 0, 0
with open(sys.argv[1], "r+b") as file:
    told = mmap.mmap(file.fileno(), 0)
perseus_hooks.configure(job="probe", rank=0, stage=0, stages=1, replica=0, replicas=1,
                        gpus=[sys.argv[2]], time_source="host")
while os.getppid() == int(sys.argv[3]):
    for call in (lambda: perseus_hooks.stage_start("iteration"), perseus_hooks.stage_end):
        begin_ns = time.monotonic_ns()
        call()
        end_ns = time.monotonic_ns()
        calls += 1
        longest_ns = max(end_ns - begin_ns, struct.unpack("@3q", told[:24])[1])
        told[:24] = struct.pack("@3q", calls, longest_ns, end_ns)
        time.sleep(0.15)
"""


def build(folder: Path) -> Path:
    """The fake NVML library in `folder`, and beside it a wall clock that can be set."""
    source = folder / "wallclock.c"
    source.write_text(WALL_CLOCK)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", folder / "wallclock.so", source]
    subprocess.run(command, check=True)
    return nvml_build.build(folder)
