"""What tests of every room share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from nvml_build import build

# a shell that runs us in the background has it ignored, and so would every process that we start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party measurements, which are kept outside the repository.

    PERSEUSD_DATA names it; else it is shared/data beside the repository. Tests that need it are
    skipped where it is absent.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PERSEUSD_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real measurements not found at {folder}: set PERSEUSD_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake libnvidia-ml.so.1: see tests/nvmlfake/nvml_build.py for its use."""
    return build(tmp_path_factory.mktemp("nvmlfake"))
