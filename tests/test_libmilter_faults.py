"""The listener's callbacks when libmilter or pymilter fail: nothing escapes, and the MTA is not left waiting."""

import logging
import os
from collections.abc import Callable

import pytest

from rcptd import schema, verdict
from rcptd.query import Query
from rcptd.verdict import Verdict
from rcptd_milter.replies import Status
from rcptd_milter.settings import Settings

if os.environ.get("RCPTD_REQUIRE_REAL") != "1":
    pytest.importorskip("Milter")

import Milter

from rcptd_milter.libmilter import STEPS, Listener, _Connection

OFFER = [0x1FF, 0x1FFFFF, 0, 0]


class Broken(Exception):
    """What the context raises in these tests."""


class Connection:
    """A context whose methods fail when they are told to."""

    def __init__(self) -> None:
        self.private: _Connection | None = None
        self.failing: set[str] = set()
        self.replies: list[tuple[str, str, str]] = []

    def _step(self, name: str) -> None:
        if name in self.failing:
            raise Broken(name)

    def getpriv(self) -> _Connection | None:
        self._step("getpriv")
        return self.private

    def setpriv(self, value: _Connection | None, /) -> object:
        if value is not None:
            self._step("setpriv")
        self.private = value
        return None

    def getsymval(self, name: str, /) -> str | None:
        self._step("getsymval")
        return "192.0.2.9" if name == "{client_addr}" else None

    def setreply(self, rcode: str, xcode: str, text: str, /) -> None:
        self._step("setreply")
        if "setreply once" in self.failing:
            self.failing.remove("setreply once")
            raise Milter.error("cannot set reply")
        self.replies.append((rcode, xcode, text))

    def setsymlist(self, _stage: int, _macros: str, /) -> None:
        self._step("setsymlist")


def sound(key: str, what: str) -> None:
    pytest.fail(f"{key}: {what}")


@pytest.fixture
def mta() -> Connection:
    return Connection()


@pytest.fixture
def listener() -> Listener:
    settings = schema.read(Settings, {"listen": "unix:/nowhere/milter.sock"}, sound)
    assert settings

    def decide(query: Query) -> Verdict | None:
        return None if query.recipient == "<ok@example.org>" else verdict.NO_SUCH_MAILBOX

    return Listener(settings, decide)


def test_the_answers_that_were_negotiated_away_are_not_given(listener: Listener, mta: Connection) -> None:
    offer = list(OFFER)
    assert listener._negotiate(mta, offer) == Milter.CONTINUE
    assert offer == [Milter.SETSYMLIST, STEPS, 0, 0]
    assert listener._connect(mta, "h", 2, ("192.0.2.7", 1)) == Milter.NOREPLY
    assert listener._mail(mta, b"<>") == Milter.NOREPLY
    assert listener._rcpt(mta, b"<ok@example.org>") == Status.CONTINUE
    assert listener._rcpt(mta, b"<gone@example.org>") == Status.REJECT
    assert mta.replies == [("550", "5.1.1", "No such mailbox")]
    assert listener.active_sessions == listener.active_transactions == 1
    assert listener._end(mta) == listener._close(mta) == Milter.CONTINUE
    assert listener.active_sessions == 0
    assert mta.private is None


def test_an_mta_that_waits_for_every_answer_gets_every_answer(listener: Listener, mta: Connection) -> None:
    offer = [0, 0x7F, 0, 0]
    assert listener._negotiate(mta, offer) == Milter.CONTINUE
    assert offer == [0, STEPS & 0x7F, 0, 0]
    assert listener._connect(mta, "h", 2, ("192.0.2.7", 1)) == Milter.CONTINUE
    assert listener._mail(mta, b"<>") == Milter.CONTINUE


