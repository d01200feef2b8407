"""Databases of the backend sql, through SQLAlchemy: a table of keys and data in SQLite, PostgreSQL or MySQL.

The table is named for the file that would have been: `mailboxes_db` for mailboxes.db. Cyrus makes it when it is
missing; to us it is absent then.

SQLite is asked at once, read only and without waiting for a writer. A server may take its time, and a question must
not: it is handed to a few threads of this database's own, and is `Held` until the answer has come. Whoever asks again
gets it; an answer that nobody fetched is thrown away when it is older than FRESH, so that none was true before the
question only. Threads are daemons, since one that is stuck must not hold up the end of the process.

BUGS. Only SQLite is tried in the tests. There are no checksums; the server is believed.
"""

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from sqlalchemy import LargeBinary, Text, cast, column, func, literal, select, table
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from rcptd.stores.cyrus.databases import Description, SqlServer
from rcptd.stores.cyrus.databases.errors import Absent, Held, Trouble, Unreadable

THREADS = 4  # questions that a server is asked at once
WAITING = 1000  # questions that wait for a server, and answers that wait to be fetched
FRESH = 0.25  # seconds; who is told `Held` asks again after 50 ms at most
CONNECT = 5  # seconds that a server has to take a connection

_BUSY = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED

Question = tuple[str, bytes]
Result = bytes | bool | Trouble | None


