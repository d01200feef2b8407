"""The twom format: twoskip's successor, with the last states of a record still there and with another checksum.

All integers are little-endian. As in twoskip, records are only appended, a record of level L is in the lists 0 to
L-1, list 0 has two pointers of which the larger below `current_size` is in force, and a pointer to something not
committed is none. What is different: a mark of deletion stays in list 0, in front of the record that it deletes, and
its only pointer leads there; the file may be longer than what is in it.

What is believed is what twoskip's reader believes: a value with right checksums, and a "no" between two neighbours
with right checksums. The checksum is the lower half of XXH3-64, for which the package `xxhash` is needed. Without it
the structure alone can show damage, and `describe` says so; the same where a file has none.

Locks: readers take the head of the file and then the octets of the first record, and let go of the head. So a writer
that waits is not starved by readers who come one after the other.

The header changes with every commit, so that its octets are the stamp for what is remembered (see `lists`).
"""

import os
import struct
from collections.abc import Callable

from rcptd.stores.cyrus.databases.errors import OtherFormat
from rcptd.stores.cyrus.databases.files import Plain
from rcptd.stores.cyrus.databases.lists import KEY_MOST, UNFINISHED, VALUE_MOST, WINDOW, Lists, Node, State, in_force
from rcptd.stores.cyrus.databases.locks import Range

_xxh3: Callable[[bytes], int] | None
try:
    from xxhash import xxh3_64_intdigest as _xxh3
except ImportError:  # the extra cyrus-twom is not installed
    _xxh3 = None

MAGIC = b"\xa1\x02\x8b\x0dtwomfile\0\0\0\0"
# Magic, uuid, version, flags, generation, records, commits, dirty size, repack size, current size, level, checksum.
HEADER = struct.Struct("<16s16sII6QII")
VERSION = 1
LEVEL_MOST = 31
FIRST = HEADER.size + 24 + 8 * LEVEL_MOST  # where the first record can be

DIRTY = 1  # flags
NO_CHECKSUM = 1 << 27
XXH64 = 1 << 28
OWN_CHECKSUM = 1 << 29  # of a program's own; Cyrus has none
ENGINES = NO_CHECKSUM | XXH64 | OWN_CHECKSUM
OWN_ORDER = 1 << 30

_DUMMY, _ADD, _FAT_ADD, _REPLACE, _FAT_REPLACE, _DELETE = range(1, 7)
_POINTERS_AT = {_DUMMY: 8, _ADD: 8, _FAT_ADD: 24, _REPLACE: 16, _FAT_REPLACE: 32, _DELETE: 8}
_LONG = {_FAT_ADD, _FAT_REPLACE}
_RECORDS = {_ADD, _FAT_ADD, _REPLACE, _FAT_REPLACE}
_BARE = {_DUMMY, _DELETE}  # without key and value
_LOW = 0xFFFFFFFF

_BEGIN = struct.Struct("<BBHI")
_LENGTHS = struct.Struct("<QQ")
_POINTERS = [struct.Struct(f"<{level + 1}QII") for level in range(LEVEL_MOST + 1)]

UNCHECKED = "the checksums cannot be verified: "

# A head that is right: the type, the next in each list (of a mark of deletion, what it deletes), where the tail begins,
# octets of key and of value, the tail's checksum, and what was read, from where the record begins.
_Head = tuple[int, tuple[int, ...], int, int, int, int, bytes]


