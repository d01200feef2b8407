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

The header changes with every commit, so that its octets are the stamp for what is remembered (see `index`). What has
been committed since can be read behind the end as it was: new records, each with its key, those that replace another
one, too. A mark of deletion does not say what it has deleted, but which record followed.

The index is learnt in advance, where somebody has the time for it (`learn`): first the fences, along a high list, then
all the gaps, along the lowest. A file that was repacked has its records in order, so that they are read by the block.
"""

import os
import struct
import threading
from zlib import crc32

from rcptd.stores.cyrus.databases.errors import Damaged, OtherFormat
from rcptd.stores.cyrus.databases.files import PlaceOf, Plain
from rcptd.stores.cyrus.databases.index import MEMBERS_MOST, Index
from rcptd.stores.cyrus.databases.lists import KEY_MOST, UNFINISHED, VALUE_MOST, WINDOW, Lists, Node, State, in_force
from rcptd.stores.cyrus.databases.locks import WHOLE

MAGIC = b"\xa1\x02\x8b\x0dtwoskip file\0\0\0\0"
HEADER = struct.Struct(">20sIQQQQII")  # magic, version, generation, records, repack size, current size, flags, crc
VERSION = 1
DUMMY = 64  # where the list begins
FIRST = 336  # where the first record can be
LEVEL_MOST = 31
FENCES = 5  # the list whose records are fences: each thirty-second or so
SLICE = 150  # records learnt at once: some tenths of a millisecond
BLOCK = 1 << 13  # octets read at once of what stands in order
NEWS_MOST = 1 << 16  # octets since the last question: three hundred records, less than a millisecond
DIRTY = 1  # the flag for a transaction that is under way; the count of records is its own then

_LONG_KEY = 0xFFFF  # in place of a length: the length follows in 8 octets
_LONG_VALUE = 0xFFFFFFFF
# A head by its level: type, level, octets of key and of value, the pointers, checksums of head and tail.
_HEADS = [struct.Struct(f">BBHI{level + 1}QII") for level in range(LEVEL_MOST + 1)]

_ENDS = [struct.Struct(f">BBHI{8 * (level + 1)}xII") for level in range(LEVEL_MOST + 1)]  # without the pointers

# The same with the two pointers of list 0 alone.
_STEPS = [struct.Struct(f">BBHI2Q{8 * (level - 1)}xII") for level in range(1, LEVEL_MOST + 1)]

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

    def __init__(self, path: str, plain: Plain | None = None) -> None:
        super().__init__(path, plain)
        self._lock = threading.Lock()  # held by who changes what is remembered
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
        with self._lock:
            state = self._state
            if header == state.stamp:
                return state  # another thread was as quick
            if flags & DIRTY:
                new = State(header, current, None, (UNFINISHED,))
            else:
                new = State(header, current, records)
                new.index = state.index if self._catch_up(descriptor, state, new) else Index(DUMMY, current)
            self._state = new
        return new

    def _catch_up(self, descriptor: int, old: State, new: State) -> bool:
        """Tell what is remembered what was written since; False where that cannot be told."""
        index = old.index
        at = old.current
        if index is None or old.records is None or _generation(old) != _generation(new):
            return False
        if not at <= new.current <= min(at + NEWS_MOST, 2 * index.current):
            return False
        try:
            while at < new.current:
                if os.pread(descriptor, len(_FILLER), at) == _FILLER:
                    at += len(_FILLER)
                    continue
                kind, following, begin, key_octets, _, _, _ = head = self._head(descriptor, new, at)
                tail = self._tail(descriptor, at, head)
                if kind == _RECORD:
                    index.written(tail[:key_octets], at)
                elif kind == _DELETE:
                    follower = self._load(descriptor, new, following[0], whole=True) if following[0] else None
                    index.deleted(follower[0] if follower else None)
                elif kind != _COMMIT:
                    return False
                at += begin + len(tail)
        except Damaged:
            return False
        return at == new.current

    # ---- what is remembered -------------------------------------------------------------------------------------

    @property
    def learnt(self) -> bool:
        """Say whether there is nothing to learn in advance."""
        index = self._state.index
        return index is None or index.learnt

    def learn(self, descriptor: int) -> bool:
        """Learn a slice of the index; says whether there is more."""
        state = self._read_header(descriptor)
        index = state.index
        if index is None:
            return False
        if not index.fenced:
            self._learn_fences(descriptor, state, index)
        else:
            left = SLICE
            while left > 0 and not index.learnt:
                left -= self._learn_gap(descriptor, state, index, index.next) if index.wanted(index.next) else 1
                with self._lock:
                    index.next += 1
                    index.learnt = index.next >= len(index.table[0])
        return not index.learnt

    def _learn_fences(self, descriptor: int, state: State, index: Index) -> None:
        """Walk on along the list of the fences; where anything is wrong with one, what is behind stays unknown."""
        fences, places, _ = index.table
        key, at = fences[-1], places[-1]
        found: list[tuple[bytes, int]] = []
        wrong = False
        try:
            node = self._load(descriptor, state, at) if len(fences) > 1 else self._start(descriptor, state)
            while node and len(found) < SLICE:
                at = node[1][FENCES] if len(node[1]) > FENCES else 0
                node = self._load(descriptor, state, at, whole=True) if at else None
                if node:
                    if node[0] <= key:
                        raise self._damaged(at, "the keys are out of order")
                    key = node[0]
                    found.append((key, node[2]))
        except Damaged:
            wrong, node = True, None
        with self._lock:
            for one in found:
                index.fence(*one)
            if node is None:
                index.fenced = True
                index.unbounded = wrong
                if wrong:
                    index.close(len(index.table[0]) - 1)

    def _learn_gap(self, descriptor: int, state: State, index: Index, number: int) -> int:
        """Read a gap, and give how many records that took."""
        fences, places, _ = index.table
        last = number + 1 == len(fences)
        try:
            at = places[number] if number else self._start(descriptor, state)[1][0]
            keys, found = self._members(descriptor, state, at, 0 if last else places[number + 1])
            if not last and keys and keys[-1] >= fences[number + 1]:
                raise self._damaged(at, "the keys are out of order")
        except Damaged:
            with self._lock:
                index.close(number)
            return 1
        with self._lock:
            index.put(number, keys, found)
        return len(keys)

    def _members(self, descriptor: int, state: State, at: int, end: int) -> tuple[list[bytes], list[int]]:
        """Read the records from one place of list 0 to another one, with all their checksums; raises `Damaged`."""
        current = state.current
        keys: list[bytes] = []
        places: list[int] = []
        before = b""
        data, base = b"", 0
        is_plain = self._plain
        while at != end:
            here = at - base
            if not 0 <= here <= len(data) - WINDOW:
                data, base, here = os.pread(descriptor, BLOCK, at), at, 0
            try:
                # What nearly every record is, without a call for each.
                level = data[here + 1]
                shape = _STEPS[level - 1]
                kind, _, key_octets, value_octets, one, two, checksum, tail_checksum = shape.unpack_from(data, here)
                begin = here + shape.size
                behind = (begin + key_octets + value_octets + 7) & ~7
                plain = kind == _RECORD and level and not at & 7 and base + behind <= current and behind <= len(data)
            except (IndexError, struct.error):
                plain = False
            if (
                plain
                and crc32(data[here : begin - 8]) == checksum
                and crc32(data[begin:behind]) == tail_checksum
            ):
                middle = begin + key_octets
                key, place = data[begin:middle], at
                if is_plain and is_plain(data, middle, middle + value_octets):
                    place += 1
                at = max(one if one < current else 0, two if two < current else 0)
            else:
                node = self._load(descriptor, state, at, whole=True) if at else None
                if node is None or node[2] == end:
                    if node is None and end:
                        raise self._damaged(at, "the list comes to its end")
                    break
                key, following, place = node
                at = following[0]
            if key <= before or len(keys) >= MEMBERS_MOST:
                raise self._damaged(place, "the keys are out of order, or too many")
            before = key
            keys.append(key)
            places.append(place)
        return keys, places

    def place_of(self) -> PlaceOf | None:
        """Give what finds the place of a key, as long as the file is as it is now."""
        index = self._state.index
        return index.place if index else None

    def _remembered(self, state: State, wanted: bytes) -> int:
        index = state.index
        if index is None or not wanted:
            return -1
        place = index.place(wanted)
        return place & ~1 if place > 0 else place

    def _fetch_searching(self, descriptor: int, state: State, wanted: bytes) -> bytes | None:
        index = state.index
        if index is not None and index.learnt and wanted:
            number = index.before(wanted)
            if index.wanted(number):
                self._learn_gap(descriptor, state, index, number)
                place = self._remembered(state, wanted)
                if place >= 0:
                    return self._value(descriptor, state, (wanted, (), place)) if place else None
        return super()._fetch_searching(descriptor, state, wanted)

    def _near(self, descriptor: int, state: State, wanted: bytes) -> Node:
        place = state.index.near(wanted) if state.index is not None else 0
        return (place and self._load(descriptor, state, place)) or self._start(descriptor, state)

    def _prepare(self, state: State, lists: int) -> None:
        """Prepare nothing: what is remembered is learnt in advance."""

    # ---- records ------------------------------------------------------------------------------------------------

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
