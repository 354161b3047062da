"""What tests of every room share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nvml_build import build


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
