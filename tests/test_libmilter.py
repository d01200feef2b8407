"""The listener on the real libmilter, driven by the MTA side of the milter protocol."""

import asyncio
import json
import os
import pwd
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from rcptd import verdict
from tests.harness.milterwire import POSTFIX, Kind, MilterConnection, Stage, Step

pytestmark = pytest.mark.daemon
REQUIRED = os.environ.get("RCPTD_REQUIRE_REAL") == "1"
if not REQUIRED:
    pytest.importorskip("Milter")

FAULT = f"451 4.3.0 {verdict.OUR_FAULT.text}"
GONE = "550 5.1.1 No such mailbox"
SCRIPTS = Path(__file__).parent / "miltertest"


class Served:
    """A listener in a process of its own."""

    def __init__(self, folder: Path, *, user: str = "", **settings: object) -> None:
        self.listen = str(settings.setdefault("listen", f"unix:{folder}/milter.sock"))
        self.path = Path(self.listen.removeprefix("unix:"))
        self._queries = folder / "queries"
        self._log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.milter_listener", json.dumps(settings), str(self._queries)]
            + [user] * bool(user),
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def _line(self) -> str:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], 10)
        assert ready, "the listener says nothing"
        return self.process.stdout.readline().decode().strip()

    def wait_ready(self) -> "Served":
        assert self._line() == "ready", self.log
        return self

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    def counts(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGUSR1)
        counts: dict[str, Any] = json.loads(self._line())
        return counts

    def settled(self, **wanted: int) -> dict[str, Any]:
        """Give the counts once they are as wanted, or the last after five seconds."""
        end = time.monotonic() + 5
        while True:
            counts = self.counts()
            if wanted.items() <= counts.items() or time.monotonic() > end:
                return counts
            time.sleep(0.02)

    def asked(self, recipient: str) -> list[dict[str, Any]]:
        lines = self._queries.read_text(encoding="ascii").splitlines()
        return [query for query in map(json.loads, lines) if query["recipient"] == recipient]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdout
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start listeners that end with the test."""
    started: list[Served] = []

    def start(folder: Path = tmp_path, *, user: str = "", **settings: object) -> Served:
        started.append(Served(folder, user=user, **settings))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A listener for all tests that leave it as it was."""
    listener = Served(tmp_path_factory.mktemp("milter"))
    try:
        yield listener.wait_ready()
    finally:
        listener.end()


