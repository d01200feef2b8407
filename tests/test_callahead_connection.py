"""One connection to a next hop: what it is asked, what comes back, and that no fault at any step is ever a "no"."""

import asyncio
import socket
import time
from typing import Any

import pytest

from rcptd.address import Recipient, parse
from rcptd.question import Absence, Found, NotFound, Unavailable
from rcptd.stores.callahead.connection import Connection, open_connection
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import HopTrouble, Outcome, Step, Trouble, counted_as
from tests.harness.dialling import HELLO, ask, at, come_true, connected, counted, dial, later, loop, run
from tests.harness.nexthop import (
    DROP,
    STALL,
    Action,
    Drip,
    Flood,
    Late,
    ScriptedHop,
    Session,
    Turns,
    address,
    by_recipient,
    greylisting,
    hanging_up_after,
)

__all__ = ["loop"]
A, B, C = "a@example.org", "b@example.org", "c@example.org"
KNOWN = by_recipient({A: "250 2.1.5 OK", C: "250 2.1.5 OK"})


# ---- what is said on the wire


def test_a_transaction_is_one_write_and_rset_parts_it_from_the_next() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": KNOWN}) as hop, connected(hop) as connection:
            assert await counted(connection, A, B, C) == ["yes", "no", "yes"]
            assert await counted(connection, A) == ["yes"]
            assert await ask(connection) == []
            assert connection.usable
            await connection.quit()
            assert not connection.usable
            assert hop.lines == [
                [f"EHLO {HELLO}", "MAIL FROM:<>", f"RCPT TO:<{A}>", f"RCPT TO:<{B}>", f"RCPT TO:<{C}>",
                 "RSET", "MAIL FROM:<>", f"RCPT TO:<{A}>", "QUIT"]
            ]  # fmt: skip

    run(scenario())


def test_a_transaction_can_be_ended_before_the_next_one_begins() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": KNOWN}) as hop, connected(hop) as connection:
            await connection.reset(until=later(5))
            assert await counted(connection, A) == ["yes"]
            await connection.reset(until=later(5))
            await connection.reset(until=later(5))
            assert await counted(connection, A) == ["yes"]
            assert hop.lines == [
                [f"EHLO {HELLO}", "MAIL FROM:<>", f"RCPT TO:<{A}>", "RSET", "MAIL FROM:<>", f"RCPT TO:<{A}>"]
            ]  # fmt: skip

    run(scenario())


@pytest.mark.parametrize("says", ["421 4.3.2 going", "503 5.5.1 what?", DROP, STALL], ids=repr)
def test_a_connection_that_does_not_take_the_end_is_used_no_more(says: Action) -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": KNOWN, "RSET": says}) as hop, connected(hop) as connection:
            assert await counted(connection, A) == ["yes"]
            await connection.reset(until=later(0.2))
            assert not connection.usable
            await connection.reset(until=later(0.2))

    run(scenario())


@pytest.mark.parametrize("pipelining", [True, False])
def test_commands_are_sent_ahead_only_where_that_is_offered(pipelining: bool) -> None:
    waiting: list[int] = []

    def decide(session: Session, _line: str) -> Action:
        buffered: bytearray = session.reader._buffer  # type: ignore[attr-defined]
        waiting.append(buffered.count(b"\r\n"))
        return "250 2.1.5 OK"

    async def scenario() -> None:
        hop = ScriptedHop({"RCPT": decide}, offers=("PIPELINING",) if pipelining else ())
        async with hop, connected(hop) as connection:
            assert await counted(connection, A, B, C) == ["yes"] * 3
            assert await counted(connection, A, B) == ["yes"] * 2

    run(scenario())
    assert waiting == ([2, 1, 0, 1, 0] if pipelining else [0] * 5)


def test_a_transaction_has_so_many_recipients_at_most() -> None:
    async def scenario() -> None:
        hop = ScriptedHop()
        async with hop, connected(hop, recipients_per_transaction=2) as connection:
            assert connection.room == 2
            assert await counted(connection, A, B, C) == ["yes"] * 3
        assert [line[:4] for line in hop.said] == ["EHLO", "MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT"]

    run(scenario())


