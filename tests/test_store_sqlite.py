"""The sqlite store: what it answers, from any thread, beside any writer, and from damaged files."""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcptd.address import parse
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Answer,
    Busy,
    Disabled,
    Found,
    Mailbox,
    Posting,
    Quota,
    Unavailable,
)
from rcptd.stores import find
from rcptd.stores import sqlite as store
from rcptd.stores.sqlite import Database, Settings, missing_right, open_store
from rcptd.stores.sqlite_schema import APPLICATION_ID, COLUMNS, SCHEMA, mailbox_of, row_of


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "recipients.db"
    make(made, "anna@example.org", "@example.net", "eve@example.net")
    return made


def make(path: Path, *addresses: str, version: int = 1) -> None:
    writer = writing(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    writer.execute(f"PRAGMA user_version = {version}")
    writer.execute(SCHEMA)
    for one in addresses:
        local, _, domain = one.rpartition("@")
        writer.execute("INSERT INTO recipient (domain, local) VALUES (?, ?)", (domain, local))
    writer.close()


def writing(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def change(path: Path, statement: str, *values: object) -> None:
    writer = writing(path)
    writer.execute("PRAGMA ignore_check_constraints = ON")
    writer.execute(statement, values)
    writer.close()


@pytest.fixture
def table(path: Path) -> Iterator[Database]:
    opened = open_store("local", Settings(path, allow_empty=False))
    yield opened
    opened.close()


def ask(table: Database, address: str) -> Answer | Busy:
    return table.lookup(parse(address))


def why(answer: Answer | Busy) -> str:
    assert isinstance(answer, Unavailable | Busy)
    return answer.why


def test_the_type_is_found_by_name() -> None:
    assert find("sqlite").Settings is Settings


def test_a_plain_mailbox_is_the_one_constant(table: Database) -> None:
    assert ask(table, "Anna@EXAMPLE.org") is EXISTS


def test_what_is_not_there_is_not_found_where_the_domain_is_held(table: Database) -> None:
    assert ask(table, "bob@example.org") == NOT_FOUND


def test_a_catch_all_answers_for_the_rest_of_its_domain(table: Database) -> None:
    assert ask(table, "bob@example.net") == Found(Mailbox(catch_all=True))
    assert ask(table, "eve@example.net") is EXISTS


def test_a_domain_that_is_not_held_is_unavailable_unless_that_is_allowed(table: Database, path: Path) -> None:
    assert "holds not one recipient of example.com" in why(ask(table, "anna@example.com"))
    lenient = Database(path, allow_empty=True)
    assert ask(lenient, "anna@example.com") == NOT_FOUND
    lenient.close()


def test_a_bare_quoted_local_part_is_not_taken_for_an_address(table: Database) -> None:
    assert isinstance(ask(table, '"anna@example.org"'), Unavailable)


def test_a_catch_all_alias_to_a_domain_keeps_the_local_part(table: Database, path: Path) -> None:
    change(path, "UPDATE recipient SET targets = '@example.org' WHERE local = ''")
    assert ask(table, "Bob@example.net") == Found(Mailbox(catch_all=True, targets=("Bob@example.org",)))


def test_everything_a_row_can_say_is_told(table: Database, path: Path) -> None:
    known = Mailbox(
        spelling="Anna@example.org",
        disabled=Disabled(temporary=True, text="Gone fishing", until=1800000000.0),
        posting=Posting(authenticated=True, networks=("192.0.2.0/24",), senders=("a@b.example", "@c.example")),
        quota=Quota(10, 5, 3, 2),
        targets=("one@example.org", "two@example.org"),
        moved_to="anna@example.com",
    )
    names = ", ".join(f"{name} = ?" for name in COLUMNS)
    change(path, f"UPDATE recipient SET {names} WHERE local = 'anna'", *row_of(known))
    assert ask(table, "anna@example.org") == Found(known)


numbers = st.integers(0, (1 << 63) - 1)
words = st.lists(st.sampled_from(["a@b.example", "@c.example", '"x y"@d.example']), unique=True).map(tuple)
mailboxes = st.builds(
    Mailbox,
    spelling=st.sampled_from(["", "Anna@example.org"]),
    disabled=st.none()
    | st.builds(Disabled, temporary=st.booleans(), text=st.text("abc ", max_size=9), until=st.none() | st.just(7.0)),
    posting=st.none()
    | st.builds(
        Posting,
        authenticated=st.booleans(),
        networks=st.sampled_from([(), ("192.0.2.1",), ("2001:db8::/32", "10.0.0.0/8")]),
        senders=words,
    ),
    quota=st.none() | st.builds(Quota, st.just(5), numbers, st.none() | numbers, numbers),
    targets=words,
    moved_to=st.sampled_from(["", "new@example.org"]),
)


@given(mailboxes)
def test_a_row_and_a_mailbox_become_each_other(mailbox: Mailbox) -> None:
    assert mailbox_of(row_of(mailbox)) == mailbox


values = st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9)


@given(st.tuples(*[values | st.sampled_from([0, "", None])] * len(COLUMNS)))
@settings(max_examples=300)
def test_whatever_a_row_holds_it_is_a_mailbox_or_a_fault_that_names_the_column(row: tuple[Any, ...]) -> None:
    said = ""
    try:
        mailbox_of(row)
    except ValueError as error:
        said = str(error)
    assert not said or any(name in said for name in COLUMNS)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("disabled", 7),
        ("disabled", "yes"),
        ("disabled", 1.5),
        ("post_authenticated", "often"),
        ("post_networks", b"\xff"),
        ("post_networks", "example.org"),
        ("post_networks", "192.0.2.1/24"),
        ("post_senders", "nobody"),
        ("post_senders", "*@b.example"),
        ("post_senders", "\n".join(["a@b.example"] * 1001)),
        ("quota_bytes", -1),
        ("quota_bytes", "lots"),
        ("used_bytes", 2.5),
        ("targets", "no address"),
        ("targets", "a" * 600 + "@b.example"),
        ("targets", "\n".join(["a@b.example"] * 51)),
        ("targets", 5.5),
        ("moved_to", "elsewhere"),
        ("moved_to", "x" * 600),
        ("spelling", b"anna"),
        ("spelling", "two\nlines"),
    ],
)
def test_nonsense_in_a_row_is_unavailable_and_names_the_row(
    table: Database, path: Path, column: str, value: object
) -> None:
    change(path, f"UPDATE recipient SET {column} = ? WHERE local = 'anna'", value)
    if column == "targets" and value == 5.5:
        value = "5.5"  # the column's affinity makes a text of it
    answer = ask(table, "anna@example.org")
    assert "the row of anna@example.org: " in why(answer)
    assert column in why(answer)
    assert isinstance(answer, Unavailable)


