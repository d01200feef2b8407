"""A writer of twom files, from the description of the format: what the reader is tried on.

Debian's Cyrus has no twom. (The reader was also held against files of twom's own library, see docs/decisions.)
"""

import random
import struct
from dataclasses import dataclass, field

import xxhash

MAGIC = b"\xa1\x02\x8b\x0dtwomfile\0\0\0\0"
DUMMY, ADD, FAT_ADD, REPLACE, FAT_REPLACE, DELETE, COMMIT = range(1, 8)
FIRST = 96
LEVELS = 31
DIRTY, NO_CHECKSUM, XXH64 = 1, 1 << 27, 1 << 28
_POINTERS_AT = {DUMMY: 8, ADD: 8, FAT_ADD: 24, REPLACE: 16, FAT_REPLACE: 32, DELETE: 8, COMMIT: 8}


@dataclass
class _Record:
    kind: int
    level: int
    key: bytes = b""
    value: bytes = b""
    ancestor: int = 0
    pointers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pointers = self.pointers or [0] * (1 + self.level)


class TwomFile:
    """A twom file in the making; `octets` is what would be on the disk."""

    def __init__(self, rng: random.Random, *, flags: int = XXH64, fat: float = 0.1) -> None:
        self._rng = rng
        self._flags = flags
        self._fat = fat
        self._records = {FIRST: _Record(DUMMY, LEVELS)}
        self._end = self.committed = FIRST + 24 + 8 * LEVELS
        self._commits = self._dirty = 0
        self.count = self._committed_count = 0

    def set(self, key: bytes, value: bytes) -> None:
        """Add a record, or replace the one that is there or was deleted."""
        before, at = self._find(key)
        level = 1
        while level < LEVELS and self._rng.random() < 0.5:
            level += 1
        fat = self._rng.random() < self._fat
        if not at:
            self.count += 1
            record = _Record(FAT_ADD if fat else ADD, level, key, value)
            after = [self._next(self._records[one], n) for n, one in enumerate(before)]
        else:
            # What stands in its place: a mark of deletion, or the record itself.
            place = self._next(self._records[before[0]], 0)
            deleted = self._records[place].kind == DELETE
            self.count += deleted
            record = _Record(FAT_REPLACE if fat else REPLACE, level, key, value, place)
            old = self._records[at]
            after = [self._next(old, n) if n < old.level else self._next(self._records[one], n)
                     for n, one in enumerate(before)]  # fmt: skip
        new = self._append(record)
        record.pointers[1:] = after[:level]
        taken = max(level, self._records[at].level if at else 0)
        for n in range(taken):
            self._link(before[n], n, new if n < level else after[n])

    def delete(self, key: bytes) -> None:
        """Mark a record that is there as deleted."""
        before, at = self._find(key)
        assert at
        assert self._next(self._records[before[0]], 0) == at
        self.count -= 1
        self._link(before[0], 0, self._append(_Record(DELETE, 0, ancestor=at, pointers=[at])))

    def commit(self) -> None:
        """End a transaction."""
        self._append(_Record(COMMIT, 0, pointers=[self.committed]))
        self.committed = self._end
        self._commits += 1
        self._dirty = 0
        self._committed_count = self.count

    def octets(self, *, spare: int = 16384) -> bytes:
        """The file, with room at its end."""
        head = struct.pack(
            "<16s16sII6QI", MAGIC, b"u" * 16, 1, self._flags | self._dirty, 1, self.count if self._dirty else
            self._committed_count, self._commits, 0, 0, self.committed, LEVELS,
        )  # fmt: skip
        made = head + struct.pack("<I", self._sum(head))
        return made + b"".join(self._packed(record) for record in self._records.values()) + bytes(spare)

    def _sum(self, octets: bytes) -> int:
        return 0 if self._flags & NO_CHECKSUM else int(xxhash.xxh3_64_intdigest(octets)) & 0xFFFFFFFF

    def _packed(self, record: _Record) -> bytes:
        at = _POINTERS_AT[record.kind]
        if record.kind in (FAT_ADD, FAT_REPLACE):
            head = struct.pack("<BBHIQQ", record.kind, record.level, 0, 0, len(record.key), len(record.value))
        else:
            head = struct.pack("<BBHI", record.kind, record.level, len(record.key), len(record.value))
        if record.kind in (REPLACE, FAT_REPLACE):
            head += struct.pack("<Q", record.ancestor)
        assert len(head) == at
        head += struct.pack(f"<{len(record.pointers)}Q", *record.pointers)
        if record.kind in (DUMMY, DELETE, COMMIT):
            return head + struct.pack("<II", self._sum(head), 0)
        tail = record.key + b"\0" + record.value + b"\0"
        tail += bytes(-len(tail) % 8)
        return head + struct.pack("<II", self._sum(head), self._sum(tail)) + tail

    def _append(self, record: _Record) -> int:
        self._dirty = DIRTY
        at = self._end
        self._records[at] = record
        self._end += len(self._packed(record))
        return at

    def _next(self, record: _Record, level: int) -> int:
        return max(record.pointers[:2]) if level == 0 else record.pointers[1 + level]

    def _link(self, at: int, level: int, to: int) -> None:
        pointers = self._records[at].pointers
        if level:
            pointers[1 + level] = to
        elif at >= self.committed:
            pointers[:2] = [0, to]  # the record is new itself
        else:
            new = [slot for slot in (0, 1) if pointers[slot] >= self.committed]
            pointers[new[0] if new else pointers.index(min(pointers[:2]))] = to

    def _find(self, key: bytes) -> tuple[list[int], int]:
        """The record before the key in each list, and the record that has the key, deleted or not, 0 for none."""
        before = [FIRST] * LEVELS
        found = 0
        for level in range(LEVELS):
            at = FIRST
            while to := self._next(self._records[at], level):
                if self._records[to].kind == DELETE:
                    to = self._records[to].ancestor
                if self._records[to].key >= key:
                    found = found or (to if self._records[to].key == key else 0)
                    break
                at = to
            before[level] = at
        return before, found
