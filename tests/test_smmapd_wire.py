"""Cyrus' words on the wire: requests whole, byte by byte and with more behind them, every outcome, and what waits."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcptd.netstring import encode
from rcptd.stores.cyrus.databases.errors import Held
from rcptd.stores.cyrus.judge import Judge, Judgement, Outcome
from rcptd_daemon.cyrus import murder as murder_module
from rcptd_daemon.cyrus import shutdown
from rcptd_daemon.cyrus.answers import Answers, Judges
from rcptd_daemon.cyrus.murder import Murder, Silence
from rcptd_daemon.cyrus.shutdown import ShutdownFile
from rcptd_daemon.cyrus.words import BUSY, CYRUS, TROUBLE
from rcptd_socketmap.connection import Connection
from tests.cyrus.vectors import Vector, vectors
from tests.test_socketmap_connection import Recorder
from tests.test_socketmap_server import until

NONE = b"31:NOTFOUND Mailbox does not exist,"
MISSING_KEY = b"31:PERM Bad protocol (missing key),"
MISSING_LENGTH = b"34:PERM Bad protocol (missing length),"
MISSING_TERMINATOR = b"38:PERM Bad protocol (missing terminator),"
WRONG_SIZE = b"53:PERM Bad protocol (request size doesn't match length),"


def judges(judge: Judge) -> Judges:
    """The real judge is what answers take; mypy checks this."""
    return judge


class StubJudge:
    """Knows `foo` and what it was told; each answer of a list once, its last for ever. Held is raised."""

    def __init__(self, **known: "list[Judgement | type[Exception]]") -> None:
        self.known = known
        self.asked: list[bytes] = []

    def judge(self, address: bytes) -> Judgement:
        self.asked.append(address)
        said = self.known.get(address.decode("latin-1"))
        if said is None:
            return Judgement(Outcome.OK if address in (b"foo", b"", b"a b") else Outcome.NONEXISTENT)
        first = said.pop(0) if len(said) > 1 else said[0]
        if isinstance(first, Judgement):
            return first
        raise first("a writer is at work")


def judgement(outcome: Outcome, **more: object) -> Judgement:
    return Judgement(outcome, **more)  # type: ignore[arg-type]


def exchange(pieces: list[bytes], *, end: bool = False, answers: Answers | None = None) -> tuple[bytes, bool]:
    """Give what is replied to some input, and whether the connection was closed."""

    async def main() -> tuple[bytes, bool]:
        transport = Recorder()
        connection = Connection(
            answers or Answers(StubJudge(), strict=False), peer="[unix socket]", on_lost=lambda _: None, dialect=CYRUS
        )
        connection.connection_made(transport)
        for piece in pieces:
            if not transport.closed:
                connection.data_received(piece)
        await asyncio.sleep(0)
        if end and not transport.closed:
            connection.eof_received()
        return transport.written, transport.closed

    return asyncio.run(main())


WELL_FORMED = {
    b"9:cyrus foo,": b"6:OK foo,",
    b"0009:cyrus foo,": b"6:OK foo,",
    b"5:x foo,": b"6:OK foo,",
    b"4: foo,": b"6:OK foo,",  # the map's name is ignored, also where it is missing
    b"6:cyrus ,": b"3:OK ,",
    b"9:cyrus a b,": b"6:OK a b,",  # the first space alone separates
    b"10:cyrus  foo,": NONE,
    b"13:cyrus foo\0bar,": b"6:OK foo,",  # cut, and echoed as it was cut
    b"14:cyrus foo\0 bar,": b"6:OK foo,",
    b"7:cyrus \xff,": NONE,
    b"9:cyrus foo,12:cyrus nosuch,5:x foo,": b"6:OK foo," + NONE + b"6:OK foo,",
    encode(b"n" * 5000 + b" foo"): b"6:OK foo,",
    encode(b"cyrus " + b"a" * 10_000): NONE,
}

BROKEN = {
    b"0:,": MISSING_KEY,
    b"5:cyrus,": MISSING_KEY,
    b"9:cyrus\tfoo,": MISSING_KEY,
    b"9:cy\0us foo,": MISSING_KEY,
    b"9:cyrus foox": MISSING_TERMINATOR,
    b"abc": MISSING_LENGTH,
    b" 5:x foo,": MISSING_LENGTH,
    b"-1:x,": MISSING_LENGTH,
    b"+9:cyrus foo,": MISSING_LENGTH,
    b"\r\n": MISSING_LENGTH,
    b":,": MISSING_LENGTH,
    b"21abc": MISSING_LENGTH,
    b"2147483648:": WRONG_SIZE,
    b"99999999999999999999999999999999999": WRONG_SIZE,
    encode(b"cyrus " + b"a" * 10_001): WRONG_SIZE,
}

CUT_SHORT = {
    b"21": MISSING_LENGTH,
    b"9:": WRONG_SIZE,
    b"9:cyr": WRONG_SIZE,
    b"9:cyrus foo": MISSING_TERMINATOR,
    b"0:": MISSING_TERMINATOR,
    b"": b"",
}


def bytewise(octets: bytes) -> list[bytes]:
    return [octets[at : at + 1] for at in range(len(octets))]


@pytest.mark.parametrize("request_", WELL_FORMED)
@pytest.mark.parametrize("cut", [lambda octets: [octets], bytewise], ids=["whole", "bytewise"])
def test_a_request_is_answered_and_the_connection_stays(request_: bytes, cut: Callable[[bytes], list[bytes]]) -> None:
    assert exchange(cut(request_)) == (WELL_FORMED[request_], False)
    assert exchange(cut(request_ + b"9:cyrus foo,")) == (WELL_FORMED[request_] + b"6:OK foo,", False)
    assert exchange(cut(request_), end=True) == (WELL_FORMED[request_], True)


@pytest.mark.parametrize("request_", BROKEN)
@pytest.mark.parametrize("cut", [lambda octets: [octets], bytewise], ids=["whole", "bytewise"])
def test_a_broken_request_is_told_once_and_ends_the_connection(
    request_: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    assert exchange(cut(request_)) == (BROKEN[request_], True)
    assert exchange(cut(b"9:cyrus foo," + request_ + b"9:cyrus foo,")) == (b"6:OK foo," + BROKEN[request_], True)


@pytest.mark.parametrize("request_", CUT_SHORT)
def test_half_a_request_is_told_at_its_end(request_: bytes) -> None:
    assert exchange([request_], end=True) == (CUT_SHORT[request_], True)
    assert exchange(bytewise(request_), end=True) == (CUT_SHORT[request_], True)
    assert exchange([b"9:cyrus foo," + request_], end=True) == (b"6:OK foo," + CUT_SHORT[request_], True)


@pytest.mark.parametrize(("request_", "reply"), CUT_SHORT.items())
def test_half_a_request_is_told_when_its_time_is_over(request_: bytes, reply: bytes) -> None:
    async def main() -> None:
        transport = Recorder()
        connection = Connection(
            Answers(StubJudge(), strict=False), peer="a client", on_lost=lambda _: None, dialect=CYRUS
        )
        connection.connection_made(transport)
        connection.data_received(request_)
        loop = asyncio.get_running_loop()
        connection.sweep(loop.time() + 359, idle=360, stall=360)
        assert not transport.closed
        connection.sweep(loop.time() + 361, idle=360, stall=360)
        assert (transport.written, transport.closed) == (reply, True)

    asyncio.run(main())


@pytest.mark.parametrize(
    "vector", [one for one in vectors() if not one.is_well_formed], ids=lambda one: f"{one.number}-{one.version}"
)
def test_the_recorded_errors_of_the_original_are_ours_to_the_first(vector: Vector) -> None:
    """Behind the first error older versions go on, and head closes as ours does."""
    said, closed = exchange([vector.request], end=True)
    assert closed
    assert said.split(b",")[-2].count(b"PERM Bad protocol") == 1
    assert vector.reply.startswith(said)
    if vector.version == "head":
        assert vector.reply == said


def test_a_thousand_requests_in_one_piece_are_a_thousand_replies() -> None:
    """The original answers 341 of them."""

    async def main() -> None:
        transport = Recorder()
        connection = Connection(
            Answers(StubJudge(), strict=False), peer="a client", on_lost=lambda _: None, dialect=CYRUS
        )
        connection.connection_made(transport)
        connection.data_received(b"9:cyrus foo," * 1000)
        await until(lambda: len(transport.written) == 9000)
        assert transport.written == b"6:OK foo," * 1000

    asyncio.run(main())


# Outcomes.

OUTCOMES = [
    (judgement(Outcome.OK), b"4:OK x,", b"4:OK x,"),
    (judgement(Outcome.NONEXISTENT), NONE, NONE),
    (judgement(Outcome.DENIED, text=b"no mail today"), b"22:NOTFOUND no mail today,", b"22:NOTFOUND no mail today,"),
    (judgement(Outcome.DENIED, text=b"a\tb\nc\0"), b"15:NOTFOUND a b c ,", b"15:NOTFOUND a b c ,"),
    (judgement(Outcome.DENIED, text=b""), b"9:NOTFOUND ,", b"9:NOTFOUND ,"),
    (judgement(Outcome.OVER_QUOTA), b"15:TEMP Over quota,", b"15:TEMP Over quota,"),
    (judgement(Outcome.OVER_QUOTA, final=True), b"15:PERM Over quota,", b"15:PERM Over quota,"),
    (
        judgement(Outcome.RESERVED),
        b"34:PERM Mailbox is currently reserved,",
        b"34:TEMP Mailbox is currently reserved,",
    ),
    (judgement(Outcome.NOT_POSTABLE), b"22:PERM Permission denied,", b"22:PERM Permission denied,"),
    (judgement(Outcome.UNKNOWN, text=b"mailboxes.db: secret"), BUSY, BUSY),
]


@pytest.mark.parametrize(("said", "faithful", "strict"), OUTCOMES, ids=lambda _: "")
def test_every_outcome_has_its_words(said: Judgement, faithful: bytes, strict: bytes) -> None:
    for mode, reply in ((False, faithful), (True, strict)):
        assert exchange([b"7:cyrus x,"], answers=Answers(StubJudge(x=[said]), strict=mode)) == (reply, False)


def test_a_long_deny_message_is_cut() -> None:
    said = judgement(Outcome.DENIED, text=b"m" * 5000)
    reply, _ = exchange([b"7:cyrus x,"], answers=Answers(StubJudge(x=[said]), strict=False))
    assert reply == encode(b"NOTFOUND " + b"m" * 4096)


def test_what_is_not_known_says_nothing_of_its_cause_and_is_temporary() -> None:
    assert BUSY.split(b":", 1)[1].startswith(b"TEMP ")
    assert TROUBLE.split(b":", 1)[1].startswith(b"TEMP ")


def test_a_judge_that_breaks_down_defers(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers(StubJudge(x=[ZeroDivisionError]), strict=False)
    assert exchange([b"7:cyrus x,9:cyrus foo,"], answers=answers) == (TROUBLE + b"6:OK foo,", False)
    assert "could not be judged" in caplog.text


# The audit log.


def test_the_audit_log_has_the_words_of_the_original(caplog: pytest.LogCaptureFixture) -> None:
    known: dict[str, list[Judgement | type[Exception]]] = {f"k{at}": [said] for at, (said, _, _) in enumerate(OUTCOMES)}
    answers = Answers(StubJudge(**known), strict=False, audits=True)
    with caplog.at_level(logging.INFO):
        exchange([b"".join(encode(b"cyrus " + key.encode()) for key in known), b"abc"], answers=answers)
    lines = [line for line in caplog.messages if line.startswith("auditlog: ")]
    words = {0: "ok", 1: "nonexistent", 5: "overquota", 6: "overquota", 7: "failed", 8: "failed", 9: "failed"}
    assert lines == [
        *(f"auditlog: {word} userid=<k{number}> client=<[unix socket]>" for number, word in words.items()),
        "auditlog: failed userid=<> client=<[unix socket]>",
    ]


# What waits.


def found_out(answers: Answers, key: bytes = b"x") -> bytes:
    async def main() -> bytes:
        reply = answers.begin("cyrus", key, "a client")
        assert isinstance(reply, Coroutine)
        async with asyncio.timeout(10):
            return await reply

    return asyncio.run(main())


def test_a_lock_is_waited_for_with_pauses_and_the_others_are_not_held_up() -> None:
    judge = StubJudge(x=[Held, Held, Held, judgement(Outcome.OVER_QUOTA)])
    assert found_out(Answers(judge, strict=False)) == b"15:TEMP Over quota,"
    assert judge.asked == [b"x"] * 4


def test_a_lock_that_stays_defers_at_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    judge = StubJudge(x=[Held])
    assert found_out(Answers(judge, strict=False, deadline=0.2)) == BUSY
    assert 4 <= len(judge.asked) < 50
    assert "locked for 0.2 s" in caplog.text


def test_replies_keep_their_order_behind_one_that_waits() -> None:
    async def main() -> None:
        transport = Recorder()
        answers = Answers(StubJudge(x=[Held, judgement(Outcome.OVER_QUOTA)]), strict=False)
        connection = Connection(answers, peer="a client", on_lost=lambda _: None, dialect=CYRUS)
        connection.connection_made(transport)
        connection.data_received(b"9:cyrus foo,7:cyrus x,9:cyrus foo,")
        assert transport.written == b"6:OK foo,"
        await until(lambda: b"quota" in transport.written)
        assert transport.written == b"6:OK foo,15:TEMP Over quota,6:OK foo,"

    asyncio.run(main())


@contextmanager
def backend(reply: bytes | None, *, then: float = 0.0) -> Iterator[tuple[int, list[bytes]]]:
    """A backend that says something, in two pieces, and keeps what it was asked; None says nothing for long."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        stop = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                if reply is None:
                    stop.wait(10)
                    return
                connection.sendall(reply[:5])
                stop.wait(0.05)
                connection.sendall(reply[5:])
                stop.wait(then)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], asked
        stop.set()
        thread.join(10)


