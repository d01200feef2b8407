"""What harm does to a database file, counted: right answers, troubles, and wrong answers.

`tests/campaign/damage.py` does it for as long as one likes, `make test` for a little.
"""

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from rcptd.stores.cyrus.databases import Absent, Damaged, missing, open_database
from rcptd.stores.cyrus.databases.onefile import OneFile
from tests.cyrus.rows import Rows

# What is learnt in advance: nothing, all, or the fences of a wide file.
_ways = cycle(("", "gaps", "fences"))

LONGEST = 1.0  # seconds for one question, on a machine that has other things to do


@dataclass
class Tally:
    """How many answers were right, how many were none, and how many were wrong."""

    right: int = 0
    trouble: int = 0
    wrong_none: int = 0
    wrong_value: int = 0

    @property
    def wrong(self) -> int:
        """Answers that were wrong."""
        return self.wrong_none + self.wrong_value


def ask(kind: str, path: Path, rows: Rows, keys: Iterable[bytes], tally: Tally) -> None:
    """Ask for keys, from the rows and others, and count; no other exception and no wait may come of it."""
    settled, missing.SETTLED = missing.SETTLED, -1.0  # nobody changes the file while it is asked
    database = open_database(kind, path, what="mailboxes")
    try:
        learns = next(_ways)
        for number, key in enumerate(keys):
            if learns and number == 1 and isinstance(database, OneFile):
                while database._file._learn():
                    pass
            start = time.monotonic()
            try:
                value = database.fetch(key)
            except (Damaged, Absent):
                tally.trouble += 1
            else:
                tally.right += value == rows.get(key)
                tally.wrong_none += value is None and key in rows
                tally.wrong_value += value is not None and value != rows.get(key)
            assert time.monotonic() - start < LONGEST
        database.describe()
    finally:
        database.close()
        missing.SETTLED = settled


def harmed(octets: bytes, rng: random.Random) -> bytes:
    """Change something at random: a bit mostly, else an octet, a block, or two places changed for each other."""
    made = bytearray(octets)
    at = rng.randrange(len(made))
    match rng.randrange(10):
        case 0:
            made[at] = rng.randrange(256)
        case 1:
            made[at : at + 512] = bytes(len(made[at : at + 512]))
        case 2:
            other = rng.randrange(len(made))
            made[at : at + 8], made[other : other + 8] = made[other : other + 8], made[at : at + 8]
        case _:
            made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def questions(rng: random.Random, rows: Rows, misses: Sequence[bytes], count: int) -> list[bytes]:
    """Some keys that are there and as many that are not."""
    return rng.sample(sorted(rows), min(count, len(rows))) + rng.sample(list(misses), min(count, len(misses)))


def flips(kind: str, path: Path, rows: Rows, misses: Sequence[bytes], *, seed: int, count: int, asked: int) -> Tally:
    """Harm the file so many times, each time from the beginning, and ask."""
    rng = random.Random(seed)
    octets = path.read_bytes()
    tally = Tally()
    for _ in range(count):
        path.write_bytes(harmed(octets, rng))
        ask(kind, path, rows, questions(rng, rows, misses, asked), tally)
    path.write_bytes(octets)
    return tally


def cuts(kind: str, path: Path, rows: Rows, misses: Sequence[bytes], lengths: Iterable[int], *, asked: int) -> Tally:
    """Cut the file to each of the lengths, and ask."""
    rng = random.Random(0)
    octets = path.read_bytes()
    tally = Tally()
    for length in lengths:
        path.write_bytes(octets[:length])
        ask(kind, path, rows, questions(rng, rows, misses, asked), tally)
    path.write_bytes(octets)
    return tally
