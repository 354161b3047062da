"""Who may lease, read and control, by uid and groups."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perseusd.config import load_config
from perseusd.daemon.access import Access, Caller, in_groups
from perseusd.daemon.readers import NOT_YOURS, readable
from perseusd.errors import ConfigurationError

NOBODY = 64_000
GROUP = 64_777

_WITH_GROUP = """
import os, sys
os.setgroups([int(sys.argv[2])])
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def member() -> Iterator[Caller]:
    """A process of an unused uid that belongs to GROUP as a supplementary group."""
    command = [sys.executable, "-c", _WITH_GROUP, str(NOBODY), str(GROUP)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Caller(NOBODY, NOBODY, process.pid)
        assert process.stdin is not None
        process.stdin.close()


def stranger(uid: int = NOBODY, gid: int = NOBODY) -> Caller:
    return Caller(uid, gid, 2**22 + 1)  # a pid that no process has


def test_everyone_may_lease_unless_somebody_is_named() -> None:
    """Users and groups add up; naming either leaves everybody else out."""
    assert Access().may_lease(stranger())
    assert not Access(users=frozenset({7})).may_lease(stranger())
    assert Access(users=frozenset({NOBODY})).may_lease(stranger())
    assert not Access(groups=frozenset({GROUP})).may_lease(stranger())
    assert Access(groups=frozenset({GROUP})).may_lease(stranger(gid=GROUP))
    both = Access(users=frozenset({7}), groups=frozenset({GROUP}))
    assert both.may_lease(stranger(7))
    assert both.may_lease(stranger(8, GROUP))
    assert not both.may_lease(stranger(8))


def test_restricted_readers_and_admins() -> None:
    """Root and the daemon's own user may everything; an empty list leaves them alone."""
    access = Access(readers=frozenset(), admin_group="no such group")
    assert access.may_read_all(stranger(0))
    assert access.may_control(stranger(os.geteuid()))
    assert not access.may_read_all(stranger())
    assert not access.may_control(stranger())
    assert Access(readers=frozenset({GROUP})).may_read_all(stranger(gid=GROUP))


def test_an_admin_group_is_known_by_the_kernel_or_the_database() -> None:
    """A process whose group it is may control, whether the database knows its user or not."""
    entry = next(group for group in grp.getgrall() if group.gr_gid != 0)
    access = Access(admin_group=entry.gr_name)
    assert access.may_control(stranger(gid=entry.gr_gid))
    assert not access.may_control(stranger())


@pytest.mark.system
def test_supplementary_groups_count_while_the_process_is_that_users(member: Caller) -> None:
    """By the kernel's word for the running process; not for a uid that it does not have."""
    assert in_groups(member, {GROUP})
    assert not in_groups(member, {GROUP + 1})
    assert not in_groups(member._replace(uid=NOBODY + 1), {GROUP})
    assert not in_groups(stranger(), {GROUP})


def test_the_configuration_names_groups(tmp_path: Path) -> None:
    """By name or gid; one that this machine does not have is refused with its name."""
    file = tmp_path / "perseusd.toml"
    file.write_text('[access]\nallow_groups = ["root", 7]\nstatus_readers = []\n')
    config = load_config(file, {}, {})
    assert config.allow_groups == {0, 7}
    assert config.status_readers == set()
    assert Access.of(config).groups == {0, 7}
    for wrong, why in (
        ('allow_groups = ["no-such-group"]', "names a group this machine does not have"),
        ("status_readers = 7", 'must be "\\*" or a list of group names'),
        ("allow_groups = [true]", "group names and gids, and true is neither"),
    ):
        file.write_text(f"[access]\n{wrong}\n")
        with pytest.raises(ConfigurationError, match=why):
            load_config(file, {}, {})


def test_what_is_left_of_the_status_for_who_may_not_read_all() -> None:
    """Its own jobs and refusals, every GPU's readings, and nothing of what others do."""
    gpu = {"uuid": "GPU-0", "power_w": 300.0, "requested_mhz": 900, "follows_request": "yes"}
    status = {
        "schema_version": 1,
        "daemon": {
            "version": "1",
            "refused": [{"uid": 0, "code": "x"}, {"uid": NOBODY}],
            "released": {"GPU-0": "why", "root:secret": "why", f"{NOBODY}:mine": "why"},
        },
        "gpus": [gpu | {"holder": "root:secret"}, gpu | {"holder": f"{NOBODY}:mine"}],
        "jobs": [{"id": "root:secret"}, {"id": f"{NOBODY}:mine"}, {"id": f"{NOBODY}1:mine"}],
        "ended": [{"id": "root:secret-2"}],
    }
    kept = json.dumps(status)
    access = Access(readers=frozenset({GROUP}), admin_group="no such group")
    assert readable(status, access, stranger(gid=GROUP)) is status
    seen = readable(status, access, stranger())
    assert "secret" not in json.dumps(seen)
    assert [job["id"] for job in seen["jobs"]] == [f"{NOBODY}:mine"]
    assert seen["daemon"]["refused"] == [{"uid": NOBODY}]
    assert list(seen["daemon"]["released"]) == ["GPU-0", f"{NOBODY}:mine"]
    assert seen["gpus"][0] == gpu | {
        "holder": NOT_YOURS, "requested_mhz": None, "follows_request": None,
    }  # fmt: skip
    assert seen["gpus"][1] == status["gpus"][1]  # type: ignore[index]
    assert json.dumps(status) == kept
