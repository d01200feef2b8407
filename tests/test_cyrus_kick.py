"""The mailbox list of a Murder: brought up to date before a mailbox is said not to be there."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rcptd import schema
from rcptd.address import parse
from rcptd.question import EXISTS, NOT_FOUND, Busy, Unavailable
from rcptd.stores.cyrus import kick
from rcptd.stores.cyrus.kick import Kicker, List
from rcptd.stores.cyrus.store import CyrusMailboxes, Settings, open_store
from tests.rig.cyrus_site import record
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import require_cyrus
from tests.test_cyrus_store import site


class Mupdate:
    """Listens as mupdate does; each connection is answered when `answer` is set."""

    def __init__(self, path: Path) -> None:
        self.answer = threading.Event()
        self.kicks = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(BrokenPipeError):  # who kicks may have gone
                self.kicks += 1
                self.answer.wait(10)
                connection.sendall(b"\n")

    def close(self) -> None:
        self.answer.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def mupdate(tmp_path: Path) -> Iterator[Mupdate]:
    running = Mupdate(tmp_path / "target")
    yield running
    running.close()


def settled(kicker: Kicker, key: bytes) -> List:
    found: list[List] = []

    def ended() -> bool:
        found[:] = [kicker.state(key)]
        return found[0] is not List.UNDER_WAY

    assert wait_until(ended, 10)
    return found[0]


def test_one_kick_serves_all_who_asked_before_it_began(tmp_path: Path, mupdate: Mupdate) -> None:
    kicker = Kicker(tmp_path / "target")
    assert kicker.state(b"a") is List.UNDER_WAY
    assert wait_until(lambda: mupdate.kicks == 1, 5)
    assert kicker.state(b"late") is List.UNDER_WAY
    mupdate.answer.set()
    assert settled(kicker, b"a") is List.UP_TO_DATE
    assert settled(kicker, b"late") is List.UP_TO_DATE
    assert mupdate.kicks == 2
    assert kicker.state(b"a") is List.UNDER_WAY  # asked anew
    assert settled(kicker, b"a") is List.UP_TO_DATE


def test_who_does_not_answer_leaves_it_open(tmp_path: Path, mupdate: Mupdate, caplog: pytest.LogCaptureFixture) -> None:
    assert settled(Kicker(tmp_path / "nowhere"), b"a") is List.CANNOT_TELL
    assert settled(Kicker(tmp_path / ("x" * 200)), b"a") is List.CANNOT_TELL
    began = time.monotonic()
    assert settled(Kicker(tmp_path / "target", patience=0.2), b"a") is List.CANNOT_TELL
    assert time.monotonic() - began < 5
    assert "cannot have mupdate" in caplog.text
    mupdate.answer.set()


def test_a_kick_that_cannot_begin_leaves_it_open_and_the_next_one_works(
    tmp_path: Path, mupdate: Mupdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    kicker = Kicker(tmp_path / "target")
    with monkeypatch.context() as patch:

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        assert kicker.state(b"a") is List.CANNOT_TELL
    mupdate.answer.set()
    assert settled(kicker, b"a") is List.UP_TO_DATE


def test_keys_that_wait_are_bounded_and_forgotten(
    tmp_path: Path, mupdate: Mupdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kick, "MOST_WAITING", 2)
    kicker = Kicker(tmp_path / "target")
    assert [kicker.state(key) for key in (b"a", b"b", b"c")] == [List.UNDER_WAY, List.UNDER_WAY, List.CANNOT_TELL]
    monkeypatch.setattr(kick, "FORGOTTEN", 0.0)
    assert kicker.state(b"c") is List.UNDER_WAY
    mupdate.answer.set()
    assert settled(kicker, b"c") is List.UP_TO_DATE


@pytest.mark.cyrus
def test_a_store_says_no_only_when_the_list_is_up_to_date() -> None:
    require_cyrus()
    with sheltered("cyrus-murder") as place:
        made = site(place / "site", mupdate_server="mupdate.example.org")
        settings = schema.read(Settings, {"imapd_conf": str(made.config)}, lambda *_: None)
        assert settings
        store = open_store("cyrus", settings)
        assert isinstance(store, CyrusMailboxes)
        said: list[object] = []

        def answer(address: str) -> object:
            def ended() -> bool:
                said[:] = [store.lookup(parse(address))]
                return not isinstance(said[0], Busy)

            assert wait_until(ended, 10)
            return said[0]

        assert isinstance(answer("nobody@example.org"), Unavailable)  # no mupdate listens
        mupdate = Mupdate(made.directory / "socket" / "mupdate.target")
        try:
            assert isinstance(store.lookup(parse("nobody@example.org")), Busy)
            assert wait_until(lambda: mupdate.kicks == 1, 5)
            # Meanwhile the mailbox comes, and is found without waiting for the list.
            made.write_database(
                made.directory / "mailboxes.db", "twoskip", {b"Nuser\x1flate": record(), b"Nuser\x1flater": record()}
            )
            assert store.lookup(parse("late@example.org")) == EXISTS
            mupdate.answer.set()
            assert answer("nobody@example.org") == NOT_FOUND
            assert answer("foo@example.org") == EXISTS

            class JustNow:
                """Brings the mailbox in the moment in which the list is up to date."""

                def state(self, _: bytes) -> List:
                    made.write_database(made.directory / "mailboxes.db", "twoskip", {b"Nuser\x1fjustnow": record()})
                    return List.UP_TO_DATE

            store._kicker = JustNow()  # type: ignore[assignment]
            assert isinstance(store.lookup(parse("justnow@example.org")), Busy)
            assert store.lookup(parse("justnow@example.org")) == EXISTS
        finally:
            mupdate.close()
            store.close()
