"""What was decided and still stands is given again, and never for longer than it stands."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from rcptd import settled as module
from rcptd.address import Recipient
from rcptd.decision import Told
from rcptd.drive import Driver
from rcptd.memo.remembering import Remembering
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Answer,
    Busy,
    Disabled,
    Found,
    Mailbox,
    Posting,
    Quota,
    Stands,
    Store,
    Unavailable,
)  # fmt: skip
from rcptd.settled import OCTETS, Ground, Settling
from rcptd.stores.memory import Memory
from rcptd.world import World
from rcptd_socketmap.maps import Maps
from rcptd_socketmap.verdicts import Verdicts
from tests.policies import OURS, milter, policy, reply
from tests.test_memo import Backend, Clock, lifetimes

RULES = '[[rules]]\nname = "r"\n' + OURS + 'verify = ["local"]\n'
USER = "user@example.org"


class Counted:
    """A table that stands as the test says, and counts its questions."""

    def __init__(self, answer: Answer | Busy = EXISTS) -> None:
        self.answer = answer
        self.token: object = self
        self.until = float("inf")
        self.broken = False
        self.asked = 0
        self.looks = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def lookup(self, _: Recipient) -> Answer | Busy:
        self.asked += 1
        answer = self.answer
        self.meanwhile()
        return answer

    def standing(self) -> object:
        self.looks += 1
        if self.broken:
            raise OSError("a bug")
        return self.token

    def stands_until(self, _: Recipient) -> float:
        return self.until

    def close(self) -> None:
        """Nothing is open."""


def world(store: Store, rules: str = RULES, *, other: Store | None = None, **more: object) -> World:
    return World(policy(rules), {"local": store, "other": other or Memory({})}, **more)  # type: ignore[arg-type]


def ask(driver: Driver, recipient: str = USER, **facts: Any) -> str:
    return reply(driver.decide_from_thread(milter(recipient, **facts)))


def asked_twice(driver: Driver, store: Counted, recipient: str = USER, **facts: Any) -> int:
    """Ask twice for the same; gives how often the store was asked. Both verdicts must be the same."""
    before = store.asked
    assert ask(driver, recipient, **facts) == ask(driver, recipient, **facts)
    return store.asked - before


def test_stores_that_can_tell_say_so() -> None:
    stores = (Memory({}), Counted(), Remembering("s", Backend(), lifetimes()))
    assert all(isinstance(store, Stands) for store in stores)


@pytest.mark.parametrize(
    "answer", [EXISTS, NOT_FOUND, Found(Mailbox(disabled=Disabled())), Found(Mailbox(moved_to="x@y"))]
)
def test_the_same_question_is_decided_once(answer: Answer) -> None:
    store = Counted(answer)
    assert asked_twice(Driver(world(store)), store) == 1


def test_a_recipient_of_nobody_and_the_postmaster_are_settled_without_a_store() -> None:
    driver = Driver(world(Counted()))
    for recipient in ("someone@example.net", "postmaster@example.org", "no address"):
        first = driver.decide_from_thread(milter(recipient))
        assert driver.decide_from_thread(milter(recipient)) is first


@pytest.mark.parametrize(
    "answer",
    [
        Unavailable("down"),
        Unavailable("greylisted", of_recipient=True),
        Busy("locked"),
        Found(Mailbox(disabled=Disabled(until=1.0))),
        Found(Mailbox(disabled=Disabled(temporary=True, until=4e9))),
    ],
)
def test_trouble_and_what_depends_on_the_hour_is_never_settled(answer: Answer | Busy) -> None:
    store = Counted(answer)
    assert asked_twice(Driver(world(store)), store) == 2


def test_trouble_is_not_settled_where_a_rule_makes_a_yes_of_it() -> None:
    store = Counted(Unavailable("down"))
    driver = Driver(world(store, RULES + 'unavailable = "accept"\n'))
    assert ask(driver) == "250 2.1.5"
    assert asked_twice(driver, store) == 2


def test_a_fault_of_ours_is_not_settled() -> None:
    store = Counted()
    driver = Driver(world(store))

    def fail() -> None:
        raise OSError("a bug")

    store.meanwhile = fail
    assert ask(driver) == "451 4.3.0"
    store.meanwhile = lambda: None
    assert ask(driver) == "250 2.1.5"


def test_another_token_or_none_is_another_ground() -> None:
    store = Counted()
    driver = Driver(world(store))
    assert ask(driver) == "250 2.1.5"
    store.answer, store.token = NOT_FOUND, object()
    assert ask(driver) == "550 5.1.1"
    store.token = None
    assert asked_twice(driver, store) == 2
    assert driver._settling.ground() is driver._settling.ground()  # and no new one for each question
    store.token = object()
    assert asked_twice(driver, store) == 1


def test_of_a_store_that_cannot_tell_nothing_is_settled() -> None:
    counted = Counted()

    class Silent:
        lookup = counted.lookup
        close = counted.close

    assert asked_twice(Driver(world(Silent())), counted) == 2
    both = world(Counted(NOT_FOUND), RULES.replace('"local"', '"local", "other"'), other=Silent())
    assert asked_twice(Driver(both), counted) == 2


def test_a_store_that_fails_to_tell_is_asked_each_time(caplog: pytest.LogCaptureFixture) -> None:
    store = Counted()
    driver = Driver(world(store))
    assert asked_twice(driver, store) == 1
    store.broken = True
    assert asked_twice(driver, store) == 2
    assert caplog.text.count("it is asked each time") == 1


def test_a_store_that_fails_to_tell_how_long_is_asked_each_time(caplog: pytest.LogCaptureFixture) -> None:
    store = Counted()
    driver = Driver(world(store))

    def fail(_: Recipient) -> float:
        raise OSError("a bug")

    store.stands_until = fail  # type: ignore[method-assign]
    assert asked_twice(driver, store) == 2
    assert "cannot be told" in caplog.text


def test_a_store_that_changes_while_it_is_asked_settles_nothing() -> None:
    store = Counted()
    driver = Driver(world(store))

    def change() -> None:
        store.answer, store.token = NOT_FOUND, object()

    store.meanwhile = change
    assert ask(driver) == "250 2.1.5"
    assert ask(driver) == "550 5.1.1"


def test_a_verdict_of_an_old_ground_does_not_reach_the_new_one() -> None:
    store = Counted()
    driver = Driver(world(store))
    settling: Settling[None] = driver.settling()
    ground = settling.ground()
    decision = driver.begin(milter())
    store.token = object()
    assert not ground.stands()  # as when another thread has asked meanwhile
    assert settling.ground() is not ground
    driver.settle(ground, USER, None, decision)
    assert settling.recall(USER) is None
    assert ground.recall(USER) is None


def test_a_reload_is_another_ground_though_the_stores_are_the_same() -> None:
    async def main() -> None:
        store = Counted()
        driver = Driver(world(store))
        assert ask(driver) == "250 2.1.5"
        driver.replace(world(store, '[[rules]]\nname = "r"\n' + OURS + 'reject = "550 5.7.1 No"\n'))
        assert ask(driver) == "550 5.7.1"
        await driver.aclose()

    asyncio.run(main())


def test_a_decision_under_another_policy_is_not_kept() -> None:
    one, other = world(Counted()), world(Counted())
    ground: Ground[None] = Ground(one)
    decision = Driver(other).begin(milter())
    ground.keep(USER, None, decision.case, decision.verdict, logged=False)
    assert ground.recall(USER) is None


def test_rules_in_shadow_see_every_question() -> None:
    store = Counted()
    driver = Driver(world(store, '[[rules]]\nname = "s"\nshadow = true\naccept = true\n' + RULES))
    assert asked_twice(driver, store) == 2


def test_each_refusal_has_its_own_reference_where_replies_have_one() -> None:
    store = Counted(NOT_FOUND)
    driver = Driver(world(store, reference_in_reply=True))
    first, second = (driver.decide_from_thread(milter()) for _ in range(2))
    assert first
    assert second
    assert first.text != second.text
    store.answer, store.token = EXISTS, object()
    assert ask(driver) == "250 2.1.5"  # finds that the store has changed
    assert asked_twice(driver, store) == 1


def test_whether_a_store_stands_is_looked_at_once_for_a_question() -> None:
    store = Counted()
    driver = Driver(world(store))
    for asked in (1, 0):  # new, then known
        before = store.looks
        assert asked_twice(driver, store, "new@example.org") == asked
        assert store.looks - before == 2


@pytest.mark.parametrize(
    "mailbox", [Mailbox(posting=Posting(networks=("192.0.2.0/24",))), Mailbox(quota=Quota(bytes_limit=10))]
)
def test_what_depends_on_who_asks_is_decided_each_time(mailbox: Mailbox) -> None:
    driver = Driver(world(Counted(Found(mailbox))))
    inside: dict[str, Any]
    outside: dict[str, Any]
    both: list[dict[str, Any]] = [
        {"client": IPv4Address(client), "size": size} for client, size in (("192.0.2.1", 1), ("198.51.100.1", 99))
    ]
    inside, outside = both
    assert ask(driver, **inside) == "250 2.1.5"
    assert ask(driver, **outside) in ("550 5.7.1", "552 5.2.3")
    assert ask(driver, **inside) == "250 2.1.5"


@pytest.mark.parametrize("when", ['sender = "a@b.example"', 'client = "192.0.2.1"', "authenticated = true"])
def test_rules_about_who_asks_are_asked_each_time(when: str) -> None:
    rules = f'[[rules]]\nname = "w"\nwhen = {{ {when} }}\nreject = "550 5.7.1 No"\n' + RULES
    driver = Driver(world(Counted(), rules))
    him: dict[str, Any] = {"sender": "a@b.example", "client": IPv4Address("192.0.2.1"), "authenticated": "a"}
    assert [ask(driver), ask(driver, **him), ask(driver)] == ["250 2.1.5", "550 5.7.1", "250 2.1.5"]


def test_an_address_in_utf_8_is_judged_by_each_transaction() -> None:
    driver = Driver(world(Counted()))
    assert ask(driver, "jürgen@example.org", smtputf8=True) == "250 2.1.5"
    assert ask(driver, "jürgen@example.org", smtputf8=False) == "553 5.6.7"


def test_what_is_remembered_is_forgotten_when_nobody_asks_again() -> None:
    store = Counted()
    ground: Ground[None] = Ground(world(store), most=10)
    driver = Driver(ground.world)

    def keep(recipient: str) -> None:
        decision = driver.begin(milter(recipient))
        driver.settle(ground, recipient, None, decision)

    keep(USER)
    for number in range(100):
        keep(f"junk{number}@example.org")
        assert ground.recall(USER) is not None
        assert len(ground._young) + len(ground._old) <= 10
    assert ground.recall("junk0@example.org") is None
    assert ground.recall("junk99@example.org") is not None


@pytest.mark.parametrize(("length", "kept"), [(OCTETS, True), (OCTETS + 1, False)])
def test_a_question_that_is_too_long_is_not_kept(length: int, kept: bool) -> None:
    driver = Driver(world(Counted()))
    recipient = "a" * (length - 12) + "@example.org"
    driver.decide_from_thread(milter(recipient))
    assert (driver._settling.ground().recall(recipient) is not None) is kept


def test_a_verdict_ends_with_the_answer_that_it_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1000.0)
    monkeypatch.setattr(module, "_monotonic", clock)
    store = Counted()
    store.until = clock.now + 10
    driver = Driver(world(store))
    assert asked_twice(driver, store) == 1
    clock.now += 9.9
    assert asked_twice(driver, store) == 0
    clock.now += 0.1
    assert asked_twice(driver, store) == 2  # both, as it has not told a later end


# The socketmap.


def map_of(store: Store, rules: str = RULES, told: list[Told] | None = None, **more: object) -> Verdicts:
    told = [] if told is None else told
    return Verdicts(Driver(world(store, rules), told.append, **more), Maps())  # type: ignore[arg-type]


def frame(text: str) -> bytes:
    return b"%d:%b," % (len(text.encode()), text.encode())


def test_a_request_is_answered_again_octet_by_octet_as_before() -> None:
    store = Counted()
    verdicts = map_of(store)
    request = frame(f"m {USER}")
    assert verdicts.again(request, "a") is None
    first = verdicts.begin("m", USER.encode(), "a")
    assert first == frame(f"OK {USER}")
    assert verdicts.again(request, "b") == first
    assert verdicts.again(frame(f"n {USER}"), "b") is None  # another map may have other rules
    assert verdicts.again(frame(f"m {USER.upper()}"), "b") is None
    assert verdicts.again(request[:-1], "b") is None
    assert store.asked == 1
    store.token = object()
    assert verdicts.again(request, "b") is None


def test_names_and_keys_that_are_no_utf_8_are_found_again() -> None:
    verdicts = map_of(Counted())
    first = verdicts.begin(b"\xff".decode("utf-8", "surrogateescape"), b"\xfe@example.org", "a")
    assert verdicts.again(b"15:\xff \xfe@example.org,", "a") == first


@pytest.mark.parametrize("answer", [EXISTS, NOT_FOUND])
def test_an_answer_that_is_given_again_is_logged_as_the_first_was(answer: Answer) -> None:
    told: list[Told] = []
    verdicts = map_of(Counted(answer), told=told)
    verdicts.begin("m", USER.encode(), "a")
    verdicts.again(frame(f"m {USER}"), "b")
    first, again = told
    assert (again.query, again.verdict, again.said) == (replace(first.query, session="b"), first.verdict, first.said)
    assert again.said == ("local", answer)
    assert again.reference != first.reference
    assert again.seconds == 0
    assert not again.abandoned


def test_nobody_is_told_of_what_is_not_logged() -> None:
    told: list[Told] = []
    verdicts = map_of(Counted(), told=told, is_logged=lambda _: False)
    verdicts.begin("m", USER.encode(), "a")
    assert verdicts.again(frame(f"m {USER}"), "b")
    assert len(told) == 1  # of decisions, whoever is told sorts them himself


def test_the_milter_is_logged_when_a_verdict_is_given_again() -> None:
    told: list[Told] = []
    driver = Driver(world(Counted(NOT_FOUND)), told.append)
    for session in ("a", "b"):
        driver.decide_from_thread(milter(session=session))
    assert [one.query.session for one in told] == ["a", "b"]


def test_a_session_recalls_what_needs_no_line_in_the_log() -> None:
    told: list[Told] = []
    store = Counted()
    driver = Driver(world(store), told.append, is_logged=lambda verdict: verdict is not None and verdict.code != 250)
    assert driver.recall(USER) is None
    assert asked_twice(driver, store) == 1
    settled = driver.recall(USER)
    assert settled
    assert reply(settled.verdict) == "250 2.1.5"
    assert len(told) == 1
    store.answer, store.token = NOT_FOUND, object()
    assert ask(driver) == "550 5.1.1"
    assert driver.recall(USER) is None
