"""Which format a file really has: the configured one, or the one that its first octets name.

Cyrus opens a database with the configured backend, and where that finds a bad format, looks at the first
32 octets: 16 octets of magic for skiplist, twoskip and twom. So a configured `twoskip` reads a skiplist
that was never converted. Cyrus does it under a lock file, because it may convert the file; we never write,
read the octets with one call, and need none.

A file that names none of the three is damaged for a backend that has a magic. Flat files have none and are
never detected; but a file of another format is not read as flat, as Cyrus does: all its users would be
"not found".
"""

import os
from collections.abc import Callable
from importlib import import_module

from rcptd.stores.cyrus.databases.errors import Absent, Damaged
from rcptd.stores.cyrus.databases.files import Format, Plain
from rcptd.stores.cyrus.databases.flat import Flat

MAGIC_OCTETS = 16  # of them Cyrus compares no more
LEAST = 32  # a shorter file is not looked into

MAGICS = {
    b"\xa1\x02\x8b\x0dskiplist fil": "skiplist",
    b"\xa1\x02\x8b\x0dtwoskip file": "twoskip",
    b"\xa1\x02\x8b\x0dtwomfile\0\0\0\0": "twom",
}

_FORMATS = {"skiplist": "Skiplist", "twoskip": "Twoskip", "twom": "Twom"}


def detect(descriptor: int, path: str) -> str | None:
    """Name the format whose magic the file has, None for none; raises `OSError`, and `Absent` for an empty file."""
    head = os.pread(descriptor, LEAST, 0)
    if not head:
        raise Absent(f"{path}: is empty")
    return MAGICS.get(head[:MAGIC_OCTETS]) if len(head) == LEAST else None


def chooser(configured: str, plain: Plain | None = None) -> Callable[[int, str], Format]:
    """Give what chooses the format of a file just opened, for a backend that keeps all in one file."""
    if configured == "flat":
        return _flat

    def choose(descriptor: int, path: str) -> Format:
        found = detect(descriptor, path)
        if found is None:
            raise Damaged(f"{path}: is neither a {configured} file nor of another format that names itself")
        module = import_module(f"rcptd.stores.cyrus.databases.{found}")
        form: Format = getattr(module, _FORMATS[found])(path, plain)
        return form

    return choose


def _flat(descriptor: int, path: str) -> Format:
    if found := detect(descriptor, path):
        raise Damaged(f"{path}: is a {found} file, and flat is configured")
    return Flat(path)
