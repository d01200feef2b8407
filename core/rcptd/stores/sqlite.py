"""Recipients in an embedded SQLite database: the default store, kept by `rcptd mailbox`.

A question is one statement by primary key on a read-only connection, so that whatever another process
commits is seen by the next question. A miss is believed only from one second statement that sees
recipient, catch-all and domain in one snapshot: a writer may commit between two.

Threads. libmilter moves a session from thread to thread, so connections belong to nobody: they wait
in a stack, the warmest on top, and each is used by one thread at a time. Nothing waits: the time-out
for locks is zero, and a lock held by a writer is `Busy`.

That answers still stand is told by SQLite's own counter of commits (PRAGMA data_version), which costs a third of a
question. It may be compared only with what the same connection said before, so that has one of its own.

A file that is replaced by rename is noticed by its inode, looked at twice a second. The connections to
the old file are all closed before the new one is opened, because both would share one -shm file and
POSIX drops a process's locks on a file with the first descriptor that is closed. (For the same reason
nothing here opens the file but SQLite.) If the old file left a write-ahead log that is not empty,
SQLite would replay it over the new file; that is said and nothing is answered until it is gone.

BUGS. SQLite has no checksums over its pages. Damage to the structure is noticed and is Unavailable;
a flipped bit inside a name makes it another name, here as in every table without checksums.
"""

import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcptd import schema
from rcptd.address import Recipient
from rcptd.question import EXISTS, NOT_FOUND, Answer, Busy, Found, Unavailable
from rcptd.schema import option
from rcptd.stores.entries import Subject, caught, local_part, no_domain
from rcptd.stores.sqlite_schema import COLUMNS, PLAIN, VALUE_OCTETS, NotOurs, Row, check_version, mailbox_of

_log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks at the file's inode: a rename is seen within one second
IDLE = 64  # connections kept; each costs three descriptors and about 50 kB

_HIT = f"SELECT {', '.join(COLUMNS)} FROM recipient WHERE domain = ?1 AND local = ?2"  # noqa: S608 - ours
# The recipient, the catch-all, and the proof that the domain is held, in one snapshot.
_MISS = (
    f"SELECT 0, {', '.join(COLUMNS)} FROM recipient WHERE domain = ?1 AND local = ?2 UNION ALL "  # noqa: S608
    f"SELECT 1, {', '.join(COLUMNS)} FROM recipient WHERE domain = ?1 AND local = '' UNION ALL "
    f"SELECT * FROM (SELECT 2{', NULL' * len(COLUMNS)} FROM recipient WHERE domain = ?1 LIMIT 1)"
)

_WAIT = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_RIGHTS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR}


@dataclass(frozen=True, slots=True)
class Settings:
    """A store of type `sqlite`."""

    path: Path = option(schema.path, doc="The database file; its folder must be writable for the daemon.")
    allow_empty: bool = option(
        schema.boolean,
        default=False,
        doc="Whether a domain of which nobody is here has nobody (else: cannot tell).",
    )


class _Faulty(Exception):
    """There is no connection to be had; carries the answer that says why."""

    def __init__(self, answer: Unavailable | Busy) -> None:
        super().__init__(answer.why)
        self.answer = answer


class _State:
    """The state of a file as one connection counts its commits; `token` is another one after each."""

    def __init__(self) -> None:
        self.asking = threading.Lock()  # held for two microseconds
        self.connection: sqlite3.Connection | None = None
        self.version = -1
        self.token = object()
        self.failed = False  # until the next look at the file

    def look(self) -> object:
        """Give the token; to be called with the lock held, and a connection. Raises what SQLite raises."""
        assert self.connection
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        if version != self.version:
            self.version, self.token = version, object()
        return self.token


class _File:
    """The connections to one file, and what must be over before the first of them is made.

    `identity` is device and inode, None where there is no file (then `why` says so). `before` are the
    files that stood at this path and still have connections; `stale` is the signature of a write-ahead
    log that one of them left.
    """

    def __init__(self, identity: tuple[int, int] | None, why: str = "") -> None:
        self.identity = identity
        self.why = why
        self.idle: list[sqlite3.Connection] = []
        self.before: tuple[_File, ...] = ()
        self.stale: tuple[int, ...] | None = None
        self.log: tuple[int, int] | None = None
        self.page = 512  # the least that SQLite has
        self.state = _State()
        self._open = 0
        self._counting = threading.Lock()

    def count(self, change: int = 0) -> int:
        """Add to the number of connections that are open, and give it."""
        with self._counting:
            self._open += change
            return self._open

    def close(self, connection: sqlite3.Connection) -> None:
        connection.close()
        self.count(-1)

    def close_idle(self) -> None:
        with self.state.asking:
            connection, self.state.connection = self.state.connection, None
            if connection:
                self.close(connection)
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return
            self.close(connection)


