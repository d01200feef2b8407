"""The embedded database as `rcptd mailbox` writes it: made, opened, changed whole or not at all.

Every change is one transaction, and the write-ahead log is emptied into the database after it: a
database at rest is one file, which can be copied or replaced by rename, and no log of an old database
waits beside a new one.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rcptd.question import Mailbox
from rcptd.stores.entries import Subject
from rcptd.stores.sqlite import missing_right
from rcptd.stores.sqlite_schema import (
    APPLICATION_ID,
    COLUMNS,
    SCHEMA,
    VERSION,
    NotOurs,
    Row,
    check_version,
    mailbox_of,
)

PATIENCE = 10.0  # seconds for which another writer is waited for
CACHE_KIB = 65_536  # page cache of a writer: a million recipients are about 60 MB


class Fault(Exception):
    """What ends the command: its exit code (sysexits.h) and what to say, a line for each fault."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database to read it; raises `Fault`."""
    with _opened(path, "ro") as connection:
        yield connection


@contextmanager
def writing(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the database in a transaction that is taken whole when the block ends well; raises `Fault`."""
    if create:
        _make(path)
    with _opened(path, "rw") as connection:
        # A copy made by VACUUM INTO has lost the mode, and its readers would have to wait for writers.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        # The change is done; whatever holds this up is no fault of it.
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA busy_timeout = 1000")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise Fault(os.EX_NOINPUT, f"{path}: no such database; `rcptd mailbox add` makes it") from None
    except OSError as error:
        raise Fault(os.EX_NOPERM, missing_right(str(path.absolute())) or f"{path}: {error.strerror}") from None
    connection = None
    try:
        connection = _connection(path, mode)
        check_version(connection)
        yield connection
    except NotOurs as error:
        raise Fault(os.EX_DATAERR, f"{path} {error}") from None
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # Over a damaged schema the module fails to decode SQLite's own message.
        raise _explained(path, mode, error) from None
    finally:
        if connection:
            connection.close()


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=PATIENCE, isolation_level=None
    )
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _make(path: Path) -> None:
    """Make the file and its schema where there is none; raises `Fault`.

    Made by root, the file gets the owner and the group of its folder: the daemon must read it, and
    write the log beside it.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise Fault(
            os.EX_CANTCREAT,
            f"{folder}: no such folder; make it for the daemon's account, "
            f"as in `install -d -o rcptd -g rcptd -m 0750 {folder}`",
        )
    try:
        # Empty at first; SQLite takes an empty file for a new database.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        if path.stat().st_size:
            return
    except OSError as error:
        raise Fault(os.EX_CANTCREAT, f"{path}: {error.strerror}; run this as the owner of {folder}") from None
    else:
        try:
            if os.geteuid() == 0:
                owner = folder.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        finally:
            os.close(descriptor)
    connection = None
    try:
        connection = _connection(path, "rw")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        # Another `rcptd mailbox` may have been quicker.
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(SCHEMA)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _explained(path, "rw", error) from None
    finally:
        if connection:
            connection.close()


def _explained(path: Path, mode: str, error: Exception) -> Fault:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Fault(os.EX_TEMPFAIL, f"{path}: another process is writing; try again")
    if missing := missing_right(str(path.absolute())):
        return Fault(os.EX_NOPERM, missing)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) and mode == "rw":
        return Fault(os.EX_NOPERM, f"{path}: {error}; run this as the owner of the file and its folder")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Fault(os.EX_DATAERR, f"{path}: {error}; restore a backup")
    return Fault(os.EX_IOERR, f"{path}: {error}")


def row(connection: sqlite3.Connection, of: Subject) -> Row | None:
    """Give the columns `COLUMNS` of a recipient, None where it is not there."""
    found: Row | None = connection.execute(
        f"SELECT {', '.join(COLUMNS)} FROM recipient WHERE domain = ? AND local = ?",  # noqa: S608 - ours
        (of.domain, of.local),
    ).fetchone()
    return found


def mailbox(path: Path, of: Subject, columns: Row) -> Mailbox:
    """Make a mailbox of a row; raises `Fault` naming a row that makes no sense."""
    try:
        return mailbox_of(columns, catch_all=not of.local)
    except ValueError as error:
        raise Fault(os.EX_DATAERR, f"{path}: the row of {of}: {error}") from None


def rows(connection: sqlite3.Connection, domain: str | None = None) -> Iterator[tuple[Subject, Row]]:
    """Give all recipients, or those of a domain, in the order of their keys and as of one moment."""
    where = "" if domain is None else "WHERE domain = ?"
    for found in connection.execute(
        f"SELECT domain, local, {', '.join(COLUMNS)} FROM recipient {where} ORDER BY domain, local",  # noqa: S608
        () if domain is None else (domain,),
    ):
        yield Subject(found[0], found[1]), found[2:]


def insert(connection: sqlite3.Connection, of: Subject) -> bool:
    """Add a recipient as a mailbox open to everyone; False where it is there already, unchanged."""
    return bool(
        connection.execute(
            "INSERT INTO recipient (domain, local, spelling) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", of
        ).rowcount
    )


def change(connection: sqlite3.Connection, of: Subject, columns: Mapping[str, Any]) -> bool:
    """Set columns of a recipient; False where it is not there."""
    if not columns:
        return row(connection, of) is not None
    names = ", ".join(f"{name} = ?" for name in columns)
    return bool(
        connection.execute(
            f"UPDATE recipient SET {names} WHERE domain = ? AND local = ?",  # noqa: S608 - names are ours
            (*columns.values(), of.domain, of.local),
        ).rowcount
    )


def remove(connection: sqlite3.Connection, of: Subject) -> bool:
    """Remove a recipient; False where it is not there."""
    found = connection.execute("DELETE FROM recipient WHERE domain = ? AND local = ?", (of.domain, of.local))
    return bool(found.rowcount)


def put_all(connection: sqlite3.Connection, columns: tuple[str, ...], values: Iterator[Row]) -> None:
    """Put recipients in, each as domain, local part and these columns; what others they have stays."""
    names = ", ".join(("domain", "local", *columns))
    marks = ", ".join("?" * (2 + len(columns)))
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
    connection.executemany(
        f"INSERT INTO recipient ({names}) VALUES ({marks}) "  # noqa: S608 - names are ours
        f"ON CONFLICT (domain, local) DO UPDATE SET {updates}",
        values,
    )