def test_lmtp_says_lhlo_and_the_sender_is_the_operators() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop, connected(hop, "lmtp", sender="probe@example.org") as connection:
            assert await counted(connection, A) == ["yes"]
        assert hop.said == [f"LHLO {HELLO}", "MAIL FROM:<probe@example.org>", f"RCPT TO:<{A}>"]

    run(scenario())


def test_recipients_in_utf8_have_a_transaction_of_their_own() -> None:
    async def scenario() -> None:
        hop = ScriptedHop({"RCPT": by_recipient({"jörg@example.org": "250 OK", A: "250 OK"})})
        async with hop, connected(hop) as connection:
            assert await counted(connection, "jörg@example.org", A, "øst@example.org") == ["yes", "yes", "no"]
        assert hop.said[1:] == [
            "MAIL FROM:<>", f"RCPT TO:<{A}>",
            "RSET", "MAIL FROM:<> SMTPUTF8", "RCPT TO:<jörg@example.org>", "RCPT TO:<øst@example.org>",
        ]  # fmt: skip

    run(scenario())


def test_a_recipient_in_utf8_does_not_exist_where_utf8_is_not_offered() -> None:
    async def scenario() -> None:
        async with ScriptedHop(offers=()) as hop, connected(hop) as connection:
            (outcome,) = await ask(connection, "jörg@example.org")
            assert outcome == NotFound(Absence.UTF8)
            assert await counted(connection, "a@müller.example") == ["yes"]
        assert hop.said[1:] == ["MAIL FROM:<>", "RCPT TO:<a@xn--mller-kva.example>"]

    run(scenario())


def test_odd_addresses_are_quoted_and_overlong_ones_not_asked() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop, connected(hop) as connection:
            odd = '"a b"@example.org'
            assert await counted(connection, odd, "bare", "x" * 5000 + "@example.org") == [
                "yes", "yes", "cannot tell of the recipient",
            ]  # fmt: skip
        assert hop.said[2:] == [f"RCPT TO:<{odd}>", "RCPT TO:<bare>"]

    run(scenario())


def test_no_line_can_be_smuggled_in() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop, connected(hop) as connection:
            with pytest.raises(AssertionError):
                await connection.ask([Recipient("a>\r\nDATA\r\n", "example.org")], until=later(1))
            assert not connection.usable
        assert "DATA" not in hop.said

    run(scenario())


# ---- limits of the hop


def test_too_many_recipients_are_asked_about_in_further_transactions() -> None:
    def two_each(session: Session, _line: str) -> Action:
        since_mail = session.lines[::-1].index("MAIL FROM:<>")
        return "250 2.1.5 OK" if since_mail <= 2 else "452 4.5.3 too many recipients"

    async def scenario() -> None:
        async with ScriptedHop({"RCPT": two_each}) as hop, connected(hop) as connection:
            assert await counted(connection, *(f"{n}@example.org" for n in range(5))) == ["yes"] * 5
            assert connection.room == 2
            asked = [address(line)[0] for line in hop.said if line.startswith("RCPT")]
        assert asked == [*"01234", *"234"]

    run(scenario())


def test_one_recipient_cannot_be_too_many() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": "452 4.5.3 too many recipients"}) as hop, connected(hop) as connection:
            assert await counted(connection, A, B) == ["cannot tell of the recipient"] * 2
            assert connection.usable
            assert len(hop.said) == 7

    run(scenario())


def test_a_connection_that_heard_enough_refusals_is_used_no_more() -> None:
    async def scenario() -> None:
        addresses = [f"{n}@example.org" for n in range(30)]
        hop = ScriptedHop({"RCPT": hanging_up_after(20, soft=10, pause=5.0)})
        async with hop, connected(hop) as connection:
            assert connection.room == 8
            assert await counted(connection, *addresses) == ["no"] * 8 + ["ask again"] * 22
            assert (connection.usable, connection.room) == (False, 0)
            assert await counted(connection, A) == ["ask again"]
        mixed = ScriptedHop({"RCPT": KNOWN})
        async with mixed, connected(mixed, refusals_per_connection=2) as connection:
            assert await counted(connection, A, B) == ["yes", "no"]
            assert connection.room == 1
            assert await counted(connection, A, B, A) == ["yes", "no", "ask again"]

    run(scenario())


