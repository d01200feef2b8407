"""What is particular to one backend: twom's locks and checksums, flat's lines, quota files, SQL servers."""

import builtins
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from rcptd.stores.cyrus.databases import (
    Absent,
    Damaged,
    Database,
    Held,
    SqlServer,
    Trouble,
    Unreadable,
    files,
    flat,
    lists,
    open_database,
    sql,
    twom,
)
from rcptd.stores.cyrus.databases.locks import Range
from rcptd.stores.cyrus.quotas import first_letter, hash_letter
from tests.cyrus.rows import check, fetch, near_misses, random_key, random_rows, random_value
from tests.cyrus.twomfile import NO_CHECKSUM, XXH64, TwomFile
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import CYRUS_PROGRAMS, require


def test_what_is_no_backend_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    for kind in ("berkeley", "quotalegacy"):  # the latter without the letter that its paths want
        with pytest.raises(ValueError, match=f"quota_db: there is no database backend {kind}"):
            open_database(kind, tmp_path / "x", what="quota_db")


# ---- twom -----------------------------------------------------------------------------------------------------------


def twom_at(path: Path) -> Database:
    return open_database("twom", path, what="mailboxes")


@pytest.mark.parametrize("seed", range(8))
def test_twom_is_read_through_all_that_a_writer_does(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "mailboxes.db"
    file = TwomFile(rng)
    rows = random_rows(rng, rng.choice([3, 60, 250]))
    for key, value in rows.items():
        file.set(key, value)
    file.commit()
    path.write_bytes(file.octets())
    database = twom_at(path)
    check(database, rows, rng, misses=60)
    for _ in range(3):
        after = change(file, dict(rows), rng, 30)
        # Written and not committed, as when the writer is killed: the file is as it was before.
        path.write_bytes(file.octets(spare=0))
        assert [database.fetch(key) for key in rows] == list(rows.values())
        assert [database.fetch(key) for key in after.keys() - rows.keys()] == [None] * len(after.keys() - rows.keys())
        described = database.describe()
        assert (described.records, described.faults) == (len(rows), [f"{path}: {lists.UNFINISHED}"])
        file.commit()
        rows = after
        path.write_bytes(file.octets())
        check(database, rows, rng, misses=60)


def change(file: TwomFile, rows: dict[bytes, bytes], rng: random.Random, count: int) -> dict[bytes, bytes]:
    for _ in range(count):
        if len(rows) > 1 and rng.random() < 0.4:
            key = rng.choice(sorted(rows))
            file.delete(key)
            del rows[key]
        else:
            key = rng.choice([random_key(rng), rng.choice(sorted(rows))])
            rows[key] = random_value(rng)
            file.set(key, rows[key])
    return rows


def test_twom_with_many_deleted_records_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mailboxes.db"
    file = TwomFile(random.Random(1))
    for number in range(40):
        file.set(b"Na.test\x1duser\x1f%d" % number, b"v")
    file.set(b"Nb.test\x1duser\x1fx", b"v")
    for number in range(40):
        file.delete(b"Na.test\x1duser\x1f%d" % number)
    file.commit()
    path.write_bytes(file.octets())
    database = twom_at(path)
    assert not database.begins(b"Na.test\x1d")
    assert database.begins(b"Nb.test\x1d")
    monkeypatch.setattr(lists, "HOPS", 30)
    with pytest.raises(Damaged, match="repack"):
        database.begins(b"Na.test\x1d")


@pytest.mark.parametrize("reason", ["the file has none", "not installed"])
def test_twom_without_checksums_is_read_and_said_to_be_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "not installed":
        monkeypatch.setattr(twom, "_xxh3", None)
    rng = random.Random(2)
    file = TwomFile(rng, flags=NO_CHECKSUM if reason == "the file has none" else XXH64)
    rows = random_rows(rng, 60)
    for key, value in rows.items():
        file.set(key, value)
    file.commit()
    path = tmp_path / "mailboxes.db"
    path.write_bytes(file.octets())
    database = twom_at(path)
    assert [database.fetch(key) for key in rows] == list(rows.values())
    assert [database.fetch(key) for key in near_misses(rng, rows, 50)] == [None] * 50
    (fault,) = database.describe().faults
    assert twom.UNCHECKED in fault
    assert reason in fault


@pytest.mark.parametrize("flags", [XXH64 | twom.OWN_ORDER, XXH64 | NO_CHECKSUM, twom.OWN_CHECKSUM])
def test_twom_of_its_own_kind_is_not_read(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "mailboxes.db"
    file = TwomFile(random.Random(3), flags=flags)
    file.set(b"k", b"v")
    file.commit()
    path.write_bytes(file.octets())
    with pytest.raises(Damaged, match="not known"):
        twom_at(path).fetch(b"k")


def test_twom_that_denies_its_checksums_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "mailboxes.db"
    file = TwomFile(random.Random(3))
    file.set(b"k", b"v")
    file.commit()
    octets = bytearray(file.octets())
    octets[39] = NO_CHECKSUM >> 24
    path.write_bytes(octets)
    with pytest.raises(Damaged, match="the checksum of the header"):
        twom_at(path).fetch(b"k")


@pytest.mark.parametrize(("start", "length"), [(0, 16), (96, 272)])
def test_twom_is_held_by_a_writer_on_either_of_its_locks(tmp_path: Path, start: int, length: int) -> None:
    file = TwomFile(random.Random(4))
    file.set(b"k", b"v")
    file.commit()
    path = tmp_path / "mailboxes.db"
    path.write_bytes(file.octets())
    database = twom_at(path)
    assert database.fetch(b"k") == b"v"
    with held_by_another(path, start, length):
        with pytest.raises(Held):
            database.fetch(b"k")
        # Nothing of ours is left behind that would keep the writer from its other lock.
        assert held_by_another(path, *((0, 16) if start else (96, 272))).closed_well()
    assert database.fetch(b"k") == b"v"


class held_by_another:  # noqa: N801 - reads as what it does
    """An exclusive POSIX lock on a range, held by another process."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        script = f"""if True:
            import fcntl, sys
            file = open({str(path)!r}, "r+b")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, {length}, {start})
            print("held", flush=True)
            sys.stdin.readline()"""
        self._process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        self._said = self._process.stdout.readline()

    def __enter__(self) -> None:
        assert self._said == b"held\n"

    def __exit__(self, *_: object) -> None:
        self.closed_well()

    def closed_well(self) -> bool:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        code = self._process.wait(10)
        self._process.stdout.close()
        return code == 0


# ---- flat -----------------------------------------------------------------------------------------------------------


def flat_at(path: Path) -> Database:
    return open_database("flat", path, what="mailboxes")


def test_every_octet_goes_through_a_line_and_back() -> None:
    every = bytes(range(256))
    for octets in (every, every[::-1], b"\xff\xff\xff", b"\x00", b"", b"a\tb\nc"):
        line = flat.escaped(octets)
        assert not set(b"\0\t\r\n") & set(line)
        assert flat.unescaped(line) == octets
    assert flat.unescaped(b"a\xff") == b"a"


@pytest.mark.parametrize("small", [flat.SMALL, 0], ids=["table", "search"])
def test_lines_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(flat, "SMALL", small)
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\ttabs\tinside\na.b\t2\na-b\t3\nab\t4\nempty\t\nnotab\nz\t9\n")
    database = flat_at(path)
    assert database.fetch(b"a") == b"1\ttabs\tinside"
    assert [database.fetch(key) for key in (b"a.b", b"a-b", b"ab", b"empty", b"z")] == [b"2", b"3", b"4", b"", b"9"]
    assert [database.fetch(key) for key in (b"", b"A", b"a ", b"zz")] == [None] * 4
    assert [database.begins(key) for key in (b"", b"a.", b"b", b"z", b"zz")] == [True, True, False, True, False]
    with pytest.raises(Damaged, match="no TAB"):
        database.fetch(b"notab")
    described = database.describe()
    assert described.records == 7
    (fault,) = described.faults
    assert fault == f"{path}: at 40: the line has no TAB"


@pytest.mark.parametrize("small", [flat.SMALL, 0], ids=["table", "search"])
def test_a_last_line_without_its_end_is_not_there_and_hides_what_stood_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(flat, "SMALL", small)
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"b\t1\nd\t2\nf\t3")
    database = flat_at(path)
    assert [database.fetch(key) for key in (b"b", b"d", b"a", b"c")] == [b"1", b"2", None, None]
    for key in (b"e", b"f", b"g"):
        with pytest.raises(Damaged, match="cut off"):
            database.fetch(key)
        with pytest.raises(Damaged, match="cut off"):
            database.begins(key)
    assert database.describe().faults == [f"{path}: at 8: {flat.CUT_LINE}"]
    path.write_bytes(b"b")
    with pytest.raises(Damaged, match="cut off"):
        database.fetch(b"b")


def test_a_small_file_need_not_be_in_order(tmp_path: Path) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"z\t1\na\t2\nz\tlater\n")
    database = flat_at(path)
    assert (database.fetch(b"a"), database.fetch(b"z"), database.fetch(b"m")) == (b"2", b"1", None)
    assert database.begins(b"a")
    assert [fault.rpartition(": ")[2] for fault in database.describe().faults] == ["the line is out of order"]


def test_a_large_file_that_is_not_in_order_is_no_proof_of_absence(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = {b"key%06d" % number: b"v" * 40 for number in range(8000)}
    shuffled = list(rows.items())
    rng.shuffle(shuffled)
    path = tmp_path / "mailboxes.db"
    path.write_bytes(b"".join(b"%b\t%b\n" % pair for pair in shuffled))
    assert path.stat().st_size > flat.SMALL
    database = flat_at(path)
    answers = [value_or_trouble(database, key) for key in rng.sample(sorted(rows), 500)]
    assert answers.count("none") < 5
    assert answers.count("trouble") > 400


def value_or_trouble(database: Database, key: bytes) -> str:
    try:
        return "none" if database.fetch(key) is None else "value"
    except Damaged:
        return "trouble"


def test_a_large_file_is_searched_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    rows = {flat.unescaped(flat.escaped(key)): value for key, value in random_rows(rng, 3000).items()}
    rows |= {b"long%d" % number: b"x" * size for number, size in enumerate([500, 1023, 1024, 9000, 70000])}
    ordered = sorted(rows, key=lambda key: flat.place(flat.escaped(key)))
    path = tmp_path / "mailboxes.db"
    path.write_bytes(b"".join(b"%b\t%b\n" % (flat.escaped(key), flat.escaped(rows[key])) for key in ordered))
    assert path.stat().st_size > flat.SMALL
    database = flat_at(path)
    check(database, rows, rng, misses=500)
    monkeypatch.setattr(flat, "LINE_MOST", 20000)
    answers = [value_or_trouble(database, key) for key in ordered]
    assert answers.count("none") == 0
    assert 0 < answers.count("trouble") < 500
    assert any("a line of more than 20000 octets" in fault for fault in database.describe().faults)


def test_a_line_in_the_making_is_not_read_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\n")
    database = flat_at(path)
    real = os.pread

    def growing(*arguments: Any) -> bytes:
        with path.open("ab") as file:
            file.write(b"b\t2\n")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", growing)
        with pytest.raises(Held, match="just being written"):
            database.fetch(b"a")
    assert database.fetch(b"b") == b"2"


def test_an_edit_in_place_within_one_tick_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\n")
    database = flat_at(path)
    now = time.time_ns()
    for number in range(9):
        path.write_bytes(b"a\t%d\n" % number)
        os.utime(path, ns=(now, now))
        assert database.fetch(b"a") == b"%d" % number


# ---- quotalegacy ----------------------------------------------------------------------------------------------------


def quota_at(directory: Path, *, full: bool = False, domains: bool = True) -> Database:
    return open_database(
        "quotalegacy", directory / "quotas.db", what="quota_db",
        letter=hash_letter if full else first_letter, domains=domains,
    )  # fmt: skip


def put(path: Path, octets: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets)


def test_each_quota_root_has_its_file(tmp_path: Path) -> None:
    put(tmp_path / "quota/f/user.foo", b"%(S (1 2))\n")
    put(tmp_path / "quota/q/lists.q", b"10\n20\n30\n")
    put(tmp_path / "quota/s/sh", b"1\n")
    put(tmp_path / "domain/b/big.test/quota/root", b"%(M (1 2))\n")
    put(tmp_path / "domain/b/big.test/quota/g/user.gus", b"5 6\n")
    database = quota_at(tmp_path)
    roots = {b"user.foo": b"%(S (1 2))", b"lists.q": b"10 20\n30", b"sh": b"1", b"big.test!": b"%(M (1 2))",
             b"big.test!user.gus": b"5 6"}  # fmt: skip
    for root, value in roots.items():
        assert database.fetch(root) == value
        assert database.exists(root)
    for root in (b"user.fox", b"user.", b"", b"!", b"..!user.x", b"no.test!", b"user.a/../../q/lists.q", b"a\0b",
                 b"user." + b"x" * 300, b"..", b"big.test!user.foo"):  # fmt: skip
        assert database.fetch(root) is None
        assert not database.exists(root)
    assert database.begins(b"big.test!u")
    assert not database.begins(b"user.g")
    described = database.describe()
    assert (described.kind, described.records, described.faults) == ("quotalegacy", 5, [])
    assert described.octets == sum(len(value) + 1 for value in roots.values())
    database.close()
    without = quota_at(tmp_path, domains=False)
    assert without.fetch(b"user.foo") == b"%(S (1 2))"
    assert without.fetch(b"big.test!user.gus") is None
    assert without.describe().records == 3


def test_the_folders_of_fulldirhash(tmp_path: Path) -> None:
    put(tmp_path / "quota/U/user.foo", b"1 2\n")
    put(tmp_path / "domain/M/other/quota/B/user.carol", b"3 4\n")
    database = quota_at(tmp_path, full=True)
    assert database.fetch(b"user.foo") == b"1 2"
    assert database.fetch(b"other!user.carol") == b"3 4"


def test_a_quota_file_that_cannot_be_read_is_trouble(tmp_path: Path) -> None:
    put(tmp_path / "quota/a/user.a", b"")
    put(tmp_path / "quota/b/user.b", b"10 20")
    put(tmp_path / "quota/c/user.c", b"1" * (1 << 17))
    (tmp_path / "quota/d/user.d").mkdir(parents=True)
    (tmp_path / "quota/e").mkdir()
    (tmp_path / "quota/e/user.e").symlink_to("user.e")
    database = quota_at(tmp_path)
    for name, kind, why in (
        (b"user.a", Damaged, "is empty"),
        (b"user.b", Damaged, "does not end in LF"),
        (b"user.c", Damaged, "more than"),
        (b"user.d", Unreadable, "no regular file"),
        (b"user.e", Unreadable, "symbolic links"),
    ):
        with pytest.raises(kind, match=why):
            database.fetch(name)
    assert database.exists(b"user.a")
    assert database.exists(b"user.d")
    with pytest.raises(Unreadable, match="symbolic links"):
        database.exists(b"user.e")
    assert len(database.describe().faults) == 5


def test_a_folder_of_quotas_that_cannot_be_entered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "quota/f/user.foo", b"1 2\n")
    database = quota_at(tmp_path)

    def refused(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        assert database.describe().faults == [
            f"{tmp_path}/domain: Permission denied", f"{tmp_path}/quota: Permission denied"
        ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(Unreadable, match="must be readable for uid"):
            database.fetch(b"user.foo")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refused)
        with pytest.raises(Unreadable, match="Permission denied"):
            database.fetch(b"user.foo")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refused)
        assert database.describe().octets == 0


# ---- sql ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("cyrsql") as place:
        made = Site(place, {"sql_engine": "sqlite", "sql_database": str(place / "cyrus.sqlite")})
        made.prepare()
        yield made


def test_what_cyrus_writes_to_sqlite_is_read(site: Site) -> None:
    path = site.directory / "mailboxes.db"
    rows = {b"Nuser\x1f%d" % number: b"%%(T e A %%(u%d lrs))" % number for number in range(20)}
    rows |= {b"N\xc3\xa8\x01": b"v\xff\x02x", b"Nempty": b""}
    site.write_database(path, "sql", rows)
    database = open_database("sql", path, what="mailboxes", sql=SqlServer("sqlite", site.options["sql_database"]))
    assert {key: database.fetch(key) for key in rows} == rows
    assert database.exists(b"Nempty")
    assert [database.fetch(key) for key in (b"", b"N", b"Nuser\x1f99", b"\xff")] == [None] * 4
    assert [database.begins(key) for key in (b"Nuser\x1f1", b"N\xc3", b"other.test\x1d")] == [True, True, False]
    described = database.describe()
    assert (described.kind, described.records, described.faults) == ("sql", 22, [])
    assert described.octets == sum(len(key) + len(value) for key, value in rows.items())
    with sqlite3.connect(site.options["sql_database"]) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        with pytest.raises(Held, match="locked"):
            database.fetch(b"N")
        assert time.monotonic() - start < 1
    writer.close()
    assert database.fetch(b"N") is None
    database.close()


def test_a_table_or_file_that_is_missing_is_absent(tmp_path: Path) -> None:
    file = tmp_path / "a b#?.sqlite"
    server = SqlServer("sqlite", str(file))
    database = open_database("sql", tmp_path / "quotas.db", what="quota_db", sql=server)
    with pytest.raises(Absent, match="No such file"):
        database.fetch(b"k")
    assert not file.exists()
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE quotas (dbkey BLOB NOT NULL, data BLOB)")
        made.execute("INSERT INTO quotas VALUES ('k', NULL)")
    made.close()
    with pytest.raises(Absent, match="table quotas_db: there is no such table"):
        database.begins(b"k")
    assert database.describe().faults == [f"sqlite {file}, table quotas_db: there is no such table"]
    assert open_database("sql", tmp_path / "quotas", what="quota_db", sql=server).fetch(b"k") == b""
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(Unreadable, match="not a database"):
        database.fetch(b"k")


def test_without_sqlalchemy_or_a_server_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def importing(name: str, *rest: Any) -> Any:
        if name.endswith("databases.sql"):
            raise ImportError("No module named 'sqlalchemy'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    for server, why in ((SqlServer("sqlite", "/x"), "the extra cyrus-sql"), (None, "sql_database")):
        database = open_database("sql", tmp_path / "mailboxes.db", what="mailboxes", sql=server)
        assert database.kind == "sql"
        for question in (database.fetch, database.exists, database.begins):
            with pytest.raises(Unreadable, match=why):
                question(b"k")
        assert why in database.describe().faults[0]
        database.close()


def test_a_server_that_cannot_be_asked_is_trouble_in_time(tmp_path: Path) -> None:
    for engine, host in (("pgsql", "127.0.0.1:1"), ("oracle", "")):
        server = SqlServer(engine, "cyrus", host, "cyrus", "secret")
        assert "secret" not in repr(server)
        database = open_database("sql", tmp_path / "mailboxes.db", what="mailboxes", sql=server)
        with pytest.raises(Unreadable, match=f"{engine}") as caught:
            fetch(database, b"k")
        assert "secret" not in caught.value.why
        database.close()


def test_a_servers_table_is_asked_in_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite stands for the server: what is asked, and that it is asked from a thread, is the same."""
    file = tmp_path / "server.sqlite"
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE mailboxes_db (dbkey BLOB NOT NULL, data BLOB)")
        made.execute("INSERT INTO mailboxes_db VALUES (?, ?)", (b"N\xff", b"\0value"))
    made.close()
    server = sqlalchemy.create_engine(f"sqlite:///{file}", connect_args={"check_same_thread": False})
    monkeypatch.setattr(sql.Sql, "_make_engine", lambda _: server)
    database = open_database("sql", tmp_path / "mailboxes.db", what="m", sql=SqlServer("mysql", "cyrus"))
    assert fetch(database, b"N\xff") == b"\0value"
    assert fetch(database, b"N") is None
    assert database.describe().records == 1
    database.close()


def test_a_slow_server_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def slow(_: sql.Sql, question: sql.Question) -> sql.Result:
        asked.append(question[1])
        time.sleep(0.05)
        return b"value of " + question[1] if question[1] != b"bad" else Unreadable("down")

    monkeypatch.setattr(sql.Sql, "_answer", slow)
    database = open_database("sql", tmp_path / "m.db", what="mailboxes", sql=SqlServer("pgsql", "cyrus"))
    start = time.monotonic()
    for _ in range(3):
        with pytest.raises(Held, match="being asked"):
            database.fetch(b"k")
    assert time.monotonic() - start < 0.05
    assert fetch(database, b"k") == b"value of k"
    assert asked == [b"k"]  # once for all who asked meanwhile
    with pytest.raises(Unreadable, match="down"):
        fetch(database, b"bad")
    with pytest.raises(Held):
        database.fetch(b"k")  # an answer is given once: the next question asks again
    assert wait_until(lambda: asked.count(b"k") == 2, 2)
    time.sleep(sql.FRESH + 0.1)
    with pytest.raises(Held):
        database.fetch(b"k")  # and one that is old is thrown away
    monkeypatch.setattr(sql, "WAITING", 1)
    with pytest.raises(Held, match="too many"):
        database.fetch(b"other")
    database.close()


# ---- files ----------------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_readers_at_once_than_descriptors_are_kept_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\n")
    database = flat_at(path)
    real = flat.Flat.fetch
    depth = 0

    def nested(self: flat.Flat, descriptor: int, key: bytes) -> bytes | None:
        nonlocal depth
        depth += 1
        if depth < 5:
            assert database.fetch(key) == b"1"
        return real(self, descriptor, key)

    monkeypatch.setattr(flat.Flat, "fetch", nested)
    monkeypatch.setattr(files, "IDLE", 2)
    before = descriptors()
    assert database.fetch(b"a") == b"1"
    assert descriptors() == before + 2
    depth = 4
    path.rename(tmp_path / "old")
    path.write_bytes(b"a\t2\n")
    assert database.fetch(b"a") == b"2"
    database.close()
    assert descriptors() == before


def test_a_file_replaced_in_mid_question_closes_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\n")
    database = flat_at(path)
    real = flat.Flat.fetch

    def replacing(self: flat.Flat, descriptor: int, key: bytes) -> bytes | None:
        monkeypatch.setattr(flat.Flat, "fetch", real)
        path.rename(tmp_path / "old")
        path.write_bytes(b"a\t2\n")
        assert database.fetch(key) == b"2"
        return real(self, descriptor, key)

    monkeypatch.setattr(flat.Flat, "fetch", replacing)
    before = descriptors()
    assert database.fetch(b"a") == b"1"  # as it was when it was asked
    assert descriptors() == before + 1
    database.close()
    assert descriptors() == before


def test_a_file_replaced_faster_than_it_is_read_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user_deny.db"
    path.write_bytes(b"a\t1\n")
    real = os.stat

    def replaced(name: Any, *rest: Any, **named: Any) -> os.stat_result:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(b"a\t1\n")
        fresh.replace(path)
        return real(name, *rest, **named)

    monkeypatch.setattr(os, "stat", replaced)
    with pytest.raises(Held, match="again and again"):
        flat_at(path).fetch(b"a")


def test_a_system_without_such_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TwomFile(random.Random(1))
    file.set(b"k", b"v")
    file.commit()
    path = tmp_path / "mailboxes.db"
    path.write_bytes(file.octets())

    def refused(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(Range, "lock", refused)
    with pytest.raises(Unreadable, match="No locks available"):
        twom_at(path).fetch(b"k")


def test_a_description_waits_for_writers_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rcptd.stores.cyrus.databases import onefile  # noqa: PLC0415

    file = TwomFile(random.Random(1))
    file.set(b"k", b"v")
    file.commit()
    path = tmp_path / "mailboxes.db"
    path.write_bytes(file.octets())
    database = twom_at(path)
    monkeypatch.setattr(onefile, "PATIENCE", 0.1)
    with held_by_another(path, 0, 0):
        described = database.describe()
    assert described.records is None
    assert described.faults == [f"{path}: a writer holds the lock"]
    assert database.describe().records == 1
    with pytest.raises(Trouble):
        open_database("twom", tmp_path, what="mailboxes").fetch(b"k")
