"""The file that survives a restart: whatever happens to it costs memory, never an answer, and is said once."""

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcptd.memo import codec, file
from rcptd.memo.file import KEY_OCTETS, MemoFile, Row
from rcptd.question import EXISTS, NOT_FOUND, Absence, Answer, Found, Mailbox, NotFound

ANSWERS: list[Answer] = [EXISTS, NOT_FOUND, NotFound(Absence.DOMAIN, "by dns"), Found(Mailbox(unproven=True), "250 ok")]


def row(key: str, answer: Answer = EXISTS, asked: float = 100.0) -> Row:
    return Row(key, answer, asked, asked, None)


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[MemoFile]:
    made = MemoFile(tmp_path / "memo.db")
    yield made
    made.close()


def written(memo: MemoFile, *rows: Row, store: str = "s") -> None:
    memo.load(store, "print", 10, 0.0)
    for one in rows:
        memo.put(store, "print", one)
    memo.flush().result(10)


def again(
    memo: MemoFile, *, store: str = "s", fingerprint: str = "print", most: int = 100, since: float = 0.0
) -> list[Row]:
    fresh = MemoFile(memo._path)
    try:
        return fresh.load(store, fingerprint, most, since)
    finally:
        fresh.close()


def test_rows_are_read_after_a_restart_the_newest_last(memo: MemoFile) -> None:
    rows = [Row(f"u{at}@a", answer, 100.0 + at, None, 7.0) for at, answer in enumerate(ANSWERS)]
    written(memo, *rows, Row("gone@a", None, 200.0, 150.0, 200.0))
    found = again(memo)
    assert found == [*rows, Row("gone@a", None, 200.0, 150.0, 200.0)]
    assert isinstance(found[3].answer, Found)
    assert found[3].answer.source == "250 ok"


def test_a_row_takes_the_place_of_the_one_before_it_and_can_be_removed(memo: MemoFile) -> None:
    written(memo, row("a"), row("b"), row("a", NOT_FOUND, 200.0))
    assert [(one.key, one.answer) for one in again(memo)] == [("b", EXISTS), ("a", NOT_FOUND)]
    memo.remove("s", "a")
    memo.flush().result(10)
    assert [one.key for one in again(memo)] == ["b"]
    memo.remove_all("s")
    memo.flush().result(10)
    assert again(memo) == []


def test_a_domain_is_removed_whole_whatever_is_in_memory(memo: MemoFile) -> None:
    written(memo, row("a@x.example"), row("b@x.example imap1.example"), row("c@sub.x.example"), row("d@y.example"))
    memo.remove_all("s", "@x.example")
    memo.flush().result(10)
    assert {one.key for one in again(memo)} == {"c@sub.x.example", "d@y.example"}


def test_stores_are_kept_apart_and_another_section_has_said_nothing(memo: MemoFile) -> None:
    written(memo, row("a"))
    written(memo, row("b"), store="other")
    assert [one.key for one in again(memo)] == ["a"]
    assert again(memo, fingerprint="another next hop") == []
    assert again(memo) == []  # its rows are gone for good
    assert [one.key for one in again(memo, store="other")] == ["b"]


def test_what_a_store_says_that_another_has_replaced_is_not_kept(memo: MemoFile) -> None:
    written(memo, row("a"))
    memo.load("s", "another next hop", 10, 0.0)
    memo.put("s", "another next hop", row("b"))
    memo.put("s", "print", row("c"))  # the end of a question from before the reload
    memo.flush().result(10)
    assert [one.key for one in again(memo, fingerprint="another next hop")] == ["b"]


def test_what_is_read_is_bounded_and_what_is_too_old_is_removed(memo: MemoFile) -> None:
    written(memo, *(row(f"u{at}", asked=100.0 + at) for at in range(20)))
    assert [one.key for one in again(memo, most=3)] == ["u17", "u18", "u19"]
    assert [one.key for one in again(memo, since=116.0)] == ["u17", "u18", "u19"]
    assert len(again(memo)) == 3


def test_what_is_too_long_is_not_kept(memo: MemoFile) -> None:
    written(memo, row("u" * (KEY_OCTETS + 1)), row("a", Found(Mailbox(), "x" * codec.LENGTH)), row("b"))
    # The answer that is too long is a row without one: the address was good, and is asked about again.
    assert {one.key: one.answer for one in again(memo)} == {"a": None, "b": EXISTS}


def test_changes_are_written_by_themselves_within_a_moment(memo: MemoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "BATCH", 0.05)
    memo.load("s", "print", 10, 0.0)
    memo.put("s", "print", row("a"))
    until = time.monotonic() + 10
    while not again(memo) and time.monotonic() < until:
        time.sleep(0.02)
    assert [one.key for one in again(memo)] == ["a"]


def test_the_file_is_for_nobody_else(memo: MemoFile) -> None:
    written(memo, row("a"))
    assert memo._path.stat().st_mode & 0o077 == 0


def test_an_end_without_a_change_makes_no_thread(tmp_path: Path) -> None:
    MemoFile(tmp_path / "memo.db").close()
    assert not (tmp_path / "memo.db").exists()


