"""Which next hops take every local part of a domain, so that their yes proves nothing.

A random local part is asked about in the same transaction as the first recipient of a domain. If the hop takes
that, too, its yes means "exists, unproven" until it has been tested again. That is remembered for each hop and
domain, since one host may keep lists of some domains and none of others, and never for ever: a list that is put in
place today counts within hours.

Pure: time and randomness are handed in. A test without a result (greylisting, a dropped connection) changes
nothing; what was known stays for twice its time at most, and then the hop is believed like any other.

LIMITS. A hop that refuses names which look random, and takes all others, is not found out; nor is one
that refuses at DATA. 10,000 pairs of hop and domain are remembered; the oldest go first.
"""

from collections.abc import Callable
from typing import NamedTuple

from rcptd.address import Recipient

MOST = 10_000
RETRY = 300.0  # seconds until a test that had no result is made again
LOCAL_PART = "rcptd-"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_LETTERS = 12  # 60 bits: nobody has it, and no list of names will

Key = tuple[str, str]
"""A next hop, and a domain."""


class _Known(NamedTuple):
    takes_all: bool
    test_at: float
    until: float


class AcceptAll:
    """What was learnt of next hops; `random` gives a number from 0 to 1. Only the loop may call."""

    def __init__(self, retest: float, random: Callable[[], float]) -> None:
        self._retest = retest
        self._random = random
        self._known: dict[Key, _Known] = {}
        self._tests: dict[Key, float] = {}  # not to be made again before

    def known(self, key: Key, now: float) -> bool | None:
        """Say whether the hop takes every local part of the domain, None where that is not known."""
        known = self._known.get(key)
        return known.takes_all if known and now < known.until else None

    def is_due(self, key: Key, now: float) -> bool:
        """Say whether a test is due; whoever is told so makes it, and tells its result."""
        known = self._known.get(key)
        if (known and now < known.test_at) or now < self._tests.get(key, 0.0):
            return False
        # One test at a time, and after one without a result a pause: the hop might count our bad recipients.
        self._tests.pop(key, None)
        self._tests[key] = now + RETRY
        if len(self._tests) > MOST:
            del self._tests[next(iter(self._tests))]
        return True

    def withdrawn(self, key: Key) -> None:
        """Hear that a test was not made after all; the next question may make it."""
        self._tests.pop(key, None)

    def learn(self, key: Key, takes_all: bool, now: float) -> None:
        """Hear the result of a test."""
        self._tests.pop(key, None)
        self._known.pop(key, None)
        self._known[key] = _Known(takes_all, now + self._retest, now + 2 * self._retest)
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]

    def stranger(self, domain: str) -> Recipient:
        """Make a recipient of the domain that nobody has."""
        letters = (_ALPHABET[int(self._random() * len(_ALPHABET)) % len(_ALPHABET)] for _ in range(_LETTERS))
        return Recipient(LOCAL_PART + "".join(letters), domain)

    def __len__(self) -> int:
        return len(self._known)
