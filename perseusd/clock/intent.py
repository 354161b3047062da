"""The intent file: which GPUs may be locked, on disk before the first lock of each.

Whoever finds the file later, after a crash of this very process, knows what to reset. It may name
more GPUs than are locked, never fewer. A file that cannot be understood means: all of them. One of
an earlier boot means none: no lock outlives a reboot, and what stands now is somebody else's.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from perseusd.errors import PerseusError

_VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class IntentError(PerseusError):
    """The intent file could not be written."""


class IntentFile:
    """The file and what it says. Safe to use from several threads.

    damage: why the file as found could not be understood, or None.
    """

    def __init__(self, path: Path, boot: str | None = None) -> None:
        """boot: what tells this boot from others; None: locks do not end with a boot."""
        self.path = path
        self.damage: str | None = None
        self._boot = boot
        self._mutex = threading.Lock()
        self._uuids = self._read()

    @property
    def uuids(self) -> frozenset[str]:
        """What the file names; of no meaning while it is damaged."""
        return self._uuids

    def may_be_locked(self, uuid: str) -> bool:
        return self.damage is not None or uuid in self._uuids

    def add(self, uuid: str) -> None:
        """Have the GPU in the file, on disk, before returning; IntentError if that fails."""
        if self.damage is not None:
            raise IntentError(self.damage)
        if uuid not in self._uuids:
            with self._mutex:
                self._write(self._uuids | {uuid})

    def remove(self, uuids: Iterable[str]) -> None:
        """These have been reset; IntentError leaves them in the file, which only costs a reset."""
        with self._mutex:
            left = self._uuids - set(uuids)
            if left != self._uuids:
                self._write(left)

    def repair(self, uuids: Iterable[str]) -> None:
        """Replace a damaged file by a sound one that names all these."""
        with self._mutex:
            self._write(frozenset(uuids))
            self.damage = None

    def _write(self, uuids: frozenset[str]) -> None:
        said = {"version": _VERSION, "may_be_locked": sorted(uuids), "boot": self._boot}
        text = json.dumps(said)
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            with temporary.open("w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            self._sync_directory()
        except OSError as error:
            raise IntentError(f"intent file {self.path}: {error.strerror}") from error
        self._uuids = uuids

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> frozenset[str]:
        try:
            found = json.loads(self.path.read_bytes())
            uuids = found["may_be_locked"]
            if found["version"] != _VERSION or not all(isinstance(uuid, str) for uuid in uuids):
                raise ValueError(f"not an intent file of version {_VERSION}")
            boot = found.get("boot")
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.damage = f"intent file {self.path} is damaged ({error}): any GPU may be locked"
            return frozenset()
        earlier = boot is not None and self._boot is not None and boot != self._boot
        return frozenset() if earlier else frozenset(uuids)


def boot_id() -> str | None:
    """This boot's, the same in every container; None where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None