class Database:
    """A table in a SQLite file; see the module for how it is read."""

    def __init__(self, path: Path, *, allow_empty: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = str(path)
        self._uri = path.as_uri() + "?mode=ro"
        self._allow_empty = allow_empty
        self._clock = clock
        self._look_at = clock()
        self._looking = threading.Lock()
        self._file = _File(None, f"{path}: not looked at yet")
        self._trouble = ""
        self._closed = False
        # Now, and not by the first question: others may come while that one looks, and would be deferred.
        self._look()
        # So that whoever starts the daemon reads of a missing file or right at once.
        try:
            self._file.idle.append(self._connect(self._file))
        except _Faulty as fault:
            self._troubled(fault.answer)

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Say what the database knows of the recipient; any thread may call."""
        if self._clock() >= self._look_at:
            self._look()
        file = self._file
        try:
            connection = file.idle.pop()
        except IndexError:
            try:
                connection = self._connect(file)
            except _Faulty as fault:
                return self._troubled(fault.answer)
        try:
            answer = self._ask(connection, recipient)
        except Exception as error:
            # Not sqlite3.Error alone: over a damaged schema the module fails to decode its own message.
            file.close(connection)
            return self._troubled(self._explained(error, recipient))
        if len(file.idle) < IDLE:
            file.idle.append(connection)
            if file is not self._file:
                file.close_idle()
        else:
            file.close(connection)
        if self._trouble:
            self._well()
        return answer

    def standing(self) -> object:
        """Give the same object until anybody commits; any thread may call."""
        if self._clock() >= self._look_at:
            self._look()
            self._file.state.failed = False
        file = self._file
        state = file.state
        if state.failed:
            return None
        with state.asking:
            try:
                if state.connection is None:
                    state.connection = self._connect(file)
                    state.version = -1
                return state.look() if file is self._file else None
            except Exception:  # whatever SQLite makes of a damaged file; the question will tell
                state.failed = True
                if state.connection:
                    file.close(state.connection)
                    state.connection = None
                return None

    def stands_until(self, recipient: Recipient) -> float:  # noqa: ARG002 - all of it stands alike
        """Say that time alone changes no answer."""
        return math.inf

    def close(self) -> None:
        """Close the connections, after the last decision that uses the table."""
        with self._looking:
            self._closed = True
            file, self._file = self._file, _File(None, f"{self._path}: closed")
        file.close_idle()

    def _ask(self, connection: sqlite3.Connection, recipient: Recipient) -> Answer:
        key = (recipient.domain, local_part(recipient))
        # There is one row at most, so fetchone steps to the end and lets go of the read lock.
        row: Row | None = connection.execute(_HIT, key).fetchone()
        if row == PLAIN:
            return EXISTS
        if row is not None:
            return self._found(row, Subject(*key))
        rows: list[Row] = connection.execute(_MISS, key).fetchall()
        if not rows:
            return NOT_FOUND if self._allow_empty else Unavailable(f"{self._path}: {no_domain(recipient.domain)}")
        which, *columns = min(rows, key=lambda one: one[0])
        if which == 0:
            return self._found(tuple(columns), Subject(*key))
        if which == 1:
            answer = self._found(tuple(columns), Subject(recipient.domain, ""))
            return caught(answer, recipient) if isinstance(answer, Found) else answer
        return NOT_FOUND

    def _found(self, row: Row, of: Subject) -> Found | Unavailable:
        try:
            return Found(mailbox_of(row, catch_all=not of.local))
        except ValueError as error:
            return Unavailable(f"{self._path}: the row of {of}: {error}")

    def _look(self) -> None:
        """See whether another file stands at the path; one thread at a time, the others go on."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._look_at = self._clock() + LOOK
            old = self._file
            why = ""
            identity = None
            try:
                status = os.stat(self._path)  # noqa: PTH116 - a microsecond, not three
                if status.st_size % old.page:
                    why = f"{self._path}: is cut off in mid-page; restore a backup"
                else:
                    identity = (status.st_dev, status.st_ino)
            except OSError as error:
                why = f"{self._path}: {error.strerror}"
                if isinstance(error, FileNotFoundError):
                    why += "; `rcptd mailbox add` makes it"
            if self._closed or (identity is not None and identity == old.identity):
                return
            new = _File(identity, why)
            new.before = tuple(file for file in (*old.before, old) if file.identity)
            new.stale = old.stale
            # A log that our own connections used belongs to the old file, whatever now stands at its side.
            log = self._log_signature()
            if log and log[:2] == old.log:
                new.stale = log
            self._file = new
            old.close_idle()
        finally:
            self._looking.release()

    def _log_signature(self) -> tuple[int, ...] | None:
        """Give device, inode, size and time of the write-ahead log, None where it is empty or not there."""
        try:
            status = os.stat(self._path + "-wal")  # noqa: PTH116
        except OSError:
            return None
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if status.st_size else None

    def _connect(self, file: _File) -> sqlite3.Connection:
        """Make a connection to the file; raises `_Faulty`."""
        if file.identity is None:
            raise _Faulty(Unavailable(file.why))
        if any(old.count() for old in file.before):
            raise _Faulty(Busy(f"{self._path}: the file was replaced, and the old one is still being read"))
        if file.stale and file.stale == self._log_signature():
            raise _Faulty(
                Unavailable(
                    f"{self._path}-wal belongs to the database that stood here before, and would spoil "
                    f"this one: stop whoever writes, remove {self._path}-wal and {self._path}-shm"
                )
            )
        file.count(+1)
        connection = None
        try:
            connection = sqlite3.connect(
                self._uri,
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=8,
            )
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_OCTETS)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            check_version(connection)
            self._see_that_it_is(file)
            (file.page,) = connection.execute("PRAGMA page_size").fetchone()
        except Exception as error:
            if connection:
                connection.close()
            file.count(-1)
            match error:
                case NotOurs():
                    raise _Faulty(Unavailable(f"{self._path} {error}")) from None
                case OSError():
                    raise _Faulty(Busy(f"{self._path}: {error}")) from None
                case _:
                    raise _Faulty(self._explained(error, None)) from None
        return connection

    def _see_that_it_is(self, file: _File) -> None:
        """See that the path still names the file, and remember its log; raises `OSError`."""
        status = os.stat(self._path)  # noqa: PTH116 - a microsecond, not three
        if (status.st_dev, status.st_ino) != file.identity:
            self._look_at = self._clock()
            raise OSError("the file is just being replaced")
        try:
            log = os.stat(self._path + "-wal")  # noqa: PTH116
            file.log = (log.st_dev, log.st_ino)
        except FileNotFoundError:
            file.log = None

    def _explained(self, error: Exception, recipient: Recipient | None) -> Unavailable | Busy:
        """Say what a fault of SQLite means, and what helps."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _WAIT:
            return Busy(f"{self._path}: {error}")
        if code in _RIGHTS and (missing := missing_right(self._path)):
            return Unavailable(missing)
        asked = f", asked for {recipient.domain}" if recipient else ""
        return Unavailable(f"{self._path}: {error}{asked}")

    def _troubled(self, answer: Unavailable | Busy) -> Unavailable | Busy:
        """Log a trouble once, and give it back."""
        if isinstance(answer, Unavailable) and answer.why != self._trouble:
            self._trouble = answer.why
            _log.error("store: %s", answer.why)
        return answer

    def _well(self) -> None:
        self._trouble = ""
        _log.warning("store: %s: answers again", self._path)


def missing_right(path: str) -> str:
    """Name the right that this process lacks to read the database, and the remedy; "" for none."""
    folder = os.path.dirname(path) or "."  # noqa: PTH120 - a text for a text
    who = f"uid {os.geteuid()} gid {os.getegid()}"
    if not os.access(folder, os.X_OK, effective_ids=True):
        return f"{folder} cannot be entered by {who}: chmod or chown it"
    if not os.access(path, os.R_OK, effective_ids=True):
        return f"{path} cannot be read by {who}: chown or chmod it, and its -wal and -shm with it"
    for beside in (f"{path}-wal", f"{path}-shm"):
        if os.path.exists(beside):  # noqa: PTH110 - a text for a text
            if not os.access(beside, os.R_OK | os.W_OK, effective_ids=True):
                return f"{beside} cannot be read and written by {who}: make it as {path} is"
        elif not os.access(folder, os.W_OK, effective_ids=True):
            return (
                f"{folder} cannot be written by {who}, and a reader of {path} must be able to make its "
                f"-wal and -shm there: chown or chmod the folder"
            )
    return ""


def open_store(name: str, settings: Settings) -> Database:  # noqa: ARG001 - one shape for all stores
    """Open the store of a configuration; a file that is no good is logged, and is an answer to each question."""
    return Database(settings.path, allow_empty=settings.allow_empty)
