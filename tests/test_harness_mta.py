"""The harness MTA, asked over SMTP, asking scripted milters and socketmaps over their sockets."""

import asyncio
import base64
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.harness.case import Wanted
from tests.harness.cases import parse
from tests.harness.expect import MODES, Mode, expected, expected_of, word
from tests.harness.filters import Manner
from tests.harness.milterwire import Stage, Step
from tests.harness.mta import HarnessMTA, serve
from tests.harness.play import PASSWORD, play
from tests.harness.scriptedmilter import CONTINUE, agree, scripted
from tests.rig.dialogue import Dialogue
from tests.rig.ports import free_port, is_open, wait_until
from tests.rig.scripted import Fault, ScriptedSocketmap
from tests.rig.scripted_filter import ScriptedMilter

OWN = ["example.org"]
REFUSED = "550 5.1.1 No such mailbox"


def session(mta: HarnessMTA, *commands: str | bytes, source: str = "127.0.0.2") -> list[str]:
    """The replies to some commands in one session, as code and enhanced code."""
    with Dialogue(mta.port, source=source, timeout=10) as dialogue:
        replies = [dialogue.command(command) for command in commands]
    return [f"{reply.code} {reply.enhanced}".strip() for reply in replies]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


@pytest.fixture
def milter() -> Iterator[ScriptedMilter]:
    with ScriptedMilter({"nobody@example.org": REFUSED, "full@example.org": "452 4.2.2 Mailbox full"}) as milter:
        yield milter


@pytest.fixture
def socketmap() -> Iterator[ScriptedSocketmap]:
    with ScriptedSocketmap() as socketmap:
        yield socketmap


def rcpt(address: str) -> str:
    return f"RCPT TO:<{address}>"


def test_a_milter_refuses_and_the_rest_of_the_message_goes_on(milter: ScriptedMilter) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN) as mta:
            said = await asyncio.to_thread(
                session, mta, "MAIL FROM:<a@b>", rcpt("nobody@example.org"), rcpt("User@example.org"),
                rcpt("full@example.org"), "DATA", "Subject: x\r\n\r\nbody\r\n.",
                "MAIL FROM:<>", rcpt("full@example.org"), "RSET",
            )  # fmt: skip
            assert said == [
                "250 2.1.0", "550 5.1.1", "250 2.1.5", "452 4.2.2", "354", "250 2.0.0", "250 2.1.0",
                "452 4.2.2", "250 2.0.0",
            ]  # fmt: skip
            assert mta.messages == 1
            assert mta.trouble == []
            connection = mta.sessions[0].filters.milter
            assert connection
            assert connection.macros_sent[Stage.RCPT]["{rcpt_addr}"] == "full@example.org"
            assert {"HEADER", "BODY"}.isdisjoint(connection.travelled)

    run(test)
    assert "<User@example.org>" in milter.asked


def test_relaying_is_refused_before_anybody_is_asked(milter: ScriptedMilter) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN) as mta:
            to = ("MAIL FROM:<a@b>", rcpt("x@elsewhere.example"), rcpt("x@sub.example.org"))
            assert (await asyncio.to_thread(session, mta, *to))[1:] == ["550 5.7.1", "550 5.7.1"]
            assert milter.asked == []
            said = await asyncio.to_thread(session, mta, *to, source="127.0.0.1")
            assert said[1:] == ["250 2.1.5", "250 2.1.5"]
            assert len(milter.asked) == 2

    run(test)


def test_a_user_who_logs_in_may_relay_and_the_milter_learns_the_name(milter: ScriptedMilter) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN, users={"joe": PASSWORD}) as mta:
            good = base64.b64encode(f"\0joe\0{PASSWORD}".encode()).decode()
            bad = base64.b64encode(b"\0joe\0wrong").decode()
            said = await asyncio.to_thread(
                session, mta, f"AUTH PLAIN {bad}", f"AUTH PLAIN {good}", "MAIL FROM:<a@b>", rcpt("x@elsewhere.example")
            )
            assert said == ["535 5.7.8", "235 2.7.0", "250 2.1.0", "250 2.1.5"]
            connection = mta.sessions[0].filters.milter
            assert connection
            assert connection.macros_sent[Stage.MAIL]["{auth_authen}"] == "joe"

    run(test)


