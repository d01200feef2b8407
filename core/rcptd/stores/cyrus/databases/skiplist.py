"""The skiplist format: twoskip's predecessor, without checksums and without a mark of a writer that died.

All integers are big-endian and of 4 octets. Behind a header of 48 octets come records: type, length and octets of the
key, length and octets of the value, each padded to 4, then pointers, as many as the record's level, and FFFFFFFF. A
writer appends and then sets pointers; a deletion only takes a record out of the lists. Keys are compared as signed
octets: those from 80 on come first.

A transaction ends with a mark of its own as the last thing in the file. A writer that died leaves a file without it, in
which some pointers are those of the transaction that never was. Cyrus' readers follow them all the same; Cyrus' next
writer repairs the file. Until then it is damaged for us.

What is believed. There are no checksums, so only the structure can show damage: types, lengths, ends, pointers that
lead to where no record can be, a key that the search cannot have come to, a search that comes to no end. A flipped bit
inside a key that leaves the order intact makes it another key, and one inside a value another value, here as in Cyrus.

Every change appends something, so that size and time of the file are the stamp for what is remembered (see `lists`).
"""

import os
import struct
import time

from rcptd.stores.cyrus.databases import missing
from rcptd.stores.cyrus.databases.errors import Absent, OtherFormat
from rcptd.stores.cyrus.databases.files import Plain
from rcptd.stores.cyrus.databases.lists import KEY_MOST, VALUE_MOST, WINDOW, Lists, Node, State
from rcptd.stores.cyrus.databases.locks import WHOLE

MAGIC = b"\xa1\x02\x8b\x0dskiplist file\0\0\0"
HEADER = struct.Struct(">20s7I")  # magic, version, minor, most levels, levels, records, log start, last recovery
VERSION = 1
LEVEL_MOST = 20

_INORDER, _ADD, _DUMMY = 1, 2, 257
_KINDS = {_INORDER, _ADD}
_COMMIT = b"\0\0\0\xff"
_END = 0xFFFFFFFF
_PAIR = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_POINTERS = struct.Struct(f">{LEVEL_MOST + 1}I")

_SIGNED = bytes([*range(0x80, 0x100), *range(0x80)])


def place(key: bytes) -> bytes:
    """Give what two keys are compared by."""
    return key.translate(_SIGNED)


class Skiplist(Lists):
    """How one skiplist file is read; see `files.Format` for who calls what when."""

    kind = "skiplist"
    locking = True
    first = HEADER.size
    remembers = False
    checked = False

    def __init__(self, path: str, plain: Plain | None = None) -> None:
        super().__init__(path, plain)
        self.lock = WHOLE.lock
        self.unlock = WHOLE.unlock

    def _order(self, key: bytes) -> bytes:
        return place(key)

    def _read_header(self, descriptor: int) -> State:
        status = os.fstat(descriptor)
        stamp = (status.st_size, status.st_ctime_ns)
        if stamp == self._state.stamp:
            return self._state
        self._check_header(descriptor, status.st_size)
        # By ctime, which no tool sets. Two changes within one tick of the clock could leave the same size and time.
        lasting = abs(time.time() - status.st_ctime) > missing.SETTLED
        state = State(stamp, status.st_size, lasting=lasting)
        if lasting:
            self._state = state
        return state

    def _check_header(self, descriptor: int, size: int) -> None:
        header = os.pread(descriptor, HEADER.size, 0)
        if not header:
            raise Absent(f"{self._path}: is empty")
        if len(header) < HEADER.size:
            raise self._damaged(0, "the header is cut off")
        magic, version, _, most, levels, _, log, _ = HEADER.unpack(header)
        if magic != MAGIC:
            # What tells formats apart are the first 16 octets.
            if magic[:16] == MAGIC[:16]:
                raise self._damaged(0, "the beginning of the header is wrong")
            raise OtherFormat(f"{self._path}: is no skiplist file any more")
        if version != VERSION:
            raise self._damaged(0, f"version {version} of the format is not known")
        if not levels <= most <= LEVEL_MOST:
            raise self._damaged(0, f"{levels} levels of {most} are impossible")
        if log > size:
            raise self._damaged(0, f"the log begins at {log}, behind the end")
        if log < size and os.pread(descriptor, 4, size - 4) != _COMMIT:
            raise self._damaged(size, "a writer died in the midst of a change; the next one repairs the file")

    def _load(self, descriptor: int, state: State, at: int, *, whole: bool = False) -> Node:  # noqa: ARG002
        """Give the record that a pointer leads to."""
        data, begin, octets, value_octets = self._record(descriptor, state, at)
        kind = _LENGTH.unpack_from(data)[0]
        if (kind != _DUMMY) if at == self.first else (kind not in _KINDS):
            raise self._damaged(at, "is no record, and a pointer leads there")
        key = data[begin : begin + octets]
        if len(key) < octets:
            key = self._read(descriptor, at + begin, octets)
        if (octets & 3 and data[begin + octets : begin + octets + (-octets & 3)].strip(b"\0")) or key.endswith(b"\0"):
            raise self._damaged(at, "the length of a key is another one")
        where = begin + octets + (-octets & 3) + 4 + value_octets + (-value_octets & 3)
        if where + _POINTERS.size > len(data):
            data = os.pread(descriptor, _POINTERS.size, at + where)
            where = 0
        pointers: list[int] = []
        for (pointer,) in _LENGTH.iter_unpack(data[where : where + min(_POINTERS.size, (len(data) - where) & ~3)]):
            if pointer == _END:
                break
            if pointer >= state.current or pointer & 3 or 0 < pointer <= self.first:
                raise self._damaged(at, "a pointer leads to where no record can be")
            pointers.append(pointer)
        else:
            raise self._damaged(at, "the pointers come to no end")
        if not pointers:
            raise self._damaged(at, "the record has no pointers")
        return place(key), tuple(pointers), at

    def _record(self, descriptor: int, state: State, at: int) -> tuple[bytes, int, int, int]:
        """Read a record: its octets, where the key begins in them, and the octets of key and value."""
        data = os.pread(descriptor, WINDOW, at)
        try:
            _, octets = _PAIR.unpack_from(data)
            behind = 8 + octets + (-octets & 3)
            if behind + 4 <= len(data):
                (value_octets,) = _LENGTH.unpack_from(data, behind)
            elif octets <= KEY_MOST:
                (value_octets,) = _LENGTH.unpack(self._read(descriptor, at + behind, 4))
            else:
                value_octets = _END
        except struct.error:
            raise self._damaged(at, "the record is cut off") from None
        if octets > KEY_MOST or value_octets > VALUE_MOST or at + behind + value_octets > state.current:
            raise self._damaged(at, f"a key of {octets} and a value of {value_octets} octets are impossible")
        return data, 8, octets, value_octets

    def _value(self, descriptor: int, state: State, node: Node) -> bytes:
        """Give the value of a record that a search has found."""
        at = node[2]
        data, begin, octets, value_octets = self._record(descriptor, state, at)
        where = begin + octets + (-octets & 3) + 4
        end = where + value_octets
        padded = end + (-end & 3)
        if padded > len(data):
            data = self._read(descriptor, at + where, padded - where)
            where, end = 0, value_octets
        value = data[where:end]
        if data[end:].startswith(b"\0" * (-value_octets & 3)) and not value.endswith(b"\0"):
            return value
        raise self._damaged(at, "the length of a value is another one")
