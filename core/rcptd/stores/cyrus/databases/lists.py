"""The search in skip lists on disk, which twoskip, skiplist and twom have in common.

A record is a member of one or more lists, each ordered; all are in list 0, and the higher a list the fewer it has. A
search goes along the highest list as far as it may, then along the next lower one. It ends between two neighbours in
list 0.

What is remembered. A format says by a stamp whether anything in the file may have changed since it was read. As long
as the stamp is the same, searches begin and mostly end in memory (`gaps`).

What is believed. Where a format has checksums, a value is given only with the right ones, and that nothing is there is
believed only when two records stand beside each other in list 0, both right, and the key belongs between them: a
flipped bit in the key of any record on the way may lead the search astray, but then it ends at neighbours that show
it. A record that is wrong harms the questions that end at it (or, with wrong pointers, lead over it), no others.

Bounds. A search makes at most HOPS steps; a million records take some thirty. Only a twoskip or twom file whose
writer died in a very large transaction can need more, and is damaged for us until Cyrus has repaired it.
"""

import os
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Any

from rcptd.stores.cyrus.databases.errors import Damaged, Forgotten
from rcptd.stores.cyrus.databases.files import PlaceOf, Plain, Walk
from rcptd.stores.cyrus.databases.gaps import MEMBERS_MOST, Gap, Gaps
from rcptd.stores.cyrus.databases.index import Index
from rcptd.stores.cyrus.databases.locks import WHOLE

HOPS = 5000  # steps of one search
UNFINISHED = "a writer died in the midst of a change; what was there before is read, and the next one repairs the file"

WINDOW = 512  # octets read at once: all of nearly every record, and the head of any
KEY_MOST = 0xFFFF  # octets; a mailbox's name has some hundreds at most
VALUE_MOST = 4 << 20  # octets; a mailbox with a hundred thousand ACL entries is a fault

Node = tuple[bytes, tuple[int, ...], int]
"""What a search needs of a record: what its key is compared by, the next in each list (0 for none), where it is."""


class State:
    """What was read under one stamp: behind `current` is nothing, `records` is None where no header counts them.

    `notes` are what an operator should know of the file as a whole; a state that is not `lasting` is that of one
    question.
    """

    __slots__ = ("current", "gaps", "index", "lasting", "notes", "records", "stamp", "start", "tiers")

    def __init__(
        self,
        stamp: object,
        current: int = 0,
        records: int | None = None,
        notes: tuple[str, ...] = (),
        *,
        lasting: bool = True,
    ) -> None:
        self.stamp = stamp
        self.current = current
        self.records = records
        self.notes = notes
        self.lasting = lasting
        self.start: Node | None = None
        self.gaps: Gaps | None = None
        self.index: Index | None = None
        self.tiers: tuple[dict[int, Gap], ...] = _UNKNOWN  # those of the gaps

    def take(self, gaps: Gaps) -> None:
        """Let these gaps be what is remembered."""
        self.gaps = gaps
        self.tiers = gaps.tiers


_UNKNOWN: tuple[dict[int, Gap], ...] = ({},)
_NOTHING: Any = ()


