"""The flat format: sorted lines of key, TAB and value, replaced by rename at every change.

Octets that would break a line are escaped: FF, then the octet with its highest bit set; FF itself is doubled. The
order is that of octets, with `.` below all that prints. A reader needs no lock: a file, once it has its name, does
not change, unless somebody edits it by hand.

A small file, as user_deny.db is, is read whole and kept as a table for as long as it is the same by inode, size and
time; the order of its lines does not matter then, so that a line that an administrator put in the wrong place counts
(Cyrus may miss it). A large one is searched where it is, as it may be replaced by each new mailbox: two dozen reads
for a million lines, where a table would cost a second each time.

What is believed. There are no checksums. Where a search ends without a hit, the lines around it must be in order, or
the file is damaged there: so a "no" is not believed in a file that was sorted by something else. A last line without
its LF is not there for Cyrus; for us the file was cut off, and nobody knows what stood behind the line before it. A
bit flipped inside a key that leaves the order intact makes it another key, here as in Cyrus.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Iterator

from rcptd.stores.cyrus.databases.errors import Absent, Damaged, Held
from rcptd.stores.cyrus.databases.files import PlaceOf, Walk
from rcptd.stores.cyrus.databases.missing import SETTLED

SMALL = 1 << 18  # octets of a file that is read whole: 3000 mailboxes, a millisecond
CHUNK = 1 << 10  # octets within which a search ends and reading begins
LINE_MOST = 4 << 20  # octets of a line: a mailbox with a hundred thousand ACL entries is a fault

CUT_LINE = "the last line is cut off: it has no LF"
CUT = "the last line is cut off, and what was asked for would stand there"

_ESCAPED = {0x00: b"\xff\x80", 0x09: b"\xff\x89", 0x0A: b"\xff\x8a", 0x0D: b"\xff\x8d", 0xFF: b"\xff\xff"}
# Where an octet stands in the order: `.` is lower than all but NUL and the ends of key and line.
_ORDER = bytes([0, *range(3, 10), 0x0A, 1, 1, *range(0x0B, 0x2E), 2, *range(0x2F, 0x100)])


def escaped(octets: bytes) -> bytes:
    """Write a key or value as it stands in a line."""
    if any(octet in _ESCAPED for octet in octets):
        return b"".join(_ESCAPED.get(octet) or bytes((octet,)) for octet in octets)
    return octets


def unescaped(octets: bytes) -> bytes:
    """Read a key or value out of a line; an escape that nothing follows vanishes."""
    first, *parts = octets.split(b"\xff")
    made = [first]
    parts.reverse()
    while parts:
        part = parts.pop()
        if part:
            made.append(bytes((part[0] & 0x7F,)) + part[1:])
        elif parts:  # two in a row: the octet itself, and the next part is plain
            made.append(b"\xff" + parts.pop())
    return b"".join(made)


def place(key: bytes) -> bytes:
    """Give what two escaped keys are compared by."""
    return key.translate(_ORDER)


class _Table:
    """A small file, read whole: escaped keys to escaped values, None where a line has no TAB."""

    __slots__ = ("cut", "last", "places", "signature", "values")

    def __init__(self, data: bytes, signature: tuple[int, int]) -> None:
        self.signature = signature
        *lines, rest = data.split(b"\n")
        self.cut = bool(rest)
        self.values: dict[bytes, bytes | None] = {}
        for line in lines:
            key, tab, value = line.partition(b"\t")
            self.values.setdefault(key, value if tab else None)
        self.places = sorted(place(key) for key in self.values)
        self.last = _place_of(lines[-1]) if lines else b""


class Flat:
    """How one flat file is read; see `files.Format` for who calls what when. There is no lock to take."""

    kind = "flat"
    locking = False
    remembers = True
    told = False
    learnt = True

    def __init__(self, path: str) -> None:
        self._path = path
        self._table: _Table | None = None

    def lock(self, descriptor: int) -> None:
        """Take no lock: writers replace the file."""

    def unlock(self, descriptor: int) -> None:
        """Let go of nothing."""

    def fetch(self, descriptor: int, key: bytes) -> bytes | None:
        """Give the value of the key, None where the file has no line for it."""
        wanted = escaped(key)
        table, size = self._whole(descriptor)
        if table is None:
            at, line = self._search(descriptor, size, place(wanted))
            found, tab, value = (line or b"").partition(b"\t")
            if line is None or found != wanted:
                return None
            if not tab:
                raise self._damaged(at, "the line has no TAB")
            return unescaped(value)
        try:
            kept = table.values[wanted]
        except KeyError:
            self._see_that_nothing_is_cut(table, place(wanted))
            return None
        if kept is None:
            raise Damaged(f"{self._path}: the line of {wanted!r} has no TAB")
        return unescaped(kept)

    def remembered(self, descriptor: int, key: bytes) -> bytes | None:
        """Do what `fetch` does, which needs no lock."""
        return self.fetch(descriptor, key)

    def place_of(self) -> PlaceOf | None:
        """Give nothing: what is remembered tells only together with a look."""
        return None

    def value(self, descriptor: int, key: bytes, place: int) -> bytes | None:  # noqa: ARG002 - a format's signature
        """Do what `fetch` does."""
        return self.fetch(descriptor, key)

    def learn(self, descriptor: int) -> bool:  # noqa: ARG002
        """Learn nothing in advance."""
        return False

    def begins(self, descriptor: int, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix."""
        wanted = place(escaped(prefix))
        table, size = self._whole(descriptor)
        if table is None:
            _, line = self._search(descriptor, size, wanted)
            return line is not None and _place_of(line).startswith(wanted)
        index = bisect_left(table.places, wanted)
        if index < len(table.places) and table.places[index].startswith(wanted):
            return True
        self._see_that_nothing_is_cut(table, wanted)
        return False

    def walk(self, descriptor: int, walk: Walk, most: int) -> None:  # noqa: ARG002 - no writer waits for us
        """Go through all lines at once, and note which are wrong; no lock is held."""
        at = 0
        before = None
        rest = b""
        while data := os.pread(descriptor, 1 << 20, at + len(rest)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                key, tab, _ = line.partition(b"\t")
                here = place(key)
                if not tab or len(line) > LINE_MOST:
                    why = "the line has no TAB" if not tab else f"a line of more than {LINE_MOST} octets"
                    walk.faults.append(f"{self._path}: at {at}: {why}")
                elif before is not None and here <= before:
                    walk.faults.append(f"{self._path}: at {at}: the line is out of order")
                before = here
                at += len(line) + 1
                walk.records += 1
            if len(rest) > LINE_MOST:
                raise self._damaged(at, f"a line of more than {LINE_MOST} octets")
        if rest:
            walk.faults.append(f"{self._path}: at {at}: {CUT_LINE}")
        walk.ended = True

    # ---- small files ------------------------------------------------------------------------------------------

    def _whole(self, descriptor: int) -> tuple[_Table | None, int]:
        """Give the table of a small file, or the size of a large one."""
        status = os.fstat(descriptor)
        size = status.st_size
        if size > SMALL:
            return None, size
        if not size:
            raise Absent(f"{self._path}: is empty")
        signature = (size, status.st_ctime_ns)
        table = self._table
        if table is not None and table.signature == signature:
            return table, size
        data = os.pread(descriptor, size, 0)
        again = os.fstat(descriptor)
        if (again.st_size, again.st_ctime_ns) != signature or len(data) != size:
            raise Held(f"{self._path}: is just being written")
        table = _Table(data, signature)
        # By ctime, which no tool sets; two changes within one tick of its clock could look like one.
        settled = abs(time.time() - status.st_ctime) > SETTLED
        self._table = table if settled else None
        return table, size

    def _see_that_nothing_is_cut(self, table: _Table, wanted: bytes) -> None:
        if table.cut and wanted > table.last:
            raise Damaged(f"{self._path}: {CUT}")

    # ---- large files ------------------------------------------------------------------------------------------

    def _search(self, descriptor: int, size: int, wanted: bytes) -> tuple[int, bytes | None]:
        """Find the first line that is not below the place wanted: where it begins, and itself; None for the end."""
        low, high = 0, size
        # Lines that begin before `low` are below; the first that begins at `high` or later is not.
        while high - low > CHUNK:
            middle = (low + high) // 2
            found = self._line_behind(descriptor, middle)
            if found is None or found[0] >= high:
                high = middle + 1
            elif _place_of(found[1]) < wanted:
                low = found[0] + len(found[1]) + 1
            else:
                high = found[0]
        # All lines from there to behind `high` are looked at: whether they are in order is the only proof there is.
        before = found = None
        end = low
        for at, line in self._lines(descriptor, low):
            end = at + len(line) + 1
            here = _place_of(line)
            if (before is not None and here <= before) or (found is None and here < wanted and at >= high):
                raise self._damaged(at, "the lines are out of order")
            before = here
            if found is None and here >= wanted:
                found = at, line
            if found is not None and at >= high:
                return found
        if found is None and end < size:
            raise self._damaged(end, CUT)
        return found or (size, None)

    def _line_behind(self, descriptor: int, at: int) -> tuple[int, bytes] | None:
        """Give the first whole line that begins behind an octet: where, and itself; None if there is none."""
        octets = CHUNK
        while octets <= LINE_MOST:
            data = os.pread(descriptor, octets, at)
            begin = data.find(b"\n") + 1
            end = data.find(b"\n", begin) if begin else -1
            if end >= 0:
                return at + begin, data[begin:end]
            if len(data) < octets:
                return None
            octets *= 4
        raise self._damaged(at, f"a line of more than {LINE_MOST // 4} octets")

    def _lines(self, descriptor: int, at: int) -> Iterator[tuple[int, bytes]]:
        """Give the whole lines from one on, with where they begin; a last one without LF is not among them."""
        octets = 2 * CHUNK
        while data := os.pread(descriptor, octets, at):
            *lines, _ = data.split(b"\n")
            for line in lines:
                yield at, line
                at += len(line) + 1
            if lines:
                continue
            if len(data) < octets:
                return
            if octets > LINE_MOST:
                raise self._damaged(at, f"a line of more than {LINE_MOST} octets")
            octets *= 4

    def _damaged(self, at: int, what: str) -> Damaged:
        return Damaged(f"{self._path}: at {at}: {what}")


def _place_of(line: bytes) -> bytes:
    return line.partition(b"\t")[0].translate(_ORDER)