REMOTE = judgement(Outcome.REMOTE, server=b"127.0.0.1")


def remote(port: int, *, strict: bool = False, deadline: float = 6.0, server: bytes = b"127.0.0.1") -> bytes:
    judge = StubJudge(x=[judgement(Outcome.REMOTE, server=server)])
    murder = Murder(Path("/nowhere"), port=port)
    return found_out(Answers(judge, strict=strict, murder=murder, deadline=deadline))


def test_a_backend_is_asked_as_the_original_asks_and_its_reply_relayed() -> None:
    with backend(b"21:PERM Over the moon 42,", then=1.0) as (port, asked):
        assert remote(port) == b"21:PERM Over the moon 42,"
        assert asked == [b"7:cyrus x,\x04"]


def test_what_follows_a_backends_reply_is_not_relayed() -> None:
    with backend(b"4:OK x,4:OK y,") as (port, _):
        assert remote(port) == b"4:OK x,"


@pytest.mark.parametrize("reply", [b"garbage that is none", b"9999:" + b"x" * 3000, b"20:OK and no more"])
def test_a_backend_that_gives_no_netstring_defers(reply: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with backend(reply) as (port, _):
        assert remote(port) == BUSY
    assert "gave no netstring" in caplog.text


def test_a_silent_backend_is_a_yes_at_the_deadline() -> None:
    with backend(None) as (port, _):
        assert remote(port, deadline=0.3) == b"4:OK x,"


def test_a_backend_that_closes_refuses_or_is_none_is_a_yes() -> None:
    with backend(b"") as (port, _):
        assert remote(port) == b"4:OK x,"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert remote(port) == b"4:OK x,"
    for server in (b"no such host", b"", b"\xff", b"a" * 300):
        assert remote(port, server=server, deadline=2.0) == b"4:OK x,"


def test_in_strict_a_remote_mailbox_is_not_known() -> None:
    assert remote(1, strict=True) == BUSY
    assert found_out(Answers(StubJudge(x=[REMOTE]), strict=False)) == BUSY  # and where nobody could be asked


@contextmanager
def mupdate(path: Path, *, silent: bool = False) -> Iterator[list[str]]:
    kicks: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        stop = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                kicks.append("kick")
                if silent:
                    stop.wait(10)
                else:
                    connection.sendall(b"ok")

        thread = threading.Thread(target=serve)
        thread.start()
        yield kicks
        stop.set()
        thread.join(10)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mupdate.target"


@pytest.mark.parametrize("strict", [False, True])
def test_a_missing_mailbox_is_looked_up_again_after_a_kick(target: Path, *, strict: bool) -> None:
    with mupdate(target) as kicks:
        judge = StubJudge(x=[judgement(Outcome.NONEXISTENT), judgement(Outcome.OK)])
        assert found_out(Answers(judge, strict=strict, murder=Murder(target), kicks=True)) == b"4:OK x,"
        assert kicks == ["kick"]


@pytest.mark.parametrize(("strict", "reply"), [(False, NONE), (True, BUSY)])
def test_a_kick_that_reaches_nobody_is_a_no_in_faithful_and_not_known_in_strict(
    target: Path, *, strict: bool, reply: bytes
) -> None:
    answers = Answers(StubJudge(), strict=strict, murder=Murder(target), kicks=True)
    assert found_out(answers) == reply
    with mupdate(target, silent=True):
        slow = Answers(StubJudge(), strict=strict, murder=Murder(target), kicks=True, deadline=0.3)
        assert found_out(slow) == reply


def test_nobody_is_kicked_where_there_is_no_murder() -> None:
    assert exchange([b"7:cyrus x,"], answers=Answers(StubJudge(), strict=False, murder=Murder(Path("/nowhere")))) == (
        NONE, False,
    )  # fmt: skip


def test_the_number_of_connections_to_backends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(murder_module, "AT_ONCE", 1)

    async def main() -> None:
        with backend(None) as (port, asked):
            murder = Murder(Path("/nowhere"), port=port)
            first = asyncio.create_task(murder.ask(b"127.0.0.1", b"x", 1.0))
            await until(lambda: asked)
            assert await murder.ask(b"127.0.0.1", b"y", 0.2) is Silence.NOTHING
            assert await first is Silence.NOTHING
            assert len(asked) == 1

    asyncio.run(main())


# msg/shutdown.


def test_a_shutdown_file_defers_everything_with_its_first_line(tmp_path: Path) -> None:
    now = [1000.0]
    message = tmp_path / "msg" / "shutdown"
    message.parent.mkdir()
    judge = StubJudge()
    answers = Answers(judge, strict=False, shutdown=ShutdownFile(tmp_path, "smmap", monotonic=lambda: now[0]))

    def ask() -> bytes:
        now[0] += shutdown.PERIOD
        return exchange([b"9:cyrus foo,"], answers=answers)[0]

    assert ask() == b"6:OK foo,"
    message.write_text('[Back at 7 "sharp" %s\r\nsecond line\n')
    assert ask() == encode(b"TEMP Back at 7 'sharp' ?s")
    assert judge.asked == [b"foo"]
    own = tmp_path / "msg" / "shutdown.smmap"
    own.write_text("smmap alone")
    assert ask() == encode(b"TEMP smmap alone")
    own.write_bytes(b"")
    assert ask() == TROUBLE
    own.unlink()
    message.unlink()
    message.mkdir()
    assert ask() == TROUBLE  # there, but no text
    message.rmdir()
    assert ask() == b"6:OK foo,"


def test_the_shutdown_file_is_looked_for_once_a_second(tmp_path: Path) -> None:
    now = [1000.0]
    file = ShutdownFile(tmp_path, "smmap", monotonic=lambda: now[0])
    (tmp_path / "msg").mkdir()
    assert file.reply() is None
    (tmp_path / "msg" / "shutdown").write_text("gone")
    now[0] += 0.9
    assert file.reply() is None
    now[0] += 0.1
    assert file.reply() == encode(b"TEMP gone")


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"9:cyrus foo,", b"6:OK foo,"),
        (b"0009:cyrus foo,", b"6:OK foo,"),
        (b"9:cyrus bar,", b"31:NOTFOUND Mailbox does not exist,"),
        (b"10:cyrus held,", None),
        (b"10:cyrus full,", b"15:TEMP Over quota,"),
        (b"9:cyrus far,", None),
        (b"11:cyrus wrong,", None),
        (b"8:cyrus foo,", None),
        (b"9:cyrus foo;", None),
        (b"4: foo,", None),
        (b"9:cyrus f\0o,", None),
        (b"x:cyrus foo,", None),
        (b"9:cyrus foo,9:cyrus foo,", None),
        (b"21:cyrus foo,9:cyrus foo,", b"31:NOTFOUND Mailbox does not exist,"),
        (b"606:cyrus " + b"f" * 600 + b",", None),
        (b"", None),
    ],
)
def test_a_plain_request_is_answered_at_once_or_left_alone(request_: bytes, reply: bytes | None) -> None:
    known: dict[str, list[Judgement | type[Exception]]] = {
        "held": [Held], "full": [judgement(Outcome.OVER_QUOTA)], "far": [judgement(Outcome.REMOTE)],
        "wrong": [ZeroDivisionError],
    }  # fmt: skip
    assert Answers(StubJudge(**known), strict=False).again(request_, "x") == reply
    assert Answers(StubJudge(**known), strict=False, audits=True).again(request_, "x") is None