@pytest.mark.parametrize("damage", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memo.db"
    path.write_bytes(damage)
    memo = MemoFile(path)
    assert memo.load("s", "print", 10, 0.0) == []
    memo.put("s", "print", row("a"))
    memo.flush().result(10)
    assert "put aside" in caplog.text
    assert (tmp_path / "memo.db.damaged").read_bytes() == damage
    assert [one.key for one in again(memo)] == ["a"]
    memo.close()


def test_a_file_cut_or_flipped_anywhere_never_raises(memo: MemoFile) -> None:
    written(memo, *(row(f"user{at}@example.org") for at in range(200)))
    memo.close()
    whole = memo._path.read_bytes()
    copy = memo._path.with_name("copy.db")
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[at] ^= 0x55
        for octets in (whole[:at], bytes(flipped)):
            copy.write_bytes(octets)
            damaged = MemoFile(copy)
            for one in damaged.load("s", "print", 1000, 0.0):
                assert isinstance(one, Row)
            damaged.put("s", "print", row("new"))
            damaged.close()
            for left in copy.parent.glob("copy.db*"):
                left.unlink()


def test_the_database_of_another_program_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "recipients.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipient (local TEXT)")
    connection.close()
    before = path.read_bytes()
    memo = MemoFile(path)
    assert memo.load("s", "print", 10, 0.0) == []
    memo.put("s", "print", row("a"))
    memo.close()
    assert path.read_bytes() == before
    assert caplog.text.count("another program's database") == 1


def test_rows_that_somebody_else_wrote_are_not_believed(memo: MemoFile) -> None:
    written(memo, row("good"))
    with sqlite3.connect(memo._path) as connection:
        for values in (
            ("key", "nonsense", 100.0, None, None),
            ("time", codec.encode(EXISTS), "yesterday", None, None),
            ("good", codec.encode(EXISTS), 100.0, "once", None),
            (b"octets", codec.encode(EXISTS), 100.0, None, None),
            ("later", codec.encode(EXISTS), 100.0, None, "never"),
        ):
            connection.execute("REPLACE INTO answer VALUES ('s', ?, ?, ?, ?, ?)", values)
    connection.close()
    assert again(memo) == []


def test_a_folder_that_is_not_there_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memo = MemoFile(tmp_path / "nowhere" / "memo.db")
    assert memo.load("s", "print", 10, 0.0) == []
    for _ in range(3):
        memo.put("s", "print", row("a"))
        memo.flush().result(10)
    assert caplog.text.count("will not survive a restart") == 1
    (tmp_path / "nowhere").mkdir()
    memo.put("s", "print", row("b"))
    memo.flush().result(10)
    assert "again" in caplog.text
    assert {one.key for one in again(memo)} == {"a", "b"}
    memo.close()


def test_a_full_disk_costs_memory_only(memo: MemoFile, caplog: pytest.LogCaptureFixture) -> None:
    written(memo, row("a"))
    assert memo._connection
    (pages,) = memo._connection.execute("PRAGMA page_count").fetchone()
    memo._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as of a disk that is
    for at in range(2000):
        memo.put("s", "print", row(f"user{at}@example.org"))
    memo.flush().result(10)
    assert "database or disk is full" in caplog.text
    assert [one.key for one in again(memo)] == ["a"]


def test_a_locked_file_holds_nobody_up(memo: MemoFile, caplog: pytest.LogCaptureFixture) -> None:
    written(memo, row("a"))
    locker = sqlite3.connect(memo._path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    memo.put("s", "print", row("b"))
    assert time.monotonic() - began < 0.5
    memo.flush().result(20)
    assert "locked" in caplog.text
    locker.execute("ROLLBACK")
    locker.close()
    memo.flush().result(10)
    assert {one.key for one in again(memo)} == {"a", "b"}


def test_what_could_not_be_written_is_tried_again_by_itself(memo: MemoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "RETRY", 0.05)
    written(memo, row("a"))
    locker = sqlite3.connect(memo._path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    memo.remove("s", "a")
    memo.flush().result(20)
    locker.execute("ROLLBACK")
    locker.close()
    until = time.monotonic() + 10
    while again(memo) and time.monotonic() < until:
        time.sleep(0.02)
    assert again(memo) == []


def test_changes_that_wait_are_bounded(memo: MemoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "WAITING", 5)
    monkeypatch.setattr(file, "BATCH", 60.0)
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    for at in range(10):
        memo.put("s", "print", row(f"u{at}"))
    assert memo._changes.qsize() == 5
    monkeypatch.undo()
    memo._thread = None


def test_one_who_loses_patience_with_the_disk_does_not_end_the_writing(memo: MemoFile) -> None:
    written(memo, row("a"))
    with memo._lock:  # the disk hangs
        memo.put("s", "print", row("b"))
        flushing = memo.flush()
        time.sleep(0.05)
        assert flushing.cancel()
    memo.put("s", "print", row("c"))
    memo.flush().result(10)
    assert {one.key for one in again(memo)} == {"a", "b", "c"}


def test_a_disk_that_fails_is_trouble_of_the_file_alone(memo: MemoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "open", failing)
    assert memo.load("s", "print", 10, 0.0) == []


def test_a_killed_process_leaves_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "memo.db"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from rcptd.memo.file import MemoFile, Row\n"
        "from rcptd.question import EXISTS\n"
        "memo = MemoFile(Path(sys.argv[1]))\n"
        "memo.load('s', 'print', 10, 0.0)\n"
        "memo.put('s', 'print', Row('a', EXISTS, 100.0, 100.0, None))\n"
        "memo.flush().result(10)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, env={**os.environ, "PYTHONPATH": "core"})
    assert [one.key for one in again(MemoFile(path))] == ["a"]
