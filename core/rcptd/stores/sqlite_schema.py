"""The embedded database: its schema and version, and how a row and a `Mailbox` become each other.

One row is one recipient; its primary key is domain and local part, as `rcptd.address` makes them
canonical, so that a question is one seek and the domain's catch-all (local part "") its first row. Lists
are one item to a line, because no address and no network can hold a line end.

The file names itself: `application_id` is "rcpt", `user_version` the version of the schema. A version
that we do not know is refused, never migrated in passing: an older rcptd may still read the file.
Everything that is read is bounded and checked, since any process may have written it; the CHECKs in
the schema are a courtesy to whoever writes by hand.
"""

import re
import sqlite3
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from rcptd.question import Disabled, Mailbox, Posting, Quota
from rcptd.stores.entries import NUMBER, TARGETS, TEXT_OCTETS, WORD_OCTETS, sender, target

APPLICATION_ID = 0x72637074  # "rcpt"
VERSION = 1
VALUE_OCTETS = 65_536  # no value longer than this is read: 50 targets of 254 octets are 13 kB
ITEMS = 1000  # networks or senders of one recipient

SCHEMA = """
CREATE TABLE recipient (
    domain             TEXT    NOT NULL,              -- lower-case A-labels, as in xn--bcher-kva.example
    local              TEXT    NOT NULL,              -- unquoted, NFC, case-folded; '' is the catch-all
    spelling           TEXT    NOT NULL DEFAULT '',   -- the address as written, '' where that is the key
    disabled           INTEGER NOT NULL DEFAULT 0     -- 0 takes mail, 1 disabled, 2 disabled for now
                       CHECK (disabled IN (0, 1, 2)),
    disabled_text      TEXT    NOT NULL DEFAULT '',   -- public: the text of the reply, '' for the usual one
    disabled_until     INTEGER                        -- seconds since the epoch, NULL for no end
                       CHECK (typeof(disabled_until) IN ('null', 'integer')),
    post_authenticated INTEGER                        -- NULL in all three post_ columns: anyone may post;
                       CHECK (post_authenticated IN (0, 1)),  -- else whoever meets one of them
    post_networks      TEXT,                          -- addresses and CIDR networks, one to a line
    post_senders       TEXT,                          -- user@domain or @domain, one to a line
    quota_bytes        INTEGER                         -- NULL for no limit
                       CHECK (quota_bytes IS NULL OR (typeof(quota_bytes) = 'integer' AND quota_bytes >= 0)),
    used_bytes         INTEGER NOT NULL DEFAULT 0
                       CHECK (typeof(used_bytes) = 'integer' AND used_bytes >= 0),
    quota_messages     INTEGER
                       CHECK (quota_messages IS NULL
                              OR (typeof(quota_messages) = 'integer' AND quota_messages >= 0)),
    used_messages      INTEGER NOT NULL DEFAULT 0
                       CHECK (typeof(used_messages) = 'integer' AND used_messages >= 0),
    targets            TEXT    NOT NULL DEFAULT '',   -- an alias: the addresses it leads to, one to a line
    moved_to           TEXT    NOT NULL DEFAULT '',   -- the new address of one who left
    PRIMARY KEY (domain, local)
) WITHOUT ROWID
"""

COLUMNS = (
    "spelling", "disabled", "disabled_text", "disabled_until", "post_authenticated", "post_networks",
    "post_senders", "quota_bytes", "used_bytes", "quota_messages", "used_messages", "targets", "moved_to",
)  # fmt: skip

Row = tuple[Any, ...]

PLAIN: Row = ("", 0, "", None, None, None, None, None, 0, None, 0, "", "")
"""The row of a mailbox open to everyone."""


class NotOurs(Exception):
    """The file is a database, but not one that this rcptd can read; says why and what helps."""


