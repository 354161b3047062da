"""Who may do what, by the kernel's word for who they are: never by what a message says.

A caller is known by its connection's credentials: the effective uid and gid of the process that
connected, and its pid. The groups it belongs to are those of its running process and, where a group
has an entry in the system's database, those that the entry names.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import zmq

from perseusd.config import Config


class Caller(NamedTuple):
    """A process at the other end of a socket."""

    uid: int
    gid: int
    pid: int


def caller_of(frame: zmq.Frame) -> Caller | None:
    """From the connection's credentials, `host:uid:gid:pid` on ipc; None without them."""
    try:
        _, uid, gid, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
        return Caller(int(uid), int(gid), int(pid))
    except (zmq.ZMQError, ValueError, TypeError):
        return None


def user_name(uid: int) -> str:
    """The user's name, or the number where the system has none for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def in_groups(caller: Caller, gids: Collection[int]) -> bool:
    """Whether the process belongs to one of these groups now."""
    return caller.gid in gids or not _more_groups(caller).isdisjoint(gids)


def _more_groups(caller: Caller) -> frozenset[int]:
    """The supplementary groups of the process; none where it is gone or has become another user."""
    try:
        lines = Path(f"/proc/{caller.pid}/status").read_text().splitlines()
        told = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        effective_uid = int(told["Uid"][1])
        groups = frozenset(map(int, told["Groups"]))
    except (OSError, ValueError, KeyError, IndexError):
        return frozenset()
    return groups if effective_uid == caller.uid else frozenset()


def _in_database(uid: int, group: grp.struct_group) -> bool:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return user.pw_gid == group.gr_gid or user.pw_name in group.gr_mem


@dataclass(frozen=True)
class Access:
    """The configuration's [access] section as questions that have an answer.

    users, groups: uids and gids that may hold a lease; both None: everyone.
    readers: gids that may read everything of everyone; None: everyone.
    """

    users: frozenset[int] | None = None
    groups: frozenset[int] | None = None
    readers: frozenset[int] | None = None
    admin_group: str = "perseusd"

    @classmethod
    def of(cls, config: Config) -> Access:
        return cls(
            config.allow_users, config.allow_groups, config.status_readers, config.admin_group
        )

    def may_lease(self, caller: Caller) -> bool:
        """Whether its processes may hold a lease."""
        if self.users is None and self.groups is None:
            return True
        if self.users is not None and caller.uid in self.users:
            return True
        return self.groups is not None and in_groups(caller, self.groups)

    def may_control(self, caller: Caller) -> bool:
        """Root, the daemon's own user, and members of the admin group."""
        if caller.uid in (0, os.geteuid()):
            return True
        try:
            group = grp.getgrnam(self.admin_group)
        except KeyError:
            return False
        return in_groups(caller, {group.gr_gid}) or _in_database(caller.uid, group)

    def may_read_all(self, caller: Caller) -> bool:
        """Whether it may see what belongs to others, in status and in recordings."""
        if self.readers is None or in_groups(caller, self.readers):
            return True
        return self.may_control(caller) or any(
            _in_database(caller.uid, group) for group in _entries(self.readers)
        )


def _entries(gids: Collection[int]) -> list[grp.struct_group]:
    found = []
    for gid in gids:
        try:
            found.append(grp.getgrgid(gid))
        except KeyError:  # a number alone: known by processes only
            continue
    return found