def test_a_hop_without_such_a_limit_is_asked_on() -> None:
    async def scenario() -> None:
        hop = ScriptedHop({"RCPT": "550 5.1.1 no"})
        async with hop, connected(hop, refusals_per_connection=0) as connection:
            assert await counted(connection, *(f"{n}@example.org" for n in range(50))) == ["no"] * 50
            assert connection.room == 20

    run(scenario())


def test_a_hop_that_hangs_up_for_too_many_errors_has_answered_those_before() -> None:
    async def scenario() -> None:
        hop = ScriptedHop({"RCPT": hanging_up_after(4)})
        async with hop, connected(hop, refusals_per_connection=0) as connection:
            assert await counted(connection, *(f"{n}@example.org" for n in range(6))) == ["no"] * 3 + ["refuses us"] * 3
            assert not connection.usable

    run(scenario())


def test_greylisting_and_refusals_are_of_one_recipient_each() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": greylisting()}) as hop, connected(hop) as connection:
            assert await counted(connection, A, B) == ["greylisted"] * 2
            assert await counted(connection, A, C) == ["yes", "greylisted"]
        table: dict[str, Action] = {A: "550 5.7.1 relaying denied", B: "550-5.2.1 off\n550 5.2.1 closed", C: "250 OK"}
        async with ScriptedHop({"RCPT": by_recipient(table)}) as hop, connected(hop) as connection:
            assert await counted(connection, A, B, C) == ["refuses us", "disabled", "yes"]
            assert connection.usable

    run(scenario())


# ---- every fault at every step


def limit(kinds: set[Trouble]) -> float:
    """Give the seconds to wait: few where waiting is all that will happen, else enough on a busy machine."""
    return 0.15 if Trouble.TIMEOUT in kinds else 5.0


FAULTS: dict[str, tuple[Action, set[Trouble]]] = {
    "drop": (DROP, {Trouble.BROKEN}),
    "half a reply, then drop": ((b"55", DROP), {Trouble.BROKEN}),
    "half of several lines, then drop": ((b"550-5.1.1 no such user\r\n", DROP), {Trouble.BROKEN}),
    "stall": (STALL, {Trouble.TIMEOUT}),
    "half a reply, then stall": ((b"550 5.1.1 no", STALL), {Trouble.TIMEOUT}),
    "drip": (Drip("550 5.1.1 no such user", 0.02), {Trouble.TIMEOUT}),
    "late": (Late("550 5.1.1 no such user", 5), {Trouble.TIMEOUT}),
    "endless lines": (Flood("550-5.1.1 no such user"), {Trouble.BROKEN}),
    "endless replies": (Flood("250 OK"), {Trouble.BROKEN}),
    "overlong line": (b"550 " + b"x" * 5000 + b"\r\n", {Trouble.BROKEN}),
    "no reply": (b"hello\r\n", {Trouble.BROKEN}),
    "binary": (b"\x16\x03\x01\0\n", {Trouble.BROKEN}),
    "yes and no": (b"250-yes\r\n550 no\r\n", {Trouble.BROKEN}),
    "out of step": ("354 go on", {Trouble.BROKEN, Trouble.REFUSED, Trouble.TLS, Trouble.AUTH}),
    "closing": (("421 4.3.2 bye", DROP), {Trouble.REFUSED, Trouble.TLS, Trouble.AUTH}),
}
REFUSALS = {
    "550 5.1.1 no such user": {Trouble.REFUSED, Trouble.TLS, Trouble.AUTH},
    "554 your address is on a list": {Trouble.REFUSED, Trouble.TLS, Trouble.AUTH},
    "450 4.7.1 later": {Trouble.REFUSED, Trouble.TLS, Trouble.AUTH},
}
ALL = FAULTS | {text: (text, kinds) for text, kinds in REFUSALS.items()}
EARLY = {"banner": Step.BANNER, "EHLO": Step.HELLO, "STARTTLS": Step.TLS, "AUTH": Step.AUTH}


async def troubles(hop: ScriptedHop, **options: Any) -> HopTrouble:
    with pytest.raises(HopTrouble) as caught:
        async with connected(hop, **options):
            pass
    return caught.value


