"""Which job `perseusctl record --job` means."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from perseusd.config import Config
from perseusd.ctl.record.command import _whole_id
from perseusd.errors import UsageError


@pytest.fixture
def config(stand_in: Any, status: dict[str, Any], tmp_path: Path) -> Config:
    """Of a daemon with alice's jobs a, a/1 and b, and bob's a."""
    job = status["jobs"][0]
    ids = ("alice:a", "alice:a/1", "alice:b", "bob:a")
    status["jobs"] = [copy.deepcopy(job) | {"id": name} for name in ids]
    stand_in.answers(status)
    return Config(runtime_dir=tmp_path, state_dir=tmp_path)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("alice:a", "alice:a"), ("bob:a", "bob:a"), ("b", "alice:b"), ("a/1", "alice:a/1")],
)
def test_a_job_goes_by_its_id_or_the_part_that_only_it_has(
    config: Config, asked: str, meant: str
) -> None:
    assert _whole_id(config, asked) == meant


def test_a_name_that_two_users_have_is_refused_with_both(config: Config) -> None:
    """Or the one's recording would be of the other's job too."""
    with pytest.raises(UsageError, match="say --job alice:a or --job bob:a"):
        _whole_id(config, "a")


def test_a_job_that_does_not_run_is_refused_with_those_that_do(config: Config) -> None:
    with pytest.raises(UsageError, match="running are alice:a, alice:a/1, alice:b, bob:a"):
        _whole_id(config, "ghost")