def check_version(connection: sqlite3.Connection) -> None:
    """See that the database is ours and of our version; raises `NotOurs` or `sqlite3.Error`."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise NotOurs("is no database of rcptd (application_id is not 'rcpt'); `rcptd mailbox add` makes one")
    if version != VERSION:
        older = "newer" if version > VERSION else "older"
        raise NotOurs(
            f"has schema version {version}, {older} than the {VERSION} that this rcptd reads; "
            f"use the rcptd that wrote it, or carry its recipients over by its `rcptd mailbox export`"
        )


def mailbox_of(row: Row, *, catch_all: bool = False) -> Mailbox:
    """Make a mailbox of the columns `COLUMNS`; raises `ValueError` naming the column that makes no sense."""
    (
        spelling, disabled, disabled_text, until, authenticated, networks, senders,
        quota_bytes, used_bytes, quota_messages, used_messages, targets, moved_to,
    ) = row  # fmt: skip
    disabling = None
    if disabled != 0:
        if disabled not in (1, 2) or not isinstance(disabled, int):
            raise ValueError("disabled is none of 0, 1 and 2")
        end = None if until is None else float(_count("disabled_until", until))
        disabling = Disabled(disabled == 2, _text("disabled_text", disabled_text, TEXT_OCTETS), end)
    posting = None
    if authenticated is not None or networks is not None or senders is not None:
        if authenticated not in (None, 0, 1):
            raise ValueError("post_authenticated is none of NULL, 0 and 1")
        posting = Posting(
            bool(authenticated),
            _lines("post_networks", networks or "", ITEMS, network),
            _lines("post_senders", senders or "", ITEMS, sender),
        )
    quota = None
    if quota_bytes is not None or quota_messages is not None or used_bytes != 0 or used_messages != 0:
        quota = Quota(
            None if quota_bytes is None else _count("quota_bytes", quota_bytes),
            _count("used_bytes", used_bytes),
            None if quota_messages is None else _count("quota_messages", quota_messages),
            _count("used_messages", used_messages),
        )
    _text("moved_to", moved_to, WORD_OCTETS)
    if moved_to:
        _item("moved_to", moved_to, target)
    return Mailbox(
        spelling=_text("spelling", spelling, WORD_OCTETS),
        catch_all=catch_all,
        disabled=disabling,
        posting=posting,
        quota=quota,
        targets=_lines("targets", targets, TARGETS, target),
        moved_to=moved_to,
    )


def row_of(mailbox: Mailbox) -> Row:
    """Make the columns `COLUMNS` of a mailbox."""
    disabled, posting, quota = mailbox.disabled, mailbox.posting, mailbox.quota or Quota()
    return (
        mailbox.spelling,
        0 if disabled is None else 2 if disabled.temporary else 1,
        disabled.text if disabled else "",
        None if disabled is None or disabled.until is None else int(disabled.until),
        None if posting is None else int(posting.authenticated),
        "\n".join(posting.networks) if posting and posting.networks else None,
        "\n".join(posting.senders) if posting and posting.senders else None,
        quota.bytes_limit,
        quota.bytes_used,
        quota.messages_limit,
        quota.messages_used,
        "\n".join(mailbox.targets),
        mailbox.moved_to,
    )


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _text(column: str, value: object, octets: int) -> str:
    if not isinstance(value, str) or len(value) > octets or _CONTROL.search(value):
        raise ValueError(f"{column} is no text of at most {octets} characters")
    return value


def _count(column: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= NUMBER:
        raise ValueError(f"{column} is no whole number from 0")
    return value


def _lines(column: str, value: object, most: int, check: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise ValueError(f"{column} is no text")  # noqa: TRY004 - one kind of fault
    if not value:
        return ()
    items = value.split("\n")
    if len(items) > most:
        raise ValueError(f"{column} has more than {most} lines")
    for item in items:
        _item(column, item, check)
    return tuple(items)


def _item(column: str, item: str, check: Any) -> None:
    if len(item) > WORD_OCTETS:
        raise ValueError(f"{column} has a line longer than {WORD_OCTETS} characters")
    try:
        check(item)
    except ValueError as error:
        raise ValueError(f"{column}: {item[:80]!r}: {error}") from None


@lru_cache(maxsize=4096)
def network(text: str) -> str:
    """Check an address or a CIDR network and give it in its usual form; raises `ValueError`."""
    found = ip_network(text)
    return str(found.network_address if found.prefixlen == found.max_prefixlen else found)
