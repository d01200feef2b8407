"""What is remembered of the lists of one file: which records stand beside each other, as far as questions have led.

A gap is the stretch of the file's order from one record to the next one in a high list, and is read when a question
falls into it: the members that it has in a list STEP below, their keys and places in order. The last member is the
first of the gap behind. Each other one begins a gap of its own, one step further down, until the last step has all
records. So the gaps are a tree that grows where it is asked, and a search is one bisection for each step. At the end
the two neighbours of a key are known: a record is read for its value only, and none to say that there is nothing.

A gap in the last step is kept when it is asked for the second time, as to read its records costs several times what a
search among them does; and no more is kept than ROOM. A gap in which anything is wrong is `closed`, and searched record
by record, so that a fault harms as few questions as without a memory.

All this holds as long as the file is as it was. (What twoskip remembers is told of changes: see `index`.) Threads may
share it: what two put in the same place at once is the same. A gap of a higher step is never taken away, so that
nothing is below one that is not known.
"""

from array import array

STEP = 5  # lists from one gap to those within it: some 32 members
MEMBERS_MOST = 1024  # of one gap; more is no skip list as Cyrus writes it, or has grown since
ROOM = 128 << 20  # octets for gaps: more than a million mailboxes

Gap = tuple[list[bytes], "array[int]"]
"""The members in order: their keys, and where they are."""

_GAP_OCTETS = 400  # of a gap without its keys
_KEY_OCTETS = 50  # of a key without its octets, and of its place


class Gaps:
    """The gaps of one file, by the list of their members from the highest to list 0, and by where they begin."""

    __slots__ = ("_asked", "_closed", "_room", "lists", "tiers")

    def __init__(self, lists: int) -> None:
        self.lists = tuple(range((lists - 1) // STEP * STEP, -1, -STEP))
        self.tiers: tuple[dict[int, Gap], ...] = tuple({} for _ in self.lists)
        self._asked: set[int] = set()
        self._closed: set[tuple[int, int]] = set()
        self._room = ROOM

    def wanted(self, depth: int, at: int, *, once: bool = False) -> bool:
        """Say whether a gap that is not known is to be read now; in the last step, whether it is when asked `once`."""
        if self._room < 0 or (depth, at) in self._closed:
            return False
        if not self.lists[depth] and depth and not once and at not in self._asked:
            self._asked.add(at)
            return False
        return True

    def put(self, depth: int, keys: list[bytes], places: list[int]) -> Gap:
        """Remember a gap."""
        begin = places[0]
        gap = self.tiers[depth][begin] = (keys, array("Q", places))
        self._room -= _GAP_OCTETS + sum(map(len, keys)) + _KEY_OCTETS * len(keys)
        self._asked.discard(begin)
        return gap

    def close(self, depth: int, at: int) -> None:
        """Remember that a gap is not to be read."""
        self._closed.add((depth, at))