@pytest.mark.parametrize("failing", ["setsymlist", "setpriv"])
def test_a_negotiation_that_fails_takes_every_step_and_answers_it(
    listener: Listener, mta: Connection, failing: str
) -> None:
    mta.failing.add(failing)
    assert listener._negotiate(mta, list(OFFER)) == Milter.ALL_OPTS
    mta.failing.clear()
    assert listener._connect(mta, "h", 2, ("192.0.2.7", 1)) == Milter.CONTINUE
    assert listener._mail(mta, b"<>") == Milter.CONTINUE
    assert listener._rcpt(mta, b"<gone@example.org>") == Status.REJECT
    assert listener.faults == 1


@pytest.mark.parametrize("failing", ["getpriv", "getsymval"])
def test_recipients_are_deferred_when_a_step_fails(
    listener: Listener, mta: Connection, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        listener._negotiate(mta, list(OFFER))
        mta.failing.add(failing)
        assert listener._connect(mta, "h", 0, None) in (Milter.NOREPLY, Milter.CONTINUE)
        assert listener._mail(mta, b"<>") in (Milter.NOREPLY, Milter.CONTINUE)
        assert listener._rcpt(mta, b"<ok@example.org>") == Status.TEMPFAIL
        assert listener._end(mta) == listener._close(mta) == Milter.CONTINUE
    assert mta.replies == [("451", "4.3.0", verdict.OUR_FAULT.text)]
    assert listener.faults >= 3
    assert "our fault at RCPT" in caplog.text


def test_a_refusal_whose_reply_is_not_taken_becomes_a_deferral(listener: Listener, mta: Connection) -> None:
    listener._negotiate(mta, list(OFFER))
    listener._mail(mta, b"<>")
    mta.failing.add("setreply once")
    # With REJECT and no reply the client would get 550 5.7.1 in libmilter's own words.
    assert listener._rcpt(mta, b"<gone@example.org>") == Status.TEMPFAIL
    assert mta.replies == [("451", "4.3.0", verdict.OUR_FAULT.text)]
    mta.failing.add("setreply")
    assert listener._rcpt(mta, b"<gone@example.org>") == Status.TEMPFAIL
    assert listener.faults == 2


def test_a_log_that_fails_changes_no_answer(
    listener: Listener, mta: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise Broken("log")

    monkeypatch.setattr("rcptd_milter.libmilter.log.error", broken)
    mta.failing.add("getpriv")
    assert listener._rcpt(mta, b"<ok@example.org>") == Status.TEMPFAIL
    assert listener.faults == 1


def test_whoever_runs_it_is_told_when_libmilter_ends(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ends() -> None:
        raise Milter.error("cannot run main")

    told: list[Callable[[], None] | str] = []
    monkeypatch.setattr(Milter, "main", ends)
    listener._ended = lambda: told.append("ended")
    with caplog.at_level(logging.CRITICAL):
        listener._run()
    assert told == ["ended"]
    assert "libmilter has ended" in caplog.text


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "'listen' is missing"),
        ({"listen": "fd:milter"}, "takes no inherited descriptor"),
        ({"listen": "milter.sock"}, "write"),
        ({"listen": "unix:/run/m.sock", "recipient": "guessed"}, "'typed', 'routed'"),
        ({"listen": "unix:/run/m.sock", "mode": "rw"}, "mode"),
        ({"listen": "unix:/run/m.sock", "timeout": "1s"}, "60s"),
        ({"listen": "unix:/run/m.sock", "backlog": 0}, "from 1"),
        ({"listen": "unix:/run/m.sock", "owner": "no such user here"}, "no user"),
    ],
)
def test_what_is_wrong_with_the_section_is_said(table: dict[str, object], said: str) -> None:
    faults: list[str] = []
    assert schema.read(Settings, table, lambda _key, what: faults.append(what)) is None
    assert len(faults) == 1
    assert said in faults[0]


def test_the_section_needs_an_address_only() -> None:
    settings = schema.read(Settings, {"listen": "inet:127.0.0.1:7851"}, sound)
    assert settings
    assert (settings.mode, settings.owner, settings.group) == (0o660, None, None)
    assert (settings.recipient, settings.timeout, settings.backlog) == ("typed", 7210, 1024)