def test_nonsense_in_the_catch_all_is_unavailable_too(table: Database, path: Path) -> None:
    change(path, "UPDATE recipient SET disabled = 9 WHERE local = ''")
    assert "the row of @example.net: disabled" in why(ask(table, "bob@example.net"))


def test_nonsense_in_another_row_of_the_domain_harms_nobody(table: Database, path: Path) -> None:
    change(path, "UPDATE recipient SET spelling = CAST(x'ff' AS TEXT) WHERE local = 'anna'")
    assert ask(table, "bob@example.org") == NOT_FOUND


def test_a_text_that_is_no_utf8_or_far_too_long_is_unavailable(table: Database, path: Path) -> None:
    change(path, "UPDATE recipient SET spelling = CAST(x'ff' AS TEXT) WHERE local = 'anna'")
    assert "UTF-8" in why(ask(table, "anna@example.org"))
    change(path, "UPDATE recipient SET spelling = ? WHERE local = 'anna'", "x" * 70_000)
    assert "too big" in why(ask(table, "anna@example.org"))
    assert ask(table, "bob@example.org") == NOT_FOUND


def test_a_change_by_another_process_is_seen_by_the_next_question(table: Database, path: Path) -> None:
    assert ask(table, "bob@example.org") == NOT_FOUND
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    insert = "INSERT INTO recipient (domain, local) VALUES ('example.org', 'bob')"
    subprocess.run([sys.executable, "-c", program, path, insert], check=True, timeout=30)
    assert ask(table, "bob@example.org") is EXISTS