def test_parameters_of_mail_reach_the_milter() -> None:
    async def test() -> None:
        steps = Step.NO_CONNECT | Step.NO_HELO
        async with (
            scripted(agree(steps=steps), CONTINUE) as (address, told),
            HarnessMTA(milter=address, domains=OWN) as mta,
        ):
            mail = "MAIL FROM:<ü@b.example> SIZE=12345 SMTPUTF8 BODY=8BITMIME"
            assert await asyncio.to_thread(session, mta, mail) == ["250 2.1.0"]
            assert "M<ü@b.example>\0SIZE=12345\0SMTPUTF8\0BODY=8BITMIME\0".encode() in told

    run(test)


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.GARBLE, Fault.HALF, Fault.STALL])
def test_trouble_with_the_milter_defers_the_rest_of_the_session_only(milter: ScriptedMilter, fault: Fault) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN, patience=0.3) as mta:
            milter.fault = fault
            to = ("MAIL FROM:<a@b>", rcpt("one@example.org"), rcpt("two@example.org"), "RSET", "MAIL FROM:<c@d>")
            said = await asyncio.to_thread(session, mta, *to)
            assert said == ["250 2.1.0", "451 4.7.1", "451 4.7.1", "250 2.0.0", "451 4.7.1"]
            assert len(mta.trouble) == 1
            milter.fault = None
            assert (await asyncio.to_thread(session, mta, *to[:2])) == ["250 2.1.0", "250 2.1.5"]

    run(test)


def test_a_milter_that_is_down_defers() -> None:
    async def test() -> None:
        async with HarnessMTA(milter="unix:/nonexistent/x.sock", domains=OWN) as mta:
            assert await asyncio.to_thread(session, mta, "MAIL FROM:<a@b>") == ["451 4.7.1"]

    run(test)


@pytest.mark.parametrize(
    "typed",
    [
        "<<user@example.org>>", "<a b@example.org>", "<user@@example.org>",
        '<"open@example.org>', "<..@example.org>", "<\x01@example.org>",
        '<"a>b"@example.org>', "<@r.example:user@example.org>", "user@example.org",
    ],
)  # fmt: skip
def test_junk_reaches_the_filter_as_it_was_typed(milter: ScriptedMilter, typed: str) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN) as mta:
            said = await asyncio.to_thread(session, mta, "MAIL FROM:<a@b>", f"RCPT TO:{typed}")
            assert said[1] == "250 2.1.5"

    run(test)
    assert milter.asked == [typed]


