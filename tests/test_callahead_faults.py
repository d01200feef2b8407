"""The store against next hops that misbehave on demand: "do not know" or the right answer, in time, no wrong no."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from rcptd import schema
from rcptd.address import parse
from rcptd.question import EXISTS, NOT_FOUND, Answer, Found, NotFound, Unavailable
from rcptd.stores.callahead import hops, pool
from rcptd.stores.callahead.store import CallAhead, Settings, open_store
from tests.harness.nexthop import DROP, STALL, Action, Drip, Flood, Late, ScriptedHop, Turns, by_recipient, greylisting

ANNA, BOB, NOBODY = (parse(f"{name}@example.org") for name in ("anna", "bob", "nobody"))
THERE = by_recipient({"anna@example.org": "250 2.1.5 OK", "bob@example.org": "250 2.1.5 OK"})
EVERYBODY = "250 2.1.5 OK"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hops, "OPENING", 0.3)
    monkeypatch.setattr(pool, "CLOSING", 0.1)


def store(*on: ScriptedHop, protocol: str = "lmtp", **options: Any) -> CallAhead:
    faults: list[str] = []
    given = {"next_hops": [f"{protocol}:127.0.0.1:{one.port}" for one in on], "timeout": "1s", **options}
    settings = schema.read(Settings, given, lambda key, what: faults.append(f"{key}: {what}"))
    assert settings, faults
    return open_store("ahead", settings)


Scene = Callable[..., Coroutine[Any, Any, None]]


def play(scene: Scene, *hops_say: Mapping[str, Action], loop: str = "asyncio", **options: Any) -> None:
    """Run a scene with a store and the hops that it asks."""

    async def main() -> None:
        async with asyncio.timeout(20), AsyncExitStack() as stack:
            on = [await stack.enter_async_context(ScriptedHop({"RCPT": THERE, **says})) for says in hops_say]
            ahead = store(*on, **options)
            try:
                await scene(ahead, *on)
            finally:
                await ahead.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("protocol", ["lmtp", "smtp"])
def test_a_well_hop_is_right(loop: str, protocol: str) -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        for _ in range(3):
            assert isinstance(await ahead.ask(ANNA), Found)
            assert isinstance(await ahead.ask(NOBODY), NotFound)
        assert hop.connections == 1
        assert sum(line.startswith("RCPT TO:<rcptd-") for line in hop.said) == 1

    play(scene, {}, loop=loop, protocol=protocol)


def test_over_a_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        async with ScriptedHop({"RCPT": THERE}, path=tmp_path / "lmtp"):
            ahead = store(next_hops=f"lmtp:unix:{tmp_path}/lmtp")
            assert isinstance(await ahead.ask(ANNA), Found)
            await ahead.aclose()

    asyncio.run(main())


FAULTS: dict[str, Action] = {
    "refuses": "550 5.7.1 your address is on a list",
    "refuses barely": "554 no",
    "has no such user, it says": "550 5.1.1 no such user",
    "greylists": "450 4.7.1 come back",
    "421": ("421 4.3.2 going down", DROP),
    "421 and stays": "421 4.3.2 going down",
    "drops": DROP,
    "stalls": STALL,
    "drips": Drip("250 2.0.0 " + "x" * 500, 0.01),
    "floods": Flood("250-more"),
    "no reply": b"\0\xff\r\n",
    "half a line": (b"250 2.0", DROP),
    "two replies": ("250 2.0.0 one", "550 5.1.1 two"),
    "a line without end": b"250 " + b"x" * 100_000,
}
STEPS = ("banner", "LHLO", "MAIL", "RCPT", "RSET")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", list(FAULTS))
def test_no_fault_makes_a_no_of_somebody(fault: str, step: str) -> None:
    """Bob and Anna are there: whatever goes wrong, nobody may say they are not, but the hop at RCPT in clear words."""
    said_no = step == "RCPT" and fault in ("refuses barely", "has no such user, it says")

    async def scene(ahead: CallAhead, _: ScriptedHop) -> None:
        for recipient in (ANNA, BOB, ANNA):
            start = time.monotonic()
            answer = await ahead.ask(recipient)
            assert time.monotonic() - start < 1.5
            assert isinstance(answer, NotFound) == said_no, answer
            if step in ("banner", "LHLO", "MAIL"):
                # The second of two replies may come when the connection has been asked already.
                assert isinstance(answer, Unavailable) or (fault == "two replies" and isinstance(answer, Found))

    play(scene, {step: FAULTS[fault]}, timeout="400ms")


@pytest.mark.parametrize("step", ["banner", "LHLO", "MAIL"])
@pytest.mark.parametrize("fault", ["refuses", "greylists", "421", "drops", "no reply", "half a line"])
def test_what_says_nothing_of_the_recipient_falls_to_the_second_hop(fault: str, step: str) -> None:
    async def scene(ahead: CallAhead, first: ScriptedHop, second: ScriptedHop) -> None:
        for _ in range(5):
            assert isinstance(await ahead.ask(ANNA), Found)
            assert isinstance(await ahead.ask(NOBODY), NotFound)
        assert second.connections == 1
        if step != "MAIL":
            assert first.connections == 3, "its breaker is open"

    play(scene, {step: FAULTS[fault]}, {})


def test_a_dead_first_hop_costs_nothing_once_its_breaker_is_open() -> None:
    async def scene(ahead: CallAhead, first: ScriptedHop, second: ScriptedHop) -> None:
        await asyncio.gather(*(ahead.ask(ANNA) for _ in range(3)))
        start = time.monotonic()
        for _ in range(20):
            assert isinstance(await ahead.ask(ANNA), Found)
        assert time.monotonic() - start < 0.25
        assert first.connections == 3
        assert second.connections

    play(scene, {"banner": STALL}, {})


def test_a_hop_that_nobody_listens_at_falls_to_the_second() -> None:
    async def scene(ahead: CallAhead, first: ScriptedHop, second: ScriptedHop) -> None:
        await first.__aexit__()
        assert isinstance(await ahead.ask(ANNA), Found)
        assert second.connections == 1

    play(scene, {}, {})


def test_greylisting_ends_the_question_and_is_of_the_recipient() -> None:
    async def scene(ahead: CallAhead, first: ScriptedHop, second: ScriptedHop) -> None:
        answer = await ahead.ask(ANNA)
        assert isinstance(answer, Unavailable)
        assert answer.of_recipient
        assert not second.connections, "a second hop that knows less must not overrule it"
        assert isinstance(await ahead.ask(ANNA), Found)
        assert first.connections == 1
        assert "1 greylisted" in "\n".join(ahead.explain(ANNA))

    play(scene, {"RCPT": greylisting()}, {}, accept_all="ignore")


def test_a_hop_that_closes_idle_connections_costs_no_answer() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        for at in range(1, 6):
            assert isinstance(await ahead.ask(ANNA), Found)
            assert hop.connections == at
            for task in hop._tasks:
                task.cancel()
            await asyncio.sleep(0.02)

    play(scene, {})


@pytest.mark.parametrize("step", ["RSET", "MAIL", "RCPT"])
@pytest.mark.parametrize("fault", [("421 4.3.2 going down", DROP), DROP])
def test_a_hop_that_goes_when_it_is_asked_again_costs_no_answer(step: str, fault: Action) -> None:
    asked = Turns("250 2.0.0 OK", fault, "250 2.0.0 OK") if step != "RSET" else Turns(fault, "250 2.0.0 OK")

    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        assert isinstance(await ahead.ask(ANNA), Found)
        assert isinstance(await ahead.ask(BOB), Found)
        assert hop.connections == 2

    play(scene, {step: asked}, accept_all="ignore")


def test_a_hop_that_takes_everybody_is_found_out() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        for recipient in (ANNA, NOBODY):
            answer = await ahead.ask(recipient)
            assert isinstance(answer, Found)
            assert answer.mailbox.unproven
        assert hop.connections == 1

    play(scene, {"RCPT": EVERYBODY})


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_a_block_is_not_a_thousand_unknown_users(step: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        answers = await asyncio.gather(*(ahead.ask(parse(f"u{at}@example.org")) for at in range(100)))
        assert all(isinstance(one, Unavailable) for one in answers)
        assert ahead.condition() == f"smtp:127.0.0.1:{hop.port}: refuses us"

    listed = "550 5.7.1 Service unavailable, client [192.0.2.1] blocked using a list"
    play(scene, {step: listed}, protocol="smtp", accept_all="ignore")
    assert sum("refuses us" in one for one in caplog.messages) == 1


def test_a_slow_hop_does_not_slow_another_nor_a_local_lookup() -> None:
    async def scene(ahead: CallAhead, _: ScriptedHop) -> None:
        async with ScriptedHop({"RCPT": THERE}) as quick:
            other = store(quick)
            waiting = [asyncio.create_task(ahead.ask(parse(f"u{at}@example.org"))) for at in range(200)]
            await asyncio.sleep(0.1)
            start = time.monotonic()
            for ask in [other.ask] * 50:
                assert isinstance(await ask(ANNA), Found)
            assert time.monotonic() - start < 0.5
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await other.aclose()

    play(scene, {"RCPT": Late(EVERYBODY, 0.5)}, connections=20, accept_all="ignore")


def test_a_slow_hop_is_asked_by_as_many_connections_as_there_are_questions() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        start = time.monotonic()
        answers = await asyncio.gather(*(ahead.ask(parse(f"u{at}@example.org")) for at in range(50)))
        assert all(isinstance(one, Found) for one in answers)
        assert time.monotonic() - start < 0.9
        assert hop.most == 50

    play(scene, {"RCPT": Late(EVERYBODY, 0.3)}, connections=50, accept_all="ignore", timeout="5s")


def test_beyond_the_cap_recipients_share_transactions() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        answers: list[Answer] = await asyncio.gather(
            *(ahead.ask(ANNA if at % 2 else NOBODY) for at in range(200))
        )
        assert [isinstance(one, Found) for one in answers] == [at % 2 == 1 for at in range(200)]
        assert hop.most <= 4
        transactions = sum(line.startswith("MAIL") for line in hop.said)
        assert transactions < 60

    play(scene, {}, connections=4, accept_all="ignore", refusals_per_connection=0)


def test_a_hop_that_hangs_up_on_many_refusals_is_never_made_to() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        answers = await asyncio.gather(*(ahead.ask(parse(f"x{at}@example.org")) for at in range(100)))
        assert answers == [NOT_FOUND] * 100
        worst = max(sum(line.startswith("RCPT") for line in lines) for lines in hop.lines)
        assert worst <= 8

    play(scene, {}, connections=4, protocol="smtp")


def test_an_lmtp_hop_is_not_changed_for_its_refusals() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        for at in range(30):
            assert await ahead.ask(parse(f"x{at}@example.org")) == NOT_FOUND
        assert hop.most == 1
        assert len(hop.lines) == 1

    play(scene, {}, connections=4)


def test_whoever_gives_up_leaves_a_connection_that_goes_on() -> None:
    async def scene(ahead: CallAhead, hop: ScriptedHop) -> None:
        for _ in range(10):
            task = asyncio.create_task(ahead.ask(ANNA))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.3)
        assert await ahead.ask(ANNA) == EXISTS
        assert hop.most <= 4

    play(scene, {"RCPT": Late(EVERYBODY, 0.1)}, connections=4, accept_all="ignore")