class Sql:
    """A table of keys and data; any thread may ask, and none waits."""

    kind = "sql"

    def __init__(self, path: Path, server: SqlServer) -> None:
        self._path = path
        self._server = server
        stem, dot, end = path.name.rpartition(".")
        self._name = f"{stem}_{end}" if dot else end
        self._table = table(self._name, column("dbkey", LargeBinary), column("data", LargeBinary))
        self._local = server.engine == "sqlite"
        self._engine: Engine | None = None
        self._line = _Line(self._answer) if not self._local else None
        self._making = threading.Lock()

    def missing(self, quiet: bool = False) -> bool:  # noqa: ARG002 - a database's signature
        """Say that it is not."""
        return False

    def known(self, key: bytes) -> int:  # noqa: ARG002 - a database's signature
        """Say that nothing is known without a look."""
        return -1

    def fetch(self, key: bytes, quiet: bool = False) -> bytes | None:  # noqa: ARG002
        """Give the value of a key, None if there surely is none; raises `Trouble`."""
        value = self._ask("fetch", key)
        assert value is None or isinstance(value, bytes)
        return value

    def exists(self, key: bytes) -> bool:
        """Say whether the key is there; raises `Trouble`."""
        return self.fetch(key) is not None

    def begins(self, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix: looks through the whole table; raises `Trouble`."""
        return bool(self._ask("begins", prefix))

    def describe(self) -> Description:
        """Count the records; waits for the server."""
        octets = [func.length(cast(one, LargeBinary)) for one in (self._table.c.dbkey, self._table.c.data)]
        rows = select(func.count(), func.sum(octets[0] + octets[1])).select_from(self._table)
        try:
            with self._connected() as connection:
                records, size = connection.execute(rows).one()
        except (SQLAlchemyError, Trouble, OSError) as error:
            return Description(self._path, self.kind, None, None, [self._explained(error).why])
        return Description(self._path, self.kind, int(size or 0), int(records))

    def close(self) -> None:
        """Close the connections that nobody uses, and end the threads."""
        if self._line:
            self._line.close()
        if self._engine:
            self._engine.dispose()

    def _ask(self, what: str, about: bytes) -> bytes | bool | None:
        result = self._line.ask((what, about)) if self._line else self._answer((what, about))
        if isinstance(result, Trouble):
            raise result
        return result

    def _answer(self, question: Question) -> Result:
        """Ask the server, or the file; never raises."""
        what, about = question
        try:
            with self._connected() as connection:
                return self._fetch(connection, about) if what == "fetch" else self._begins(connection, about)
        except Exception as error:
            return self._explained(error)

    def _fetch(self, connection: Connection, key: bytes) -> bytes | None:
        columns = self._table.c
        # In SQLite Cyrus writes text that may be none, and text is never equal to octets.
        same = columns.dbkey == (cast(literal(key, LargeBinary), Text) if self._local else key)
        row = connection.execute(select(cast(columns.data, LargeBinary)).where(same).limit(1)).first()
        return None if row is None else bytes(row[0] or b"")

    def _begins(self, connection: Connection, prefix: bytes) -> bool:
        key = cast(self._table.c.dbkey, LargeBinary)
        begin = func.substr(key, 1, len(prefix), type_=LargeBinary)
        return connection.execute(select(literal(1)).where(begin == prefix).limit(1)).first() is not None

    def _connected(self) -> Connection:
        if self._engine is None:
            with self._making:
                self._engine = self._engine or self._make_engine()
        if self._local:
            self._see_the_file()
        return self._engine.connect()

    def _see_the_file(self) -> None:
        try:
            os.stat(self._server.database)  # noqa: PTH116 - a microsecond, not three
        except OSError as error:
            raise Absent(f"{self._server.database}: {error.strerror}") from None

    def _make_engine(self) -> Engine:
        server = self._server
        if self._local:
            return sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.NullPool, creator=self._open_file)
        drivers = {"pgsql": "postgresql", "mysql": "mysql"}
        if server.engine not in drivers:
            raise Unreadable(f"sql_engine: {server.engine!r} is none that is known")
        host, _, port = server.host.partition(":")
        url_of_server = URL.create(
            drivers[server.engine], server.user or None, server.password or None, host or None,
            int(port) if port.isdecimal() else None, server.database,
        )  # fmt: skip
        return sqlalchemy.create_engine(
            url_of_server, pool_size=THREADS, max_overflow=0, pool_timeout=CONNECT, pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT},
        )  # fmt: skip

    def _open_file(self) -> sqlite3.Connection:
        # A new connection to each question: the file may have been replaced.
        return sqlite3.connect(
            f"{Path(self._server.database).absolute().as_uri()}?mode=ro", uri=True, timeout=0, check_same_thread=False
        )

    def _explained(self, error: Exception) -> Trouble:
        if isinstance(error, Trouble):
            return error
        original = getattr(error, "orig", None)
        if getattr(original, "sqlite_errorcode", 0) & 0xFF in _BUSY:
            return Held(f"{self._server.database}: {original}")
        where = f"{self._server.engine} {self._server.database}, table {self._name}"
        try:
            if self._engine and not sqlalchemy.inspect(self._engine).has_table(self._name):
                return Absent(f"{where}: there is no such table")
        except Exception as again:
            error = again
        return Unreadable(f"{where}: {getattr(error, 'orig', None) or error}")


class _Line:
    """Questions that wait for threads, and answers that wait to be fetched."""

    def __init__(self, answer: Callable[[Question], Result]) -> None:
        self._answer = answer
        self._jobs: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._asked: set[Question] = set()
        self._answers: dict[Question, tuple[float, Result]] = {}  # in the order in which they came
        self._threads = 0

    def ask(self, question: Question) -> Result:
        """Give the answer if it has come; `Held` if not."""
        with self._changing:
            self._forget()
            answered = self._answers.pop(question, None)
            if answered:
                return answered[1]
            if question not in self._asked:
                if len(self._asked) + len(self._answers) >= WAITING:
                    return Held("too many questions wait for the SQL server")
                self._asked.add(question)
                self._jobs.put(question)
                if self._threads < min(THREADS, len(self._asked)):
                    self._threads += 1
                    threading.Thread(target=self._work, name="cyrus sql", daemon=True).start()
        return Held("the SQL server is being asked")

    def close(self) -> None:
        """End the threads when they have done what they are at."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _forget(self) -> None:
        limit = time.monotonic() - FRESH
        while self._answers:
            first = next(iter(self._answers))
            if self._answers[first][0] > limit:
                return
            del self._answers[first]

    def _work(self) -> None:
        while (question := self._jobs.get()) is not None:
            result = self._answer(question)
            with self._changing:
                self._asked.discard(question)
                self._answers[question] = (time.monotonic(), result)
