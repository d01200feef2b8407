"""The driver on a real loop and real threads: every decision ends in time, and an accident defers."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from rcptd import decision as decision_module
from rcptd import drive
from rcptd.address import Recipient
from rcptd.decision import Decision, Told
from rcptd.drive import GRACE, MOST_SHADOWS, MOST_STRAYS, Driver
from rcptd.question import EXISTS, NOT_FOUND, Answer, Busy, Found, Mailbox, Store, Unavailable
from rcptd.stores.memory import Memory
from rcptd.trace import Asked
from rcptd.verdict import OUR_FAULT, Action, Verdict
from rcptd.world import World
from tests.policies import OURS, milter, policy, reply

RULES = '[[rules]]\nname = "r"\n' + OURS + 'verify = ["local"]\n'
Ask = Callable[[Recipient], Awaitable[Answer]]


class Slow:
    """A service that does as the test says."""

    def __init__(self, ask: Ask, *, next_hop: bool = False) -> None:
        self._ask = ask
        self.next_hop = next_hop
        self.asked = 0
        self.closed = 0

    async def ask(self, recipient: Recipient) -> Answer:
        self.asked += 1
        return await self._ask(recipient)

    async def aclose(self) -> None:
        self.closed += 1


class Local:
    """A table that does as the test says."""

    def __init__(self, lookup: Callable[[Recipient], Any]) -> None:
        self.lookup = lookup
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


async def exists(_: Recipient) -> Answer:
    return EXISTS


async def soon(_: Recipient) -> Answer:
    await asyncio.sleep(0.001)
    return EXISTS


async def hang(_: Recipient) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


def raising(error: BaseException) -> Ask:
    async def ask(_: Recipient) -> Answer:
        raise error

    return ask


def world(store: Store, *, rules: str = RULES, deadline: float = 5.0, **more: Any) -> World:
    stores: dict[str, Store] = {"local": store, "other": more.pop("other", Memory({}))}
    return World(policy(rules, **more.pop("policy", {})), stores, deadline, **more)


@pytest.fixture
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run a loop in a thread of its own, as the main thread runs it beside libmilter's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert not thread.is_alive()


def attached(driver: Driver, loop: asyncio.AbstractEventLoop | None = None) -> Driver:
    driver.attach(loop or asyncio.get_running_loop())
    return driver


async def decided(driver: Driver, recipient: str = "user@example.org") -> Decision:
    decision = driver.begin(milter(recipient))
    await driver.finish(decision)
    assert decision.done
    return decision


# Tables: decided at once, in whichever thread.


def test_tables_decide_at_once_without_any_loop() -> None:
    told: list[Told] = []
    driver = Driver(world(Memory({"user@example.org": EXISTS.mailbox})), told.append)
    decision = driver.begin(milter())
    assert decision.done
    assert reply(decision.verdict) == "250 2.1.5"
    assert reply(driver.decide_from_thread(milter("nobody@example.org"))) == "550 5.1.1"
    assert driver.decide_from_thread(milter("a@elsewhere.example")) is None
    assert len(told) == 3
    assert 0 <= decision.seconds < 1
    assert decision.trace.last_asked
    assert decision.trace.last_asked.answer is EXISTS


@pytest.mark.parametrize("error", [ValueError(), StopIteration(), StopIteration(EXISTS), KeyError(), RecursionError()])
def test_a_table_that_raises_defers(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def lookup(_: Recipient) -> Answer:
        raise error

    decision = Driver(world(Local(lookup))).begin(milter())
    assert decision.verdict == OUR_FAULT.said_by("fault")
    assert "deferred" in caplog.text


@pytest.mark.parametrize("nonsense", [None, True, "yes", EXISTS.mailbox])
def test_a_table_that_answers_nonsense_defers(nonsense: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert reply(Driver(world(Local(lambda _: nonsense))).begin(milter()).verdict) == "451 4.3.0"
    assert caplog.records


def test_a_rule_that_names_a_store_nobody_opened_defers(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(World(policy(RULES), {}))
    assert reply(asyncio.run(decided(driver)).verdict) == "451 4.3.0"
    assert caplog.records


def test_an_observer_that_raises_changes_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    def observe(_: Told) -> None:
        raise OSError("disk full")

    assert reply(Driver(world(Local(lambda _: EXISTS)), observe).begin(milter()).verdict) == "250 2.1.5"
    assert "could not be told of" in caplog.text


def test_a_reference_leads_from_the_reply_to_the_log() -> None:
    driver = Driver(world(Local(lambda _: NOT_FOUND), reference_in_reply=True))
    one, two = driver.begin(milter()), driver.begin(milter())
    assert one.verdict
    assert one.verdict.text == f"No such mailbox (ref {one.reference})"
    assert one.reference != two.reference
    assert Driver(world(Local(lambda _: EXISTS), reference_in_reply=True)).begin(milter()).verdict
    long = RULES.replace('verify = ["local"]', f'reject = "550 5.7.1 {"x" * 200}"')
    own = Driver(world(Local(lambda _: EXISTS), rules=long, reference_in_reply=True)).begin(milter())
    assert own.verdict
    assert own.verdict.text.endswith(f"x (ref {own.reference})")
    assert len(own.verdict.text) == 200


# Services, and tables that are busy: on the loop.


def test_a_service_decides_on_the_loop() -> None:
    async def run() -> None:
        driver = attached(Driver(world(Slow(soon))))
        decision = driver.begin(milter())
        assert not decision.done
        await driver.finish(decision)
        assert reply(decision.verdict) == "250 2.1.5"
        await driver.finish(decision)  # a second time changes nothing
        assert [type(entry) for entry in decision.trace.entries] == [Asked]

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [OSError("down"), TimeoutError(), asyncio.CancelledError(), StopIteration(), ValueError("x")], ids=repr
)
def test_a_service_that_raises_defers_and_is_not_taken_for_our_own_stop(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    decision = asyncio.run(decided(Driver(world(Slow(raising(error))))))
    assert decision.verdict == OUR_FAULT.said_by("fault")
    assert "a store failed" in caplog.text
    assert decision.trace.last_asked
    assert isinstance(decision.trace.last_asked.answer, Unavailable)


async def ignores_its_cancellation(_: Recipient) -> Answer:
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        try:
            await asyncio.sleep(until - time.monotonic())
        except asyncio.CancelledError:
            continue
    raise OSError("late")


async def answers_its_cancellation(_: Recipient) -> Answer:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return EXISTS
    raise AssertionError


async def blocks_the_loop(_: Recipient) -> Answer:
    time.sleep(0.2)  # noqa: ASYNC251 - that is the fault
    return EXISTS


@pytest.mark.parametrize("ask", [hang, ignores_its_cancellation, answers_its_cancellation, blocks_the_loop])
def test_a_service_is_late_at_the_deadline_whatever_it_does(ask: Ask) -> None:
    async def run() -> None:
        began = time.monotonic()
        decision = await decided(Driver(world(Slow(ask), deadline=0.1)))
        assert 0.1 <= time.monotonic() - began < 0.5
        assert reply(decision.verdict) == "451 4.4.3"
        assert decision.verdict
        assert decision.verdict.rule == "deadline"
        assert decision.trace.last_asked
        assert decision.trace.last_asked.answer == Unavailable("no answer by the deadline")

    asyncio.run(run())


def test_one_deadline_holds_for_all_questions_of_a_decision() -> None:
    async def slow_no(_: Recipient) -> Answer:
        await asyncio.sleep(0.06)
        return NOT_FOUND

    async def run() -> None:
        both = RULES.replace('["local"]', '["local", "other"]')
        began = time.monotonic()
        decision = await decided(Driver(world(Slow(slow_no), other=Slow(slow_no), rules=both, deadline=0.1)))
        assert time.monotonic() - began < 0.5
        assert reply(decision.verdict) == "451 4.4.3"

    asyncio.run(run())


def test_a_decision_that_reaches_the_loop_too_late_asks_nobody_for_long() -> None:
    async def run() -> None:
        store = Slow(hang)
        driver = attached(Driver(world(store, deadline=0.25)))
        decision = driver.begin(milter())
        await asyncio.sleep(0.26)
        began = time.monotonic()
        await driver.finish(decision)
        assert time.monotonic() - began < 0.2
        assert reply(decision.verdict) == "451 4.4.3"

    asyncio.run(run())


def test_a_store_whose_questions_do_not_end_is_asked_no_more() -> None:
    stuck = asyncio.Event()

    async def ignore(_: Recipient) -> Answer:
        while not stuck.is_set():
            try:
                await stuck.wait()
            except asyncio.CancelledError:
                continue
        return EXISTS

    async def run() -> None:
        store = Slow(ignore)
        driver = attached(Driver(world(store, deadline=0.05)))
        late = await asyncio.gather(*(decided(driver) for _ in range(MOST_STRAYS)))
        assert {reply(decision.verdict) for decision in late} == {"451 4.4.3"}
        decision = await decided(driver)
        assert store.asked == MOST_STRAYS
        assert decision.verdict
        assert decision.verdict.rule == "r"  # the rule's own "unavailable", at once
        stuck.set()
        await asyncio.sleep(0.01)
        assert reply((await decided(driver)).verdict) == "250 2.1.5"

    asyncio.run(run())


def test_a_new_store_does_not_pay_for_the_questions_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "MOST_STRAYS", 1)
    over = asyncio.Event()

    async def ignore(_: Recipient) -> Answer:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()
        return EXISTS

    async def run() -> None:
        stuck = Slow(ignore)
        driver = attached(Driver(world(stuck, deadline=0.05)))
        try:
            await decided(driver)
            driver.replace(world(stuck, deadline=0.05))
            await decided(driver)
            assert stuck.asked == 1, "it is the same store still"
            driver.replace(world(Slow(exists), deadline=0.05))
            assert reply((await decided(driver)).verdict) == "250 2.1.5"
        finally:
            over.set()
            await driver.aclose()

    asyncio.run(run())


def test_a_busy_table_is_asked_again_until_it_is_not() -> None:
    answers = iter([Busy("a writer")] * 3)

    async def run() -> None:
        driver = attached(Driver(world(Local(lambda _: next(answers, EXISTS)))))
        decision = driver.begin(milter())
        assert not decision.done
        await driver.finish(decision)
        assert reply(decision.verdict) == "250 2.1.5"

    asyncio.run(run())


def test_a_table_that_stays_busy_defers_at_the_deadline() -> None:
    asked = 0

    def lookup(_: Recipient) -> Busy:
        nonlocal asked
        asked += 1
        return Busy("a writer")

    decision = asyncio.run(decided(Driver(world(Local(lookup), deadline=0.3))))
    assert reply(decision.verdict) == "451 4.4.3"
    assert len(drive.BUSY_PAUSES) < asked < 20  # patient, and not spinning


def test_a_slow_store_holds_up_no_other_decision() -> None:
    async def run() -> None:
        store = Slow(lambda who: hang(who) if who.local == "slow" else soon(who))
        driver = attached(Driver(world(store, deadline=0.3)))
        slow = asyncio.create_task(decided(driver, "slow@example.org"))
        quick = await asyncio.gather(*(decided(driver) for _ in range(200)))
        assert not slow.done()
        assert {reply(decision.verdict) for decision in quick} == {"250 2.1.5"}
        assert reply((await slow).verdict) == "451 4.4.3"

    asyncio.run(run())


def test_an_asker_that_goes_away_cancels_the_question() -> None:
    cancelled = asyncio.Event()

    async def ask(_: Recipient) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async def run() -> None:
        driver = Driver(world(Slow(ask), rules=SHADOW + 'reject = "550 5.7.1 No"\n' + RULES))
        driver.attach(asyncio.get_running_loop())
        decision = driver.begin(milter())
        task = asyncio.create_task(driver.finish(decision))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), 1)
        assert decision.abandoned
        assert decision.verdict == OUR_FAULT.said_by("abandoned"), "were anybody to hear it, it would be a deferral"
        await asyncio.sleep(0.01)
        assert not driver.shadow_counts, "nothing is evaluated after a reply that nobody had"

    asyncio.run(run())


# From threads, as libmilter's.


def test_threads_hop_to_the_loop_for_a_service_and_only_then(loop_in_a_thread: asyncio.AbstractEventLoop) -> None:
    where: set[int] = set()

    async def ask(_: Recipient) -> Answer:
        where.add(threading.get_ident())
        return EXISTS

    driver = attached(Driver(world(Slow(ask))), loop_in_a_thread)
    with ThreadPoolExecutor(16) as pool:
        said = set(pool.map(lambda _: reply(driver.decide_from_thread(milter())), range(100)))
    assert said == {"250 2.1.5"}
    assert len(where) == 1
    assert threading.get_ident() not in where


def test_a_thread_waits_no_longer_than_the_deadline_for_a_service(
    loop_in_a_thread: asyncio.AbstractEventLoop,
) -> None:
    driver = attached(Driver(world(Slow(hang), deadline=0.1)), loop_in_a_thread)
    began = time.monotonic()
    assert reply(driver.decide_from_thread(milter())) == "451 4.4.3"
    assert time.monotonic() - began < 0.5


def test_a_thread_does_not_wait_for_a_loop_that_is_blocked(
    loop_in_a_thread: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Verdict | None] = []
    driver = attached(Driver(world(Slow(exists), deadline=0.1), lambda one: told.append(one.verdict)), loop_in_a_thread)
    release = threading.Event()
    loop_in_a_thread.call_soon_threadsafe(release.wait, 10)
    began = time.monotonic()
    verdict = driver.decide_from_thread(milter())
    assert 0.1 + GRACE <= time.monotonic() - began < 0.1 + GRACE + 2
    assert verdict
    assert (verdict.action, verdict.rule) == (Action.DEFER, "deadline")
    assert "the loop is late" in caplog.text
    release.set()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop_in_a_thread).result(5)
    assert told == [verdict]  # what is logged in the end is what the client was told


@pytest.mark.parametrize("closed", [True, False])
def test_without_a_running_loop_a_thread_is_told_at_once_that_we_stop(closed: bool) -> None:
    loop = asyncio.new_event_loop()
    told: list[Told] = []
    shadow = '[[rules]]\nname = "s"\nshadow = true\naccept = true\n'
    driver = attached(Driver(world(Slow(exists), rules=shadow + RULES), told.append), loop)
    if closed:
        loop.close()
    began = time.monotonic()
    assert driver.decide_from_thread(milter()) == OUR_FAULT.said_by("stopping")
    assert time.monotonic() - began < 0.2
    assert len(told) == 1
    assert driver.shadows_dropped == closed
    assert Driver(world(Slow(exists))).decide_from_thread(milter()) == OUR_FAULT.said_by("stopping")
    loop.close()


def test_a_loop_that_closes_at_the_hop_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(loop, "is_running", lambda: True)
    driver = attached(Driver(world(Slow(exists))), loop)
    assert driver.decide_from_thread(milter()) == OUR_FAULT.said_by("stopping")


def test_a_loop_that_cancels_what_waits_defers(loop_in_a_thread: asyncio.AbstractEventLoop) -> None:
    told: list[Told] = []
    driver = attached(Driver(world(Slow(hang)), told.append), loop_in_a_thread)

    def stop() -> None:
        for task in asyncio.all_tasks(loop_in_a_thread):
            task.cancel()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(driver.decide_from_thread, milter())
        time.sleep(0.05)
        loop_in_a_thread.call_soon_threadsafe(stop)
        verdict = waiting.result(5)
    assert verdict == OUR_FAULT.said_by("stopping")
    assert [decision.abandoned for decision in told] == [False], "the MTA hears of this one"


# Shadows.

SHADOW = '[[rules]]\nname = "quiet"\nshadow = true\n' + OURS


async def settled(driver: Driver) -> None:
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
        while driver._shadows:  # noqa: ASYNC110 - nobody signals that they are done
            await asyncio.sleep(0.001)


def shadowed(rules: str, other: Store, **more: Any) -> tuple[Decision, Driver, list[tuple[str, str]]]:
    """Decide under a rule in shadow; give what was told of it."""
    seen: list[tuple[str, str]] = []

    async def run() -> tuple[Decision, Driver]:
        driver = Driver(
            world(Local(lambda _: EXISTS), other=other, rules=rules + RULES, **more),
            on_shadow=lambda _, rule, verdict: seen.append((rule, reply(verdict))),
        )
        decision = attached(driver).begin(milter())
        assert not seen
        await settled(driver)
        return decision, driver

    decision, driver = asyncio.run(run())
    assert reply(decision.verdict) == "250 2.1.5"
    assert len(decision.trace.entries) == 1
    return decision, driver, seen


@pytest.mark.parametrize(
    ("rest", "other", "said"),
    [
        ('reject = "550 5.7.1 Trial"', Memory({}), "550 5.7.1"),
        ('verify = "other"', Local(lambda _: NOT_FOUND), "550 5.1.1"),
        ('verify = "other"', Slow(soon), "250 2.1.5"),
        ('verify = "other"\nnot_found = "next"', Local(lambda _: NOT_FOUND), "not ours"),
        ('verify = "other"', Slow(hang), "451 4.4.3"),
    ],
)
def test_a_shadow_is_counted_and_told_after_the_reply(rest: str, other: Store, said: str) -> None:
    _, driver, seen = shadowed(SHADOW + rest + "\n", other, deadline=0.2)
    assert seen == [("quiet", said)]
    assert sum(driver.shadow_counts.values()) == 1


@pytest.mark.parametrize(("probes", "asked"), [("false", 0), ("true", 1)])
def test_a_shadow_asks_a_next_hop_only_where_that_is_allowed(probes: str, asked: int) -> None:
    other = Slow(exists, next_hop=True)
    rest = f'verify = "other"\nshadow_probes = {probes}\n'
    _, _, seen = shadowed(SHADOW + rest, other, policy={"next_hops": frozenset({"other"})})
    assert other.asked == asked
    assert seen == [("quiet", "250 2.1.5" if asked else "451 4.4.3")]


def test_a_shadow_that_fails_is_logged_and_the_next_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    second = '[[rules]]\nname = "second"\nshadow = true\naccept = true\n'
    _, driver, seen = shadowed(SHADOW + 'verify = "other"\n' + second, Slow(raising(OSError("down"))))
    assert seen == [("second", "250 2.1.5")]
    assert "rule 'quiet' in shadow failed" in caplog.text
    assert dict(driver.shadow_counts) == {("second", "accepted"): 1}


def test_shadows_beyond_the_bound_are_dropped_also_before_the_loop_has_seen_them() -> None:
    async def run() -> None:
        rules = SHADOW + 'verify = "other"\n' + RULES
        driver = attached(Driver(world(Local(lambda _: EXISTS), other=Slow(hang), rules=rules, deadline=0.05)))
        for _ in range(MOST_SHADOWS + 7):
            driver.begin(milter())
        assert driver.shadows_dropped == 7
        await settled(driver)
        assert sum(driver.shadow_counts.values()) == MOST_SHADOWS
        driver.begin(milter())
        assert driver.shadows_dropped == 7

    asyncio.run(run())


# Worlds: reload and end.


def test_a_decision_keeps_the_world_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "GRACE", 0.02)

    async def slowly(_: Recipient) -> Answer:
        await asyncio.sleep(0.05)
        assert not old.closed
        return EXISTS

    old = Slow(slowly)

    async def run() -> None:
        driver = attached(Driver(world(old, deadline=0.1)))
        decision = driver.begin(milter())
        driver.replace(world(Local(lambda _: NOT_FOUND)))
        assert reply(driver.begin(milter()).verdict) == "550 5.1.1"
        await driver.finish(decision)
        assert reply(decision.verdict) == "250 2.1.5"
        before = old.closed
        await asyncio.sleep(0.3)
        after = old.closed
        await driver.aclose()
        assert (before, after, old.closed) == (0, 1, 1)

    asyncio.run(run())


def test_a_store_that_both_worlds_name_stays_open() -> None:
    async def run() -> None:
        kept, dropped, last = Local(lambda _: EXISTS), Local(lambda _: EXISTS), Slow(exists)
        driver = attached(Driver(world(kept, other=dropped)))
        driver.replace(world(kept, other=last))
        driver.replace(world(kept, other=last))
        await asyncio.sleep(0.01)
        assert (kept.closed, dropped.closed) == (0, 0)
        await driver.aclose()  # what still waits to be closed is closed at once
        assert (kept.closed, dropped.closed, last.closed) == (1, 1, 1)

    asyncio.run(run())


def test_a_store_outlives_the_longest_deadline_of_the_worlds_that_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "GRACE", 0.01)

    async def run() -> None:
        store = Local(lambda _: EXISTS)
        driver = attached(Driver(world(store, deadline=0.2)))
        driver.replace(world(store, deadline=0.01))
        driver.replace(world(Local(lambda _: EXISTS)))
        await asyncio.sleep(0.2)
        assert not store.closed  # the decisions of the first world may still go on
        await asyncio.sleep(0.4)
        assert store.closed

    asyncio.run(run())


def test_one_store_that_does_not_close_keeps_no_other_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rcptd.world.CLOSING", 0.05)

    class Stuck(Slow):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    class Broken(Local):
        def close(self) -> None:
            raise OSError("disk")

    async def run() -> None:
        well = Local(lambda _: EXISTS)
        stores: dict[str, Store] = {"a": Broken(lambda _: EXISTS), "b": Stuck(exists), "c": well}
        began = time.monotonic()
        await World(policy(""), stores).aclose()
        assert time.monotonic() - began < 1
        assert well.closed

    asyncio.run(run())
    assert "store 'a' failed to close" in caplog.text
    assert "not closed within 0.05 s" in caplog.text


def test_the_end_drops_shadows() -> None:
    async def run() -> None:
        rules = SHADOW + 'verify = "other"\n' + RULES
        driver = attached(Driver(world(Local(lambda _: EXISTS), other=Slow(hang), rules=rules)))
        driver.begin(milter())
        await asyncio.sleep(0.01)
        assert driver._shadows
        await driver.aclose()
        assert not driver._shadows

    asyncio.run(run())


def test_nothing_of_a_late_answer_is_left_to_complain_of(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        await decided(Driver(world(Slow(ignores_its_cancellation), deadline=0.01)))
        await asyncio.sleep(0.7)

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        asyncio.run(run())
    assert not caplog.records


# A service that remembers.


class Remembering(Slow):
    """One that remembers what the test says."""

    def __init__(self, ask: Ask, remembered: Answer | Busy, *, last: Answer | None = None) -> None:
        super().__init__(ask)
        self.remembered = remembered
        self.last = last
        self.recalled = 0
        self.past = 0

    def recall(self, _: Recipient) -> Answer | Busy:
        self.recalled += 1
        return self.remembered

    def peek(self, _: Recipient) -> Answer | Busy:
        return self.remembered

    def last_known(self, _: Recipient) -> Answer | None:
        return self.last

    async def ask_in_shadow(self, recipient: Recipient) -> Answer:
        self.past += 1
        return await self._ask(recipient)


def test_a_remembered_answer_is_given_at_once_without_any_loop() -> None:
    store = Remembering(exists, NOT_FOUND)
    driver = Driver(world(store))
    assert reply(driver.decide_from_thread(milter())) == "550 5.1.1"
    assert store.asked == 0


@pytest.mark.parametrize(("why", "told"), [("", 1), ("a story", 2)])
def test_what_is_not_remembered_is_asked(why: str, told: int) -> None:
    store = Remembering(soon, Busy(why))

    async def main() -> Decision:
        return await decided(attached(Driver(world(store))))

    decision = asyncio.run(main())
    assert reply(decision.verdict) == "250 2.1.5"
    assert (store.recalled, store.asked) == (1, 1)
    assert sum(isinstance(entry, Asked) for entry in decision.trace.entries) == told


def test_a_forked_process_has_references_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_module, "_START", "before")
    decision_module._start_anew()
    assert decision_module._START != "before"
    pid = os.fork()
    if pid == 0:
        os._exit(decision_module._START == "before")
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(("last", "said"), [(EXISTS, "250 2.1.5"), (None, "451 4.4.3")])
def test_the_last_good_answer_stands_in_at_the_deadline(last: Answer | None, said: str) -> None:
    store = Remembering(hang, Busy("not remembered"), last=last)

    async def main() -> Decision:
        return await decided(attached(Driver(world(store, deadline=0.05))))

    decision = asyncio.run(main())
    assert reply(decision.verdict) == said
    assert decision.seconds < 2


def test_a_shadow_leaves_a_memory_as_it_is() -> None:
    for remembered, past in ((EXISTS, 0), (Busy("not remembered"), 1)):
        store = Remembering(exists, remembered)
        shadow = f'[[rules]]\nname = "s"\n{OURS}verify = ["local"]\nshadow = true\n'
        rules = f'{shadow}[[rules]]\nname = "r"\n{OURS}accept = true\n'

        async def main(store: Remembering = store, rules: str = rules) -> None:
            driver = attached(Driver(world(store, rules=rules)))
            await decided(driver)
            await asyncio.sleep(0.05)
            assert driver.shadow_counts["s", "accepted"] == 1
            await driver.aclose()

        asyncio.run(main())
        assert (store.recalled, store.asked, store.past) == (0, 0, past)


# A server that another store named.


class Elsewhere(Local):
    """A table that knows every mailbox to be on a server."""

    def __init__(self) -> None:
        super().__init__(lambda _: Found(Mailbox(server="b1.example")))


class AtServers(Slow):
    """A service that can ask servers by name."""

    async def ask_at(self, server: str, recipient: Recipient) -> Answer:
        assert server == "b1.example"
        return await self.ask(recipient)


def test_a_server_is_asked_by_who_can() -> None:
    rules = f'[[rules]]\nname = "r"\n{OURS}verify = ["local", "other"]\n'
    for other, said in ((AtServers(soon), "250 2.1.5"), (Slow(soon), "451 4.4.3"), (Memory({}), "451 4.4.3")):

        async def main(other: Any = other) -> Decision:
            return await decided(attached(Driver(world(Elsewhere(), rules=rules, other=other))))

        assert reply(asyncio.run(main()).verdict) == said


def test_what_is_remembered_of_a_recipient_is_no_answer_of_a_server() -> None:
    rules = f'[[rules]]\nname = "r"\n{OURS}verify = ["local", "other"]\n'
    other = Remembering(hang, EXISTS, last=EXISTS)

    async def main() -> Decision:
        return await decided(attached(Driver(world(Elsewhere(), rules=rules, other=other, deadline=0.05))))

    assert reply(asyncio.run(main()).verdict) == "451 4.4.3"
    assert other.recalled == 0