@pytest.mark.parametrize("step", EARLY)
@pytest.mark.parametrize("name", ALL)
def test_a_fault_before_mail_is_trouble_within_the_limit(name: str, step: str) -> None:
    action, kinds = ALL[name]

    async def scenario() -> None:
        async with ScriptedHop({step: action}, offers=("STARTTLS", "AUTH PLAIN")) as hop:
            tls = {"tls": "opportunistic"} if step == "STARTTLS" else {}
            begun = time.monotonic()
            trouble = await troubles(hop, auth_user="u", auth_password="secret", reply_timeout=limit(kinds), **tls)
            assert time.monotonic() - begun < 3
            # One of endless replies may be a wrong answer before it is one too many, or be noticed a step later.
            endless = name == "endless replies"
            assert trouble.kind in kinds or (endless and trouble.kind in (Trouble.REFUSED, Trouble.TLS, Trouble.AUTH))
            assert trouble.step == EARLY[step] or endless
            assert str(trouble).startswith(f"smtp:127.0.0.1:{hop.port}: ")
            assert "secret" not in str(trouble)

    run(scenario())


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("step", ["RSET", "MAIL"])
@pytest.mark.parametrize("name", ALL)
def test_a_fault_at_rset_or_mail_is_trouble_for_every_recipient(name: str, step: str, pipelining: bool) -> None:
    action, kinds = ALL[name]

    async def scenario() -> None:
        says = {step: Turns("250 OK", action) if step == "MAIL" else action}
        hop = ScriptedHop(says, offers=("PIPELINING",) if pipelining else ())
        async with hop, connected(hop) as connection:
            assert await counted(connection, A) == ["yes"]
            outcomes = [*await ask(connection, A, B, C, within=limit(kinds)), *await ask(connection, A)]
            if name == "endless replies":
                # They are all 250, so some may be taken for what was asked about.
                assert not any(isinstance(outcome, NotFound) for outcome in outcomes)
            else:
                assert {trouble_of(outcome).kind for outcome in outcomes} <= kinds
                assert not connection.usable
            before = time.monotonic()
            await connection.quit(within=0.02)
            assert time.monotonic() - before < 0.5

    run(scenario())


def trouble_of(outcome: Outcome) -> HopTrouble:
    assert isinstance(outcome, HopTrouble), outcome
    return outcome


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_mid_transaction_is_trouble_for_those_not_answered(name: str, pipelining: bool) -> None:
    action, kinds = FAULTS[name]

    async def scenario() -> None:
        hop = ScriptedHop(
            {"RCPT": by_recipient({A: "550 5.1.1 no such user", B: action}, "250 OK")},
            offers=("PIPELINING",) if pipelining else (),
        )
        async with hop, connected(hop) as connection:
            begun = time.monotonic()
            first, *others = await ask(connection, A, B, C, within=limit(kinds))
            assert time.monotonic() - begun < 3
            assert {trouble_of(each).kind for each in others} <= kinds
            shifted = name in ("out of step", "endless replies")
            assert counted_as(first) == ("connection lost or nonsense" if shifted else "no")
            assert not connection.usable

    run(scenario())


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_reply_too_many_makes_no_recipient_a_no(pipelining: bool) -> None:
    """It could have been the next recipient's."""

    async def scenario() -> None:
        hop = ScriptedHop(
            {"RCPT": by_recipient({A: "550 5.1.1 no\n550 5.1.1 no"}, "250 OK")},
            offers=("PIPELINING",) if pipelining else (),
        )
        async with hop, connected(hop) as connection:
            assert await counted(connection, A, B, C) == ["connection lost or nonsense"] * 3
            assert not connection.usable

    run(scenario())


def test_a_hop_that_closes_after_the_last_answer_has_given_it() -> None:
    for closing in ("421 4.7.0 enough", DROP):

        async def scenario(closing: Action = closing) -> None:
            async with ScriptedHop({"RCPT": ("550 5.1.1 no", closing)}) as hop, connected(hop) as connection:
                assert await counted(connection, A) == ["no"]
                await come_true(lambda: not connection.usable)
                (outcome,) = await ask(connection, A)
                trouble = trouble_of(outcome)
                assert trouble.code == (0 if closing is DROP else 421)
                assert trouble.kind is (Trouble.BROKEN if closing is DROP else Trouble.REFUSED)

        run(scenario())


