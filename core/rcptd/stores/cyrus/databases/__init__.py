"""Cyrus' databases, read only and beside live writers: keys to values, whatever the backend.

`open_database` never fails for what the world may do to a file; troubles come with the questions, as one of
the classes in `errors`. No question waits, no file is written or made, and a backend's code is imported when
a configuration names it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rcptd.stores.cyrus.databases.errors import Absent, Damaged, Held, Trouble, Unreadable
from rcptd.stores.cyrus.databases.learning import Learning
from rcptd.stores.cyrus.databases.watches import Watches

__all__ = [
    "Absent",
    "Damaged",
    "Database",
    "Description",
    "Held",
    "Learning",
    "SqlServer",
    "Trouble",
    "Unreadable",
    "Watches",
    "open_database",
]

ONE_FILE = ("twoskip", "skiplist", "twom", "flat")


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator wants to know of a database: `octets` and `records` are None where they cannot be told."""

    path: Path
    kind: str
    octets: int | None
    records: int | None
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SqlServer:
    """Where the tables of the backend sql are: the options sql_engine, sql_database and so on of imapd.conf."""

    engine: str  # sqlite, pgsql or mysql
    database: str
    host: str = ""
    user: str = ""
    password: str = field(default="", repr=False)


class Database(Protocol):
    """A database, whatever its backend; any thread may call, and no call but `describe` waits."""

    @property
    def kind(self) -> str:
        """The backend in use: what the file is, once it was opened, else what was configured."""
        ...

    def missing(self, quiet: bool = False) -> bool:
        """Say whether it is remembered that there is no such database, and still so; cheaper than to ask it.

        `quiet` is what `Watches.quiet` has said since the question came, False where that was not asked.
        """
        ...

    def known(self, key: bytes) -> int:
        """Say without a look what is known of a key, for who has found the watches quiet since the question came.

        It is 0 where there is none, an odd number where its value is `plain`, and -1 where that takes a question.
        """
        ...

    def fetch(self, key: bytes, quiet: bool = False) -> bytes | None:
        """Give the value of a key, None if there surely is none; raises `Trouble`; `quiet` is that of `missing`."""
        ...

    def begins(self, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix; raises `Trouble`."""
        ...

    def exists(self, key: bytes) -> bool:
        """Say whether the key is there, without its value; raises `Trouble`."""
        ...

    def describe(self) -> Description:
        """Go through all of the database and say what is there and what is wrong; may take seconds."""
        ...

    def close(self) -> None:
        """Let go of files and connections, after the last question."""
        ...


def open_database(
    kind: str,
    path: Path,
    *,
    what: str,
    letter: Callable[[bytes], bytes] | None = None,
    domains: bool = True,
    sql: SqlServer | None = None,
    watches: Watches | None = None,
    learning: Learning | None = None,
    plain: Callable[[bytes, int, int], object] | None = None,
) -> Database:
    """Open a database of the configured kind; `what` names its job, for messages. Troubles come with the questions.

    `watches` and `learning` are for whoever asks often; they are not closed with the database. `plain` says of a value
    whether it is such that whoever asks need not see it. quotalegacy wants `letter`, which gives the folder for a name,
    and whether a `!` ends a domain; of its path only the directory part counts. sql wants SQLAlchemy's `url`; of its
    path only the last part counts, as the table's name.
    """
    # Each backend is imported when it is wanted: a start counts.
    if kind in ONE_FILE:
        from rcptd.stores.cyrus.databases.onefile import OneFile  # noqa: PLC0415

        return OneFile(kind, path, watches, learning, plain)
    if kind == "quotalegacy" and letter:
        from rcptd.stores.cyrus.databases.quotalegacy import Quotalegacy  # noqa: PLC0415

        return Quotalegacy(path.parent, letter=letter, domains=domains, watches=watches, learning=learning)
    if kind == "sql":
        return _open_sql(path, what, sql)
    raise ValueError(f"{what}: there is no database backend {kind}")


def _open_sql(path: Path, what: str, server: SqlServer | None) -> Database:
    why = f"{what}: the backend sql wants the options sql_engine and sql_database"
    if server:
        try:
            from rcptd.stores.cyrus.databases.sql import Sql  # noqa: PLC0415 - an extra, and slow to import
        except ImportError as error:
            why = f"{what}: the backend sql wants SQLAlchemy, the extra cyrus-sql: {error}"
        else:
            return Sql(path, server)
    from rcptd.stores.cyrus.databases.unusable import Unusable  # noqa: PLC0415

    return Unusable("sql", path, why)
