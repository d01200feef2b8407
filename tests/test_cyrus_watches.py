"""What is known of Cyrus' databases without a look: seen by the very next question, whatever happens to the files."""

import ctypes
import errno
import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rcptd.stores.cyrus import imapdconf, swift
from rcptd.stores.cyrus.databases import (
    Learning,
    SqlServer,
    Watches,
    files,
    flat,
    onefile,
    open_database,
    roots,
    skiplist,
    watches,
)
from rcptd.stores.cyrus.databases.quotalegacy import Quotalegacy
from rcptd.stores.cyrus.judge import Judge, Outcome
from tests.cyrus.ours import ask
from tests.rig.cyrus import ADMIN, Cyrus
from tests.rig.cyrus_site import GROUP, USER, Site
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import CYRUS_PROGRAMS, require, require_cyrus

OPTIONS = {"virtdomains": "userid", "defaultdomain": "example.org"}
OK, NOBODY, FULL = Outcome.OK, Outcome.NONEXISTENT, Outcome.OVER_QUOTA


@pytest.fixture
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("watched") as place:
        made = Site(place / "site", OPTIONS)
        made.place.mkdir()
        for user in (b"foo", b"bar", b"q", b"d.o.t", b"far.net\x1duser\x1fx"):
            key = user if b"\x1d" in user else b"user\x1f" + user
            made.mailboxes[key] = b"%(T e I x P default V 1 A %(foo lrswipkxtecdan))"
        made.quotas["quota/q/user.q"] = b"1024\n1\n"
        made.quotas["domain/n/near.net/quota/a/user.a"] = b"1024\n1\n"
        made.write()
        yield made


@pytest.fixture
def judge(site: Site) -> Iterator[Judge]:
    made = judge_of(site)
    yield made
    made.close()


def judge_of(site: Site) -> Judge:
    made = Judge(imapdconf.read(site.config, service="smmap", environ={}), strict=True)
    assert settled(made)
    return made


def settled(judge: Judge) -> bool:
    """Ask until all that can be known is known, and nothing is looked at."""

    def known() -> bool:
        for user in (b"foo", b"q", b"nobody"):
            outcome(judge, user)
        return judge._swift(b"foo") is True

    return wait_until(known, 10.0)


def mailboxes_of(judge: Judge) -> files.Following:
    assert isinstance(judge._mailboxes, onefile.OneFile)
    return judge._mailboxes._file


def roots_of(judge: Judge) -> roots.Roots:
    assert isinstance(judge._quotas, Quotalegacy)
    assert judge._quotas._there
    return judge._quotas._there


def outcome(judge: Judge, user: bytes) -> Outcome:
    return ask(judge, user).outcome


def set_quota(site: Site, path: str, text: bytes) -> None:
    """Write a quota file as Cyrus does."""
    file = site.directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.NEW")
    new.write_bytes(text)
    new.rename(file)


# ---- what a real Cyrus changes --------------------------------------------------------------------------------------


