"""The bounded memory of answers, in which junk cannot push out what is used.

Whoever sends mail chooses the addresses that are asked about, so a memory that forgets its oldest entry is
emptied by a dictionary attack. Here a new answer is on probation; what leaves probation unused, or is no yes, is
forgotten, and what was used is kept with the proven ones. Those leave in the order in which they came, and once more
used go round again. (The order is that of S3-FIFO, Yang and others, SOSP 2023, less its ghosts.) So keys that are
asked about once cost nothing but probation, however many they are.

A new answer makes room in bounded time: after `LOOKS` entries that all deserve to stay the next one leaves anyway.
The order is kept by `OrderedDict`, as the first key of a dict lies behind the gaps of all that were removed before it.

Threads. The loop alone changes entries; any thread may look one up and mark it as used. An entry is replaced, not
changed, so that a reader sees one answer with its own times.
"""

from collections import OrderedDict
from collections.abc import Iterator

from rcptd.question import Answer

PROBATION = 4
"""The least part of the room, one in so many, that is kept for new answers."""

LOOKS = 1000
"""At how many entries one new answer may look for room; a few milliseconds at worst here."""


class Entry:
    """One remembered answer; all times are seconds on the monotonic clock.

    `answer` counts before `until`, and is asked about again from `refresh_at` on. `asked` is when it was learnt,
    `good_at` when the address was last good (None for never), `gone_at` since when a good one is a no. `used` and
    `refreshing` are marks that change.
    """

    __slots__ = ("answer", "asked", "gone_at", "good_at", "refresh_at", "refreshing", "until", "used")

    def __init__(
        self,
        answer: Answer,
        *,
        asked: float,
        until: float,
        refresh_at: float,
        good_at: float | None,
        gone_at: float | None = None,
    ) -> None:
        self.answer = answer
        self.asked = asked
        self.until = until
        self.refresh_at = refresh_at
        self.good_at = good_at
        self.gone_at = gone_at
        self.used = False
        self.refreshing = False


class Entries:
    """Entries by key, at most `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._least_new = max(1, most // PROBATION)
        self._new: OrderedDict[str, Entry] = OrderedDict()
        self._proven: OrderedDict[str, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._new) + len(self._proven)

    def get(self, key: str) -> Entry | None:
        """Look an entry up; any thread may call."""
        return self._proven.get(key) or self._new.get(key)

    def put(self, key: str, entry: Entry) -> list[str]:
        """Keep an entry in place of the one before it; gives the keys that made room."""
        for kept in (self._proven, self._new):
            if before := kept.get(key):
                entry.used = before.used
                kept[key] = entry
                return []
        self._new[key] = entry
        forgotten: list[str] = []
        looks = LOOKS
        while len(self) > self._most:
            looks -= 1
            forgotten += self._forget_one(second_chance=looks > 0)
        return forgotten

    def remove(self, key: str) -> None:
        """Forget an entry."""
        self._proven.pop(key, None)
        self._new.pop(key, None)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Give all entries with their keys, as of now."""
        yield from (*self._proven.items(), *self._new.items())

    def _forget_one(self, *, second_chance: bool) -> list[str]:
        """Look at the entry whose turn it is; gives its key where it is forgotten."""
        is_new = len(self._new) > self._least_new
        key, entry = (self._new if is_new else self._proven).popitem(last=False)
        if second_chance and entry.used and (entry.good_at is not None or not is_new):
            entry.used = False
            self._proven[key] = entry
            return []
        return [key]
