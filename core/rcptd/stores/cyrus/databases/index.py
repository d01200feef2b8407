"""What is remembered of a twoskip file: where each record is, in the order of keys, small enough for ten millions.

The order is cut by fences: some records, each thirty-second or so, as they are in a high list. Their keys and places
are two Python lists. What stands from one fence to the next is a gap: what all its keys begin with, once; the rest of
each key, in one string with an LF before and behind each; and the places, four octets each, with a bit that says
whether the value is a plain one. So a record takes its key without the beginning, and five octets. A key is found by a
bisection among the fences and a search in the string, and that it is not there is known when it is not: the gap was
read record by record, from one fence to the next along the lowest list, and all was right.

A gap that is not known is None. It is learnt in advance, gap after gap, or when a question falls into it after all was
learnt. One in which anything is wrong stays unknown, and is searched record by record; so a fault harms as few
questions as without a memory. The same where a key has an LF in it, or a file is larger than four octets reach.

All this holds as long as the file is as it was, or was told what has been `written` and `deleted` since. A fence is
always a record that is there, at its place; which records are fences does not matter.

Threads. Who asks takes the `table` once; its lists change in place only so that a gap becomes known or unknown. Who
changes anything holds the lock of the file's state (`twoskip`).

ROOM bounds the memory; beyond, no more gaps are kept.
"""

import struct
from bisect import bisect_left, bisect_right

MEMBERS_MOST = 1024  # of one gap; more is no skip list as Cyrus writes it, or has grown since
SPLIT = 512  # members from which a gap gets more fences
PIECE = 32  # members from one of these to the next
ROOM = 200 << 20  # octets for gaps: ten million mailboxes

_GAP_OCTETS = 250  # of a gap without its members, its fence among it
_PLACE_MOST = (1 << 34) - 1  # by eights in four octets, but for a bit


Gap = tuple[bytes, bytes, bytes]
"""The records from one fence to the next: what all keys begin with, the rest of each, and the places by eights."""

Table = tuple[list[bytes], list[int], list[Gap | None]]
"""The keys of the fences, their places, and the gap behind each; the first is the beginning of the list, no record."""