def test_each_change_of_a_real_cyrus_is_seen_by_the_next_question() -> None:
    require_cyrus()
    options = {**OPTIONS, "delete_mode": "immediate"}
    with sheltered() as place, Cyrus(place, imapd_conf=options) as cyrus, cyrus.imap() as imap:
        site = cyrus.site

        def do(reply: tuple[str, list[Any]]) -> None:
            assert reply[0] == "OK", reply

        for name in ("foo", "q"):
            do(imap.create(f"user/{name}"))
        do(imap.setquota("user/q", "(STORAGE 1000)"))
        do(imap.setacl("user/q", ADMIN, "lrsip"))
        do(imap.append("user/q", "", "", b"Subject: a few octets\r\n\r\n"))  # over a limit of none
        judge = judge_of(site)
        swift_ones = 0
        for turn in range(120):
            do(imap.create("user/comes"))
            assert outcome(judge, b"comes") is OK, turn
            do(imap.setacl("user/comes", ADMIN, "lrswipkxtecda"))
            do(imap.create("user/comes/Sub"))
            assert outcome(judge, b"comes+Sub") is OK, turn
            do(imap.rename("user/comes/Sub", "user/comes/Other"))
            assert outcome(judge, b"comes+Sub") is NOBODY, turn
            assert outcome(judge, b"comes+Other") is OK, turn
            do(imap.setquota("user/q", "(STORAGE 0)"))
            assert ask(judge, b"q").figures
            assert outcome(judge, b"q") is FULL, turn
            assert outcome(judge, b"q") is FULL, turn
            do(imap.setquota("user/q", "(STORAGE 1000)"))
            assert outcome(judge, b"q") is OK, turn
            do(imap.setquota("user/q", "()"))
            assert outcome(judge, b"q") is OK, turn
            assert ask(judge, b"q").figures is None or ask(judge, b"q").figures.storage_limit is None  # type: ignore[union-attr]
            do(imap.setquota("user/q", "(STORAGE 1000)"))
            assert ask(judge, b"q").figures
            if turn % 20 == 7:
                site.dbtool(site.directory / "mailboxes.db", "twoskip", "repack")
                assert outcome(judge, b"comes") is OK, turn
            if turn % 40 == 9:
                site.deny("foo", message="no")
                assert outcome(judge, b"foo") is Outcome.DENIED, turn
                (site.directory / "user_deny.db").unlink()
                assert outcome(judge, b"foo") is OK, turn
            do(imap.delete("user/comes"))
            assert outcome(judge, b"comes") is NOBODY, turn
            assert outcome(judge, b"comes+Other") is NOBODY, turn
            swift_ones += judge._swift(b"foo") is True
        assert swift_ones > 60  # mostly without a look
        judge.close()


def test_thousands_of_changes_are_seen_by_threads(site: Site, judge: Judge) -> None:
    file = site.directory / "mailboxes.db"
    key = b"Nuser\x1fzz"
    database = open_database("twoskip", file, what="m")
    site.dbtool("-n", "-T", file, "twoskip", "set", lines=key + b"\t%(T e I x P default A %())\n")
    states = [(file.read_bytes(), OK)]
    site.dbtool("-T", file, "twoskip", "delete", lines=key + b"\n")
    states.append((file.read_bytes(), NOBODY))
    assert database.fetch(key) is None
    database.close()
    done = threading.Event()
    number = 0
    changed = threading.Lock()

    def look() -> int:
        asked = 0
        while not done.is_set():
            before = number
            said = outcome(judge, b"zz")
            with changed:
                after = number
            assert said in {states[one % 2][1] for one in range(before, after + 2)}, (before, after)
            asked += 1
        return asked

    with file.open("r+b") as writer, ThreadPoolExecutor() as threads:
        asking = [threads.submit(look) for _ in range(3)]
        try:
            for turn in range(1500):
                octets, wanted = states[turn % 2]
                fcntl.lockf(writer, fcntl.LOCK_EX)
                with changed:
                    writer.seek(0)
                    writer.write(octets)
                    writer.truncate()
                    writer.flush()
                    number = turn
                fcntl.lockf(writer, fcntl.LOCK_UN)
                assert outcome(judge, b"zz") is wanted, turn
                assert outcome(judge, b"foo") is OK
        finally:
            done.set()
        assert all(one.result() > 10 for one in asking)


# ---- files and directories that come and go -------------------------------------------------------------------------