@pytest.mark.parametrize(
    ("manner", "answer", "reply"),
    [
        ("key", "OK x", "250 2.1.5"),
        ("key", "OK 550 5.1.1 gone", "250 2.1.5"),  # any value is a yes to a recipient table
        ("key", "OK ", "451 4.3.5"),
        ("key", "OK", "451 4.3.5"),
        ("key", "NOTFOUND", "550 5.1.1"),
        ("key", "NOTFOUND text", "550 5.1.1"),
        ("key", "TEMP x", "451 4.3.0"),
        ("key", "TIMEOUT x", "451 4.3.0"),
        ("key", "PERM x", "451 4.3.5"),
        ("key", "ok x", "451 4.3.0"),
        ("access", "OK DUNNO", "250 2.1.5"),
        ("access", "OK 550 5.2.1 Mailbox disabled", "550 5.2.1"),
        ("access", "OK 452 4.2.2 full", "452 4.2.2"),
        ("access", "OK 550 no code", "550 5.7.1"),
        ("access", "OK 550 4.2.2 mixed", "550 5.2.2"),
        ("access", "OK user@example.org", "451 4.3.5"),
        ("access", "OK 550 5.1.1", "451 4.3.5"),
        ("access", "NOTFOUND", "250 2.1.5"),
        ("access", "TEMP x", "451 4.3.5"),
        ("error", "OK OK", "250 2.1.5"),
        ("error", 'OK error:4.2.2:"452 Mailbox full"', "452 4.2.2"),
        ("error", "OK error:4.2.2:452 Mailbox full", "451 4.4.3"),
        ("error", "OK user@example.org", "451 4.4.3"),
        ("error", "OK", "451 4.4.3"),
        ("error", "NOTFOUND", "550 5.1.1"),
        ("error", "PERM x", "550 5.1.1"),
        ("error", "TEMP x", "451 4.4.3"),
        ("key", Fault.DROP, "451 4.3.0"),
        ("key", Fault.HALF, "451 4.3.0"),
        ("key", Fault.GARBLE, "451 4.3.0"),
        ("key", Fault.STALL, "451 4.3.0"),
        ("error", Fault.STALL, "451 4.4.3"),
    ],
)
def test_the_reply_of_a_map_is_taken_in_its_manner(
    socketmap: ScriptedSocketmap, manner: Manner, answer: str | Fault, reply: str
) -> None:
    async def test() -> None:
        socketmap.default = answer
        patience = 0.3 if answer is Fault.STALL else 10.0
        async with HarnessMTA(socketmap=socketmap.postfix, manner=manner, domains=OWN, patience=patience) as mta:
            said = await asyncio.to_thread(session, mta, "MAIL FROM:<a@b>", rcpt("user@example.org"))
            assert said == ["250 2.1.0", reply]

    run(test)


def test_keys_are_folded_and_quotes_asked_about_twice_as_postfix_does(socketmap: ScriptedSocketmap) -> None:
    async def test() -> None:
        async with HarnessMTA(socketmap=socketmap.postfix, domains=OWN) as mta:
            to = ("MAIL FROM:<a@b>", rcpt("User+Tag@Example.ORG"), 'RCPT TO:<"a \\"b"@example.org>', rcpt("x@y"))
            said = await asyncio.to_thread(session, mta, *to, source="127.0.0.1")
            assert said[1:] == ["550 5.1.1", "550 5.1.1", "250 2.1.5"]
        async with HarnessMTA(socketmap=socketmap.postfix, manner="error", domains=OWN) as mta:
            await asyncio.to_thread(session, mta, *to[:2])
        async with HarnessMTA(socketmap=socketmap.postfix, manner="access", domains=OWN) as mta:
            await asyncio.to_thread(session, mta, to[0], to[3], source="127.0.0.1")

    run(test)
    assert socketmap.asked == [
        ("recipients", "user+tag@example.org"),
        ("recipients", '"a \\"b"@example.org'),
        ("recipients", 'a "b@example.org'),
        ("sendmail", "User+Tag@Example.ORG"),
        ("access", "x@y"),
    ]


def test_a_connection_cut_between_two_questions_is_opened_again(socketmap: ScriptedSocketmap) -> None:
    async def test() -> None:
        socketmap.default = "OK x"
        async with HarnessMTA(socketmap=socketmap.postfix, domains=OWN) as mta:

            def talk() -> list[int]:
                with Dialogue(mta.port, source="127.0.0.2", timeout=10) as dialogue:
                    dialogue.mail()
                    first = dialogue.rcpt("one@example.org")
                    socketmap.cut()
                    return [first.code, dialogue.rcpt("two@example.org").code]

            assert await asyncio.to_thread(talk) == [250, 250]
            assert mta.trouble == []

    run(test)
    assert socketmap.connections == 2


def test_a_client_that_vanishes_takes_its_connections_along(milter: ScriptedMilter) -> None:
    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN) as mta:

            def vanish() -> None:
                dialogue = Dialogue(mta.port, timeout=10)
                dialogue.mail()
                dialogue._socket.close()

            await asyncio.to_thread(vanish)
            assert await asyncio.to_thread(wait_until, lambda: not milter._open)

    run(test)