def run(conversation: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await conversation

    asyncio.run(bounded())


# Negotiation


def test_version_6_carries_neither_headers_nor_body_nor_anything_else_unneeded(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            assert mta.negotiated.version == 6
            assert mta.negotiated.actions == 0x100  # SMFIF_SETSYMLIST: it changes no message
            assert mta.negotiated.steps == (
                Step.NO_HELO | Step.NO_DATA | Step.NO_UNKNOWN | Step.NO_HEADERS | Step.NO_END_OF_HEADERS
                | Step.NO_BODY | Step.NR_CONNECT | Step.NR_MAIL
            )  # fmt: skip
            assert mta.negotiated.macros == {
                Stage.CONNECT: ("{client_addr}",),
                Stage.MAIL: ("i", "{auth_authen}"),
                Stage.RCPT: ("i", "{rcpt_mailer}", "{rcpt_addr}"),
            }
            assert (await mta.connect("client.example", "192.0.2.7")).kind is Kind.NO_REPLY
            await mta.helo("client.example")
            assert (await mta.mail("<a@example.net>")).kind is Kind.NO_REPLY
            assert (await mta.rcpt("<ok@example.org>")).kind is Kind.CONTINUE
            await mta.data()
            await mta.header("Subject", "x")
            await mta.end_of_headers()
            await mta.body(b"x" * 65535)
            assert (await mta.end_of_message()).kind is Kind.CONTINUE
            assert await mta.unasked(0.1) == b""
            assert set(mta.travelled) == {
                "NEGOTIATE", "CONNECT", "MAIL", "MACRO", "RCPT", "END OF MESSAGE",
            }  # fmt: skip

    run(conversation())


@pytest.mark.parametrize(
    ("version", "steps"), [(2, None), (2, 0x1), (3, 0x17F), (4, 0x37F), (6, 0x1), (6, 0xFFFFFFFF), (60, None)]
)
def test_any_offer_works_down_to_version_2_without_a_choice_of_steps(
    served: Served, version: int, steps: int | None
) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen, version=version, steps=steps) as mta:
            assert mta.negotiated.version == min(version, 6)
            await mta.connect("client.example", "192.0.2.7")
            await mta.helo("client.example")
            for _ in range(2):
                for answer in (
                    await mta.mail("<a@example.net>", "SIZE=77"),
                    await mta.rcpt("<ok@example.org>"),
                ):
                    assert answer.kind in (Kind.CONTINUE, Kind.NO_REPLY, Kind.NOT_ASKED)
                assert str(await mta.rcpt("<gone@example.org>")) == GONE
                for answer in (
                    await mta.data(),
                    await mta.header("Subject", "caf\udce9"),
                    await mta.end_of_headers(),
                    await mta.body(b"\xff" * 65535),
                    await mta.end_of_message(),
                ):
                    assert answer.kind in (Kind.CONTINUE, Kind.NOT_ASKED)
                if version > 2:
                    assert (await mta.unknown("caf\udce9")).kind in (Kind.CONTINUE, Kind.NOT_ASKED)
            assert await mta.unasked(0.05) == b""

    run(conversation())


def test_a_connection_may_be_used_for_another_session(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            await mta.connect("one.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt("<gone@example.org>")) == GONE
            await mta.abort()
            await mta.quit_new_connection()
            await mta.connect("two.example", "192.0.2.8")
            await mta.mail("<>")
            assert (await mta.rcpt("<second-session@example.org>")).kind is Kind.CONTINUE

    run(conversation())
    (query,) = served.asked("<second-session@example.org>")
    assert query["client"] == "192.0.2.8"


# Questions and answers


def test_what_the_mta_knows_reaches_the_question(served: Served) -> None:
    async def conversation() -> None:
        macros = {"i": "4Xyz", "{auth_authen}": "joe"}
        async with MilterConnection(served.listen, macros=macros) as mta:
            await mta.connect("client.example", "2001:db8::7")
            await mta.mail("<Joe@example.net>", "SIZE=1000", "smtputf8")
            await mta.rcpt("<All+Facts@Example.ORG>", "NOTIFY=NEVER")

    run(conversation())
    (query,) = served.asked("<All+Facts@Example.ORG>")
    assert query == {
        "recipient": "<All+Facts@Example.ORG>",
        "front_end": "milter",
        "map": "",
        "sender": "Joe@example.net",
        "client": "2001:db8::7",
        "authenticated": "joe",
        "size": 1000,
        "smtputf8": True,
        "session": "4Xyz",
        "wire": "",
    }


@pytest.mark.parametrize(
    ("client", "macro", "told"),
    [("/run/x", "", None), ("", "192.0.2.9", "192.0.2.9"), ("", "", "nothing")],
)
def test_a_client_without_an_address(served: Served, client: str, macro: str, told: str | None) -> None:
    recipient = f"<from-{told}@example.org>"

    async def conversation() -> None:
        macros = {"{client_addr}": macro} if macro else {}
        async with MilterConnection(served.listen, macros=macros) as mta:
            await mta.connect("client.example", client)
            await mta.mail("<>")
            await mta.rcpt(recipient)

    run(conversation())
    (query,) = served.asked(recipient)
    assert query.get("client", "nothing") == told


def test_rset_forgets_the_transaction_and_keeps_the_session(served: Served) -> None:
    async def conversation() -> None:
        macros = {"{auth_authen}": "joe", "i": "ONE"}
        async with MilterConnection(served.listen, macros=macros, lists=POSTFIX) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<a@example.net>", "SIZE=9")
            await mta.rcpt("<gone@example.org>")
            await mta.abort()
            mta.macros = {"{auth_authen}": "", "i": "TWO"}
            await mta.mail("<b@example.net>")
            await mta.rcpt("<after-rset@example.org>")
            await mta.end_of_message()
            await mta.mail("<>")
            await mta.rcpt("<after-message@example.org>")

    run(conversation())
    (query,) = served.asked("<after-rset@example.org>")
    assert (query["sender"], query["size"], query["authenticated"]) == ("b@example.net", 0, "")
    assert (query["client"], query["session"]) == ("192.0.2.7", "TWO")
    (query,) = served.asked("<after-message@example.org>")
    assert (query["sender"], query["client"]) == ("", "192.0.2.7")


def test_each_of_many_recipients_is_answered(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            for _ in range(300):
                assert (await mta.rcpt("<ok@example.org>")).kind is Kind.CONTINUE
                assert str(await mta.rcpt("<gone@example.org>")) == GONE
                assert str(await mta.rcpt("<full@example.org>")) == "452 4.2.2 Mailbox full"

    run(conversation())


def test_whom_the_mta_has_refused_is_not_asked_about(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            # As an MTA does where another milter wants to see rejected recipients.
            object.__setattr__(mta.negotiated, "steps", mta.negotiated.steps | Step.REJECTED_RECIPIENTS)
            answer = await mta.rcpt("<refused@example.org>", rejected="550 5.1.1 User unknown")
            assert answer.kind is Kind.CONTINUE
            assert str(await mta.rcpt("<gone@example.org>")) == GONE

    run(conversation())
    assert not served.asked("<refused@example.org>")


def test_a_routed_recipient_is_judged_where_it_is_asked_for(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    listener = serve(tmp_path, recipient="routed").wait_ready()

    async def conversation() -> None:
        async with MilterConnection(listener.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt("<@relay.example:gone@example.org>")) == GONE
            # Sendmail's macro has raw octets where the client typed them (measured).
            assert (await mta.rcpt("<rout\udce9d@example.org>")).kind is Kind.CONTINUE

    run(conversation())
    assert listener.asked("gone@example.org")
    assert listener.asked("rout\udce9d@example.org")


# Hostile bytes


@pytest.mark.parametrize(
    "recipient",
    [
        "<\udce9t\udce9@example.org>", "<\udc80@\udcff.example>", "<Ã¼@example.org>", "", "<>", "\x01\x7f", "@",
        "<" + "x" * 10_000 + "@example.org>", "<" + "\udcff" * 60_000 + ">",
    ],
    ids=lambda recipient: ascii(recipient)[:20],
)  # fmt: skip
def test_any_bytes_of_a_recipient_reach_the_decision(served: Served, recipient: str) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen, lists={}) as mta:
            object.__setattr__(mta.negotiated, "macros", {})
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<\udce9@example.net>", "SIZE=\udce9")
            assert (await mta.rcpt(recipient)).kind is Kind.CONTINUE
            assert str(await mta.rcpt("<gone@example.org>")) == GONE

    run(conversation())
    query = served.asked(recipient)[-1]
    assert (query["sender"], query["size"]) == ("\udce9@example.net", 0)


def test_a_packet_beyond_libmilters_bound_ends_that_session_only(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as well, MilterConnection(served.listen) as hostile:
            await well.connect("client.example", "192.0.2.7")
            await hostile.raw(struct.pack("!I", 1 << 30) + b"R")
            assert await hostile.closed_by_milter()
            await well.mail("<>")
            assert str(await well.rcpt("<gone@example.org>")) == GONE

    run(conversation())


def test_a_host_name_that_is_not_utf8_costs_nothing_but_the_name(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen, macros={"{client_addr}": "192.0.2.9"}) as mta:
            await mta.connect("h\udce9te.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt("<gone@example.org>")) == GONE
            assert (await mta.rcpt("<odd-name@example.org>")).kind is Kind.CONTINUE

    run(conversation())
    (query,) = served.asked("<odd-name@example.org>")
    assert query["client"] == "192.0.2.9"


# Faults


@pytest.mark.parametrize("recipient", ["<raise@example.org>", "<exit@example.org>", "<junk@example.org>"])
def test_a_decision_that_fails_defers_in_our_own_words(served: Served, recipient: str) -> None:
    before = served.counts()["faults"]

    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt(recipient)) == FAULT
            assert str(await mta.rcpt("<gone@example.org>")) == GONE
            assert (await mta.rcpt("<ok@example.org>")).kind is Kind.CONTINUE

    run(conversation())
    assert served.counts()["faults"] == before + 1
    assert "our fault at RCPT, session of client.example[192.0.2.7]" in served.log
    assert "untrapped" not in served.log


def test_replies_that_would_break_a_session_are_mended_or_deferred(served: Served) -> None:
    async def conversation() -> None:
        async with MilterConnection(served.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt("<percent@example.org>")) == "452 4.2.2 100? full 250 OK ?"
            assert str(await mta.rcpt("<mixed@example.org>")) == FAULT

    run(conversation())
    assert "cannot be told to an MTA" in served.log


def test_sessions_side_by_side_keep_apart(served: Served) -> None:
    async def one(number: int) -> None:
        async with MilterConnection(served.listen, patience=20) as mta:
            await mta.connect("client.example", f"192.0.2.{number}")
            for turn in range(5):
                await mta.mail(f"<{number}.{turn}@example.net>")
                assert (await mta.rcpt(f"<side-{number}-{turn}@example.org>")).kind is Kind.CONTINUE
                assert str(await mta.rcpt("<gone@example.org>")) == GONE
                await mta.abort()

    async def conversation() -> None:
        await asyncio.gather(*(one(number) for number in range(32)))

    run(conversation())
    for number in range(32):
        for turn in range(5):
            (query,) = served.asked(f"<side-{number}-{turn}@example.org>")
            assert (query["client"], query["sender"]) == (
                f"192.0.2.{number}",
                f"{number}.{turn}@example.net",
            )


def test_a_slow_decision_holds_up_its_own_session(served: Served) -> None:
    async def slow(mta: MilterConnection) -> float:
        begun = time.monotonic()
        assert str(await mta.rcpt("<slow@example.org>")) == GONE
        return time.monotonic() - begun

    async def conversation() -> None:
        async with MilterConnection(served.listen) as one, MilterConnection(served.listen) as other:
            for mta in (one, other):
                await mta.connect("client.example", "192.0.2.7")
                await mta.mail("<>")
                await mta.rcpt("<ok@example.org>")
            waiting = asyncio.create_task(slow(one))
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            for _ in range(100):
                assert str(await other.rcpt("<gone@example.org>")) == GONE
            assert time.monotonic() - begun < 1
            assert not waiting.done()
            assert await waiting >= 1.9

    run(conversation())


def test_sessions_are_counted_and_let_go_however_they_end(served: Served) -> None:
    assert served.settled(sessions=0)["sessions"] == 0

    async def conversation() -> None:
        async with MilterConnection(served.listen) as quits, MilterConnection(served.listen) as dies:
            for mta in (quits, dies):
                await mta.connect("client.example", "192.0.2.7")
                await mta.mail("<>")
                await mta.rcpt("<ok@example.org>")
            counts = served.counts()
            assert (counts["sessions"], counts["transactions"]) == (2, 2)
            await quits.end_of_message()
            await dies.close()
            counts = served.settled(sessions=1, transactions=0)
            assert (counts["sessions"], counts["transactions"]) == (1, 0)

    run(conversation())
    assert served.settled(sessions=0)["sessions"] == 0


def test_memory_does_not_grow_with_sessions(served: Served) -> None:
    async def sessions(number: int) -> None:
        for _ in range(number):
            async with MilterConnection(served.listen) as mta:
                await mta.connect("client.example", "192.0.2.7")
                await mta.mail("<a@example.net>")
                await mta.rcpt("<gone@example.org>")

    run(sessions(200))
    before = served.settled(sessions=0)["rss"]
    run(sessions(1000))
    # 1000 leaked contexts with their thread states would be 2 MiB and more.
    assert served.settled(sessions=0)["rss"] - before < 1 << 20


# The socket


def test_the_socket_has_its_mode_before_it_has_its_name(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660
    assert not served.path.with_name("milter.sock.new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_the_socket_has_the_owner_and_group_that_are_named(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    nobody = pwd.getpwnam("nobody")
    listener = serve(tmp_path, owner="nobody", group=nobody.pw_gid, mode="0600").wait_ready()
    there = listener.path.stat()
    assert (there.st_uid, there.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert stat.S_IMODE(there.st_mode) == 0o600


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_a_port_is_listened_to_and_a_second_listener_is_told_so(
    tmp_path: Path, serve: Callable[..., Served], family: str
) -> None:
    host = "127.0.0.1" if family == "inet" else "::1"
    with socket.create_server((host, 0), family=getattr(socket, f"AF_{family.upper()}")) as taken:
        port = taken.getsockname()[1]
    listen = f"{family}:{f'[{host}]' if family == 'inet6' else host}:{port}"
    listener = serve(tmp_path, listen=listen).wait_ready()

    async def conversation() -> None:
        async with MilterConnection(listener.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")
            await mta.mail("<>")
            assert str(await mta.rcpt("<gone@example.org>")) == GONE

    run(conversation())
    second = serve(tmp_path, listen=listen)
    assert second.process.wait(10) == 1
    assert "in use" in second.log


@pytest.mark.parametrize("what", ["no folder", "a file", "a file at .new"])
def test_what_is_in_the_way_of_a_path_is_said(
    tmp_path: Path, serve: Callable[..., Served], what: str
) -> None:
    path = tmp_path / ("gone/milter.sock" if what == "no folder" else "milter.sock")
    if what != "no folder":
        in_the_way = path if what == "a file" else path.with_name("milter.sock.new")
        in_the_way.write_text("precious", encoding="ascii")
    listener = serve(tmp_path, listen=f"unix:{path}")
    assert listener.process.wait(10) == 1
    assert str(path) in listener.log
    assert ("no directory" if what == "no folder" else "no socket") in listener.log
    if what != "no folder":
        assert in_the_way.read_text(encoding="ascii") == "precious"


@pytest.fixture(params=["", "nobody"], ids=["as we are", "as nobody"])
def home(request: pytest.FixtureRequest, serve: Callable[..., Served]) -> Iterator[Callable[[], Served]]:
    """Start listeners, one after the other, in a folder that belongs to the user they run as."""
    user: str = request.param
    if user and os.geteuid() != 0:
        pytest.skip("only root can become another user, and we are an ordinary one anyway")
    # Not pytest's folder, which is closed to all others.
    with tempfile.TemporaryDirectory(prefix="rcptd-") as folder:
        if user:
            shutil.chown(folder, user)
        yield lambda: serve(Path(folder), user=user).wait_ready()


def test_a_restart_overlaps_and_the_path_always_leads_to_a_listener(
    home: Callable[[], Served],
) -> None:
    old = home()

    async def conversation() -> None:
        async with MilterConnection(old.listen) as before, MilterConnection(old.listen) as idle:
            await idle.connect("client.example", "192.0.2.7")
            await before.connect("client.example", "192.0.2.7")
            await before.mail("<>")
            new = home()
            inode = new.path.stat().st_ino
            async with MilterConnection(new.listen) as after:
                await after.connect("client.example", "192.0.2.7")
                assert new.counts()["sessions"] == 1
                old.process.terminate()
                await asyncio.sleep(0.3)
                # The old one serves the transaction that it began, and begins no new one.
                assert str(await before.rcpt("<gone@example.org>")) == GONE
                await idle.mail("<>")
                answer = await idle.rcpt("<ok@example.org>")
                assert (answer.code, answer.enhanced) == (451, "4.3.2")
                await idle.abort()
                assert (await before.end_of_message()).kind is Kind.CONTINUE
                assert await asyncio.to_thread(old.process.wait, 5) == 0
                await after.mail("<>")
                assert str(await after.rcpt("<gone@example.org>")) == GONE
            assert new.path.stat().st_ino == inode
            async with MilterConnection(new.listen) as again:
                await again.connect("client.example", "192.0.2.7")
            new.process.terminate()
            assert await asyncio.to_thread(new.process.wait, 5) == 0
            assert not new.path.exists()

    run(conversation())


def test_a_killed_listener_leaves_a_path_that_the_next_one_takes(
    home: Callable[[], Served],
) -> None:
    killed = home()
    killed.process.kill()
    killed.process.wait(5)
    assert killed.path.exists()
    with socket.socket(socket.AF_UNIX) as stale:  # as a start leaves it that was killed half-way
        stale.bind(f"{killed.path}.new")
    shutil.chown(f"{killed.path}.new", killed.path.owner())
    listener = home()

    async def conversation() -> None:
        async with MilterConnection(listener.listen) as mta:
            await mta.connect("client.example", "192.0.2.7")

    run(conversation())


# An independent client


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.lua")), ids=lambda path: path.stem)
def test_miltertest_agrees(served: Served, script: Path) -> None:
    program = shutil.which("miltertest")
    if not program:
        if REQUIRED:
            pytest.fail("miltertest is missing: apt-get install miltertest")
        pytest.skip("miltertest is missing")
    done = subprocess.run(
        [program, "-D", f"socket={served.listen}", "-s", str(script)],
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