def test_quota_roots_come_change_and_go(site: Site, judge: Judge) -> None:
    for turn in range(300):
        set_quota(site, "quota/f/user.foo", b"1048576\n1\n")
        assert outcome(judge, b"foo") is FULL, turn
        assert outcome(judge, b"foo") is FULL, turn
        set_quota(site, "quota/f/user.foo", b"10\n1\n")
        assert outcome(judge, b"foo") is OK, turn
        file = site.directory / "quota/f/user.foo"
        if turn % 3 == 0:
            file.write_bytes(b"1048576\n1\n")
            assert outcome(judge, b"foo") is FULL, turn
        if turn % 50 == 1:
            shutil.rmtree(site.directory / "quota/f")
        elif turn % 2:
            file.unlink()
        else:
            file.rename(file.with_name("elsewhere"))
        assert outcome(judge, b"foo") is OK, turn
        assert ask(judge, b"foo").figures is None
    set_quota(site, "quota/u/user", b"1048576\n1\n")  # a letter that was not there
    assert outcome(judge, b"bar") is FULL
    set_quota(site, "quota/x/user.bar", b"1\n1\n")  # where it does not belong
    (site.directory / "quota/x/user.bar").unlink()
    assert settled_but_full(judge)
    set_quota(site, "quota/x/user.bar", b"1\n1\n")
    assert outcome(judge, b"bar") is FULL
    (site.directory / "quota/u/user").unlink()
    assert outcome(judge, b"bar") is OK
    (site.directory / "quota").rename(site.directory / "kept")
    assert outcome(judge, b"q") is OK
    (site.directory / "kept").rename(site.directory / "quota")
    assert settled(judge)
    assert ask(judge, b"q").figures


def settled_but_full(judge: Judge) -> bool:
    return wait_until(lambda: outcome(judge, b"foo") is FULL and roots_of(judge).known is not None, 10.0)


def test_quota_roots_of_domains(site: Site, judge: Judge) -> None:
    assert outcome(judge, b"x@far.net") is OK
    known = roots_of(judge).known
    assert known
    assert {b"user.q", b"near.net!user.a"} <= known
    for turn in range(5):
        set_quota(site, "domain/f/far.net/quota/root", b"1048576\n1\n")
        assert outcome(judge, b"x@far.net") is FULL
        assert wait_until(lambda: outcome(judge, b"x@far.net") is FULL and roots_of(judge).known is not None, 10.0)
        set_quota(site, "domain/f/far.net/quota/root", b"1\n1\n")
        assert outcome(judge, b"x@far.net") is OK
        set_quota(site, "domain/f/far.net/quota/x/user.x", b"1048576\n1\n")
        assert outcome(judge, b"x@far.net") is FULL
        set_quota(site, "domain/x/far.net/quota/x/user.x", b"1\n1\n")  # where it does not belong
        assert outcome(judge, b"x@far.net") is FULL
        assert wait_until(lambda: outcome(judge, b"x@far.net") is FULL and roots_of(judge).known is not None, 10.0)
        (site.directory / "domain/x/far.net/quota/x/user.x").unlink()
        assert outcome(judge, b"x@far.net") is FULL
        if turn % 2:
            (site.directory / "domain/f/far.net").rename(site.directory / f"domain/f/gone{turn}")
        else:
            shutil.rmtree(site.directory / "domain/f")
        assert outcome(judge, b"x@far.net") is OK
    (site.directory / "domain/o/old.net").mkdir(parents=True)
    assert wait_until(lambda: outcome(judge, b"foo") is OK and roots_of(judge).known is not None, 10.0)


def test_nothing_is_known_of_roots_while_they_are_read_again(judge: Judge) -> None:
    assert settled(judge)
    roots = roots_of(judge)
    assert roots.known is not None
    next(roots._read_all())
    assert roots.known is None


def test_a_value_whose_file_has_other_names_is_read_each_time(site: Site, judge: Judge) -> None:
    file = site.directory / "quota/f/user.foo"
    other = site.directory / "other"
    other.write_bytes(b"1048576\n1\n")
    for make in (file.symlink_to, file.hardlink_to):
        set_quota(site, "quota/f/user.foo", b"1\n1\n")
        assert wait_until(lambda: outcome(judge, b"foo") is OK and roots_of(judge).known is not None, 10.0)
        file.unlink()
        make(other)
        for _ in range(3):
            other.write_bytes(b"1048576\n1\n")
            assert outcome(judge, b"foo") is FULL
            other.write_bytes(b"1\n1\n")
            assert outcome(judge, b"foo") is OK
        file.unlink()


