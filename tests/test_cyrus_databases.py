"""Cyrus' databases as Cyrus' own tool writes them: the right answers, beside it, and never a thing written."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rcptd.stores.cyrus.databases import Absent, Damaged, Held, Unreadable, lists, open_database
from rcptd.stores.cyrus.databases.onefile import OneFile
from tests.cyrus.rows import check, fetch, lines, near_misses, random_rows, random_value, state_of
from tests.rig.cyrus_site import GROUP, USER, Site
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import CYRUS_PROGRAMS, require

KINDS = ("twoskip", "skiplist", "flat")
LOCKED = ("twoskip", "skiplist")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("cyrdb") as place:
        made = Site(place)
        made.prepare()
        yield made


@pytest.fixture
def path(site: Site, request: pytest.FixtureRequest) -> Path:
    folder = site.place / str(abs(hash(request.node.nodeid)))
    folder.mkdir()
    site.own()
    return folder / "mailboxes.db"


def opened(kind: str, path: Path) -> OneFile:
    database = open_database(kind, path, what="mboxlist_db")
    assert isinstance(database, OneFile)
    return database


def write(site: Site, kind: str, path: Path, rows: dict[bytes, bytes], *, once: bool = True) -> None:
    site.dbtool("-n", *(["-T"] if once else []), path, kind, "set", lines=lines(rows))


def delete(site: Site, kind: str, path: Path, *keys: bytes) -> None:
    site.dbtool("-T", path, kind, "delete", lines=b"".join(key + b"\n" for key in keys))


# ---- the same answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1])
def test_every_record_is_fetched_and_no_other(site: Site, path: Path, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng, 1500)
    write(site, kind, path, rows)
    database = opened(kind, path)
    check(database, rows, rng)
    # The same file, changed in place: replaced, deleted and new records in transactions of different sizes.
    for size in (1, 30, 400):
        changed = {key: random_value(rng) for key in rng.sample(sorted(rows), size)}
        changed |= random_rows(rng, size)
        write(site, kind, path, changed, once=size > 1)
        rows |= changed
        gone = rng.sample(sorted(rows), size)
        delete(site, kind, path, *gone)
        for key in gone:
            del rows[key]
            assert database.fetch(key) is None
        check(database, rows, rng, misses=100)
    assert database.kind == kind
    database.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_one_and_of_none(site: Site, path: Path, kind: str) -> None:
    write(site, kind, path, {b"k": b"v"})
    database = opened(kind, path)
    assert database.fetch(b"k") == b"v"
    assert [database.fetch(key) for key in (b"", b"j", b"l", b"kk")] == [None] * 4
    assert database.begins(b"")
    delete(site, kind, path, b"k")
    if kind == "flat":
        with pytest.raises(Absent):  # an empty file is what Cyrus would make anew
            database.fetch(b"k")
    else:
        assert database.fetch(b"k") is None
        assert not database.begins(b"")
        assert database.describe().records == 0


@pytest.mark.parametrize("kind", KINDS)
def test_reading_leaves_no_trace(site: Site, path: Path, kind: str) -> None:
    rng = random.Random(3)
    rows = random_rows(rng, 200)
    write(site, kind, path, rows)
    before = state_of(site.place)
    database = opened(kind, path)
    check(database, rows, rng)
    with pytest.raises(Absent):
        opened(kind, path.with_name("nothing.db")).fetch(b"k")
    database.close()
    assert state_of(site.place) == before


# ---- beside writers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["twoskip", "flat"])  # cyr_dbtool 3.6.1 aborts when it shall repack a skiplist
def test_a_repack_is_noticed_by_the_next_question(site: Site, path: Path, kind: str) -> None:
    rng = random.Random(4)
    rows = random_rows(rng, 300)
    write(site, kind, path, rows)
    write(site, kind, path, rows)
    database = opened(kind, path)
    check(database, rows, rng)
    before = path.stat().st_ino
    site.dbtool(path, kind, "repack")
    if kind != "flat":
        assert path.stat().st_ino != before
    write(site, kind, path, {b"Nnew": b"value"})
    assert database.fetch(b"Nnew") == b"value"
    check(database, rows | {b"Nnew": b"value"}, rng)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_goes_and_comes_is_followed(site: Site, path: Path, kind: str) -> None:
    database = opened(kind, path)
    with pytest.raises(Absent):
        database.fetch(b"k")
    assert database.describe().faults == [f"{path}: No such file or directory"]
    assert database.kind == kind
    write(site, kind, path, {b"k": b"1"})
    assert database.fetch(b"k") == b"1"
    moved = path.with_name("moved")
    path.rename(moved)
    with pytest.raises(Absent):
        database.fetch(b"k")
    path.touch()
    with pytest.raises(Absent):
        database.fetch(b"k")
    path.unlink()
    path.mkdir()
    with pytest.raises(Unreadable, match="no regular file"):
        database.fetch(b"k")
    path.rmdir()
    path.symlink_to(moved)
    assert database.fetch(b"k") == b"1"
    other = path.with_name("other")
    write(site, kind, other, {b"k": b"2"})
    other.replace(path)
    assert database.fetch(b"k") == b"2"
    database.close()
    with pytest.raises(Unreadable, match="closed"):
        database.fetch(b"k")


@pytest.mark.parametrize("kind", LOCKED)
def test_a_writers_lock_is_held_at_once_and_gone_at_once(site: Site, path: Path, kind: str) -> None:
    write(site, kind, path, {b"k": b"v"})
    database = opened(kind, path)
    assert database.fetch(b"k") == b"v"
    script = f"""if True:
        import fcntl, sys
        file = open({str(path)!r}, "r+b")
        fcntl.lockf(file, fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.readline()"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"held\n"
        for question in (database.fetch, database.exists, database.begins):
            start = time.monotonic()
            with pytest.raises(Held, match="a writer holds the lock"):
                question(b"k")
            assert time.monotonic() - start < 0.05
        holder.stdin.close()
        assert holder.wait(10) == 0
    assert database.fetch(b"k") == b"v"


@pytest.mark.parametrize("kind", LOCKED)
def test_a_transaction_that_is_open_is_held_and_then_seen(site: Site, path: Path, kind: str) -> None:
    write(site, kind, path, {b"k": b"v"})
    database = opened(kind, path)
    command: list[str | Path] = [CYRUS_PROGRAMS / "cyr_dbtool", "-C", site.config, path, kind, "batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, user=USER, group=GROUP) as writer:
        assert writer.stdin
        writer.stdin.write(b"BEGIN\nSET k new\n")

        def held() -> bool:
            try:
                assert database.fetch(b"k") == b"v"
            except Held:
                return True
            return False

        assert wait_until(held, 10)
        writer.stdin.write(b"COMMIT\n")
        assert wait_until(lambda: not held_or_old(database), 10)
        writer.stdin.write(b"BEGIN\nSET k newer\nABORT\n")
        writer.stdin.close()
        assert writer.wait(10) == 0
    assert database.fetch(b"k") == b"new"


def held_or_old(database: OneFile) -> bool:
    try:
        return database.fetch(b"k") != b"new"
    except Held:
        return True


@pytest.mark.parametrize("kind", LOCKED)
def test_many_readers_do_not_keep_a_writer_out(site: Site, path: Path, kind: str) -> None:
    rows = random_rows(random.Random(7), 500)
    write(site, kind, path, rows)
    database = opened(kind, path)
    done = threading.Event()
    keys = sorted(rows)

    def ask(seed: int) -> int:
        rng = random.Random(seed)
        answered = 0
        while not done.is_set():
            key = rng.choice(keys)
            try:
                assert database.fetch(key) == rows[key]
                answered += 1
            except Held:
                time.sleep(0.001)
        return answered

    longest = 0.0
    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask, seed) for seed in range(8)]
        for _ in range(10):
            start = time.monotonic()
            with path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                longest = max(longest, time.monotonic() - start)
                time.sleep(0.001)
        done.set()
        answered = sum(one.result(10) for one in asking)
    assert longest < 3  # without making way it is ten seconds and more
    assert answered > 50


