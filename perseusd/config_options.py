"""The table of options: each with its default, its range, and what it is about.

Each field of `Config` says in its metadata in which section of the file it stands and under which
key, what its value may be, what it is about, and whether a reload may change it; the reference and
the example file are written from that (scripts/configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from perseusd import config_kinds as kinds
from perseusd.config_kinds import Kind
from perseusd.config_sources import Option

DEFAULT_RUNTIME_DIR = Path("/run/perseusd")
DEFAULT_STATE_DIR = Path("/var/lib/perseusd")


def _in(
    section: str, kind: Kind, *, about: str, key: str | None = None, live: bool = False
) -> dict[str, object]:
    """about: for the reference and the example file. key: where it is not the field's name.

    live: whether a reload may change it. Without that, a restart has to.
    """
    return {"section": section, "kind": kind, "key": key, "about": about, "live": live}


def _flag_only(kind: Kind, *, about: str) -> dict[str, object]:
    return {"section": None, "kind": kind, "key": None, "about": about, "live": False}


@dataclass(frozen=True)
class Config:
    """What one perseusd runs with. Build it with `load_config`, which checks it.

    allow_users, allow_groups: uids and gids whose processes may hold a lease; both None: anyone who
    can reach the socket.
    gpu_check: what has to be seen on a real GPU before its clock is lowered: a rank's own
    "process", any process of its "user", or nothing ("off").
    status_readers: gids that may read what belongs to others; None: everyone.
    clock_socket: where a perseusd-clock already listens; None: the daemon starts its own child.
    simulate: how many simulated GPUs to run on; None: the real ones. A flag only.
    """

    runtime_dir: Path = field(
        metadata=_in(
            "daemon",
            kinds.PATH,
            about="sockets; also --runtime-dir, and PERSEUS_RUNTIME_DIR, which perseusctl and the "
            "hooks read too",
        )
    )
    state_dir: Path = field(
        metadata=_in(
            "daemon",
            kinds.PATH,
            about="learned curves, and what its own clock process notes; where the runtime "
            "directory DIR is set by flag or variable, the default is DIR/state",
        )
    )
    observe: bool = field(
        default=False,
        metadata=_in(
            "daemon", kinds.TRUTH, about="measure and plan, and never write a clock; also --observe"
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_in(
            "daemon", kinds.LEVEL, live=True, about="how much is logged; also --log-level"
        ),
    )

    slowdown_budget: float = field(
        default=0.005,
        metadata=_in(
            "limits",
            kinds.number(0, 0.5),
            live=True,
            about="how much longer an iteration may get, as a share of its time at full clock; a "
            "job's own configure(slowdown_budget=…) comes before it, larger or smaller",
        ),
    )
    learning_slowdown: float = field(
        default=0.01,
        metadata=_in("limits", kinds.number(0, 0.5), live=True, about="the same, while learning"),
    )
    min_clock_fraction: float = field(
        default=0.5,
        metadata=_in(
            "limits",
            kinds.number(0.1, 1),
            about="no clock below this share of the highest; perseusd-clock holds a limit of its "
            "own, 0.5: to go lower, add --min-clock-fraction to the ExecStart of its unit, too",
        ),
    )
    max_writes_per_s: float = field(
        default=3.0,
        metadata=_in(
            "limits",
            kinds.number(0.01, 1000),
            live=True,
            about="clock writes per GPU and second that a plan may count on",
        ),
    )
    max_node_write_share: float = field(
        default=0.2,
        metadata=_in(
            "limits",
            kinds.number(0.001, 1),
            live=True,
            about="share of the time that all GPUs of the node together may spend in clock writes",
        ),
    )
    silence_s: float = field(
        default=5.0,
        metadata=_in(
            "limits",
            kinds.number(0.1, 3600),
            live=True,
            about="a rank that is silent for the longer of this and of silence_iterations means "
            "full clock for its job",
        ),
    )
    silence_iterations: int = field(
        default=2,
        metadata=_in(
            "limits",
            kinds.integer(1, 1000),
            live=True,
            about="the same, in iterations",
        ),
    )
    events_per_s: int = field(
        default=20_000,
        metadata=_in(
            "limits",
            kinds.integer(1, 10_000_000),
            live=True,
            about="events that a client may send in a second; what is beyond is dropped",
        ),
    )
    user_events_per_s: int = field(
        default=60_000,
        metadata=_in(
            "limits",
            kinds.integer(1, 10_000_000),
            live=True,
            about="the same, of all clients of one user together",
        ),
    )
    max_clients: int = field(
        default=1024,
        metadata=_in(
            "limits",
            kinds.integer(1, 1_000_000),
            live=True,
            about="processes that are served at a time",
        ),
    )
    max_clients_per_user: int = field(
        default=256,
        metadata=_in(
            "limits",
            kinds.integer(1, 1_000_000),
            live=True,
            about="of those, one user's",
        ),
    )

    baseline_iterations: int = field(
        default=5,
        metadata=_in(
            "learning",
            kinds.integer(2, 10_000),
            live=True,
            about="iterations measured at full clock first, beside a first one that warms up",
        ),
    )
    max_iterations: int = field(
        default=11,
        metadata=_in(
            "learning",
            kinds.integer(1, 10_000),
            live=True,
            about="at most so many more with trials of lower clocks",
        ),
    )
    remember: bool = field(
        default=True,
        metadata=_in(
            "learning", kinds.TRUTH, about="keep learned curves on disk for a job's next start"
        ),
    )

    clock_socket: Path | None = field(
        default=None,
        metadata=_in(
            "clock",
            kinds.PATH,
            key="socket",
            about="where a perseusd-clock listens; unset: the daemon starts its own clock process, "
            "which then needs the privilege to write clocks",
        ),
    )
    node_lock: Path | None = field(
        default=None,
        metadata=_in(
            "clock",
            kinds.PATH_OR_NONE,
            about="held by a clock process that the daemon starts itself for real GPUs, so that no "
            "other one writes their clocks; unset: /run/lock/perseusd-clock.lock",
        ),
    )
    standing_lock_mhz: Mapping[str, int] | None = field(
        default=None,
        metadata=_in(
            "clock",
            kinds.STANDING,
            about="the site's own lock of its GPUs, which is full clock for perseusd and put back "
            "instead of none; with socket, give it to that perseusd-clock instead",
        ),
    )
    heartbeat_s: float = field(
        default=0.2,
        metadata=_in(
            "clock",
            kinds.number(0.02, 1),
            live=True,
            about="seconds between two signs of life to perseusd-clock",
        ),
    )

    sampler_interval_s: float = field(
        default=0.02,
        metadata=_in(
            "sampler",
            kinds.number(0.002, 1),
            key="interval_s",
            live=True,
            about="seconds between two readings of the energy counters",
        ),
    )

    allow_users: frozenset[int] | None = field(
        default=None,
        metadata=_in("access", kinds.USERS, live=True, about="whose training may be slowed"),
    )
    allow_groups: frozenset[int] | None = field(
        default=None,
        metadata=_in(
            "access",
            kinds.GROUPS,
            live=True,
            about="the same, by group; where this or allow_users is a list, nobody else's training "
            "is slowed",
        ),
    )
    gpu_check: str = field(
        default="process",
        metadata=_in(
            "access",
            kinds.GPU_CHECK,
            live=True,
            about="what the driver has to list on a GPU before its clock is lowered: the rank's "
            "own process, any process of its user (with MPS), or nothing; unless it is off, a GPU "
            "that another user's process uses is left alone",
        ),
    )
    allow_mig: bool = field(
        default=False,
        metadata=_in(
            "access",
            kinds.TRUTH,
            about="lower the clock of a GPU that MIG divides, for all of its parts, where one job "
            "uses all of them; perseusd-clock.service needs --allow-mig, too",
        ),
    )
    status_readers: frozenset[int] | None = field(
        default=None,
        metadata=_in(
            "access",
            kinds.GROUPS,
            live=True,
            about="whose members may read the status of everybody's jobs and make recordings; "
            "others then see their own jobs alone",
        ),
    )
    admin_group: str = field(
        default="perseusd",
        metadata=_in(
            "access",
            kinds.GROUP,
            live=True,
            about="its members may control the daemon; so may root and the daemon's own user",
        ),
    )

    simulate: int | None = field(
        default=None,
        metadata=_flag_only(
            kinds.integer(1, 1024), about="run on so many simulated GPUs instead of real ones"
        ),
    )

    @property
    def hooks_socket(self) -> Path:
        return self.runtime_dir / "hooks.sock"

    @property
    def status_socket(self) -> Path:
        return self.runtime_dir / "status.sock"

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    @property
    def record_socket(self) -> Path:
        return self.runtime_dir / "record.sock"

    @property
    def lock_file(self) -> Path:
        return self.runtime_dir / "perseusd.lock"

    @property
    def simulated_file(self) -> Path:
        return self.runtime_dir / "simulated-gpus"

    @property
    def curves_dir(self) -> Path:
        """Where learned curves are kept."""
        return self.state_dir / "curves"

    @property
    def clock_state_dir(self) -> Path:
        """Where a perseusd-clock that the daemon starts itself keeps its intent."""
        return self.state_dir / "clock"


OPTIONS: Mapping[str, Option] = {
    own.name: Option(
        own.name,
        own.metadata["section"],
        own.metadata["key"] or own.name,
        own.metadata["kind"],
        own.metadata["about"],
        own.metadata["live"],
    )
    for own in fields(Config)
}
"""By field."""

DEFAULTS: Mapping[str, Any] = {
    "runtime_dir": DEFAULT_RUNTIME_DIR,
    "state_dir": DEFAULT_STATE_DIR,
    **{own.name: own.default for own in fields(Config) if own.default is not MISSING},
}