def test_readers_and_a_writer_in_another_process_do_not_disturb_each_other(table: Database, path: Path) -> None:
    """Two rows change places in each transaction: a reader that mixed two snapshots would miss both."""
    program = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
print("ready", flush=True)
for at in range(400):
    c.execute("BEGIN IMMEDIATE")
    c.execute("DELETE FROM recipient WHERE domain = 'example.com'")
    c.execute("INSERT INTO recipient (domain, local) VALUES ('example.com', ?)", ("" if at % 2 else "bob",))
    c.execute("COMMIT")
c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
"""
    change(path, "INSERT INTO recipient (domain, local) VALUES ('example.com', '')")
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    writer.stdout.readline()
    wrong: list[object] = []
    asked = [0]

    def read() -> None:
        while writer.poll() is None:
            answer = ask(table, "bob@example.com")
            asked[0] += 1
            if not isinstance(answer, Found | Busy):
                wrong.append(answer)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for one in readers:
        one.start()
    for one in readers:
        one.join(60)
    writer.stdout.close()
    assert writer.wait(10) == 0
    assert not wrong
    assert asked[0] > 100


def test_a_path_that_cannot_be_is_told_without_advice_to_make_it(path: Path) -> None:
    table = Database(path / "below-a-file.db")
    answer = ask(table, "anna@example.org")
    assert isinstance(answer, Unavailable)
    assert answer.why.endswith("Not a directory")
    table.close()


def test_nobody_is_deferred_while_another_takes_the_first_look(path: Path) -> None:
    table = Database(path)
    with table._looking:
        assert isinstance(ask(table, "anna@example.org"), Found)
    table.close()


def test_a_reader_holds_no_lock_after_its_answer(table: Database, path: Path) -> None:
    for address in ("anna@example.org", "bob@example.org", "bob@example.net", "x@example.com"):
        ask(table, address)
        writer = writing(path)
        writer.execute("UPDATE recipient SET used_bytes = used_bytes + 1")
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        writer.close()


def test_a_writer_that_is_killed_in_mid_transaction_leaves_the_last_good_state(table: Database, path: Path) -> None:
    program = """
import sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA cache_size = 10")
c.execute("BEGIN IMMEDIATE")
c.execute("DELETE FROM recipient")
for at in range(20000):
    c.execute("INSERT INTO recipient (domain, local) VALUES ('example.org', ?)", (f"new{at}",))
