"""Builds the fake NVML library, and says how a process comes to use it.

    library = build(folder)
    node = create_node(path, SPECS["a100-sxm"], 4)
    subprocess.run(["perseusd", "run"], env=os.environ | environment(library, path))

That perseusd, through unmodified pynvml, then sees the very GPUs on which emulated jobs of `path`
compute: a lock that it sets slows them, and `node.gpus` shows what became of it. A foreign writer
is `node.gpus[0].lock_clock(1005)`, or any other process that uses the library; power and heat are
`node.gpus[0].limit_clock(900, ClockReason.SW_THERMAL)`; how long a write takes and how often the
counter ticks stand in the node's specification. Faults, MIG and more: nvml_faults. For tests the
fixture `nvml_library` has built it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent
UNITS = ("nvmlfake.c", "node.c", "controls.c")
STRICT = ("-O1", "-Wall", "-Wextra", "-Werror")


def build(folder: Path) -> Path:
    """The library, built in `folder` by the system's C compiler."""
    library = folder / "libnvidia-ml.so.1"
    sources = [SOURCE / unit for unit in UNITS]
    command = ["cc", "-shared", "-fPIC", *STRICT, "-o", library, *sources, "-lm"]
    subprocess.run(command, check=True)
    return library


def environment(library: Path, node: Path) -> dict[str, str]:
    """What a process needs in its environment when it starts, to have that node's GPUs.

    Nodes that are tested beside each other have a lock of their own, each.
    """
    return {
        "LD_LIBRARY_PATH": str(library.parent),
        "NVMLFAKE_NODE": str(node),
        "PERSEUSD_CLOCK_NODE_LOCK": f"{node}.lock",
    }