def test_serve_runs_until_it_is_cancelled() -> None:
    async def test() -> None:
        port = free_port()
        task = asyncio.create_task(serve("127.0.0.1", port, domains=OWN))
        assert await asyncio.to_thread(wait_until, lambda: is_open(port))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


# One source for expectations: what `expect` derives is what the harness does with the words of the table.

VERDICTS = [
    Wanted(250, "2.1.5"), Wanted(250, "2.1.5", ours=False), Wanted(550, "5.1.1"), Wanted(550, "5.1.2"),
    Wanted(551, "5.1.6"), Wanted(556, "5.1.10"), Wanted(550, "5.7.1"), Wanted(550, "5.2.1"), Wanted(450, "4.2.1"),
    Wanted(452, "4.2.2"), Wanted(552, "5.2.2"), Wanted(553, "5.1.3"), Wanted(553, "5.6.7"), Wanted(451, "4.4.3"),
    Wanted(451, "4.3.0"), Wanted(554, "5.7.9", as_written=True), Wanted(450, "4.7.9", as_written=True),
]  # fmt: skip


def rendered(wanted: Wanted, mode: Mode) -> str:
    """What the table of the design says a map replies."""
    if wanted.code == 250 and not wanted.ours:
        return "NOTFOUND "
    if mode in ("key", "smmapd"):
        return f"{word(wanted, mode)} text"
    if wanted.code == 250:
        return "OK DUNNO" if mode == "access" else "OK OK"
    reply = f"{wanted.code} {wanted.enhanced} text"
    return f"OK {reply}" if mode == "access" else f'OK error:{wanted.enhanced}:"{wanted.code} text"'


@pytest.mark.parametrize("mode", [mode for mode in MODES["harness"] if mode != "milter"])
def test_the_harness_does_what_is_expected_of_it(socketmap: ScriptedSocketmap, mode: Manner) -> None:
    async def test() -> None:
        async with HarnessMTA(socketmap=socketmap.postfix, manner=mode, domains=OWN) as mta:
            keys = [f"r{number}@example.org" for number in range(len(VERDICTS))]
            for key, wanted in zip(keys, VERDICTS, strict=True):
                socketmap.answers["*", key] = rendered(wanted, mode)
            said = await asyncio.to_thread(session, mta, "MAIL FROM:<a@b>", *map(rcpt, keys))
            for wanted, reply in zip(VERDICTS, said[1:], strict=True):
                code, _, enhanced = reply.partition(" ")
                meant = expected(wanted, mode, "harness")
                assert meant.meets(int(code), enhanced), f"{wanted} as {mode}: {reply}, not {meant}"

    run(test)


def test_a_case_is_played_from_its_client_with_its_login(milter: ScriptedMilter) -> None:
    file = parse(
        """\
store local
  user@example.org
case "a dialogue"
  client 127.0.0.9
  auth joe
  MAIL <> SIZE=100
  RCPT <nobody@example.org>   550 5.1.1
  RCPT <user@example.org>     accept
  MAIL <a@b>
  RCPT <full@example.org>     452 4.2.2
  RCPT <x@elsewhere.example>  not ours
case "without them"
  RCPT <x@elsewhere.example>  not ours
""",
        "x.txt",
    )

    async def test() -> None:
        async with HarnessMTA(milter=milter.postfix, domains=OWN, users={"joe": PASSWORD}) as mta:
            for case in file.cases:
                for heard in await asyncio.to_thread(play, case, mta.port):
                    meant = expected_of(case, heard.rcpt, file.world, "milter", "harness")
                    assert meant.meets(*heard.reply), str(heard)
            peer = mta.sessions[0].filters.milter
            assert peer
            assert peer.macros["{client_addr}"] == "127.0.0.9"

    run(test)
    assert len(milter.asked) == 4