print("spilled", flush=True)
time.sleep(60)
"""
    assert ask(table, "anna@example.org") is EXISTS
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    writer.stdout.readline()
    assert path.with_name(path.name + "-wal").stat().st_size > 100_000
    assert ask(table, "anna@example.org") is EXISTS
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    writer.stdout.close()
    fresh = Database(path)
    for reader in (table, fresh):
        assert ask(reader, "anna@example.org") is EXISTS
        assert ask(reader, "new7@example.org") == NOT_FOUND
    fresh.close()


def test_a_lock_is_busy_and_not_waited_for(path: Path) -> None:
    writer = writing(path)
    writer.execute("PRAGMA journal_mode = DELETE")
    writer.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    locked = Database(path)
    assert isinstance(ask(locked, "anna@example.org"), Busy)
    assert time.monotonic() - begun < 0.5
    writer.execute("COMMIT")
    assert ask(locked, "anna@example.org") is EXISTS
    writer.execute("BEGIN EXCLUSIVE")
    assert isinstance(ask(locked, "anna@example.org"), Busy)
    writer.close()
    locked.close()


def test_a_file_that_is_replaced_by_rename_is_seen(path: Path, tmp_path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    assert ask(table, "bob@example.org") == NOT_FOUND
    make(tmp_path / "other.db", "bob@example.org")
    (tmp_path / "other.db").rename(path)
    assert ask(table, "bob@example.org") == NOT_FOUND  # not looked at again yet
    clock.now += store.LOOK
    assert ask(table, "bob@example.org") is EXISTS
    assert ask(table, "anna@example.org") == NOT_FOUND
    make(tmp_path / "third.db", "carl@example.org")
    make(tmp_path / "fourth.db", "dora@example.org")
    (tmp_path / "third.db").rename(path)
    clock.now += store.LOOK
    table._look()
    (tmp_path / "fourth.db").rename(path)
    # The third was looked at but never opened: what is there now is found out, without a wrong word.
    assert ask(table, "dora@example.org") == Busy(f"{path}: the file is just being replaced")
    assert ask(table, "dora@example.org") is EXISTS
    table.close()


def test_a_hot_backup_restored_by_rename_beside_a_running_reader(path: Path, tmp_path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    copy = sqlite3.connect(tmp_path / "backup.db")
    writer = writing(path)
    writer.backup(copy)
    copy.close()
    writer.execute("DELETE FROM recipient WHERE local = 'anna'")
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()
    assert ask(table, "anna@example.org") != EXISTS
    (tmp_path / "backup.db").rename(path)
    clock.now += store.LOOK
    assert ask(table, "anna@example.org") is EXISTS
    table.close()


def test_a_log_that_the_old_file_left_is_not_replayed_over_the_new_one(path: Path, tmp_path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    change(path, "DELETE FROM recipient WHERE local = 'anna'")  # stays in the log: a reader is there
    log = path.with_name(path.name + "-wal")
    assert log.stat().st_size
    make(tmp_path / "new.db", "anna@example.org", "bob@example.org")
    (tmp_path / "new.db").rename(path)
    clock.now += store.LOOK
    assert f"remove {log}" in why(ask(table, "anna@example.org"))
    clock.now += store.LOOK
    assert f"remove {log}" in why(ask(table, "anna@example.org"))
    log.unlink()
    path.with_name(path.name + "-shm").unlink()
    assert ask(table, "anna@example.org") is EXISTS
    assert ask(table, "bob@example.org") is EXISTS
    table.close()


def test_connections_in_use_keep_the_new_file_waiting(path: Path, tmp_path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    old = table._file
    in_use = old.idle.pop()
    make(tmp_path / "new.db", "bob@example.org")
    (tmp_path / "new.db").rename(path)
    clock.now += store.LOOK
    assert "still being read" in why(ask(table, "bob@example.org"))
    old.close(in_use)
    assert ask(table, "bob@example.org") is EXISTS
    table.close()


def test_a_connection_that_comes_back_after_the_swap_is_closed(path: Path) -> None:
    table = Database(path)
    ask(table, "anna@example.org")
    old = table._file
    really = table._ask

    def swapped(*arguments: Any) -> Answer:
        table._file = store._File(None, "swapped")
        return really(*arguments)

    table._ask = swapped  # type: ignore[method-assign, assignment]
    assert ask(table, "anna@example.org") is EXISTS
    assert old.count() == 0
    table.close()


def test_at_most_so_many_connections_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IDLE", 0)
    table = Database(path)
    assert ask(table, "anna@example.org") is EXISTS
    assert table._file.count() == 0
    table.close()


def test_only_one_thread_looks_at_the_file(path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    path.unlink()
    clock.now += store.LOOK
    with table._looking:
        assert ask(table, "anna@example.org") is EXISTS
    assert isinstance(ask(table, "anna@example.org"), Unavailable)
    table.close()


def test_a_file_that_is_deleted_is_unavailable_until_it_is_back(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    shutil.copy(path, tmp_path / "copy.db")
    path.unlink()
    clock.now += store.LOOK
    assert why(ask(table, "anna@example.org")) == f"{path}: No such file or directory; `rcptd mailbox add` makes it"
    assert why(ask(table, "bob@example.org")) == f"{path}: No such file or directory; `rcptd mailbox add` makes it"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    (tmp_path / "copy.db").rename(path)
    clock.now += store.LOOK
    assert ask(table, "anna@example.org") is EXISTS
    assert "answers again" in caplog.text
    table.close()


def test_a_closed_table_answers_no_more(path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    ask(table, "anna@example.org")
    table.close()
    clock.now += store.LOOK
    assert why(ask(table, "anna@example.org")) == f"{path}: closed"


@pytest.mark.parametrize(("version", "said"), [(2, "newer than the 1"), (0, "older than the 1")])
def test_another_version_is_refused_with_what_helps(tmp_path: Path, version: int, said: str) -> None:
    make(tmp_path / "v.db", "anna@example.org", version=version)
    table = Database(tmp_path / "v.db")
    assert said in why(ask(table, "anna@example.org"))
    assert "mailbox export" in why(ask(table, "anna@example.org"))
    table.close()


def test_somebody_elses_database_and_what_is_none_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    writer = writing(foreign)
    writer.execute("CREATE TABLE recipient (a)")
    writer.close()
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("anna@example.org\n" * 100)
    (tmp_path / "folder.db").mkdir()
    for name in ("foreign", "empty", "text", "folder"):
        table = Database(tmp_path / f"{name}.db")
        answer = ask(table, "anna@example.org")
        assert isinstance(answer, Unavailable), name
        assert f"{name}.db" in answer.why
        table.close()


def test_a_truncated_file_is_unavailable(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    make(whole, *[f"user{at}@example.org" for at in range(5000)])
    octets = whole.read_bytes()
    for size in (50, 100, 4096, 8192, len(octets) // 2, len(octets) - 4096, len(octets) - 1):
        cut = tmp_path / f"cut{size}.db"
        cut.write_bytes(octets[:size])
        table = Database(cut)
        for name in ("user0", "user2500", "user4999", "nobody"):
            answer = ask(table, f"{name}@example.org")
            assert isinstance(answer, Unavailable), (size, name, answer)
        table.close()


def test_flipped_bits_never_raise_and_damage_to_the_structure_is_never_a_no(tmp_path: Path) -> None:
    """Every byte of the page headers and cell pointers of each page, and some of the rest."""
    whole = tmp_path / "whole.db"
    make(whole, *[f"user{at:04}@example.org" for at in range(600)])
    octets = whole.read_bytes()
    damaged = tmp_path / "damaged.db"
    for at in [*range(100), *[page + n for page in range(4096, len(octets), 4096) for n in range(12)]]:
        for bit in (1, 128):
            broken = bytearray(octets)
            broken[at] ^= bit
            damaged.write_bytes(broken)
            table = Database(damaged)
            answer = ask(table, "user0300@example.org")
            table.close()
            for beside in ("-wal", "-shm", "-journal"):
                damaged.with_name(damaged.name + beside).unlink(missing_ok=True)
            assert isinstance(answer, Found | Unavailable), (at, bit, answer)


def test_a_damaged_schema_whose_message_is_no_text_is_unavailable(tmp_path: Path) -> None:
    """SQLite quotes the schema in its message, and Python's module fails to decode that."""
    damaged = tmp_path / "damaged.db"
    make(damaged, "anna@example.org")
    octets = bytearray(damaged.read_bytes())
    at = octets.index(b"recipient")
    for end in range(at, at + 60):
        broken = bytearray(octets)
        broken[end] = 0xA8
        damaged.write_bytes(broken)
        table = Database(damaged)
        assert isinstance(ask(table, "anna@example.org"), Found | Unavailable)
        table.close()


