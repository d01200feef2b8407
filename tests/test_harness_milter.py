"""The MTA side of the milter protocol, against libmilter itself and against scripted milters."""

import asyncio
import importlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import milterpackets as wire
from tests.harness.milterwire import POSTFIX, Kind, MilterConnection, MilterTrouble, Stage, Step
from tests.harness.scriptedmilter import CONTINUE, agree, scripted
from tests.rig.require import require


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


# Against libmilter.


class Plain:
    """The plain milter in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/plain.sock"
        self.file = folder / "told"
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.plain_milter", self.address, str(self.file)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        end = time.monotonic() + 15
        while not (folder / "plain.sock").exists():
            assert self.process.poll() is None, "the plain milter has ended"
            assert time.monotonic() < end, "the plain milter does not listen"
            time.sleep(0.02)

    def told(self) -> list[list[Any]]:
        lines = self.file.read_text(encoding="ascii").splitlines()
        self.file.unlink()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    try:
        importlib.import_module("Milter")
    except ImportError:
        require(None, "pymilter is not installed")
    milter = Plain(tmp_path_factory.mktemp("plain"))
    yield milter
    milter.process.kill()
    milter.process.wait(10)


@pytest.mark.parametrize("version", [6, 2])
def test_libmilter_gives_each_recipient_its_reply(plain: Plain, version: int) -> None:
    async def test() -> None:
        async with MilterConnection(plain.address, version=version) as m:
            assert m.negotiated.version == version
            assert (await m.connect("client.example", "127.0.0.2", 4711)).kind is Kind.CONTINUE
            assert (await m.helo("client.example")).kind is Kind.CONTINUE
            assert (await m.mail("<a@b.example>", "SIZE=1000")).kind is Kind.CONTINUE
            assert (await m.rcpt("<user@example.org>")).kind is Kind.CONTINUE
            refused = await m.rcpt("<nobody@example.org>")
            assert (refused.code, refused.enhanced) == (550, "5.1.1")
            assert (await m.rcpt("<later@example.org>")).kind is Kind.TEMPFAIL

    run(test)
    told = plain.told()
    assert told[0] == ["connect", "client.example", ["127.0.0.2", 4711]]
    assert ["mail", "<a@b.example>", "SIZE=1000"] in told
    assert [line[1] for line in told if line[0] == "rcpt"] == [
        "<user@example.org>", "<nobody@example.org>", "<later@example.org>"
    ]  # fmt: skip


def test_steps_that_libmilter_declines_never_travel(plain: Plain) -> None:
    async def test() -> None:
        async with MilterConnection(plain.address) as m:
            await m.mail("<>")
            await m.rcpt("<user@example.org>")
            for reply in (await m.data(), await m.header("a", "b"), await m.end_of_headers(), await m.body(b"x")):
                assert reply.kind is Kind.NOT_ASKED
            assert (await m.end_of_message()).kind is Kind.CONTINUE
            assert {"DATA", "HEADER", "END OF HEADERS", "BODY"}.isdisjoint(m.travelled)

    run(test)
    plain.told()


def test_a_list_of_macros_that_libmilter_asks_for_replaces_the_default_one(plain: Plain) -> None:
    async def test() -> None:
        known = {"{client_addr}": "127.0.0.2", "i": "4711", "{auth_authen}": "joe"}
        async with MilterConnection(plain.address, macros=known) as m:
            assert m.negotiated.macros == {Stage.RCPT: ("{client_addr}", "{rcpt_addr}")}
            await m.mail("<a@b.example>")
            await m.rcpt("<User@example.org>")
        # Version 2 has no such list, so the default one goes out.
        async with MilterConnection(plain.address, version=2, macros=known) as m:
            await m.mail("<a@b.example>")
            await m.rcpt("<User@example.org>")

    run(test)
    new, old = (line[2] for line in plain.told() if line[0] == "rcpt")
    assert new == {
        "{rcpt_addr}": "User@example.org", "{rcpt_mailer}": None, "{client_addr}": "127.0.0.2",
        "{auth_authen}": "joe", "i": "4711",
    }  # fmt: skip
    assert (old["{client_addr}"], old["{rcpt_mailer}"]) == (None, "esmtp")


def test_one_connection_carries_several_transactions_and_several_sessions(plain: Plain) -> None:
    async def test() -> None:
        async with MilterConnection(plain.address, lists=POSTFIX) as m:
            for client in ("127.0.0.2", "::1"):
                await m.connect("x", client)
                await m.mail("<a@b.example>")
                await m.rcpt("<user@example.org>")
                await m.abort()
                await m.mail("<c@d.example>")
                assert (await m.rcpt("<nobody@example.org>")).code == 550
                await m.quit_new_connection()

    run(test)
    words = [line[0] for line in plain.told()]
    assert words.count("connect") == 2
    assert words.count("mail") == 4


# Against scripts.


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (wire.frame(b"c"), Kind.CONTINUE),
        (wire.frame(b"r"), Kind.REJECT),
        (wire.frame(b"t"), Kind.TEMPFAIL),
        (wire.frame(b"a"), Kind.ACCEPT),
        (wire.frame(b"d"), Kind.DISCARD),
        (wire.frame(b"s"), Kind.SKIP),
        (wire.frame(b"y", b"550 5.1.1 No such mailbox\0"), Kind.REPLY),
        (wire.frame(b"y", b"452 full\0"), Kind.REPLY),
    ],
)
def test_every_reply_is_read(packet: bytes, kind: Kind) -> None:
    async def test() -> None:
        async with scripted(agree(), packet) as (address, _), MilterConnection(address) as m:
            assert (await m.rcpt("<a@b>")).kind is kind

    run(test)


@pytest.mark.parametrize(
    ("packet", "what"),
    [
        (wire.frame(b"z"), "unknown reply"),
        (wire.frame(b"f"), "unknown reply"),
        (wire.frame(b"4"), "unknown reply"),
        (wire.frame(b"h", b"a\0b\0"), "unknown reply"),
        (wire.frame(b"y", b"550 5.1.1 No such mailbox"), "NUL"),
        (wire.frame(b"y", b"550 5.1.1 No\0 such\0"), "NUL"),
        (wire.frame(b"y", b"250 2.1.5 Fine\0"), "class 4 or 5"),
        (wire.frame(b"y", b"\0"), "class 4 or 5"),
        (wire.frame(b"y", b"550 4.2.2 x\0"), "mixes classes"),
        (struct.pack("!I", 0), "0 octets"),
        (struct.pack("!I", wire.PACKET_OCTETS + 1), "octets"),
        (b"\0\0\0\5y550", "closed"),
        (b"\0\0", "closed"),
        (b"", "closed"),
    ],
)
def test_what_is_no_reply_is_trouble(packet: bytes, what: str) -> None:
    async def test() -> None:
        async with scripted(agree(), packet) as (address, _), MilterConnection(address) as m:
            m.patience = 2
            with pytest.raises(MilterTrouble, match=what):
                # The script closes after its last answer; an empty one is that alone.
                await asyncio.gather(m.rcpt("<a@b>"), m.raw(wire.frame(b"M")))

    run(test)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (agree(version=7), "never offered"),
        (agree(version=1), "never offered"),
        (agree(actions=0x200), "never offered"),
        (agree(steps=0x20000000), "never offered"),
        (agree(lists=struct.pack("!I", 3) + b"i\0"), "SETSYMLIST"),
        (agree(actions=wire.SETSYMLIST, lists=struct.pack("!I", 9) + b"i\0"), "stage 9"),
        (agree(actions=wire.SETSYMLIST, lists=struct.pack("!I", 3) + b"i"), "cut short"),
        (wire.frame(b"O", b"\0\0\0\6"), "4 octets"),
        (CONTINUE, "negotiation"),
    ],
)
def test_a_milter_gets_nothing_that_was_not_offered(answer: bytes, what: str) -> None:
    async def test() -> None:
        async with scripted(answer) as (address, _):
            m = MilterConnection(address)
            with pytest.raises(MilterTrouble, match=what):
                await m.open()
            await m.close()

    run(test)


def test_no_wait_is_without_a_limit() -> None:
    async def test() -> None:
        async with scripted(agree(), hold=True) as (address, _):
            m = MilterConnection(address, patience=0.2)
            await m.open()
            with pytest.raises(MilterTrouble, match="no answer"):
                await m.rcpt("<a@b>")
            await m.close()

    run(test)


def test_progress_is_counted_and_does_not_last_for_ever() -> None:
    async def test() -> None:
        progress = wire.frame(b"p")
        async with scripted(agree(), progress * 3 + CONTINUE) as (address, _), MilterConnection(address) as m:
            assert (await m.rcpt("<a@b>")).progress == 3
        async with scripted(agree(), progress * 3, hold=True) as (address, _):
            m = MilterConnection(address, patience=0.2)
            await m.open()
            with pytest.raises(MilterTrouble, match="no answer"):
                await m.rcpt("<a@b>")
            await m.close()

    run(test)


def test_a_step_without_reply_is_told_and_not_waited_for() -> None:
    async def test() -> None:
        steps = Step.NR_CONNECT | Step.NO_HELO
        async with scripted(agree(steps=steps), b"", CONTINUE) as (address, told), MilterConnection(address) as m:
            assert (await m.connect()).kind is Kind.NO_REPLY
            assert (await m.helo("x")).kind is Kind.NOT_ASKED
            assert (await m.mail("<>")).kind is Kind.CONTINUE
            assert m.travelled == ["NEGOTIATE", "CONNECT", "MACRO", "MAIL"]
        assert [packet[:1] for packet in told[:4]] == [b"O", b"C", b"D", b"M"]

    run(test)


@pytest.mark.parametrize("letter", [b"a", b"d", b"s"])
def test_after_an_accept_the_later_recipients_are_not_asked_about(letter: bytes) -> None:
    async def test() -> None:
        answers = (agree(), wire.frame(letter), CONTINUE)
        async with scripted(*answers) as (address, _), MilterConnection(address) as m:
            assert (await m.rcpt("<a@b>")).kind is not Kind.NOT_ASKED
            assert (await m.rcpt("<c@d>")).kind is Kind.NOT_ASKED
            await m.abort()
            assert (await m.mail("<>")).kind is Kind.CONTINUE

    run(test)


def test_a_recipient_that_the_mta_refused_is_shown_only_where_asked_for() -> None:
    async def test() -> None:
        refusal = "550 5.1.1 User unknown"
        async with scripted(agree()) as (address, _), MilterConnection(address) as m:
            assert (await m.rcpt("<a@b>", rejected=refusal)).kind is Kind.NOT_ASKED
            assert m.travelled == ["NEGOTIATE", "MACRO"]
        steps = Step.REJECTED_RECIPIENTS
        async with scripted(agree(steps=steps), CONTINUE) as (address, _), MilterConnection(address) as m:
            assert (await m.rcpt("<a@b>", rejected=refusal)).kind is Kind.CONTINUE
            assert m.macros_sent[Stage.RCPT]["{rcpt_mailer}"] == "error"

    run(test)


def test_a_doubled_percent_sign_is_one() -> None:
    assert wire.reply(b"y", b"452 4.2.2 100%% full\0").text == "452 4.2.2 100% full"


def test_what_a_milter_says_unasked_is_noticed() -> None:
    async def test() -> None:
        async with scripted(agree(), CONTINUE * 2) as (address, _), MilterConnection(address) as m:
            await m.rcpt("<a@b>")
            assert await m.unasked(1) == CONTINUE
        async with scripted(agree(), CONTINUE, hold=True) as (address, _), MilterConnection(address) as m:
            await m.rcpt("<a@b>")
            assert await m.unasked(0.1) == b""

    run(test)


def test_nobody_listening_is_trouble() -> None:
    async def test() -> None:
        with pytest.raises(MilterTrouble, match="no connection"):
            await MilterConnection("unix:/nonexistent/x.sock").open()
        with pytest.raises(ValueError, match="write unix"):
            await MilterConnection("tcp:1").open()

    run(test)
