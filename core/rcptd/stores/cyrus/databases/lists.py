"""The search in skip lists on disk, which twoskip, skiplist and twom have in common.

A record is a member of one or more lists, each ordered; all are in list 0, and the higher a list the fewer it has. A
search goes along the highest list as far as it may, then along the next lower one. It ends between two neighbours in
list 0.

What is remembered. A format says by a stamp whether anything in the file may have changed since it was read. As long
as the stamp is the same, keys and pointers of the records that are in many lists, over which every search leads, are
taken from memory; how many lists is raised when the records become many. The records at which a search ends are read
anew by the formats.

Bounds. A search makes at most HOPS steps; a million records take some thirty. Only a twoskip or twom file whose
writer died in a very large transaction can need more, and is damaged for us until Cyrus has repaired it.
"""

import os
from abc import ABC, abstractmethod

from rcptd.stores.cyrus.databases.errors import Damaged

HOPS = 5000  # steps of one search
KEPT = 65_536  # records remembered, each some 450 octets
WINDOW = 512  # octets read at once: all of nearly every record, and the head of any
KEY_MOST = 0xFFFF  # octets; a mailbox's name has some hundreds at most
VALUE_MOST = 4 << 20  # octets; a mailbox with a hundred thousand ACL entries is a fault

Node = tuple[bytes, tuple[int, ...], int]
"""What a search needs of a record: what its key is compared by, the next in each list (0 for none), where it is."""


class State:
    """What was read under one stamp; behind `current` is nothing, `records` is None where no header counts them."""

    __slots__ = ("current", "nodes", "records", "stamp", "start")

    def __init__(self, stamp: object, current: int = 0, records: int | None = None) -> None:
        self.stamp = stamp
        self.current = current
        self.records = records
        self.nodes: dict[int, Node] = {}
        self.start: Node | None = None


class Lists(ABC):
    """The lists of one file; `first` is where they begin. Called with the file locked, by any thread."""

    first: int

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = State(None)
        self._floor = 0  # records of so many lists or fewer are not kept

    @abstractmethod
    def _load(self, descriptor: int, state: State, at: int) -> Node | None:
        """Give the record that a pointer leads to, None where it leads to the end; raises `Damaged`."""

    def _search(self, descriptor: int, state: State, wanted: bytes) -> tuple[Node, Node | None]:
        """Find the neighbours in list 0 between which a key belongs; the latter may have it, and is None at the end."""
        get = state.nodes.get
        node = state.start or self._start(descriptor, state)
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
            found = get(at) or self._found(descriptor, state, at)
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
        return self._found(descriptor, state, at) if at else None

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
        return state.start

    def _found(self, descriptor: int, state: State, at: int) -> Node | None:
        node = self._load(descriptor, state, at)
        if node is not None and len(node[1]) > self._floor:
            nodes = state.nodes
            if len(nodes) < KEPT:
                nodes[at] = node
            else:
                # Each level up halves them. Two threads may do it at once: the floor is one too high then, and well.
                self._floor = floor = self._floor + 1
                state.nodes = {at: node for at, node in list(nodes.items()) if len(node[1]) > floor}
        return node

    def _read(self, descriptor: int, at: int, octets: int) -> bytes:
        data = os.pread(descriptor, octets, at)
        if len(data) < octets:
            raise self._damaged(at, "the record is cut off")
        return data

    def _damaged(self, at: int, what: str) -> Damaged:
        return Damaged(f"{self._path}: at {at}: {what}")
