"""Learned curves on disk: one file a signature, whole or not there, few, small, private.

Nothing that is wrong with a file, a directory or a disk reaches training: the log tells it, once,
and the job learns anew. Reading and writing may take any time; keeper.py has a thread do it.

A file is two lines of JSON: who wrote what when, with the second line's checksum; and what was
learned, which the core checks when it is recalled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perseusd import __version__

log = logging.getLogger(__name__)

FORMAT = "perseusd learned curves"
VERSION = 1

MOST_FILES = 64
"""Signatures remembered; the one that was used longest ago goes."""

MOST_DAMAGED = 4
"""Damaged files kept aside, for whoever wants to know what happened to them."""

LARGEST_BYTES = 1_000_000
"""A pipeline of eight stages takes some ten thousand."""

ABOUT = ("stages", "gpus", "schedule")
"""What of the learned is repeated in the first line, for people."""

_KEPT, _DAMAGED, _NEW = ".curves", ".damaged", ".new"
_SIGNATURE = re.compile(r"[0-9a-f]{16,64}")


class _DamagedError(ValueError):
    """The file is not one that `save` wrote."""


@dataclass(frozen=True)
class Entry:
    """A file: its size, when it was last written or used (seconds since the epoch), and what of."""

    signature: str
    size_bytes: int
    used_s: float
    about: Mapping[str, Any]


@dataclass
class CurveFiles:
    """The files of one directory. What fails is logged and never raised.

    limit: the most signatures kept.
    troubles: by what could not be done ("read", "write"), what was met, until it can be done.
    """

    directory: Path
    limit: int = MOST_FILES
    troubles: dict[str, str] = field(default_factory=dict)

    def load(self, signature: str) -> dict[str, Any] | None:
        """What was saved under it, or None; a damaged file is put aside."""
        path = self._path(signature)
        with self._noting("read"):
            try:
                learned = _learned(_content(path), signature)
            except FileNotFoundError:
                return None
            except _DamagedError as damage:
                self._put_aside(path, damage)
            else:
                with contextlib.suppress(OSError):  # may be mounted read-only
                    os.utime(path)
                return learned
        return None

    def save(self, signature: str, learned: Mapping[str, Any]) -> None:
        """Replace what was saved under it; on the disk when this returns."""
        path = self._path(signature)
        data = _text(signature, learned).encode()
        if len(data) > LARGEST_BYTES:
            log.warning("learned curves of %d bytes are too large to be kept", len(data))
            return
        with self._noting("write"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, data)
            self._drop_oldest(_NEW, 0)  # of a daemon that was killed as it wrote
            self._drop_oldest(_KEPT, self.limit)

    def discard(self, signature: str) -> None:
        with self._noting("write"):
            self._path(signature).unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """The last used first."""
        found = []
        with self._noting("read"):
            for path in self._files(_KEPT):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    about = _about(path)
                    found.append(Entry(path.stem, status.st_size, status.st_mtime, about))
        return sorted(found, key=lambda entry: -entry.used_s)

    def _path(self, signature: str) -> Path:
        if not is_signature(signature):
            raise ValueError(f"{signature!r} is no signature")  # it could be another path
        return self.directory / f"{signature}{_KEPT}"

    def _put_aside(self, path: Path, damage: _DamagedError) -> None:
        aside = path.with_suffix(_DAMAGED)
        log.warning("%s is ignored, and kept as %s: %s", path, aside.name, damage)
        with self._noting("write"):
            path.replace(aside)
            self._drop_oldest(_DAMAGED, MOST_DAMAGED)

    def _files(self, suffix: str) -> list[Path]:
        """Those of ours: whatever else lies in the directory is left alone."""
        try:
            found = list(self.directory.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if path.suffix == suffix and is_signature(path.stem)]

    def _drop_oldest(self, suffix: str, most: int) -> None:
        files = self._files(suffix)
        files.sort(key=lambda path: path.lstat().st_mtime_ns)
        for path in files[: max(len(files) - most, 0)]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _noting(self, deed: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            met = f"cannot {deed} {error.filename or self.directory}: {error.strerror}"
            if deed not in self.troubles:
                log.warning("learned curves: %s; jobs learn anew when they start again", met)
            self.troubles[deed] = met
        else:
            self.troubles.pop(deed, None)


def is_signature(text: str) -> bool:
    return _SIGNATURE.fullmatch(text) is not None


def _text(signature: str, learned: Mapping[str, Any]) -> str:
    body = json.dumps(learned, allow_nan=False, separators=(",", ":"))
    head = {
        "format": FORMAT,
        "version": VERSION,
        "perseusd": __version__,
        "signature": signature,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "about": {key: learned[key] for key in ABOUT if key in learned},
        "sha256": hashlib.sha256(body.encode()).hexdigest(),
    }
    return f"{json.dumps(head)}\n{body}\n"


def _replace(path: Path, data: bytes) -> None:
    """Atomically, and on the disk, directory entry included, before returning."""
    new = path.with_suffix(_NEW)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _content(path: Path) -> bytes:
    """Of a regular file of sensible size: a pipe or device by that name is never waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _DamagedError("it is no regular file")
        if status.st_size > LARGEST_BYTES:
            raise _DamagedError(f"it has {status.st_size} bytes; {LARGEST_BYTES} are the most")
        return file.read(LARGEST_BYTES)


def _head(content: bytes) -> Mapping[str, Any]:
    head = _parsed(content.partition(b"\n")[0])
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise _DamagedError(f"it is not of the format {FORMAT!r}, version {VERSION}")
    return head


def _learned(content: bytes, signature: str) -> dict[str, Any]:
    head, body = _head(content), content.partition(b"\n")[2].removesuffix(b"\n")
    if head.get("sha256") != hashlib.sha256(body).hexdigest():
        raise _DamagedError("it was cut short or changed: its checksum is another")
    if head.get("signature") != signature:
        raise _DamagedError("it was written under another signature")
    return _parsed(body)


def _about(path: Path) -> Mapping[str, Any]:
    try:
        head = _head(_content(path))
    except (_DamagedError, OSError) as error:
        return {"damaged": str(error)}
    about = head.get("about")
    return {**(about if isinstance(about, dict) else {}), "saved": head.get("saved")}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _DamagedError("it holds no JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