class Index:
    """What is remembered of one file, whose list begins at `first`, and which was `current` octets long then."""

    __slots__ = ("closed", "current", "fenced", "learnt", "next", "room", "table", "unbounded")

    def __init__(self, first: int, current: int) -> None:
        self.table: Table = ([b""], [first], [None])
        self.current = current
        self.fenced = False  # whether there will be no more fences
        self.unbounded = True  # whether the last gap is as long as the rest of the file
        self.next = 0  # the gap that is to be learnt next
        self.learnt = False  # whether all gaps were
        self.closed: set[bytes] = set()  # fences of gaps that are not to be read
        self.room = ROOM

    def place(self, key: bytes) -> int:
        """Find where the record with a key is, 0 if there is none, -1 if unknown; one more, if its value is plain."""
        fences, _, gaps = self.table
        gap = gaps[bisect_right(fences, key) - 1]
        if gap is None:
            return -1
        begin, rests, places = gap
        if not key.startswith(begin):
            return 0
        rest = key[len(begin) :]
        at = rests.find(b"\n" + rest + b"\n")
        if at < 0:
            return 0
        if b"\n" in rest:
            return -1  # may be two
        at = 4 * rests.count(b"\n", 0, at)
        spot = int.from_bytes(places[at : at + 4], "little")
        return (spot >> 1 << 3) + (spot & 1)

    def before(self, key: bytes) -> int:
        """Give the number of the gap in which a key belongs."""
        return bisect_right(self.table[0], key) - 1

    def wanted(self, number: int) -> bool:
        """Say whether a gap is unknown and may be read."""
        fences, _, gaps = self.table
        return gaps[number] is None and fences[number] not in self.closed

    def near(self, key: bytes) -> int:
        """Give the place of a fence below a key, 0 where a search is to begin at the beginning."""
        fences, places, _ = self.table
        number = bisect_left(fences, key) - 1
        return 0 if not number or (self.unbounded and number == len(places) - 1) else places[number]

    # ---- learning, with the lock ---------------------------------------------------------------------------------

    def fence(self, key: bytes, place: int) -> None:
        """Add a fence behind all others."""
        fences, places, gaps = self.table
        gaps.append(None)
        places.append(place)
        fences.append(key)  # last: whoever asks bisects these

    def put(self, number: int, keys: list[bytes], places: list[int]) -> None:
        """Remember all members of a gap, its fence the first of them, and make more fences where there are many.

        A place is one more where the value is plain.
        """
        self.forget(number)
        cut = range(0, len(keys), PIECE) if len(keys) > SPLIT else (0,)
        ends = [*cut[1:], len(keys)]
        pieces = [_made(keys[at:end], places[at:end]) for at, end in zip(cut, ends, strict=True)]
        fences, spots, gaps = self.table
        for at, piece in enumerate(pieces):
            octets = _octets(piece)
            if piece is None or self.room < octets:
                pieces[at] = None
                self.closed.add(keys[cut[at]] if at else fences[number])
            else:
                self.room -= octets
        if len(pieces) == 1:
            gaps[number] = pieces[0]
            return
        self.table = (
            [*fences[: number + 1], *(keys[at] for at in cut[1:]), *fences[number + 1 :]],
            [*spots[: number + 1], *(places[at] & ~1 for at in cut[1:]), *spots[number + 1 :]],
            [*gaps[:number], *pieces, *gaps[number + 1 :]],
        )
        if self.next > number:
            self.next += len(pieces) - 1

    def close(self, number: int) -> None:
        """Remember that a gap is not to be read."""
        self.closed.add(self.table[0][number])

    def forget(self, number: int) -> None:
        """Forget what is known of a gap."""
        fences, _, gaps = self.table
        self.room += _octets(gaps[number])
        gaps[number] = None
        self.closed.discard(fences[number])

    # ---- changes, with the lock ----------------------------------------------------------------------------------

    def written(self, key: bytes, place: int) -> None:
        """Take note of a record that was added, or that has replaced the one with the same key."""
        number = self.before(key)
        if number and self.table[0][number] == key:
            self.table[1][number] = place
        self.forget(number)

    def deleted(self, follower: bytes | None) -> None:
        """Take note that the last record before another one was deleted, None for the last of all."""
        fences, places, gaps = self.table
        number = (len(fences) if follower is None else bisect_left(fences, follower)) - 1
        gap = gaps[number]
        self.forget(number)
        # A fence that may be what was deleted is none any more: its gap belongs to the one before.
        if number and (gap is None or _is_second(gap, follower)):
            self.forget(number - 1)
            self.table = (
                fences[:number] + fences[number + 1 :],
                places[:number] + places[number + 1 :],
                gaps[:number] + gaps[number + 1 :],
            )
            self.next -= self.next > number


def _made(keys: list[bytes], places: list[int]) -> Gap | None:
    """Put a gap together; None where that cannot be."""
    if not keys:
        return b"", b"\n", b""
    begin = _both_begin(keys[0], keys[-1])
    cut = len(begin)
    rests = b"\n%b\n" % b"\n".join([key[cut:] for key in keys])
    if rests.count(b"\n") != len(keys) + 1 or max(places) > _PLACE_MOST:
        return None
    return begin, rests, struct.pack(f"<{len(places)}I", *[(place >> 3 << 1) + (place & 1) for place in places])


def _both_begin(one: bytes, other: bytes) -> bytes:
    """Give what two keys begin with."""
    return one[: next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


def _octets(gap: Gap | None) -> int:
    return 0 if gap is None else _GAP_OCTETS + len(gap[1]) + len(gap[2])


def _is_second(gap: Gap, follower: bytes | None) -> bool:
    """Say whether the first record of a gap is the last before another one."""
    begin, rests, places = gap
    if len(places) == 4 or follower is None:
        return len(places) == 4
    return begin + rests.split(b"\n", 3)[2] >= follower