def test_a_file_that_is_cut_while_it_is_read_is_unavailable(path: Path) -> None:
    clock = Clock()
    table = Database(path, clock=clock)
    assert ask(table, "anna@example.org") is EXISTS
    os.truncate(path, path.stat().st_size - 512)
    clock.now += store.LOOK
    assert why(ask(table, "anna@example.org")) == f"{path}: is cut off in mid-page; restore a backup"
    table.close()


def test_a_disappearing_right_is_named_with_its_remedy(path: Path) -> None:
    """As an ordinary user, since root may do everything."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    for one in (path.parent, *path.parent.parents):
        if one.stat().st_mode & 0o005 != 0o005 and one != Path("/"):
            one.chmod(one.stat().st_mode | 0o055)
    folder = path.parent

    def as_nobody() -> str:
        program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from rcptd.address import parse
from rcptd.stores.sqlite import Database
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(Database(Path({str(path)!r})).lookup(parse("anna@example.org")))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    path.chmod(0o600)
    assert f"{path} cannot be read by uid 65534" in as_nobody()
    path.chmod(0o644)
    folder.chmod(0o755)
    answer = as_nobody()
    assert f"{folder} cannot be written by uid 65534" in answer
    assert "chown or chmod the folder" in answer
    folder.chmod(0o777)
    assert "Found" in as_nobody()
    folder.chmod(0o700)
    assert "Permission denied" in as_nobody()


def test_what_missing_right_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied: set[tuple[str, int]] = set()
    monkeypatch.setattr(os, "access", lambda at, mode, **_: (str(at), mode) not in denied)
    assert missing_right(str(path)) == ""
    log = path.with_name(path.name + "-wal")
    log.touch()
    denied.add((str(path.parent), os.W_OK))
    assert f"{path.parent} cannot be written" in missing_right(str(path))
    denied.add((str(log), os.R_OK | os.W_OK))
    assert f"{log} cannot be read and written" in missing_right(str(path))
    denied.add((str(path), os.R_OK))
    assert f"{path} cannot be read" in missing_right(str(path))
    denied.add((str(path.parent), os.X_OK))
    assert f"{path.parent} cannot be entered" in missing_right(str(path))


def test_a_fault_without_a_missing_right_is_told_in_sqlites_words(path: Path) -> None:
    table = Database(path)
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    assert table._explained(error, None) == Unavailable(f"{path}: unable to open database file")
    path.unlink()
    assert f"{path} cannot be read" in why(table._explained(error, None))
    table.close()


def test_trouble_is_told_when_the_store_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Database(tmp_path / "none.db")
    assert "none.db: No such file or directory; `rcptd mailbox add` makes it" in caplog.text


def test_a_file_that_goes_while_it_is_opened_is_busy(path: Path) -> None:
    table = Database(path, clock=Clock())
    table._file.close_idle()
    really = sqlite3.connect

    def gone(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = really(*arguments, **named)
        connection.execute("SELECT count(*) FROM recipient").fetchone()
        path.unlink()
        return connection

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite3, "connect", gone)
        assert isinstance(ask(table, "anna@example.org"), Busy)
    assert table._file.count() == 0
    table.close()


def test_no_connection_to_be_had_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> sqlite3.Connection:
        raise sqlite3.OperationalError("out of memory")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    table = Database(path)
    assert why(ask(table, "anna@example.org")) == f"{path}: out of memory"
    assert table._file.count() == 0
    table.close()


def test_a_database_without_a_log_is_read_too(path: Path) -> None:
    writer = writing(path)
    writer.execute("PRAGMA journal_mode = DELETE")
    writer.close()
    table = Database(path)
    assert ask(table, "anna@example.org") is EXISTS
    assert table._file.log is None
    table.close()


def test_many_threads_share_the_table(table: Database) -> None:
    wrong: list[object] = []

    def read() -> None:
        for _ in range(300):
            if ask(table, "anna@example.org") is not EXISTS or ask(table, "bob@example.org") != NOT_FOUND:
                wrong.append(1)  # noqa: PERF401

    threads = [threading.Thread(target=read) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
    assert table._file.count() <= 16


def test_an_answer_takes_microseconds(table: Database) -> None:
    """Loosely: it is measured in benchmarks; here a hundredfold would mean that something waits."""
    recipient = parse("anna@example.org")
    best = 1.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            table.lookup(recipient)
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 100e-6
