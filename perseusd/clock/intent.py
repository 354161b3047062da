"""The intent file: which GPUs may be locked, on disk before the first lock of each.

Whoever finds the file later, after a crash of this very process, knows what to reset. It may name
more GPUs than are locked, never fewer. A file that cannot be understood means: all of them. One of
an earlier boot means none: no lock outlives a reboot, and what stands now is somebody else's.

A disk may be slow, or hang for ever. So a GPU's first lock waits for it, on that GPU's own thread,
and nobody else does: that a GPU has been reset is saved by a `Saver`, whenever the disk takes it.
Only a start that finds the file damaged waits, too, after its first resets: nothing may be locked
before the file is sound.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue

from perseusd.errors import PerseusError

OTHERS = "*"
"""In place of a UUID: GPUs that could not be opened when a damaged file was repaired, and so have
no name here. Each may be locked."""

_VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class IntentError(PerseusError):
    """The intent file could not be written."""


class IntentFile:
    """Which GPUs may be locked, and the file that says so. Safe to use from several threads.

    damage: why the file as found could not be understood, or None.
    """

    def __init__(self, path: Path, boot: str | None = None) -> None:
        """boot: what tells this boot from others; None: locks do not end with a boot."""
        self.path = path
        self.damage: str | None = None
        self._boot = boot
        self._disk = threading.Lock()  # while the file is written, however long that takes
        self._memory = threading.Lock()  # for moments: of what follows
        self._uuids = self._read()
        self._on_disk = self._uuids  # what the file names, also once a write under way has ended
        self._stale = False  # it may name others, too

    @property
    def uuids(self) -> frozenset[str]:
        """Which GPUs may be locked; of no meaning while the file is damaged."""
        return self._uuids

    def may_be_locked(self, uuid: str) -> bool:
        return self.damage is not None or uuid in self._uuids

    def add(self, uuid: str) -> None:
        """Have the GPU in the file, on disk, before returning; IntentError if that fails."""
        if self.damage is not None:
            raise IntentError(self.damage)
        with self._memory:
            self._uuids |= {uuid}
            if uuid in self._on_disk:
                return
        try:
            self._write()
        except IntentError:
            with self._memory:
                self._uuids -= {uuid}
            raise

    def forget(self, uuids: Iterable[str]) -> bool:
        """These have been reset. Does not wait for the disk; whether there is something to save."""
        with self._memory:
            left = self._uuids - set(uuids)
            changed = left != self._uuids
            self._uuids = left
            self._stale |= changed
        return changed

    def save(self) -> None:
        """Have what was forgotten out of the file; IntentError if that fails, which only costs
        needless resets at the next start."""
        if self._stale:
            self._write()

    def repair(self, uuids: Iterable[str]) -> None:
        """Replace a damaged file by a sound one that names all these."""
        with self._memory:
            self._uuids = frozenset(uuids)
        self._write()

    def _write(self) -> None:
        with self._disk:
            with self._memory:
                uuids = self._uuids
                self._on_disk &= uuids
                self._stale = False
            try:
                self._replace(uuids)
            except OSError as error:
                self._stale = True
                raise IntentError(f"intent file {self.path}: {error.strerror}") from error
            with self._memory:
                self._on_disk = uuids
                self.damage = None

    def _replace(self, uuids: frozenset[str]) -> None:
        said = {"version": _VERSION, "may_be_locked": sorted(uuids), "boot": self._boot}
        temporary = self.path.with_name(self.path.name + ".new")
        with temporary.open("w") as file:
            file.write(json.dumps(said) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._sync_directory()

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


class Saver:
    """Saves an intent file on a thread of its own, so that nobody waits for its disk."""

    def __init__(self, intent: IntentFile, log: Callable[[str], None]) -> None:
        self._intent = intent
        self._log = log
        self._asked: SimpleQueue[threading.Event] = SimpleQueue()
        threading.Thread(target=self._run, name="intent", daemon=True).start()

    def save(self) -> threading.Event:
        """Begin to; the event is set once it has been tried."""
        done = threading.Event()
        self._asked.put(done)
        return done

    def _run(self) -> None:
        while True:
            done = self._asked.get()
            try:
                self._intent.save()
            except IntentError as error:
                self._log(f"{error}; the next start resets GPUs that need no reset")
            done.set()


def boot_id() -> str | None:
    """This boot's, the same in every container; None where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None
