"""The twoskip format: a skip list of records that are only appended, with a checksum on each.

All integers are big-endian, the checksum is CRC-32. A record has a type, a level, lengths of key and value,
pointers, a checksum over all that (its head) and one over key and value (its tail). A record of level L is a
member of the lists 0 to L-1. List 0 has two pointers in each record, so that a writer can change one and leave
the other as it was: the larger that lies below `current_size` of the header is in force.

A writer appends, links, and then commits by writing the header with the new `current_size`. If it dies before,
the file is dirty, and Cyrus repairs it when it is next opened. We must not write, and need not: records from
`current_size` on are not there, and so are pointers to them. In list 0 that gives the last state that was
committed; in the lists above, a pointer that leads nowhere costs a step down. In a clean file there are none
of these, so that one rule reads both. (In 9 of 30 files whose writer was killed a reader without this rule is
wrong.)

What is believed. A head is used only with a right checksum, a value is given only with a right checksum. That
nothing is there is believed only when two records stand beside each other in list 0, both right in head and
tail, and the key belongs between them: a flipped bit in the key of any record on the way may lead the search
astray, but then it ends at a bracket that shows it. A record that is wrong harms the questions that end at it
(or, with a wrong head, lead over it), no others.

The header changes with every commit, so that its octets are the stamp for what is remembered (see `lists`).
"""

import os
import struct
from zlib import crc32

from rcptd.stores.cyrus.databases.errors import Damaged, OtherFormat
from rcptd.stores.cyrus.databases.files import WHOLE, Walk
from rcptd.stores.cyrus.databases.lists import KEY_MOST, VALUE_MOST, WINDOW, Lists, Node, State

MAGIC = b"\xa1\x02\x8b\x0dtwoskip file\0\0\0\0"
HEADER = struct.Struct(">20sIQQQQII")  # magic, version, generation, records, repack size, current size, flags, crc
VERSION = 1
DUMMY = 64  # where the list begins
FIRST = 336  # where the first record can be
LEVEL_MOST = 31
DIRTY = 1  # the flag for a transaction that is under way; the count of records is its own then

UNFINISHED = "a writer died in the midst of a change; what was there before is read, and the next one repairs the file"

_LONG_KEY = 0xFFFF  # in place of a length: the length follows in 8 octets
_LONG_VALUE = 0xFFFFFFFF
# A head by its level: type, level, octets of key and of value, the pointers, checksums of head and tail.
_HEADS = [struct.Struct(f">BBHI{level + 1}QII") for level in range(LEVEL_MOST + 1)]

_RECORD, _DELETE, _START = ord("+"), ord("-"), ord("=")


class _Head:
    """A head whose checksum is right, and where the tail is; `data` begins where the record does."""

    __slots__ = ("checksum", "data", "key_octets", "kind", "next", "tail", "value_octets")

    kind: int
    key_octets: int
    value_octets: int
    next: tuple[int, ...]
    tail: int
    checksum: int
    data: bytes