def test_directories_and_links_on_the_way_are_replaced(site: Site) -> None:
    place = site.place
    real = place / "real"
    site.directory.rename(real)
    second = place / "second"
    shutil.copytree(real, second, symlinks=True)
    site.own()
    site.dbtool("-T", second / "mailboxes.db", "twoskip", "delete", lines=b"Nuser\x1ffoo\n")
    (second / "quota/q/user.q").write_bytes(b"1048576\n1\n")
    (place / "link").symlink_to("real/../real")
    site.directory.symlink_to(place / "link" / ".")
    judge = judge_of(site)
    for turn in range(6):
        to, wanted, full = (("second", NOBODY, FULL), ("real", OK, OK))[turn % 2]
        (place / "new").symlink_to(to)
        (place / "new").rename(place / "link")
        assert outcome(judge, b"foo") is wanted, turn
        assert outcome(judge, b"q") is full, turn
        if wanted is OK:
            assert settled(judge)
        else:
            assert wait_until(lambda: outcome(judge, b"q") is FULL and roots_of(judge).known is not None, 10.0)
    real.rename(place / "kept")
    second.rename(real)
    assert outcome(judge, b"foo") is NOBODY
    assert outcome(judge, b"q") is FULL
    real.rename(second)
    (place / "kept").rename(real)
    assert settled(judge)
    db = real / "mailboxes.db"
    db.rename(real / "moved.db")
    db.symlink_to(second / "mailboxes.db")
    assert outcome(judge, b"foo") is NOBODY
    db.unlink()
    db.symlink_to("moved.db")
    assert outcome(judge, b"foo") is OK
    assert settled(judge)
    db.unlink()
    assert outcome(judge, b"foo") is Outcome.UNKNOWN
    db.symlink_to("loop.db")
    (real / "loop.db").symlink_to("mailboxes.db")
    assert outcome(judge, b"foo") is Outcome.UNKNOWN
    judge.close()


def test_a_mount_over_a_directory_on_the_way_is_noticed(site: Site, judge: Judge) -> None:
    above = site.place
    other = above.parent / "other"
    shutil.copytree(above, other, symlinks=True)
    shutil.chown(other, USER, GROUP)
    database = other / site.directory.relative_to(above) / "mailboxes.db"
    shutil.chown(database, USER, GROUP)
    site.dbtool("-T", database, "twoskip", "delete", lines=b"Nuser\x1ffoo\n")
    for turn in range(2):
        assert outcome(judge, b"foo") is OK, turn
        mount(other, above)
        try:
            assert outcome(judge, b"foo") is NOBODY, turn
            assert wait_until(lambda: outcome(judge, b"bar") is OK and judge._swift(b"bar") is True, 10.0)
            assert judge._swift(b"foo") is False
        finally:
            subprocess.run(["umount", "--lazy", above], check=True)
        assert outcome(judge, b"foo") is OK, turn
        assert settled(judge)


def mount(what: Path, where: Path) -> None:
    done = subprocess.run(["mount", "--bind", what, where], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr}")


def test_a_mount_is_told_to_everybody(judge: Judge) -> None:
    """See what the test above sees for real, also where nothing may be mounted."""
    made = judge._watches
    mailboxes = mailboxes_of(judge)
    assert made.quiet()
    assert mailboxes._known
    queues = made._queues

    class Told:
        def poll(self, seconds: float, most: int) -> list[tuple[int, int]]:
            made._queues = queues
            return [*queues.poll(seconds, most), (made._mounts, select.EPOLLPRI | select.EPOLLERR)]

    made._queues = Told()  # type: ignore[assignment]
    assert made.quiet()
    assert not mailboxes._known
    assert roots_of(judge).known is None
    assert settled(judge)


def test_a_deny_database_comes_and_goes(site: Site, judge: Judge) -> None:
    denied = site.directory / "user_deny.db"
    for turn in range(20):
        assert wait_until(lambda: judge._swift(b"foo") is True or outcome(judge, b"foo") is not OK, 10.0)
        site.deny("foo")
        assert outcome(judge, b"foo") is Outcome.DENIED, turn
        assert outcome(judge, b"bar") is OK, turn
        assert outcome(judge, b"foo") is Outcome.DENIED, turn
        denied.rename(denied.with_name("kept.db"))
        assert outcome(judge, b"foo") is OK, turn
        denied.with_name("kept.db").rename(denied)
        assert outcome(judge, b"foo") is Outcome.DENIED, turn
        denied.unlink()
        assert outcome(judge, b"foo") is OK, turn