class Twom(Lists):
    """How one twom file is read; see `files.Format` for who calls what when."""

    kind = "twom"
    locking = True
    first = HEADER.size

    _guard = Range(0, 16)
    _data = Range(HEADER.size, FIRST - HEADER.size)

    def __init__(self, path: str, plain: Plain | None = None) -> None:
        super().__init__(path, plain)
        self._sums: Callable[[bytes], int] | None = None
        self.unlock = self._data.unlock

    def lock(self, descriptor: int) -> None:
        """Take the shared lock on the data, behind any writer who waits for it."""
        self._guard.lock(descriptor)
        try:
            self._data.lock(descriptor)
        finally:
            self._guard.unlock(descriptor)

    def _read_header(self, descriptor: int) -> State:
        header = os.pread(descriptor, HEADER.size, 0)
        state = self._state
        if header == state.stamp:
            return state
        if len(header) < HEADER.size:
            raise self._damaged(0, "the header is cut off")
        magic, _, version, flags, _, records, _, _, _, current, _, checksum = HEADER.unpack(header)
        if magic != MAGIC:
            raise OtherFormat(f"{self._path}: is no twom file any more")
        engine = flags & ENGINES
        if version > VERSION or flags & OWN_ORDER or engine not in (0, NO_CHECKSUM, XXH64):
            raise self._damaged(0, f"version {version} with flags {flags:#x} of the format is not known")
        sums = _xxh3
        why = "" if sums else "the Python package xxhash is not installed"
        if engine == NO_CHECKSUM:
            sums, why = None, "the file has none"
            if checksum:  # so it has some, and the flag is what is wrong
                raise self._damaged(0, "the checksum of the header is wrong")
        if sums and sums(header[:-4]) & _LOW != checksum:
            raise self._damaged(0, "the checksum of the header is wrong")
        if current < FIRST:
            raise self._damaged(0, f"a current size of {current} is impossible")
        notes = [f"{UNCHECKED}{why}"] if why else []
        if flags & DIRTY:
            notes.append(UNFINISHED)
        self._sums = sums
        state = self._state = State(header, current, None if flags & DIRTY else records, tuple(notes))
        return state

    def _load(self, descriptor: int, state: State, at: int, *, whole: bool = False) -> Node | None:
        """Give the record that a pointer leads to; of a deleted one, where its mark of deletion is."""
        where = at
        head = self._head(descriptor, state, at)
        if head[0] == _DELETE:
            where = head[1][0]
            head = self._head(descriptor, state, where)
        kind, following, begin, key_octets, _, _, data = head
        if (kind != _DUMMY) if where == self.first else (kind not in _RECORDS):
            raise self._damaged(where, "is no record, and a pointer leads there")
        if whole and kind != _DUMMY:
            return self._tail(descriptor, where, head)[:key_octets], following, at
        end = begin + key_octets
        key = data[begin:end] if end <= WINDOW else self._read(descriptor, where + begin, key_octets)
        return key, following, at

    def _head(self, descriptor: int, state: State, at: int) -> _Head:
        """Read the head of a record, and see that it is right and leads to where records are."""
        current = state.current
        if at & 7 or not self.first <= at < current:
            raise self._damaged(at, "a pointer leads to where no record can be")
        data = os.pread(descriptor, WINDOW, at)
        try:
            kind, level, key_octets, value_octets = _BEGIN.unpack_from(data)
            begin = _POINTERS_AT[kind]
            shape = _POINTERS[level]
            *pointers, checksum, tail_checksum = shape.unpack_from(data, begin)
            if kind in _LONG:
                key_octets, value_octets = _LENGTHS.unpack_from(data, 8)
        except (KeyError, IndexError, struct.error):
            raise self._damaged(at, "the record is cut off, or of an impossible type or level") from None
        tail = begin + shape.size
        sums = self._sums
        if sums and sums(data[: tail - 8]) & _LOW != checksum:
            raise self._damaged(at, "the checksum of a head is wrong")
        if kind in _BARE:
            key_octets = value_octets = 0
        if key_octets > KEY_MOST or value_octets > VALUE_MOST or at + tail + key_octets + value_octets > current:
            raise self._damaged(at, f"a key of {key_octets} and a value of {value_octets} octets are impossible")
        return kind, in_force(pointers, current), tail, key_octets, value_octets, tail_checksum, data

    def _value(self, descriptor: int, state: State, node: Node) -> bytes | None:
        """Give the value of a record that a search has found, once the checksum of its tail is right."""
        key, _, at = node
        head = self._head(descriptor, state, at)
        deleted = head[0] == _DELETE
        if deleted:
            at = head[1][0]
            head = self._head(descriptor, state, at)
        kind, _, _, key_octets, value_octets, _, _ = head
        if kind == _DUMMY:
            return None
        tail = self._tail(descriptor, at, head)
        if tail[:key_octets] != key:
            raise self._damaged(at, "the key is another one")
        return None if deleted else tail[key_octets + 1 : key_octets + 1 + value_octets]

    def _tail(self, descriptor: int, at: int, head: _Head) -> bytes:
        """Give key and value, with a NUL behind each, once their checksum is right."""
        _, _, begin, key_octets, value_octets, checksum, data = head
        end = (begin + key_octets + value_octets + 2 + 7) & ~7  # a head is a multiple of 8 itself
        tail = data[begin:end] if end <= WINDOW else self._read(descriptor, at + begin, end - begin)
        sums = self._sums
        if (sums and sums(tail) & _LOW != checksum) or end - begin > len(tail):
            raise self._damaged(at, "the checksum of a key and its value is wrong")
        return tail
