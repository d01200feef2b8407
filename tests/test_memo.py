"""A service that remembers: what counts for how long, who asks whom, and what is said while nobody answers."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema
from rcptd.address import Recipient, parse
from rcptd.memo import remembering
from rcptd.memo.file import MemoFile
from rcptd.memo.lifetimes import Lifetimes
from rcptd.memo.remembering import MOST_FLIGHTS, RETRY, Remembering
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Answer,
    Busy,
    Disabled,
    Found,
    Mailbox,
    NotFound,
    Posting,
    Quota,
    Remembers,
    Reports,
    Service,
    Table,
    Unavailable,
)
from tests.loops import on_loop

DOWN = Unavailable("down")
GREYLISTED = Unavailable("greylisted", of_recipient=True)
FULL = Found(Mailbox(quota=Quota(messages_limit=0)))
UNPROVEN = Found(Mailbox(unproven=True))
USER = parse("user@example.org")


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Backend:
    """A service that says what the test has it say."""

    next_hop = True

    def __init__(self) -> None:
        self.said: Answer | Exception = EXISTS
        self.per_recipient: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.hold: asyncio.Event | None = None
        self.closed = False

    async def ask(self, recipient: Recipient) -> Answer:
        self.asked.append(recipient.key)
        if self.hold:
            await self.hold.wait()
        if isinstance(self.said, Exception):
            raise self.said
        return self.per_recipient.get(recipient.key, self.said)

    async def aclose(self) -> None:
        self.closed = True

    def condition(self) -> str:
        return "" if self.said is EXISTS else "unwell"

    def explain(self, recipient: Recipient) -> list[str]:
        return [f"would ask about {recipient}"]


class Servers(Backend):
    """One that also asks servers by name."""

    async def ask_at(self, server: str, recipient: Recipient) -> Answer:
        return await self.ask(Recipient(recipient.local, server))


def lifetimes(**texts: Any) -> Lifetimes:
    faults: list[str] = []
    read = schema.read(Lifetimes, texts, lambda key, what: faults.append(f"{key}: {what}"))
    assert read, faults
    return read


class Desk:
    """A memory with its backend and its clock."""

    def __init__(
        self, backend: Backend | None = None, file: MemoFile | None = None, boot: float = 1000.0, **texts: Any
    ) -> None:
        self.clock = Clock(boot)
        self.backend = backend or Backend()
        self.memo = Remembering("b", self.backend, lifetimes(**texts), file=file, clock=self.clock)

    async def says(self, said: Answer | Exception, recipient: Recipient = USER) -> Answer:
        """Ask while the backend says something."""
        self.backend.said = said
        answer = await self.memo.ask(recipient)
        await self.settled()
        return answer

    async def settled(self) -> None:
        while self.memo._flights:
            await asyncio.gather(*self.memo._flights.values(), return_exceptions=True)
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


def test_it_is_a_service_and_no_table() -> None:
    memo = Desk().memo
    assert isinstance(memo, Service)
    assert isinstance(memo, Remembers)
    assert isinstance(memo, Reports)
    assert not isinstance(memo, Table)
    assert memo.next_hop


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (EXISTS, 7200), (NOT_FOUND, 120), (FULL, 300), (UNPROVEN, 3600), (GREYLISTED, 20), (DOWN, 0),
        (Found(Mailbox(disabled=Disabled())), 120), (Found(Mailbox(posting=Posting())), 120),
        (Found(Mailbox(moved_to="a@b.example")), 120), (Found(Mailbox(spelling="User@example.org")), 7200),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
@on_loop
async def test_each_kind_of_answer_counts_for_its_own_time(said: Answer, seconds: float) -> None:
    desk = Desk(refresh="90d")
    assert await desk.says(said) == said
    if seconds:
        desk.later(seconds - 1)
        assert desk.memo.recall(USER) == said
        assert await desk.memo.ask(USER) == said
        assert len(desk.backend.asked) == 1
        desk.later(1)
    assert isinstance(desk.memo.recall(USER), Busy)
    await desk.memo.ask(USER)
    assert len(desk.backend.asked) == 2


@on_loop
async def test_use_never_extends_the_life_of_an_answer() -> None:
    desk = Desk(refresh="90d")
    await desk.says(EXISTS)
    for _ in range(71):
        desk.later(100)
        assert desk.memo.recall(USER) == EXISTS
    desk.later(101)
    assert isinstance(desk.memo.recall(USER), Busy)


@on_loop
async def test_a_yes_in_use_is_asked_about_again_while_it_still_answers() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(15 * 60 - 1)
    assert desk.memo.recall(USER) == EXISTS
    await desk.settled()
    assert len(desk.backend.asked) == 1
    desk.later(1)
    desk.backend.said = FULL
    for _ in range(5):
        assert desk.memo.recall(USER) == EXISTS
    await asyncio.sleep(0)
    await desk.settled()
    assert len(desk.backend.asked) == 2
    assert desk.memo.recall(USER) == FULL
    assert desk.memo.counts["refreshed"] == 1


@on_loop
async def test_a_refresh_that_fails_replaces_nothing_and_is_tried_again_later() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(1000)
    desk.backend.said = DOWN
    assert desk.memo.recall(USER) == EXISTS
    await asyncio.sleep(0)
    await desk.settled()
    assert desk.memo.recall(USER) == EXISTS
    await asyncio.sleep(0)
    await desk.settled()
    assert len(desk.backend.asked) == 2
    desk.later(RETRY)
    desk.backend.said = EXISTS
    assert desk.memo.recall(USER) == EXISTS
    await asyncio.sleep(0)
    await desk.settled()
    assert len(desk.backend.asked) == 3


@on_loop
async def test_a_refresh_joins_a_question_that_is_under_way() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.memo._refresh("user@example.org", USER, "")
    desk.memo._refresh("user@example.org", USER, "")
    await desk.settled()
    assert len(desk.backend.asked) == 2


@on_loop
async def test_peeking_is_not_noticed() -> None:
    desk = Desk()
    assert isinstance(desk.memo.peek(USER), Busy)
    await desk.says(EXISTS)
    desk.later(1000)
    assert desk.memo.peek(USER) == EXISTS
    await asyncio.sleep(0)
    assert not desk.memo._flights
    desk.later(10_000)
    assert isinstance(desk.memo.peek(USER), Busy)


@on_loop
async def test_a_question_in_shadow_is_asked_past_the_memory() -> None:
    desk = Desk()
    assert await desk.memo.ask_in_shadow(USER) == EXISTS
    assert isinstance(desk.memo.peek(USER), Busy)


@on_loop
async def test_case_counts_as_it_may_for_the_next_hop() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    await desk.says(NOT_FOUND, parse("User@example.org"))
    assert desk.memo.recall(USER) == EXISTS
    assert desk.memo.recall(parse("User@example.org")) == NOT_FOUND
    assert desk.memo.recall(parse("user@EXAMPLE.org")) == EXISTS


# Nobody answers.


@on_loop
async def test_a_good_answer_stands_in_while_the_store_cannot_tell() -> None:
    desk = Desk(stale="1d")
    await desk.says(EXISTS)
    desk.later(7200 + 86400 - 1)
    assert await desk.says(DOWN) == EXISTS
    assert desk.memo.last_known(USER) == EXISTS
    assert desk.memo.counts["stale"] == 1
    desk.later(1)
    assert desk.memo.last_known(USER) is None
    assert await desk.says(DOWN) == DOWN


@pytest.mark.parametrize("said", [NOT_FOUND, FULL, UNPROVEN, Found(Mailbox(disabled=Disabled()))], ids=repr)
@on_loop
async def test_nothing_else_stands_in(said: Answer) -> None:
    desk = Desk()
    await desk.says(said)
    desk.later(86400)
    assert desk.memo.last_known(USER) is None
    assert await desk.says(DOWN) == DOWN


@on_loop
async def test_the_others_are_deferred_and_nothing_is_learnt_of_that() -> None:
    desk = Desk()
    assert await desk.says(DOWN) == DOWN
    assert await desk.says(EXISTS) == EXISTS


@on_loop
async def test_standing_in_may_be_forbidden() -> None:
    desk = Desk(stale="0s")
    await desk.says(EXISTS)
    desk.later(7200)
    assert await desk.says(DOWN) == DOWN


@on_loop
async def test_a_good_address_that_is_greylisted_now_stays_good() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    assert await desk.says(GREYLISTED) == EXISTS
    desk.later(100)
    assert await desk.says(DOWN) == EXISTS


@on_loop
async def test_a_good_address_that_was_full_meanwhile_stays_proven_against_a_no() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(FULL)
    desk.later(400)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)


@on_loop
async def test_a_store_that_fails_is_no_answer_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    assert await desk.says(ValueError("a bug")) == EXISTS
    assert isinstance(await desk.says(ValueError("a bug"), parse("other@example.org")), Unavailable)
    assert "a bug" in caplog.text


@on_loop
async def test_a_store_that_never_answers_does_not_keep_the_question_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "LONGEST_FLIGHT", 0.01)
    desk = Desk()
    desk.backend.hold = asyncio.Event()
    answer = await desk.memo.ask(USER)
    assert isinstance(answer, Unavailable)
    assert "no answer within" in answer.why


# Single flight.


@on_loop
async def test_many_ask_and_one_question_goes_out() -> None:
    desk = Desk()
    desk.backend.hold = asyncio.Event()
    askers = [asyncio.create_task(desk.memo.ask(USER)) for _ in range(50)]
    await asyncio.sleep(0.01)
    desk.backend.hold.set()
    assert await asyncio.gather(*askers) == [EXISTS] * 50
    assert len(desk.backend.asked) == 1
    assert desk.memo.counts["joined"] == 49


@on_loop
async def test_a_question_goes_on_when_all_who_asked_have_given_up() -> None:
    desk = Desk()
    desk.backend.hold = asyncio.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.memo.ask(USER), 0.01)
    desk.backend.hold.set()
    await desk.settled()
    assert desk.memo.recall(USER) == EXISTS
    assert len(desk.backend.asked) == 1


@on_loop
async def test_questions_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_FLIGHTS > 2000
    desk = Desk()
    await desk.says(EXISTS)
    monkeypatch.setattr(remembering, "MOST_FLIGHTS", 1)
    desk.backend.hold = asyncio.Event()
    first = asyncio.create_task(desk.memo.ask(parse("other@example.org")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert isinstance(await desk.memo.ask(parse("third@example.org")), Unavailable)
    desk.later(1000)
    assert desk.memo.recall(USER) == EXISTS  # a refresh is due, and has to wait
    await asyncio.sleep(0)
    assert len(desk.backend.asked) == 2
    desk.later(8000)
    assert await desk.memo.ask(USER) == EXISTS  # it stands in
    desk.backend.hold.set()
    assert await first == EXISTS


@on_loop
async def test_closing_ends_what_is_under_way_and_then_the_store() -> None:
    desk = Desk()
    desk.backend.hold = asyncio.Event()
    asking = asyncio.create_task(desk.memo.ask(USER))
    await asyncio.sleep(0.01)
    await desk.memo.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert desk.backend.closed
    await Desk().memo.aclose()


# A yes that turns into a no.


@on_loop
async def test_a_good_address_is_deferred_before_it_is_refused() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    first = await desk.says(NotFound(source="250 no"))
    assert isinstance(first, Unavailable)
    assert "not believed yet" in first.why
    assert "250 no" in first.why
    assert desk.memo.recall(USER) == first
    desk.later(121)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)  # asked again, at the pace of a no
    assert len(desk.backend.asked) == 3
    desk.later(3600)
    assert await desk.says(NOT_FOUND) == NOT_FOUND
    assert desk.memo.recall(USER) == NOT_FOUND


@on_loop
async def test_an_address_that_comes_back_is_good_at_once() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    assert desk.memo.last_known(USER) is None
    desk.later(121)
    assert await desk.says(EXISTS) == EXISTS
    desk.later(8000)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)  # and lands softly once more


@on_loop
async def test_an_address_that_is_gone_stays_deferred_while_the_store_is_down() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    desk.later(121)
    assert await desk.says(DOWN) == DOWN


@on_loop
async def test_who_was_good_long_ago_is_refused_at_once() -> None:
    desk = Desk(stale="1h")
    await desk.says(EXISTS)
    desk.later(3 * 3600 + 1)
    assert await desk.says(NOT_FOUND) == NOT_FOUND


@on_loop
async def test_the_soft_landing_may_be_left_out() -> None:
    desk = Desk(soft_landing="0s")
    await desk.says(EXISTS)
    desk.later(8000)
    assert await desk.says(NOT_FOUND) == NOT_FOUND


@on_loop
async def test_many_that_vanish_together_are_deferred_and_so_is_every_no(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(vanish=5, soft_landing="0s", vanish_hold="2h")
    people = [parse(f"user{number}@example.org") for number in range(8)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    answers = [await desk.says(NOT_FOUND, person) for person in people]
    assert answers[:4] == [NOT_FOUND] * 4
    assert all(isinstance(answer, Unavailable) for answer in answers[4:])
    assert "vanished together" in desk.memo.condition()
    assert "noes are deferred" in caplog.text
    stranger = await desk.says(NOT_FOUND, parse("never@example.org"))
    assert isinstance(stranger, Unavailable)
    assert await desk.says(NOT_FOUND, parse("never@other.example")) == NOT_FOUND
    desk.later(7201)
    assert await desk.says(NOT_FOUND, people[7]) == NOT_FOUND
    assert await desk.says(NOT_FOUND, parse("never@example.org")) == NOT_FOUND


@on_loop
async def test_a_purge_of_the_domain_says_that_the_noes_are_right() -> None:
    desk = Desk(vanish=1)
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    desk.memo.purge("other@example.org")
    assert "vanished" in desk.memo.condition()
    desk.memo.purge("@example.org")
    assert "vanished" not in desk.memo.condition()
    assert await desk.says(NOT_FOUND) == NOT_FOUND


@on_loop
async def test_addresses_that_are_back_end_the_guard() -> None:
    desk = Desk(vanish=5)
    people = [parse(f"user{number}@example.org") for number in range(8)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    for person in people:
        await desk.says(NOT_FOUND, person)
    desk.later(300)
    for person in people:
        await desk.says(EXISTS, person)
    assert desk.memo.condition() == ""
    assert await desk.says(NOT_FOUND, parse("never@example.org")) == NOT_FOUND


@on_loop
async def test_a_no_from_before_they_vanished_is_not_believed_either() -> None:
    desk = Desk(Servers(), vanish=2, no="1h")
    people = [parse(f"user{number}@example.org") for number in range(2)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    never = parse("never@example.org")
    assert await desk.says(NOT_FOUND, never) == NOT_FOUND
    assert await desk.memo.ask_at("b1.example", never) == NOT_FOUND
    assert desk.memo.recall(never) == desk.memo.peek(never) == NOT_FOUND
    for person in people:
        await desk.says(NOT_FOUND, person)
    assert isinstance(desk.memo.recall(never), Busy)
    assert isinstance(desk.memo.peek(never), Busy)
    assert isinstance(await desk.says(NOT_FOUND, never), Unavailable)
    assert isinstance(await desk.memo.ask_at("b1.example", never), Unavailable)


@on_loop
async def test_a_guard_ends_with_those_who_came_back_though_they_had_been_refused() -> None:
    desk = Desk(vanish=2, soft_landing="0s")
    people = [parse(f"user{number}@example.org") for number in range(2)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    for person in people:
        await desk.says(NOT_FOUND, person)
    assert desk.memo.condition()
    desk.later(200)
    for person in people:
        await desk.says(EXISTS, person)
    assert not desk.memo.condition()


@on_loop
async def test_what_has_begun_to_land_lands_for_as_long_as_was_said() -> None:
    desk = Desk(soft_landing="30d", vanish=0)
    await desk.says(EXISTS)
    desk.later(8000)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)
    desk.later(29 * 86400)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)
    desk.later(86400)
    assert await desk.says(NOT_FOUND) == NOT_FOUND


@on_loop
async def test_who_was_good_within_the_time_of_a_soft_landing_lands_softly() -> None:
    desk = Desk(yes="0s", stale="0s", soft_landing="1h")
    await desk.says(EXISTS)
    desk.later(600)
    assert isinstance(await desk.says(NOT_FOUND), Unavailable)


# A server that another store named.


@on_loop
async def test_a_server_is_asked_and_remembered_by_its_name() -> None:
    desk = Desk(Servers())
    assert await desk.memo.ask_at("b1.example", USER) == EXISTS
    assert await desk.memo.ask_at("b1.example", USER) == EXISTS
    assert desk.backend.asked == ["user@b1.example"]
    await desk.memo.ask_at("b2.example", USER)
    assert desk.backend.asked[1:] == ["user@b2.example"]
    assert isinstance(desk.memo.recall(USER), Busy)
    assert desk.memo.purge("user@example.org") == 2


@on_loop
async def test_a_yes_of_a_server_answers_while_the_server_is_asked_again() -> None:
    desk = Desk(Servers())
    await desk.memo.ask_at("b1.example", USER)
    desk.later(1000)
    desk.backend.hold = asyncio.Event()
    async with asyncio.timeout(1):
        assert await desk.memo.ask_at("b1.example", USER) == EXISTS
        assert await desk.memo.ask_at("b1.example", USER) == EXISTS
    desk.backend.hold.set()
    await desk.settled()
    assert desk.backend.asked == ["user@b1.example"] * 2


@on_loop
async def test_a_store_that_asks_no_servers_cannot_tell() -> None:
    assert isinstance(await Desk().memo.ask_at("b1.example", USER), Unavailable)


# For people.


@on_loop
async def test_what_is_remembered_can_be_shown_and_explained() -> None:
    desk = Desk()
    assert desk.memo.explain(USER) == ["remembered: nothing", "would ask about user@example.org"]
    await desk.says(Found(Mailbox(), "lmtp:unix:/l: 250 2.1.5 ok"))
    desk.later(200)
    number, ((key, lines),) = desk.memo.show("user@example.org", 10)
    assert number == 1
    assert key == "user@example.org"
    assert lines == [
        "found, as lmtp:unix:/l: 250 2.1.5 ok; learnt 3 min ago, counts for 117 min more",
        "asked about again when used, in 12 min",
        "stands in while the store cannot tell, for 7 d more",
    ]
    desk.later(800)
    assert "    asked about again when used" in desk.memo.explain(USER)
    desk.later(86400)
    await desk.says(NOT_FOUND)
    lines = desk.memo.explain(USER)
    assert "not believed yet" in lines[0]
    assert "said to be gone since 0 s" in "".join(lines)
    desk.later(500)
    assert "counts no more, since 6 min" in "".join(desk.memo.explain(USER))


@on_loop
async def test_an_explanation_tells_what_is_under_way_and_what_is_wrong() -> None:
    desk = Desk(vanish=1)
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    desk.backend.hold = asyncio.Event()
    asking = asyncio.create_task(desk.memo.ask(parse("other@example.org")))
    await asyncio.sleep(0.01)
    lines = desk.memo.explain(parse("other@example.org"))
    assert "a question is under way" in lines
    assert any("vanished together" in line for line in lines)
    assert desk.memo.condition().endswith("; unwell")
    desk.backend.hold.set()
    await asking


@on_loop
async def test_a_service_that_tells_nothing_of_itself_needs_not() -> None:
    class Plain:
        next_hop = False

        async def ask(self, _: Recipient) -> Answer:
            return EXISTS

        async def aclose(self) -> None: ...

    memo = Remembering("p", Plain(), lifetimes())
    assert memo.condition() == ""
    assert memo.explain(USER) == ["remembered: nothing"]


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("user@example.org", 3), ("USER@example.org", 3), ("@example.org", 1), ("", 0), ("nobody@example.org", 4),
        ("@org", 4),
    ],
)  # fmt: skip
@on_loop
async def test_a_purge_counts_at_once(what: str, left: int, tmp_path: Path) -> None:
    file = MemoFile(tmp_path / "memo.db")
    desk = Desk(file=file)
    people = [parse(text) for text in ("user@example.org", "other@example.org", "x@other.example", "third@example.org")]
    for person in people:
        await desk.says(EXISTS, person)
    assert desk.memo.purge(what) == 4 - left
    assert sum(not isinstance(desk.memo.peek(person), Busy) for person in people) == left
    file.flush().result(10)
    again = Desk(file=MemoFile(tmp_path / "memo.db"))
    assert len(again.memo._entries) == left
    file.close()


@on_loop
async def test_what_was_asked_before_a_purge_is_not_learnt_after_it() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.backend.hold = asyncio.Event()
    desk.later(1000)
    other = parse("other@example.org")
    asking = asyncio.create_task(desk.memo.ask(other))
    assert desk.memo.recall(USER) == EXISTS  # a refresh is under way, too
    await asyncio.sleep(0.01)
    desk.memo.purge("other@example.org")
    desk.backend.hold.set()
    assert await asking == EXISTS
    await desk.settled()
    assert isinstance(desk.memo.peek(other), Busy)
    desk.later(899)
    assert desk.memo.recall(USER) == EXISTS
    await desk.settled()
    assert desk.backend.asked.count("user@example.org") == 2  # the other one's purge took nothing from it


@on_loop
async def test_the_first_question_after_a_purge_joins_none_from_before_it() -> None:
    desk = Desk()
    desk.backend.hold = asyncio.Event()
    before = asyncio.create_task(desk.says(NOT_FOUND))
    await asyncio.sleep(0.01)
    desk.memo.purge("user@example.org")  # the mailbox has just been made
    desk.backend.per_recipient = {}
    after = asyncio.create_task(desk.memo.ask(USER))
    await asyncio.sleep(0.01)
    assert len(desk.backend.asked) == 2
    desk.backend.hold.set()
    assert await before == NOT_FOUND
    await after
    await desk.settled()
    assert desk.memo.peek(USER) == NOT_FOUND  # that is what the second one heard
    desk.backend.hold.clear()
    last = asyncio.create_task(desk.memo.ask(parse("last@example.org")))
    await asyncio.sleep(0.01)
    desk.memo.purge("")
    await desk.memo.aclose()
    assert last.cancelled() or (await asyncio.gather(last, return_exceptions=True))


@on_loop
async def test_a_purge_of_one_refuses_nobody_else_who_was_good() -> None:
    desk = Desk()
    await desk.says(EXISTS)
    desk.later(8000)
    desk.backend.hold = asyncio.Event()
    asking = asyncio.create_task(desk.says(NOT_FOUND))
    await asyncio.sleep(0.01)
    desk.memo.purge("other@example.org")
    desk.backend.hold.set()
    assert isinstance(await asking, Unavailable)


@on_loop
async def test_a_purge_of_one_believes_no_no_of_a_domain_that_vanished() -> None:
    desk = Desk(vanish=1)
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    never = parse("never@example.org")
    desk.backend.hold = asyncio.Event()
    asking = asyncio.create_task(desk.memo.ask(never))
    await asyncio.sleep(0.01)
    desk.memo.purge("never@example.org")
    desk.backend.hold.set()
    assert isinstance(await asking, Unavailable)


# Over a restart.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memo.db"


async def restarted(desk: Desk, path: Path, seconds: float = 0.0) -> Desk:
    """Begin again later, after another boot."""
    file = desk.memo._file
    assert file
    file.close()
    now = desk.memo._since_epoch + desk.clock.now + seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        return Desk(file=MemoFile(path), boot=5.0)


@on_loop
async def test_answers_survive_a_restart_with_their_age(path: Path) -> None:
    desk = Desk(file=MemoFile(path))
    await desk.says(EXISTS)
    await desk.says(NOT_FOUND, parse("nobody@example.org"))
    await desk.says(GREYLISTED, parse("grey@example.org"))
    again = await restarted(desk, path, 100)
    assert again.memo.recall(USER) == EXISTS
    assert again.memo.recall(parse("nobody@example.org")) == NOT_FOUND
    assert isinstance(again.memo.recall(parse("grey@example.org")), Busy)
    again.later(7200 - 101)
    assert isinstance(again.memo.recall(USER), Busy)  # a refresh is due, and there is no loop yet to ask on
    assert await again.memo.ask(USER) == EXISTS
    await asyncio.sleep(0)
    await again.settled()
    assert again.backend.asked == ["user@example.org"]


@on_loop
async def test_a_no_that_counts_no_more_is_not_read_and_a_yes_may_stand_in(path: Path) -> None:
    desk = Desk(file=MemoFile(path))
    await desk.says(EXISTS)
    await desk.says(NOT_FOUND, parse("nobody@example.org"))
    again = await restarted(desk, path, 20_000)
    assert len(again.memo._entries) == 1
    assert await again.says(DOWN) == EXISTS


@on_loop
async def test_a_soft_landing_goes_on_after_a_restart(path: Path) -> None:
    desk = Desk(file=MemoFile(path))
    await desk.says(EXISTS)
    desk.later(8000)
    await desk.says(NOT_FOUND)
    again = await restarted(desk, path, 60)
    assert again.memo.last_known(USER) is None
    assert isinstance(await again.says(NOT_FOUND), Unavailable)
    again.later(3700)
    assert await again.says(NOT_FOUND) == NOT_FOUND


@on_loop
async def test_the_guard_against_vanishing_goes_on_after_a_restart(path: Path) -> None:
    desk = Desk(file=MemoFile(path), vanish_hold="4h")
    people = [parse(f"user{number}@example.org") for number in range(10)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    for person in people:
        await desk.says(NOT_FOUND, person)
    desk.later(3500)
    for person in people:
        assert isinstance(await desk.says(NOT_FOUND, person), Unavailable)
    again = await restarted(desk, path, 600)
    assert "vanished together" in again.memo.condition()
    assert isinstance(await again.says(NOT_FOUND, people[0]), Unavailable)  # though the soft landing is over
    again.later(4 * 3600)
    assert await again.says(NOT_FOUND, people[0]) == NOT_FOUND


@on_loop
async def test_those_who_are_still_there_count_after_a_restart_too(path: Path) -> None:
    desk = Desk(file=MemoFile(path))
    people = [parse(f"user{number}@example.org") for number in range(50)]
    for person in people:
        await desk.says(EXISTS, person)
    desk.later(8000)
    for person in people[:10]:
        desk.backend.per_recipient[person.key] = NOT_FOUND
    for person in reversed(people):
        await desk.says(EXISTS, person)
    assert desk.memo.condition() == ""
    again = await restarted(desk, path, 60)
    assert "vanished" not in again.memo.condition()


@on_loop
async def test_a_clock_that_was_ahead_makes_no_answer_last_longer(path: Path) -> None:
    desk = Desk(file=MemoFile(path))
    await desk.says(EXISTS)
    again = await restarted(desk, path, -90_000)
    again.later(7201)
    assert isinstance(again.memo.recall(USER), Busy)


@on_loop
async def test_what_is_forgotten_in_memory_is_forgotten_in_the_file(path: Path) -> None:
    desk = Desk(file=MemoFile(path), most=100)
    for number in range(150):
        await desk.says(EXISTS, parse(f"user{number}@example.org"))
    again = await restarted(desk, path)
    assert len(again.memo._entries) == 100


def test_nothing_is_logged_below_a_warning_in_ordinary_use(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def use() -> None:
        desk = Desk()
        for said in (EXISTS, NOT_FOUND, DOWN, GREYLISTED):
            await desk.says(said)
            desk.later(8000)

    asyncio.run(use())
    assert caplog.text == ""