# ---- trouble --------------------------------------------------------------------------------------------------------


def test_a_queue_that_overflows_makes_everything_unknown(site: Site, judge: Judge) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    file = site.directory / "quota/q/user.q"
    for number in range(limit // 2 + 10):
        file.rename(file.with_name(f"user.{number}"))
        file = file.with_name(f"user.{number}")
    file.rename(site.directory / "quota/q/user.q")
    set_quota(site, "quota/q/user.q", b"1048576\n1\n")
    site.dbtool("-n", "-T", site.directory / "mailboxes.db", "twoskip", "set", lines=b"Nuser\x1fnew\t%(T e A %())\n")
    assert outcome(judge, b"q") is FULL
    assert outcome(judge, b"new") is OK
    assert settled(judge)


BOUNDS: dict[str, tuple[str, object]] = {"file system": ("TRUSTED", {}), "bounds": ("MOST", 3), "few": ("MOST", 8)}
WITHOUT = ["no call", "no descriptor", "no queue", "no watch", "no thread", *BOUNDS]


@pytest.mark.parametrize("what", WITHOUT)
def test_without_inotify_all_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    class Libc:
        def __init__(self, _: object) -> None:
            if what == "no call":
                raise OSError
            self._real = ctypes.PyDLL(None)

        def __getattr__(self, name: str) -> Any:
            if (name, what) in {("inotify_init1", "no descriptor"), ("inotify_add_watch", "no watch")}:
                return lambda *_: -1
            return getattr(self._real, name)

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    if what == "no queue":
        monkeypatch.setattr(select, "epoll", _no_queue)
    if what in BOUNDS:
        monkeypatch.setattr(watches, *BOUNDS[what])
    if what == "no thread":
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
    monkeypatch.setattr(files, "REFUSED", 5)
    judge = Judge(imapdconf.read(site.config, service="smmap", environ={}), strict=True)
    for turn in range(20):
        set_quota(site, "quota/f/user.foo", b"1048576\n1\n" if turn % 2 else b"1\n1\n")
        assert outcome(judge, b"foo") is (FULL if turn % 2 else OK)
        assert outcome(judge, b"bar") is OK
        assert outcome(judge, b"nobody") is NOBODY
        time.sleep(0.01)
    assert judge._swift(b"bar") is None
    judge.close()


def _no_queue(_: int) -> select.epoll:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("there", ["no/mountinfo", "imapd.conf"])  # a file that does not tell of anything
def test_without_proc_only_mounts_are_not_noticed(site: Site, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    monkeypatch.setattr(watches, "_MOUNTS", str(site.place / there))
    judge = judge_of(site)
    set_quota(site, "quota/f/user.foo", b"1048576\n1\n")
    assert outcome(judge, b"foo") is FULL
    judge.close()


def test_a_descriptor_that_fails_is_given_up(site: Site, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int, octets: int) -> bytes:
        if descriptor == judge._watches._descriptor:
            raise OSError(5, "Input/output error")
        return read(descriptor, octets)

    read = os.read
    set_quota(site, "quota/f/user.foo", b"1048576\n1\n")
    monkeypatch.setattr(os, "read", fails)
    assert not judge._watches.quiet()
    monkeypatch.undo()
    assert outcome(judge, b"foo") is FULL
    (site.directory / "quota/f/user.foo").unlink()
    assert settled(judge)
    monkeypatch.setattr(watches, "_TURNS", 1)
    monkeypatch.setattr(watches, "_ROOM", 64)
    set_quota(site, "quota/f/user.foo", b"1048576\n1\n")  # more than is read: all is forgotten
    assert judge._watches.quiet()
    monkeypatch.undo()
    assert outcome(judge, b"foo") is FULL


def test_a_child_begins_anew_and_takes_nothing_from_its_parent(site: Site, judge: Judge) -> None:
    hear, tell = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.read(hear, 1)
            first = outcome(judge, b"foo")
            assert settled_but_full(judge)
            assert first is FULL
            (site.directory / "quota/f/user.foo").unlink()
            assert outcome(judge, b"foo") is OK
            status = 0
        finally:
            os._exit(status)
    set_quota(site, "quota/f/user.foo", b"1048576\n1\n")
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert outcome(judge, b"foo") is OK
    os.close(hear)
    os.close(tell)


def test_closing_ends_threads_and_descriptors(site: Site) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        judge = judge_of(site)
        judge.close()
        assert not judge._watches.quiet()
        assert outcome(judge, b"foo") is Outcome.UNKNOWN
        judge._watches.close()
        judge._learning.want(bool)
    assert len(set(os.listdir("/proc/self/fd")) - before) < 2  # noqa: PTH208
    assert not [one for one in threading.enumerate() if one.name == "cyrus learning"]


def test_a_file_that_is_held_or_gone_is_learnt_later(site: Site) -> None:
    file = site.directory / "mailboxes.db"
    learns, watched = Learning(), Watches()
    database = open_database("twoskip", file, what="m", watches=watched, learning=learns)
    assert isinstance(database, onefile.OneFile)
    with file.open("r+b") as writer:
        fcntl.lockf(writer, fcntl.LOCK_EX)
        assert database._file._learn()
    file.rename(file.with_name("kept.db"))
    assert not database._file._learn()
    learns.close()


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_learning_goes_on_after_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    learns = Learning()
    done = threading.Event()
    going = threading.Event()

    def wrong() -> bool:
        going.wait(5)
        raise ZeroDivisionError

    def right() -> bool:
        done.set()
        return False

    learns.want(wrong)
    learns.want(wrong)
    learns.want(right)
    going.set()
    assert done.wait(5)
    assert "could not learn in advance" in caplog.text
    assert wait_until(lambda: learns._thread is None, 5.0)
    learns.want(right)
    learns.close()


def test_too_many_roots_are_not_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "NAMES_MOST", 6)
    monkeypatch.setattr(roots, "VALUES_MOST", 1)
    monkeypatch.setattr(roots, "AGAIN", 0.0)
    judge = judge_of(site)
    for user in ("foo", "bar", "foo"):
        set_quota(site, f"quota/{user[0]}/user.{user}", b"1048576\n1\n")
        wait_until(lambda: outcome(judge, b"q") is OK and roots_of(judge).known is not None, 5.0)
        assert outcome(judge, user.encode()) is FULL
        assert outcome(judge, b"q") is OK
    assert len(roots_of(judge).values) <= 1
    for number in range(10):
        set_quota(site, f"quota/b/user.b{number}", b"1\n1\n")
    assert outcome(judge, b"foo") is FULL
    assert wait_until(lambda: outcome(judge, b"foo") is FULL and roots_of(judge)._next > time.monotonic() + 1, 5.0)
    assert roots_of(judge).known is None
    judge.close()


def test_events_come_in_any_order() -> None:
    told: list[tuple[int, bytes, bytes]] = []
    made = Watches()
    made._told = {1: {lambda *what: told.append(what): (watches.NAMES, b"tag")}}
    event = struct.Struct("iIII")
    made._tell(event.pack(9, watches.CREATE, 0, 0))  # of a watch that is none
    made._tell(event.pack(1, watches.MODIFY, 0, 16) + b"name".ljust(16, b"\0"))  # not asked for
    made._tell(event.pack(1, watches.DELETE, 0, 16) + b"name".ljust(16, b"\0"))
    made._tell(event.pack(1, 0x8000, 0, 0))
    assert told == [(watches.DELETE, b"tag", b"name"), (0x8000, b"tag", b"")]
    assert not made._told


def test_swift_answers_are_those_of_the_judge(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift, "DOMAINS_MOST", 6)
    rng = random.Random(3)
    users = [b"foo", b"FOO", b"bar", b"q", b"d.o.t", b"d^o^t", b"nobody", b"", b"x", b"a b", b"foo+Sub", b"\xc3\xa4"]
    domains = [b"", b"@", b"@example.org", b"@EXAMPLE.ORG", b"@far.net", b"@FAR.net", b"@near.net", b"@no where",
               b"@a@far.net", b"@one", b"@two"]  # fmt: skip
    swift_ones = 0
    for _ in range(600):
        address = rng.choice(users) + rng.choice(domains)
        said = judge._swift(address)
        steps: list[str] = []
        whole = ask_with(judge, address, steps)
        if said is not None:
            swift_ones += 1
            assert whole is (OK if said else NOBODY), address
        assert outcome(judge, address) is whole, address
    assert swift_ones > 100


def ask_with(judge: Judge, address: bytes, steps: list[str]) -> Outcome:
    return judge.judge(address, steps=steps).outcome


def test_a_user_who_is_shared_mailboxes_is_left_to_the_judge(site: Site) -> None:
    with site.config.open("a") as config:
        config.write("postuser: x\n")
    judge = Judge(imapdconf.read(site.config, service="smmap", environ={}), strict=True)
    for _ in range(5):
        outcome(judge, b"foo")
        assert judge._swift(b"foo") is None
    judge.close()


def test_what_is_told_in_the_midst_of_learning_is_not_overlooked(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = mailboxes_of(judge)
    file = following._file
    assert file
    key = b"Nuser\x1ffoo"
    idle, file.idle = file.idle, []
    assert following.fetch(key, True)  # by the longer way, as no descriptor is free
    file.idle += idle
    following._watch(judge._watches, file)  # which is done
    assert following._watched is file
    following._lost = True
    following._note_watched(None)
    assert following._watched is file
    following._note_absent()
    assert not following._absent
    there = roots_of(judge)
    there._lose()
    there._note()
    there._keep(b"user.foo", b"1 1")
    assert there.known is None
    assert not there.values
    following._watched = None
    following._known = None
    following._note(file)
    assert not following._known
    assert settled(judge)

    real = type(file.format).value

    def value(form: object, descriptor: int, key: bytes, place: int) -> bytes | None:
        following._forget(file)
        return real(form, descriptor, key, place)  # type: ignore[arg-type]

    monkeypatch.setattr(type(file.format), "value", value)
    assert following.fetch(key, True)
    assert not file.idle


def test_watches_that_are_of_another_life_are_none(site: Site, judge: Judge, tmp_path: Path) -> None:
    made = judge._watches
    told: list[int] = []

    def note(event: int, _tag: bytes, _name: bytes) -> None:
        told.append(event)

    queues = made._queues
    made._queues = select.epoll()
    made._queues.close()
    assert not made.quiet()  # as for one who asks while another one closes
    made._queues = queues
    (tmp_path / "loop").symlink_to("loop")
    assert made.follow(os.fsencode(tmp_path / "loop"), note) is None
    made.leave(note)
    watches._begin_life()
    assert made.follow(os.fsencode(tmp_path / "x"), note) is None
    assert not made.quiet()
    made._take()
    made._renew()  # which is done
    assert settled(judge)
    set_quota(site, "quota/f/user.foo", b"1048576\n1\n")
    assert outcome(judge, b"foo") is FULL


def test_formats_and_backends_that_know_nothing_without_a_look(tmp_path: Path) -> None:
    form = skiplist.Skiplist("x")
    assert form.place_of() is None
    path = tmp_path / "flat"
    path.write_bytes(b"a\tb\n")
    table = flat.Flat(str(path))
    with path.open("rb") as file:
        assert table.value(file.fileno(), b"a", 8) == b"b"
        assert table.place_of() is None
        assert not table.learn(file.fileno())
    for server in (None, SqlServer("sqlite", str(tmp_path / "db"))):
        database = open_database("sql", tmp_path / "m.db", what="m", sql=server)
        assert database.known(b"a") == -1
        database.close()