def test_no_lock_outlives_a_question(site: Site, path: Path) -> None:
    write(site, "twoskip", path, {b"k": b"v"})
    database = opened("twoskip", path)
    database.fetch(b"k")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"X")
    with pytest.raises(Damaged):
        database.fetch(b"k")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_beside_a_busy_writer_were_true(site: Site, path: Path, kind: str) -> None:
    """One process replaces, deletes and adds, another repacks; what they leave alone is always there, unchanged."""
    rows = random_rows(random.Random(5), 300)
    steady, toggled = dict(list(rows.items())[:200]), list(rows)[200:]
    write(site, kind, path, rows)
    database = opened(kind, path)
    done = threading.Event()

    def change() -> None:
        rng = random.Random(6)
        try:
            for turn in range(25):
                changed = {key: rng.choice([b"one", b"two"]) for key in rng.sample(toggled, 30)}
                write(site, kind, path, changed, once=turn % 2 == 0)
                delete(site, kind, path, *rng.sample(toggled, 10))
                if turn % 5 == 4 and kind != "skiplist":
                    site.dbtool(path, kind, "repack")
        finally:
            done.set()

    def ask(seed: int) -> int:
        rng = random.Random(seed)
        asked = 0
        while not done.is_set():
            for key in rng.sample(sorted(steady), 20):
                assert fetch(database, key) == steady[key]
            for key in rng.sample(toggled, 20):
                assert fetch(database, key) in (b"one", b"two", None, rows[key])
            assert [fetch(database, key) for key in near_misses(rng, rows, 5)] == [None] * 5
            asked += 45
        return asked

    with ThreadPoolExecutor() as threads:
        changing = threads.submit(change)
        asking = [threads.submit(ask, seed) for seed in range(4)]
        changing.result(60)
        assert all(one.result(10) > 100 for one in asking)
    database.close()