class Twoskip(Lists):
    """How one twoskip file is read; see `files.Format` for who calls what when."""

    kind = "twoskip"

    first = DUMMY

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lock = WHOLE.lock
        self.unlock = WHOLE.unlock

    def fetch(self, descriptor: int, key: bytes) -> bytes | None:
        """Give the value of the key, None if the file proves that there is none."""
        state = self._read_header(descriptor)
        before, after = self._search(descriptor, state, key)
        if after is not None:
            value = self._value(descriptor, state, after)
            if after[0] == key:
                return value
        self._value(descriptor, state, before)
        return None

    def begins(self, descriptor: int, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix."""
        state = self._read_header(descriptor)
        before, after = self._search(descriptor, state, prefix)
        if after is not None:
            self._value(descriptor, state, after)
            if after[0].startswith(prefix):
                return True
        self._value(descriptor, state, before)
        return False

    def walk(self, descriptor: int, walk: Walk, most: int) -> None:
        """Go on through at most so many records behind `walk.last`, and note what is wrong with them."""
        state = self._read_header(descriptor)
        node = self._start(descriptor, state)
        if walk.last is not None:
            before, after = self._search(descriptor, state, walk.last)
            node = after if after is not None and after[0] == walk.last else before
        elif state.records is None:
            walk.faults.append(f"{self._path}: {UNFINISHED}")
        for _ in range(most):
            key = node[0]
            found = self._next(descriptor, state, node)
            if found is None:
                if state.records not in (None, walk.records) and not walk.faults:
                    walk.faults.append(
                        f"{self._path}: {walk.records} records where the header counts {state.records} "
                        f"(or the file changed meanwhile)"
                    )
                walk.ended = True
                return
            node = found
            if node[0] <= key:
                raise self._damaged(node[2], "the keys are out of order")
            walk.last = node[0]
            walk.records += 1
            try:
                self._value(descriptor, state, node)
            except Damaged as damaged:
                walk.faults.append(damaged.why)

    def _read_header(self, descriptor: int) -> State:
        header = os.pread(descriptor, HEADER.size, 0)
        state = self._state
        if header == state.stamp:
            return state
        if len(header) < HEADER.size:
            raise self._damaged(0, "the header is cut off")
        magic, version, _, records, _, current, flags, checksum = HEADER.unpack(header)
        if magic != MAGIC:
            raise OtherFormat(f"{self._path}: is no twoskip file any more")
        if crc32(header[: HEADER.size - 4]) != checksum:
            raise self._damaged(0, "the checksum of the header is wrong")
        if version > VERSION:
            raise self._damaged(0, f"version {version} of the format is not known")
        if current < FIRST:
            raise self._damaged(0, f"a current size of {current} is impossible")
        state = self._state = State(header, current, None if flags & DIRTY else records)
        return state

    def _load(self, descriptor: int, state: State, at: int) -> Node | None:
        """Give the record that a pointer leads to; a mark of deletion leads on to another, or to the end."""
        where = at
        head = self._head(descriptor, state, at)
        if head.kind == _DELETE:
            (where,) = head.next
            if not where:
                return None
            head = self._head(descriptor, state, where)
        following = head.next
        if head.kind != (_START if where == DUMMY else _RECORD) or len(following) < 1:
            raise self._damaged(where, "is no record, and a pointer leads there")
        end = head.tail + head.key_octets
        key = head.data[head.tail : end]
        if end > WINDOW:
            key = self._read(descriptor, where + head.tail, head.key_octets)
        return key, following, where

    def _head(self, descriptor: int, state: State, at: int) -> _Head:
        """Read the head of a record, and see that it is right and leads to where records are."""
        current = state.current
        if at & 7 or not DUMMY <= at < current:
            raise self._damaged(at, "a pointer leads to where no record can be")
        head = _Head()
        data = head.data = os.pread(descriptor, WINDOW, at)
        try:
            shape = _HEADS[data[1]]
            head.kind, level, key_octets, value_octets, *pointers, checksum, head.checksum = shape.unpack_from(data)
            tail = shape.size
            if key_octets == _LONG_KEY or value_octets == _LONG_VALUE:
                key_octets, value_octets, tail, pointers, checksum, head.checksum = _long(data, level)
        except (IndexError, struct.error):
            raise self._damaged(at, "the record is cut off, or of an impossible level") from None
        if crc32(data[: tail - 8]) != checksum:
            raise self._damaged(at, "the checksum of a head is wrong")
        if key_octets > KEY_MOST or value_octets > VALUE_MOST or at + tail + key_octets + value_octets > current:
            raise self._damaged(at, f"a key of {key_octets} and a value of {value_octets} octets are impossible")
        head.key_octets = key_octets
        head.value_octets = value_octets
        head.tail = tail
        head.next = _in_force(pointers, current)
        return head

    def _value(self, descriptor: int, state: State, node: Node) -> bytes:
        """Give the value of a record that a search has found, once the checksum of its tail is right."""
        at = node[2]
        head = self._head(descriptor, state, at)
        octets = head.key_octets + head.value_octets
        end = head.tail + octets + (-octets & 7)
        tail = head.data[head.tail : end] if end <= WINDOW else self._read(descriptor, at + head.tail, end - head.tail)
        if crc32(tail) != head.checksum or tail[: head.key_octets] != node[0] or end - head.tail > len(tail):
            raise self._damaged(at, "the checksum of a key and its value is wrong")
        return tail[head.key_octets : octets]


def _long(data: bytes, level: int) -> tuple[int, int, int, list[int], int, int]:
    """Read a head with a long key or a long value: lengths, where the tail is, pointers, checksums."""
    _, _, key_octets, value_octets = struct.unpack_from(">BBHI", data)
    at = 8
    if key_octets == _LONG_KEY:
        (key_octets,) = struct.unpack_from(">Q", data, at)
        at += 8
    if value_octets == _LONG_VALUE:
        (value_octets,) = struct.unpack_from(">Q", data, at)
        at += 8
    *pointers, head, tail = struct.unpack_from(f">{level + 1}QII", data, at)
    return key_octets, value_octets, at + 8 * len(pointers) + 8, pointers, head, tail


def _in_force(pointers: list[int], current: int) -> tuple[int, ...]:
    """Give the pointers that count, by list: those into what was committed, and in list 0 the later one."""
    if max(pointers) >= current:
        pointers = [pointer if pointer < current else 0 for pointer in pointers]
    if len(pointers) > 1:
        pointers[1] = max(pointers[1], pointers[0])
        del pointers[0]
    return tuple(pointers)  # a mark of deletion, or of a commit, has one
