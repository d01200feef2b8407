"""`rcptd mailbox import` and `export`: many recipients at once, all of them or none.

An import is one transaction that reads its file as it goes, so that a million lines need no memory to
speak of, and a fault in the last of them undoes the first.
"""

import argparse
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from rcptd.stores.lines import Entry
from rcptd.stores.lines import Fault as LineFault
from rcptd.stores.sqlite_schema import COLUMNS, Row, row_of
from rcptd_daemon import mailbox_database as database
from rcptd_daemon import mailbox_formats as formats
from rcptd_daemon.mailbox_database import Fault

FAULTS = 20  # faulty lines of an import that are named
PROGRESS = 2.0  # seconds between two lines of progress


class _Progress:
    """Says on standard error how far an import is: often on a terminal, else every few seconds."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._begun = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._next = self._begun + (0.2 if self._terminal else PROGRESS)

    def say(self, count: int, at: int, *, final: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not final:
            return
        self._next = now + (0.2 if self._terminal else PROGRESS)
        part = f" ({100 * at // self._size} %)" if self._size and not final else ""
        end = "\n" if final or not self._terminal else "\r"
        print(
            f"rcptd mailbox: {count} recipients{part}, {now - self._begun:.1f} s", file=sys.stderr, end=end, flush=True
        )


@contextmanager
def _source(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open what is imported, and say how large it is; 0 where that is not known."""
    if name == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        source = Path(name).open("rb")  # noqa: SIM115 - with what follows
    except OSError as error:
        raise Fault(os.EX_NOINPUT, f"{name}: {error.strerror}") from None
    with source:
        status = os.fstat(source.fileno())
        yield source, status.st_size if stat.S_ISREG(status.st_mode) else 0


def take_in(arguments: argparse.Namespace, path: Path) -> int:
    """Import a file in one transaction, and give the exit code; raises `Fault`."""
    name = "standard input" if arguments.file == "-" else arguments.file
    with _source(arguments.file) as (source, size):
        columns, found = formats.incoming(source, arguments.format, targets=arguments.targets)
        wanted = [COLUMNS.index(column) for column in columns]
        progress = _Progress(size)
        faults: list[str] = []
        count = 0

        def values() -> Iterator[Row]:
            nonlocal count
            for one in found:
                if isinstance(one, LineFault):
                    faults.append(f"{name}:{one.line}: {one.what}")
                    if len(faults) >= FAULTS:
                        raise Fault(os.EX_DATAERR, "\n".join([*faults, "there may be more; nothing was changed"]))
                    continue
                count += 1
                if not count % 4096:
                    progress.say(count, source.tell() if size else 0)
                yield _put(one, wanted)

        with database.writing(path, create=True) as connection:
            try:
                if arguments.replace:
                    connection.execute("DELETE FROM recipient")
                database.put_all(connection, columns, values())
            except OSError as error:
                raise Fault(os.EX_IOERR, f"{name}: {error.strerror}") from None
            if faults:
                raise Fault(os.EX_DATAERR, "\n".join([*faults, "nothing was changed"]))
            if not count:
                raise Fault(os.EX_DATAERR, f"{name}: has not one recipient; nothing was changed")
        progress.say(count, size, final=True)
    return os.EX_OK


def _put(one: Entry, wanted: list[int]) -> Row:
    row = row_of(one.mailbox)
    return (one.of.domain, one.of.local, *[row[at] for at in wanted])


def give_out(arguments: argparse.Namespace, path: Path) -> int:
    """Export all recipients as of one moment, and give the exit code; raises `Fault`."""
    if arguments.file == "-":
        return _write_all(arguments, path, sys.stdout)
    # Beside its place first: a reader of the old export never sees half of the new one.
    beside = Path(f"{arguments.file}.new")
    try:
        with beside.open("w", encoding="utf-8", newline="") as sink:
            code = _write_all(arguments, path, sink)
        beside.replace(arguments.file)
    except OSError as error:
        raise Fault(os.EX_CANTCREAT, f"{arguments.file}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)
    return code


def _write_all(arguments: argparse.Namespace, path: Path, sink: TextIO) -> int:
    write = formats.outgoing(sink, arguments.format, targets=arguments.targets)
    short = 0
    with database.reading(path) as connection:
        for of, row in database.rows(connection):
            short += not write(of, database.mailbox(path, of, row))
    if short:
        print(
            f"rcptd mailbox: of {short} recipients this format cannot say all that is known; csv can",
            file=sys.stderr,
        )
    return os.EX_OK
