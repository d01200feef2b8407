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

The header changes with every commit, so that its octets are the stamp for what is remembered (see `lists`). What has
been committed since can be read behind the end as it was: new records, each with its key, those that replace another
one, too. Only a mark of deletion does not say what it has deleted; then all is forgotten.
"""

import os
import struct
from zlib import crc32

from rcptd.stores.cyrus.databases.errors import Damaged, OtherFormat
from rcptd.stores.cyrus.databases.lists import KEY_MOST, UNFINISHED, VALUE_MOST, WINDOW, Lists, Node, State, in_force
from rcptd.stores.cyrus.databases.locks import WHOLE

MAGIC = b"\xa1\x02\x8b\x0dtwoskip file\0\0\0\0"
HEADER = struct.Struct(">20sIQQQQII")  # magic, version, generation, records, repack size, current size, flags, crc
VERSION = 1
DUMMY = 64  # where the list begins
FIRST = 336  # where the first record can be
LEVEL_MOST = 31
NEWS_MOST = 1 << 16  # octets since the last question: three hundred records, less than a millisecond
DIRTY = 1  # the flag for a transaction that is under way; the count of records is its own then

_LONG_KEY = 0xFFFF  # in place of a length: the length follows in 8 octets
_LONG_VALUE = 0xFFFFFFFF
# A head by its level: type, level, octets of key and of value, the pointers, checksums of head and tail.
_HEADS = [struct.Struct(f">BBHI{level + 1}QII") for level in range(LEVEL_MOST + 1)]

_ENDS = [struct.Struct(f">BBHI{8 * (level + 1)}xII") for level in range(LEVEL_MOST + 1)]  # without the pointers

_RECORD, _DELETE, _START, _COMMIT = ord("+"), ord("-"), ord("="), ord("$")
_FILLER = b" BLANK\x07\xa0"  # eight octets that a writer has left free
_SAME = 32  # octets of a header that only a new file changes: magic, version, generation


# A head whose checksum is right: the type, the next in each list, where in `data` the tail begins, octets of key and of
# value, the checksum of the tail; and `data`, which begins where the record does.
_Head = tuple[int, tuple[int, ...], int, int, int, int, bytes]


class Twoskip(Lists):
    """How one twoskip file is read; see `files.Format` for who calls what when."""

    kind = "twoskip"
    locking = True
    told = True
    first = DUMMY

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lock = WHOLE.lock
        self.unlock = WHOLE.unlock

    def _read_header(self, descriptor: int) -> State:
        header = os.pread(descriptor, HEADER.size, 0)
        state = self._state
        if header == state.stamp:
            return state
        if len(header) < HEADER.size:
            raise self._damaged(0, "the header is cut off")
        magic, version, _, records, _, current, flags, checksum = HEADER.unpack(header)
        if magic != MAGIC:
            # What tells formats apart are the first 16 octets.
            if magic[:16] == MAGIC[:16]:
                raise self._damaged(0, "the beginning of the header is wrong")
            raise OtherFormat(f"{self._path}: is no twoskip file any more")
        if crc32(header[: HEADER.size - 4]) != checksum:
            raise self._damaged(0, "the checksum of the header is wrong")
        if version > VERSION:
            raise self._damaged(0, f"version {version} of the format is not known")
        if current < FIRST:
            raise self._damaged(0, f"a current size of {current} is impossible")
        if flags & DIRTY:
            new = State(header, current, None, (UNFINISHED,))
        else:
            new = State(header, current, records)
            if self._catch_up(descriptor, state, new) and state.gaps:
                new.take(state.gaps)
        self._state = new
        return new

    def _catch_up(self, descriptor: int, old: State, new: State) -> bool:
        """Tell what is remembered what was written since; False where that cannot be told."""
        gaps = old.gaps
        at = old.current
        if gaps is None or old.records is None or _generation(old) != _generation(new):
            return False
        if not at <= new.current <= min(at + NEWS_MOST, 2 * gaps.current):
            return False
        try:
            while at < new.current:
                if os.pread(descriptor, len(_FILLER), at) == _FILLER:
                    at += len(_FILLER)
                    continue
                kind, _, begin, key_octets, _, _, _ = head = self._head(descriptor, new, at)
                tail = self._tail(descriptor, at, head)
                if kind == _RECORD:
                    gaps.written(tail[:key_octets], at)
                elif kind != _COMMIT:
                    return False
                at += begin + len(tail)
        except Damaged:
            return False
        return at == new.current

    def _load(self, descriptor: int, state: State, at: int, *, whole: bool = False) -> Node | None:
        """Give the record that a pointer leads to; a mark of deletion leads on to another, or to the end."""
        head = self._head(descriptor, state, at)
        if head[0] == _DELETE:
            at = head[1][0]
            if not at:
                return None
            head = self._head(descriptor, state, at)
        kind, following, begin, key_octets, _, _, data = head
        if kind != (_START if at == DUMMY else _RECORD):
            raise self._damaged(at, "is no record, and a pointer leads there")
        if whole:
            return self._tail(descriptor, at, head)[:key_octets], following, at
        end = begin + key_octets
        key = data[begin:end] if end <= WINDOW else self._read(descriptor, at + begin, key_octets)
        return key, following, at

    def _head(self, descriptor: int, state: State, at: int) -> _Head:
        """Read the head of a record, and see that it is right and leads to where records are."""
        current = state.current
        if at & 7 or not DUMMY <= at < current:
            raise self._damaged(at, "a pointer leads to where no record can be")
        data = os.pread(descriptor, WINDOW, at)
        try:
            shape = _HEADS[data[1]]
            kind, level, key_octets, value_octets, *pointers, checksum, tail_checksum = shape.unpack_from(data)
            tail = shape.size
            if key_octets == _LONG_KEY or value_octets == _LONG_VALUE:
                key_octets, value_octets, tail, pointers, checksum, tail_checksum = _long(data, level)
        except (IndexError, struct.error):
            raise self._damaged(at, "the record is cut off, or of an impossible level") from None
        if crc32(data[: tail - 8]) != checksum:
            raise self._damaged(at, "the checksum of a head is wrong")
        if key_octets > KEY_MOST or value_octets > VALUE_MOST or at + tail + key_octets + value_octets > current:
            raise self._damaged(at, f"a key of {key_octets} and a value of {value_octets} octets are impossible")
        return kind, in_force(pointers, current), tail, key_octets, value_octets, tail_checksum, data

    def _value(self, descriptor: int, state: State, node: Node) -> bytes:
        """Give the value of a record that a search has found, once its checksums are right."""
        key, _, at = node
        data = os.pread(descriptor, WINDOW, at)
        try:
            # What nearly every record is: short, and its pointers do not matter here.
            shape = _ENDS[data[1]]
            _, _, key_octets, value_octets, checksum, tail_checksum = shape.unpack_from(data)
        except (IndexError, struct.error):
            return self._long_value(descriptor, state, node)
        begin = shape.size
        end = (begin + key_octets + value_octets + 7) & ~7
        tail = data[begin:end]
        middle = begin + key_octets
        if (
            end > len(data) or end > state.current - at or data[begin:middle] != key
            or crc32(data[: begin - 8]) != checksum or crc32(tail) != tail_checksum
        ):  # fmt: skip
            return self._long_value(descriptor, state, node)
        return data[middle : middle + value_octets]

    def _long_value(self, descriptor: int, state: State, node: Node) -> bytes:
        """Do the same for a record of any length, or find out what is wrong with it."""
        key, _, at = node
        head = self._head(descriptor, state, at)
        tail = self._tail(descriptor, at, head)
        _, _, _, key_octets, value_octets, _, _ = head
        if tail[:key_octets] != key:
            raise self._damaged(at, "the key is another one")
        return tail[key_octets : key_octets + value_octets]

    def _tail(self, descriptor: int, at: int, head: _Head) -> bytes:
        """Give key and value, and the zeros behind them, once their checksum is right."""
        _, _, begin, key_octets, value_octets, checksum, data = head
        end = (begin + key_octets + value_octets + 7) & ~7  # a head is a multiple of 8 itself
        tail = data[begin:end] if end <= WINDOW else self._read(descriptor, at + begin, end - begin)
        if crc32(tail) != checksum or end - begin > len(tail):
            raise self._damaged(at, "the checksum of a key and its value is wrong")
        return tail


def _generation(state: State) -> bytes:
    return state.stamp[:_SAME] if isinstance(state.stamp, bytes) else b""


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
