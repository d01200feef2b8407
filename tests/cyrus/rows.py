"""Random rows for databases, and what must be true of a database that has them."""

import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rcptd.stores.cyrus.databases import Database, Held

Rows = dict[bytes, bytes]

# What cyr_dbtool's lines can carry: all but NUL, TAB and LF.
_OCTETS = bytes(octet for octet in range(1, 256) if octet not in b"\t\n")
_PLAIN = b"abcdefghijklmnopqrstuvwxyz.-\x1f"
HELD_MOST = 20.0  # seconds


def random_key(rng: random.Random) -> bytes:
    """A mailbox's key mostly, any octets now and then, a very long one seldom."""
    match rng.randrange(10):
        case 0:
            return bytes(rng.choices(_OCTETS, k=rng.randint(1, 12)))
        case 1:
            return b"Nuser\x1f" + bytes(rng.choices(_OCTETS, k=rng.choice([1, 30, 400, 900])))
    return b"Nuser\x1f" + bytes(rng.choices(_PLAIN, k=rng.randint(1, 20)))


def random_value(rng: random.Random) -> bytes:
    """A record mostly, any octets now and then, more than one read takes seldom."""
    match rng.randrange(10):
        case 0:
            return bytes(rng.choices(_OCTETS, k=rng.choice([0, 1, 2, 3, 7])))
        case 1:
            return bytes(rng.choices(_OCTETS, k=rng.choice([300, 520, 5000])))
    return b"%%(T e I %x P default A %%(u lrs))" % rng.getrandbits(64)


def random_rows(rng: random.Random, count: int) -> Rows:
    """So many rows with different keys."""
    rows: Rows = {}
    while len(rows) < count:
        rows[random_key(rng)] = random_value(rng)
    return rows


def near_misses(rng: random.Random, rows: Mapping[bytes, bytes], count: int) -> list[bytes]:
    """Keys that are not there, most of them neighbours of keys that are."""
    known = sorted(rows)
    made: list[bytes] = []
    while len(made) < count:
        key = rng.choice(known)
        flipped = key[:-1] + bytes([key[-1] ^ 1])
        miss = rng.choice([key[:-1], key + b"a", key + b"\xff", flipped, random_key(rng), b"\xff"])
        if miss not in rows and b"\0" not in miss:
            made.append(miss)
    return made


def lines(rows: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    """The rows as cyr_dbtool reads them."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    return b"".join(b"%b\t%b\n" % pair for pair in pairs)


def fetch(database: Database, key: bytes) -> bytes | None:
    """Ask until no writer holds the lock."""
    end = time.monotonic() + HELD_MOST
    while True:
        try:
            return database.fetch(key)
        except Held:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)


def check(database: Database, rows: Mapping[bytes, bytes], rng: random.Random, *, misses: int = 300) -> None:
    """See that a database has exactly these rows, as far as so many misses can show it."""
    for key, value in rows.items():
        assert database.fetch(key) == value, key
        assert database.exists(key)
    for key in near_misses(rng, rows, misses):
        assert database.fetch(key) is None, key
        assert not database.exists(key)
        prefix = key[: rng.randint(1, 9)]
        assert database.begins(prefix) == any(one.startswith(prefix) for one in rows), prefix
    described = database.describe()
    assert described.faults == []
    assert described.records == len(rows)
    assert described.octets == described.path.stat().st_size


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a folder: size, time and octets of each file."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip
