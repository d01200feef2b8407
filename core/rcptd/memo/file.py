"""What services said, kept in a SQLite file over a restart.

Theory of operation. The memory is the truth and the file its shadow: it is read once for each store, when that is
opened, and from then on only written, by a thread of its own, in batches of a second. So nothing that happens to the
file reaches an answer: a disk that is full, a file that is locked, damaged or gone costs the memory of answers after
the next restart. It is said once in the log, and once more when it is well again. A file that is no database is
put aside as PATH.damaged, and a new one begun.

Rows are of a store with its section as it was: another next hop under the same name has said nothing yet. What the
one before it still says, as after a reload, in this process or in another worker, is not kept.

LIMITS. A row's key and answer are bounded, so is the number of rows that are read and of changes that wait; what is
more is not kept.
"""

import contextlib
import logging
import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, assert_never

from rcptd.memo import codec
from rcptd.question import Answer

_log = logging.getLogger("rcptd.memo")

BATCH = 1.0
"""How long, in seconds, changes are gathered before they are written."""

RETRY = 10.0
"""How long, in seconds, until what could not be written is tried again at the latest."""

WAITING = 100_000
"""How many changes may wait to be written; more are not kept."""

KEY_OCTETS = 1024
"""How long a key may be; RFC 5321 stops at 320."""

VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS section (store TEXT PRIMARY KEY, fingerprint TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answer (
    store TEXT NOT NULL, key TEXT NOT NULL, answer TEXT, asked REAL NOT NULL, good REAL, gone REAL,
    PRIMARY KEY (store, key)
) WITHOUT ROWID;
"""

_BEYOND_REPAIR = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Row(NamedTuple):
    """One remembered answer; times are seconds since the epoch, the answer None where it counts no more."""

    key: str
    answer: Answer | None
    asked: float
    good: float | None
    gone: float | None


class _Put(NamedTuple):
    store: str
    fingerprint: str
    row: Row


class _Remove(NamedTuple):
    """Removes a key of a store."""

    store: str
    key: str


class _RemoveAll(NamedTuple):
    """Removes every key of a store, or those of a domain, which is written with its @."""

    store: str
    domain: str


class _Own(NamedTuple):
    """Takes the rows of a store for its section, and removes those of another section, and older ones."""

    store: str
    fingerprint: str
    since: float


_Change = _Put | _Remove | _RemoveAll | _Own


class MemoFile:
    """The file, and the thread that writes it; its methods never wait for the disk, except `load` and `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changes: queue.SimpleQueue[_Change | Future[None] | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._well = True
        self._lost = 0
        self._lock = threading.Lock()  # the reader of a reload beside the writer
        self._thread: threading.Thread | None = None

    def load(self, store: str, fingerprint: str, most: int, since: float) -> list[Row]:
        """Read at most `most` rows of a store that were asked after `since`, the newest last; never raises.

        To be called before the store is first asked. Rows of another section than `fingerprint` do not count.
        """
        rows: list[Row] = []
        with self._lock, self._watching("read"):
            connection = self._open()
            section = connection.execute("SELECT fingerprint FROM section WHERE store = ?", (store,)).fetchone()
            if section == (fingerprint,):
                found = connection.execute(
                    "SELECT key, answer, asked, good, gone FROM answer WHERE store = ? AND asked > ? "
                    "ORDER BY asked DESC LIMIT ?",
                    (store, since, most),
                )
                rows = [row for row in map(_row, found) if row]
        self._change(_Own(store, fingerprint, since))
        rows.reverse()
        return rows

    def put(self, store: str, fingerprint: str, row: Row) -> None:
        """Keep a row in place of the one before it, unless the store has another section now."""
        self._change(_Put(store, fingerprint, row))

    def remove(self, store: str, key: str) -> None:
        """Remove the row of a key."""
        self._change(_Remove(store, key))

    def remove_all(self, store: str, domain: str = "") -> None:
        """Remove all rows of a store, or those of a domain (`@domain`)."""
        self._change(_RemoveAll(store, domain))

    def flush(self) -> "Future[None]":
        """Write at once what waits; the future ends when that was tried."""
        done: Future[None] = Future()
        self._start()
        self._changes.put(done)
        return done

    def close(self, patience: float = 2.0) -> None:
        """Write what waits and close; waits `patience` seconds for that, and leaves the rest to the thread."""
        if self._thread:
            self._changes.put(None)
            self._thread.join(patience)

    def _change(self, change: _Change) -> None:
        if self._changes.qsize() >= WAITING:
            self._lost += 1
            return
        self._start()
        self._changes.put(change)

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process.
            self._thread = threading.Thread(target=self._work, name="rcptd-memo", daemon=True)
            self._thread.start()

    # In the thread.

    def _work(self) -> None:
        unwritten: list[_Change] = []
        going_on = True
        while going_on:
            going_on, flushed = self._gather(unwritten)
            if unwritten:
                with self._lock, self._watching("written"):
                    self._write(unwritten)
                    unwritten.clear()
                # What could not be written is tried again: a purge must not be forgotten. The newest counts most.
                del unwritten[:-WAITING]
            if flushed and flushed.set_running_or_notify_cancel():  # whoever waited may have lost patience
                flushed.set_result(None)
        with self._lock:
            self._close()

    def _gather(self, unwritten: list[_Change]) -> tuple[bool, "Future[None] | None"]:
        """Gather what changes within a batch's time; says whether to go on, and who waits for it to be written."""
        until = time.monotonic() + RETRY if unwritten else None
        while True:
            try:
                change = self._changes.get(timeout=None if until is None else max(until - time.monotonic(), 0))
            except queue.Empty:
                return True, None
            match change:
                case None:
                    return False, None
                case Future():
                    return True, change
                case _:
                    until = min(until or math.inf, time.monotonic() + BATCH)
                    unwritten.append(change)

    def _write(self, batch: Sequence[_Change]) -> None:
        connection = self._open()
        with connection:  # one transaction
            for change in batch:
                match change:
                    case _Put(store, fingerprint, row):
                        if len(row.key) <= KEY_OCTETS:
                            answer = codec.encode(row.answer) if row.answer else None
                            connection.execute(
                                "REPLACE INTO answer SELECT ?1, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS "
                                "(SELECT 1 FROM section WHERE store = ?1 AND fingerprint = ?2)",
                                (store, fingerprint, row.key, answer, row.asked, row.good, row.gone),
                            )
                    case _Remove(store, key):
                        connection.execute("DELETE FROM answer WHERE store = ? AND key = ?", (store, key))
                    case _RemoveAll(store, ""):
                        connection.execute("DELETE FROM answer WHERE store = ?", (store,))
                    case _RemoveAll(store, domain):
                        # A server's name may stand behind the address, after a space.
                        connection.execute(
                            "DELETE FROM answer WHERE store = ?1 AND "
                            "(substr(key, -length(?2)) = ?2 OR instr(key, ?2 || ' ') > 0)",
                            (store, domain),
                        )
                    case _Own(store, fingerprint, since):
                        connection.execute(
                            "DELETE FROM answer WHERE store = ?1 AND (asked <= ?3 OR NOT EXISTS "
                            "(SELECT 1 FROM section WHERE store = ?1 AND fingerprint = ?2))",
                            (store, fingerprint, since),
                        )
                        connection.execute("REPLACE INTO section VALUES (?, ?)", (store, fingerprint))
                    case _:
                        assert_never(change)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # Who wrote to whom is nobody else's business.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # Two seconds for the lock of a predecessor that still writes while we start.
            connection = sqlite3.connect(self._path, timeout=2, check_same_thread=False)
            try:
                _make_ours(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        if self._connection:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _watching(self, what: str) -> Iterator[None]:
        """Take whatever happens to the file for what it is: lost memory, and a line in the log."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            self._close()
            if self._well:
                _log.warning("memo: %s is not %s, answers will not survive a restart: %s", self._path, what, error)
            self._well = False
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BEYOND_REPAIR:
                self._put_aside()
        else:
            if not self._well:
                _log.warning("memo: %s is %s again", self._path, what)
            self._well = True

    def _put_aside(self) -> None:
        damaged = self._path.with_name(self._path.name + ".damaged")
        with contextlib.suppress(OSError):
            self._path.replace(damaged)
            for rest in ("-wal", "-shm"):
                self._path.with_name(self._path.name + rest).unlink(missing_ok=True)
            _log.warning("memo: %s was put aside as %s", self._path, damaged)


def _make_ours(connection: sqlite3.Connection) -> None:
    """Make a new file ours; raises `sqlite3.Error` where it is another's."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 20)  # no row of ours is near it
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version != (VERSION if tables else 0):
        raise sqlite3.DatabaseError("it is no memo of this version, but another program's database")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # the last second may be lost with the power
    connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")


def _row(columns: tuple[object, ...]) -> Row | None:
    """Check a row that was read, for which nobody vouches."""
    key, text, asked, good, gone = columns
    answer = None if text is None else codec.decode(text)
    sound = isinstance(key, str) and len(key) <= KEY_OCTETS and isinstance(asked, float)
    if not sound or not isinstance(good, float | None) or not isinstance(gone, float | None):
        return None
    if text is not None and answer is None:
        return None
    return Row(key, answer, asked, good, gone)  # type: ignore[arg-type]  # as `sound` says
