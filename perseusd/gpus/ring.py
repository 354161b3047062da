"""A ring of records in shared memory: one writer, any readers, and nobody ever waits.

The writer fills the slot after the newest record and then publishes it by raising the count, one
aligned eight-byte store. That slot held the oldest record, which readers never look at, so a
writer that is stopped or killed half way leaves every record a reader may see whole. A reader
that was overtaken notices by the count (and by the number in the record) and ends early. Several
writers in turn must agree among themselves who writes; the ring does not help them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Any

_WORD_SIZE = 8


def words_of(memory: mmap) -> memoryview:
    """The mapping as eight-byte words, each loaded and stored in one piece.

    struct.pack_into would clear a word before it fills it. To be released before the mapping is
    closed.
    """
    return memoryview(memory).cast("Q")


class Ring:
    """`slots` records of `layout` (native struct format, multiples of eight bytes) at `offset`.

    words: the same mapping through `words_of`.
    """

    def __init__(
        self, memory: mmap, words: memoryview, offset: int, layout: str, slots: int
    ) -> None:
        self._memory = memory
        self._words = words
        self._offset = offset
        self._record = struct.Struct("@Q" + layout)
        self._slots = slots

    @staticmethod
    def size(layout: str, slots: int) -> int:
        return _WORD_SIZE + slots * struct.calcsize("@Q" + layout)

    @property
    def count(self) -> int:
        """How many records were ever appended."""
        return self._words[self._offset // _WORD_SIZE]

    def append(self, *values: Any) -> None:
        count = self.count
        self._record.pack_into(self._memory, self._position(count), count, *values)
        self._words[self._offset // _WORD_SIZE] = count + 1

    def newest_first(self) -> Iterator[tuple[Any, ...]]:
        """Records from the newest back, up to slots − 1 of them; fewer when overtaken."""
        count = self.count
        for number in range(count - 1, max(-1, count - self._slots), -1):
            record = self._record.unpack_from(self._memory, self._position(number))
            if record[0] != number or self.count >= number + self._slots:
                return
            yield record[1:]

    def _position(self, number: int) -> int:
        return self._offset + _WORD_SIZE + (number % self._slots) * self._record.size