class Lists(ABC):
    """The lists of one file; `first` is where they begin. Called with the file locked, by any thread."""

    first: int
    remembers = True  # whether the stamp is the beginning of the file, and what was once written is never changed
    told = False  # whether writers change the file by write(2) alone, so that `watches` tell of it
    checked = True  # whether records have checksums, so that neighbours can prove that nothing is between them

    def __init__(self, path: str, plain: Plain | None = None) -> None:
        self._path = path
        self._plain = plain
        self._state = State(None)

    def fetch(self, descriptor: int, key: bytes) -> bytes | None:
        """Give the value of the key, None if the file shows that there is none."""
        state = self._read_header(descriptor)
        wanted = self._order(key)
        place = self._remembered(state, wanted)
        if place < 0:
            return self._fetch_searching(descriptor, state, wanted)
        return self._value(descriptor, state, (wanted, (), place)) if place else None

    def remembered(self, descriptor: int, key: bytes) -> bytes | None:
        """Do what `fetch` does, without a lock; raises `Forgotten` where what is remembered does not tell."""
        state = self._state
        wanted = self._order(key)
        # In this order: another thread may just be taking note of a change, for which it has seen another stamp.
        place = self._remembered(state, wanted)
        stamp = state.stamp
        if place < 0 or not isinstance(stamp, bytes) or not WHOLE.free(descriptor):
            raise Forgotten
        if os.pread(descriptor, len(stamp), 0) != stamp:
            raise Forgotten
        return self._value(descriptor, state, (wanted, (), place)) if place else None

    def place_of(self) -> PlaceOf | None:
        """Give nothing: what is remembered tells only together with a look."""
        return None

    def value(self, descriptor: int, key: bytes, place: int) -> bytes | None:
        """Give the value of a key from where it is."""
        return self._value(descriptor, self._state, (self._order(key), (), place))

    @property
    def learnt(self) -> bool:
        """Say whether there is nothing to learn in advance."""
        return True

    def learn(self, descriptor: int) -> bool:  # noqa: ARG002 - a format's signature
        """Learn nothing in advance."""
        return False

    def _remembered(self, state: State, wanted: bytes) -> int:
        """Find where the record with a key is, 0 if there is none, -1 if that is not remembered."""
        at = self.first
        keys = places = _NOTHING
        index = 0
        for tier in state.tiers:
            gap = tier.get(at)
            if gap is None or not wanted:
                return -1
            keys, places = gap
            index = bisect_left(keys, wanted)
            at = places[index - 1]
        return int(places[index]) if index < len(keys) and keys[index] == wanted else 0

    def _fetch_searching(self, descriptor: int, state: State, wanted: bytes) -> bytes | None:
        before, after = self._search(descriptor, state, wanted)
        if after is not None and after[0] == wanted:
            return self._value(descriptor, state, after)
        self._believe(descriptor, state, before, after)
        return None

    def begins(self, descriptor: int, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix."""
        state = self._read_header(descriptor)
        wanted = self._order(prefix)
        before, after = self._search(descriptor, state, wanted)
        self._believe(descriptor, state, before, after)
        for _ in range(HOPS):
            if after is None or not after[0].startswith(wanted):
                return False
            if self._value(descriptor, state, after) is not None:
                return True
            after = self._next(descriptor, state, after)
        raise self._damaged(0, f"more than {HOPS} deleted records beside each other; repack the file")

    def walk(self, descriptor: int, walk: Walk, most: int) -> None:
        """Go on through at most so many records behind `walk.last`, and note what is wrong with them."""
        state = self._read_header(descriptor)
        node = self._start(descriptor, state)
        if walk.last is None:
            walk.faults += [f"{self._path}: {note}" for note in state.notes]
        else:
            before, after = self._search(descriptor, state, walk.last)
            node = after if after is not None and after[0] == walk.last else before
        for _ in range(most):
            found = self._next(descriptor, state, node)
            if found is None:
                if state.records not in (None, walk.records) and not walk.faults:
                    walk.faults.append(
                        f"{self._path}: {walk.records} records where the header counts {state.records} "
                        f"(or the file changed meanwhile)"
                    )
                walk.ended = True
                return
            if found[0] <= node[0]:
                raise self._damaged(found[2], "the keys are out of order")
            node = found
            walk.last = node[0]
            try:
                walk.records += self._value(descriptor, state, node) is not None
            except Damaged as damaged:
                walk.records += 1
                walk.faults.append(damaged.why)

    @abstractmethod
    def _read_header(self, descriptor: int) -> State:
        """Give the state that the file is in, the same one as long as the stamp is the same; raises `Damaged`."""

    @abstractmethod
    def _load(self, descriptor: int, state: State, at: int, *, whole: bool = False) -> Node | None:
        """Give the record that a pointer leads to, None where it leads to the end; raises `Damaged`.

        Where it is to be `whole`, key and value must be right, too.
        """

    @abstractmethod
    def _value(self, descriptor: int, state: State, node: Node) -> bytes | None:
        """Give the value of a record, once its checksums are right, None for one that is deleted; raises `Damaged`."""

    def _order(self, key: bytes) -> bytes:
        """Give what a key is compared by."""
        return key

    def _believe(self, descriptor: int, state: State, before: Node, after: Node | None) -> None:
        """See that the neighbours of a key that is not there are right."""
        if self.checked:
            self._value(descriptor, state, before)
            if after is not None:
                self._value(descriptor, state, after)

    def _near(self, descriptor: int, state: State, wanted: bytes) -> Node:
        """Find a record before a key, the nearest that is remembered; gaps that are not are read on the way."""
        start = self._start(descriptor, state)
        gaps = state.gaps
        at = self.first
        bound = None
        for depth, tier in enumerate(state.tiers if gaps and wanted else ()):
            gap = tier.get(at)
            if gap is None and gaps and gaps.wanted(depth, at, once=not self.checked):
                gap = self._explore(descriptor, state, (depth, at), bound)
            if gap is None:
                break
            keys, places = gap
            index = bisect_left(keys, wanted)
            if index < len(keys):
                bound = keys[index]
            at = places[index - 1]
        return start if at == self.first else self._load(descriptor, state, at) or start

    def _explore(self, descriptor: int, state: State, gap: tuple[int, int], bound: bytes | None) -> Gap | None:
        """Read a gap, by its depth and beginning, as far as to the first record that is not below the bound."""
        gaps = state.gaps
        assert gaps
        depth, at = gap
        level = gaps.lists[depth]
        keys: list[bytes] = []
        places: list[int] = []
        key = b""
        try:
            node = self._load(descriptor, state, at, whole=True)
            while node:
                if keys and node[0] <= key:
                    raise self._damaged(at, "the keys are out of order")
                key, following, at = node
                keys.append(key)
                places.append(at)
                if len(keys) > MEMBERS_MOST:
                    gaps.close(*gap)
                    return None
                if bound is not None and key >= bound:
                    break
                at = following[level] if level < len(following) else 0
                node = self._load(descriptor, state, at, whole=True) if at else None
        except Damaged:
            if not self.checked and not level:
                raise  # that the keys around are in order is all that a "no" can be believed for
            gaps.close(*gap)
            return None
        return gaps.put(depth, keys, places)

    def _search(self, descriptor: int, state: State, wanted: bytes) -> tuple[Node, Node | None]:
        """Find the neighbours in list 0 between which a key belongs; the latter may have it, and is None at the end."""
        node = self._near(descriptor, state, wanted)
        following = node[1]
        after: Node | None = None
        stop = 0  # the pointer that led to `after`
        hops = HOPS
        level = len(following)
        while level:
            at = following[level - 1]
            if not at or at == stop:
                level -= 1
                continue
            hops -= 1
            found = self._load(descriptor, state, at)
            if found is not None and (found[0] <= node[0] or (after is not None and found[0] > after[0])):
                raise self._damaged(at, "the keys are out of order")
            if found is None or found[0] >= wanted:
                after, stop = found, at
                level -= 1
                continue
            node = found
            following = node[1]
            if level > len(following) or not hops:
                raise self._damaged(node[2], "a search comes to no end" if not hops else "is in too high a list")
        return node, after if following[0] else None

    def _next(self, descriptor: int, state: State, node: Node) -> Node | None:
        """Give the next record in list 0."""
        at = node[1][0]
        return self._load(descriptor, state, at) if at else None

    def _start(self, descriptor: int, state: State) -> Node:
        if state.start is None:
            node = self._load(descriptor, state, self.first)
            if node is None:
                raise self._damaged(self.first, "the lists have no beginning")
            # The lists above the highest record are empty; cut, they cost nothing.
            key, following, at = node
            while len(following) > 1 and not following[-1]:
                following = following[:-1]
            state.start = (key, following, at)
            self._prepare(state, len(following))
        return state.start

    def _prepare(self, state: State, lists: int) -> None:
        """Prepare for remembering a file with so many lists."""
        if state.lasting and state.gaps is None:
            state.take(Gaps(lists))

    def _read(self, descriptor: int, at: int, octets: int) -> bytes:
        data = os.pread(descriptor, octets, at)
        if len(data) < octets:
            raise self._damaged(at, "the record is cut off")
        return data

    def _damaged(self, at: int, what: str) -> Damaged:
        return Damaged(f"{self._path}: at {at}: {what}")


def in_force(pointers: list[int], current: int) -> tuple[int, ...]:
    """Give the pointers that count, by list: those into what was committed, and in list 0 the later of its two."""
    if max(pointers) >= current:
        pointers = [pointer if pointer < current else 0 for pointer in pointers]
    if len(pointers) > 1:
        pointers[1] = max(pointers[1], pointers[0])
        del pointers[0]
    return tuple(pointers)  # a mark of deletion, or of a commit, has one
