"""Configurations of rcptd for the benchmarks, and the recipients in its stores: all else is at its default."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rcptd.question import PLAIN, Absence, Found, NotFound
from rcptd_daemon.reading import read_configuration
from tests.rig.daemon import fill

DOMAIN = "example.org"

MAPS = """
[socketmap]
listen = "unix:{folder}/map.sock"
mode = "0666"
"""
MILTER = """
[milter]
listen = "unix:{folder}/milter.sock"
mode = "0666"
"""
RULES = f"""
[[rules]]
when = {{ domain = "{DOMAIN}" }}
verify = ["there"]
"""
# A memory that keeps what it has for as long as a run takes: what is measured is that it answers.
MEMO = """
[memo]
path = "{folder}/memo.db"
[stores.there]
type = "passwd"
[stores.there.memo]
yes = "30d"
refresh = "29d"
no = "1d"
most = %d
"""
SECTION = "there"
BATCH = 5_000


def file_store(folder: Path, addresses: Iterable[str]) -> str:
    """A text file of recipients, which rcptd holds in memory."""
    _made(folder).joinpath("recipients").write_text("".join(f"{one}\n" for one in addresses))
    return f'[stores.{SECTION}]\ntype = "file"\npath = "{{folder}}/recipients"\n'


def sqlite_store(folder: Path, addresses: Iterable[str]) -> str:
    """The embedded database."""
    fill(_made(folder) / "recipients.db", dict.fromkeys(addresses, PLAIN))
    return f'[stores.{SECTION}]\ntype = "sqlite"\npath = "{{folder}}/recipients.db"\n'


def memo_store(folder: Path, there: Sequence[str], gone: Sequence[str]) -> str:
    """A store that waits, with a memory that knows everybody: as after a restart, from its file.

    The store itself, the accounts of this machine, is never asked.
    """
    from rcptd.memo.file import MemoFile, Row  # noqa: PLC0415 - it brings SQLite

    memo = MEMO % (8 * (len(there) + len(gone)))  # a quarter of the room is for those that nobody has asked about
    path = _made(folder) / "memo.toml"
    path.write_text((MAPS + memo + RULES).replace("{folder}", str(folder)))
    fingerprint = read_configuration(path).stores[SECTION].fingerprint
    file = MemoFile(folder / "memo.db")
    now = time.time()
    file.load(SECTION, fingerprint, 0, 0.0)
    rows = [Row(one, Found(PLAIN), now, now, None) for one in there]
    rows += [Row(one, NotFound(Absence.MAILBOX), now, None, None) for one in gone]
    for start in range(0, len(rows), BATCH):
        for row in rows[start : start + BATCH]:
            file.put(SECTION, fingerprint, row)
        file.flush().result(60)
    file.close(60)
    return memo


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