def test_a_connection_that_ends_or_babbles_while_idle_is_not_usable() -> None:
    for action in (DROP, "421 4.4.2 idle for too long", "250 hello?", b"25"):

        async def scenario(action: Action = action) -> None:
            says = {"RCPT": ("250 2.1.5 OK", Late(action, 0.1))}
            async with ScriptedHop(says) as hop, connected(hop) as connection:
                assert await counted(connection, A) == ["yes"]
                assert connection.usable
                await come_true(lambda: not connection.usable)
                await connection.quit(within=0.01)

        run(scenario())


# ---- time


def test_the_total_limit_is_kept_though_each_reply_is_in_time() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": Late("250 OK", 0.1)}) as hop, connected(hop) as connection:
            begun = time.monotonic()
            outcomes = await ask(connection, *(f"{n}@example.org" for n in range(50)), within=0.5)
            assert time.monotonic() - begun < 2.5
            assert isinstance(outcomes[0], Found)
            assert trouble_of(outcomes[-1]).kind is Trouble.TIMEOUT
            assert "no whole reply within" in str(outcomes[-1])
            assert not connection.usable

    run(scenario())


def test_a_question_whose_time_is_over_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop:
            async with connected(hop) as connection:
                assert await counted(connection, A, within=-1) == ["too slow"]
            with pytest.raises(HopTrouble) as caught:
                async with connected(hop, within=-1):
                    pass
            assert caught.value.kind is Trouble.CONNECT

    run(scenario())


def test_cancelling_closes_the_connection_at_once() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"RCPT": STALL}) as hop, connected(hop) as connection:
            task = asyncio.create_task(ask(connection, A))
            await come_true(lambda: len(hop.said) == 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not connection.usable
            await come_true(lambda: hop.open == 0)

    run(scenario())


def test_cancelling_while_it_opens_leaves_nothing_open() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"EHLO": STALL}) as hop:
            there = at(hop)
            opening = open_connection(there, dial(there), Dialogue(HELLO), until=later(5))
            task = asyncio.create_task(opening)
            await come_true(lambda: len(hop.said) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await come_true(lambda: hop.open == 0)

    run(scenario())


def test_the_pool_sees_how_old_and_how_idle_a_connection_is() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop, connected(hop) as connection:
            assert connection.opened == connection.idle_since
            await asyncio.sleep(0.01)
            await ask(connection, A)
            assert connection.idle_since > connection.opened
            assert connection.hop == at(hop)

    run(scenario())


def test_quitting_waits_only_so_long() -> None:
    async def scenario() -> None:
        async with ScriptedHop({"QUIT": STALL}) as hop, connected(hop) as connection:
            begun = time.monotonic()
            await connection.quit(within=0.05)
            assert time.monotonic() - begun < 0.5
            await connection.quit()
            connection.abort()

    run(scenario())


# ---- connecting


def opened(dialling: Any, *, timeout: float = 0.1) -> HopTrouble:
    async def scenario() -> Connection:
        there = at(ScriptedHop())
        return await open_connection(there, dialling, Dialogue(HELLO, reply_timeout=timeout), until=later(1))

    with pytest.raises(HopTrouble) as caught:
        run(scenario())
    return caught.value


def test_a_hop_that_cannot_be_reached() -> None:
    async def refused() -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    trouble = opened(refused)
    assert (trouble.kind, trouble.step, trouble.code) == (Trouble.CONNECT, Step.CONNECT, 0)
    assert str(trouble) == "smtp:127.0.0.1:0: connecting: [Errno 111] Connection refused"

    async def forever() -> socket.socket:
        await asyncio.Event().wait()
        raise AssertionError

    assert "not within the time" in str(opened(forever))


def test_a_socket_that_cannot_be_used_is_closed() -> None:
    wrong = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def datagrams() -> socket.socket:
        return wrong

    with pytest.raises(ValueError, match="Stream Socket"):
        opened(datagrams)
    assert wrong.fileno() == -1


def test_unavailable_is_said_of_a_recipient_by_an_overlong_address_only() -> None:
    async def scenario() -> None:
        async with ScriptedHop() as hop, connected(hop) as connection:
            long = parse("x" * 990 + "@example.org")
            (outcome,) = await connection.ask([long], until=later(1))
            assert outcome == Unavailable(f"{at(hop)}: not asked about so long an address", of_recipient=True)

    run(scenario())
