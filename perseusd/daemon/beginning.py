"""What the configuration means for the daemon's parts, and what is held before they start."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from perseusd.config import Config
from perseusd.core.settings import Settings
from perseusd.daemon.access import Access
from perseusd.daemon.intake import Limits
from perseusd.daemon.ownership import OFF
from perseusd.errors import ConfigurationError
from perseusd.gpus import open_gpus
from perseusd.gpus.base import GpuNode


def limits_of(config: Config, access: Access) -> Limits:
    """Who may speak to the hooks' socket, and how much."""
    return Limits(
        access.may_lease,
        config.events_per_s,
        config.max_clients,
        config.user_events_per_s,
        config.max_clients_per_user,
    )


def gpu_check_of(config: Config) -> str:
    """Which check holds: where no clock is ever written, nobody can be slowed."""
    return OFF if config.observe else config.gpu_check


def settings_of(config: Config) -> Settings:
    """What the core's decisions depend on."""
    return Settings(
        observe=config.observe,
        slowdown_budget=config.slowdown_budget,
        learning_slowdown=config.learning_slowdown,
        min_clock_fraction=config.min_clock_fraction,
        max_writes_per_s=config.max_writes_per_s,
        max_node_write_share=config.max_node_write_share,
        silence_s=config.silence_s,
        silence_iterations=config.silence_iterations,
        baseline_iterations=config.baseline_iterations,
        max_learning_iterations=config.max_iterations,
        remember=config.remember,
    )


def open_node(config: Config) -> GpuNode:
    """The driver's GPUs, or simulated ones, which are made where there are none yet.

    Raises GpuError; ConfigurationError where there are others than simulated ones were asked for.
    """
    if config.simulate is None:
        return open_gpus()
    path = config.simulated_file
    if not path.exists():
        from perseusd.gpus.simulated import SPECS, create_node

        create_node(path, SPECS["a100-sxm"], config.simulate)
    node = open_gpus(path)
    if len(node.gpus) != config.simulate:
        found = len(node.gpus)
        node.close()
        raise ConfigurationError(
            f"--simulate {config.simulate}: {path} holds {found} GPUs; remove the file, or say "
            f"--simulate {found}"
        )
    return node


@contextlib.contextmanager
def only_one(config: Config) -> Iterator[None]:
    """Hold the lock that makes this the only daemon of its runtime directory."""
    try:
        config.runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = config.lock_file.open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename}: {error.strerror}; give a directory that this user may write with "
            "--runtime-dir"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise ConfigurationError(
                f"another perseusd (process {holder}) runs in {config.runtime_dir}; stop it, or "
                "give another --runtime-dir"
            ) from None
        os.ftruncate(handle.fileno(), 0)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, and names nobody
            os.write(handle.fileno(), f"{os.getpid()}\n".encode())
        yield