@pytest.mark.parametrize("kind", LOCKED)
@pytest.mark.parametrize("seed", range(6))
def test_a_writer_killed_in_mid_transaction_leaves_what_was_committed(
    site: Site, path: Path, kind: str, seed: int
) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng, rng.choice([1, 40, 400]))
    write(site, kind, path, rows)
    database = opened(kind, path)
    check(database, rows, rng, misses=50)
    action, changes = rng.choice([("set", lines(random_rows(rng, 500) | dict.fromkeys(rows, b"never"))),
                                  ("delete", b"".join(key + b"\n" for key in rows) + b"x\n" * 3000)])  # fmt: skip
    command: list[str | Path] = [CYRUS_PROGRAMS / "cyr_dbtool", "-C", site.config, "-T", path, kind, action]
    octets = path.stat().st_size
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=USER, group=GROUP) as writer:
        assert writer.stdin
        writer.stdin.write(changes[: rng.choice([5000, 20000, len(changes)])].ljust(4096, b"\n"))
        writer.stdin.flush()
        assert wait_until(lambda: path.stat().st_size > octets, 10)
        time.sleep(0.02 * rng.random())
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
    assert path.stat().st_size > octets
    crashed = path.read_bytes()
    if kind == "skiplist":
        with pytest.raises(Damaged, match="a writer died"):
            database.fetch(b"k")
    else:
        check_committed(database, rows, rng)
    assert path.read_bytes() == crashed
    # Cyrus repairs the file when it opens it to write; then all is as it was.
    write(site, kind, path, {b"Nafter": b"it"})
    check(database, rows | {b"Nafter": b"it"}, rng)


def check_committed(database: OneFile, rows: dict[bytes, bytes], rng: random.Random) -> None:
    for key, value in rows.items():
        assert database.fetch(key) == value, key
    for key in near_misses(rng, rows, 200):
        assert database.fetch(key) is None, key
    described = database.describe()
    assert described.records == len(rows)
    assert described.faults == [f"{described.path}: {lists.UNFINISHED}"]
