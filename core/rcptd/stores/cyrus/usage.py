"""How much of a quota a user has used, where Cyrus counts that by conversations (quota_use_conversations).

Each user then has a database of conversations, found by the unique id of the INBOX, whose entry `Q` has the number of
messages and of bytes. One that is missing, or has no such entry, means that nothing is used.
"""

import re
from pathlib import Path

from rcptd.stores.cyrus.databases import Absent, open_database
from rcptd.stores.cyrus.imapdconf import ImapdConf
from rcptd.stores.cyrus.malformed import BAD_FORMAT, Malformed
from rcptd.stores.cyrus.records import read_mailbox
from rcptd.stores.cyrus.server import server

_KEY = b"Q"
_ENTRY = re.compile(rb"\d{1,9} %\((?=(?:.{0,200} )?E (\d{1,18})[ )])(?=(?:.{0,200} )?S (\d{1,18})[ )]).{0,400}\)")
_UNIQUE_ID = re.compile(rb"[( ]I ([0-9A-Za-z-]{2,64})[ )]")


def used(conf: ImapdConf, inbox: bytes) -> tuple[int, int]:
    """Give the bytes and messages of the user whose INBOX has this record.

    Raises `Trouble` where the database cannot be read, `Malformed` where what it says cannot be.
    """
    if inbox and "legacy directories" in read_mailbox(inbox).flags:
        raise Malformed(BAD_FORMAT, "an INBOX in the layout before unique ids, whose conversations are not read")
    uniqueid = _UNIQUE_ID.search(inbox)
    if not uniqueid:
        raise Malformed(BAD_FORMAT, f"an INBOX without a unique id: {inbox[:80]!r}")
    database = open_database(conf.conversations_db, _path(conf, uniqueid[1]), what="conversations_db", sql=server(conf))
    try:
        value = database.fetch(_KEY)
    except Absent:
        value = None
    finally:
        database.close()
    if value is None:
        return 0, 0
    entry = _ENTRY.fullmatch(value)
    if entry is None:
        raise Malformed(BAD_FORMAT, f"no count of conversations: {value[:80]!r}")
    return int(entry[2]), int(entry[1])


def _path(conf: ImapdConf, uniqueid: bytes) -> Path:
    name = uniqueid.decode("ascii")
    return conf.configdirectory / "user" / "uuid" / name[0] / name[1] / name / "conversations.db"
