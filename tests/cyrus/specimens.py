"""One database of each format, with all kinds of records in it: what damage is tried on."""

import random
from dataclasses import dataclass
from pathlib import Path

from tests.cyrus.rows import Rows, lines, near_misses, random_rows
from tests.cyrus.twomfile import TwomFile
from tests.rig.cyrus_site import Site

KINDS = ("twoskip", "twom", "skiplist", "flat")
CHECKED = ("twoskip", "twom")  # those with checksums


@dataclass(frozen=True)
class Specimen:
    """A database file, what is in it, and some keys that are not."""

    kind: str
    path: Path
    rows: Rows
    misses: list[bytes]


def specimen(site: Site, kind: str, path: Path, *, seed: int, count: int) -> Specimen:
    """Write so many records, delete a quarter, bring back some of those, replace others; each a transaction."""
    rng = random.Random(seed)
    rows = random_rows(rng, count)
    keys = list(rows)
    gone, back, new = keys[: count // 4], keys[count // 8 : count // 5], keys[count // 3 : count // 2]
    steps: list[tuple[list[bytes], Rows]] = [
        ([], dict(rows)), (gone, {}), ([], dict.fromkeys(back, b"again")), ([], dict.fromkeys(new, b"new")),
    ]  # fmt: skip
    file = TwomFile(rng)
    for deleted, written in steps:
        for key in deleted:
            del rows[key]
        rows |= written
        if kind == "twom":
            _write_twom(file, deleted, written)
        elif deleted:
            site.dbtool("-T", path, kind, "delete", lines=b"".join(key + b"\n" for key in deleted))
        else:
            site.dbtool("-n", "-T", path, kind, "set", lines=lines(written))
    if kind == "twom":
        path.write_bytes(file.octets(spare=200))
    misses = near_misses(rng, rows, count) + [key for key in gone if key not in rows]
    return Specimen(kind, path, rows, misses)


def _write_twom(file: TwomFile, deleted: list[bytes], written: Rows) -> None:
    for key in deleted:
        file.delete(key)
    for key, value in written.items():
        file.set(key, value)
    file.commit()
