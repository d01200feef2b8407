"""The pool of one next hop: who asks on which connection, and what becomes of trouble."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from rcptd.address import Recipient, parse
from rcptd.question import EXISTS, NOT_FOUND, Unavailable
from rcptd.stores.callahead import pool as pools
from rcptd.stores.callahead.breaker import FAILURES, Breaker
from rcptd.stores.callahead.meaning import TRY_AGAIN, Greylisted, HopTrouble, Outcome, Step, Trouble
from rcptd.stores.callahead.pool import Limits, Pool
from rcptd.stores.callahead.waiting import Conversation

ANNA, BOB = parse("anna@example.org"), parse("bob@example.org")
REFUSED = HopTrouble(Trouble.REFUSED, Step.BANNER, "554 no", 554)
LOST = HopTrouble(Trouble.BROKEN, Step.RCPT, "hung up")
GOING = HopTrouble(Trouble.REFUSED, Step.MAIL, "421 going", 421)
SLOW = HopTrouble(Trouble.TIMEOUT, Step.RCPT, "too slow")
UNREACHABLE = HopTrouble(Trouble.CONNECT, Step.CONNECT, "refused")


class Line:
    """A connection that says what a test wrote down: to everything `EXISTS`, unless `says` has more."""

    def __init__(self, hop: "Hop") -> None:
        self.hop = hop
        self.usable = True
        self.room = hop.room
        self.asked: list[list[str]] = []
        self.end = ""

    async def ask(self, recipients: Sequence[Recipient], *, until: float) -> list[Outcome]:
        assert self.usable
        assert until > asyncio.get_running_loop().time()
        self.asked.append([one.local for one in recipients])
        self.hop.under_way += 1
        self.hop.most = max(self.hop.most, self.hop.under_way)
        try:
            await asyncio.sleep(self.hop.delay)
            await self.hop.free.wait()
        finally:
            self.hop.under_way -= 1
        said = self.hop.says.pop(0) if self.hop.says else EXISTS
        if isinstance(said, HopTrouble) and (said.code == 421 or said.kind is not Trouble.REFUSED):
            self.usable = False
        if isinstance(said, list):
            return said
        if isinstance(said, Exception) and not isinstance(said, HopTrouble):
            raise said
        return [said] * len(recipients)

    async def reset(self, *, until: float) -> None:
        assert until > asyncio.get_running_loop().time()
        self.asked.append(["RSET"])
        if self.hop.lost_at_reset:
            self.usable = False

    async def quit(self, *, within: float = 1.0) -> None:
        assert within
        self.end = self.end or "quit"
        await asyncio.sleep(self.hop.quits_in)

    def abort(self) -> None:
        self.end = "aborted"
        self.usable = False


class Hop:
    """Opens connections, or fails to, as a test wrote down."""

    def __init__(self, *, delay: float = 0.0, room: int = 20) -> None:
        self.delay = delay
        self.lost_at_reset = False
        self.room = room
        self.lines: list[Line] = []
        self.plain: list[bool] = []
        self.opens: list[Exception] = []
        self.opens_in = 0.0
        self.quits_in = 0.0
        self.says: list[Any] = []
        self.free = asyncio.Event()
        self.free.set()
        self.under_way = self.most = 0

    async def open(self, plain: bool) -> Conversation:
        self.plain.append(plain)
        trouble = self.opens.pop(0) if self.opens else None
        await asyncio.sleep(self.opens_in)
        if trouble:
            raise trouble
        self.lines.append(Line(self))
        return self.lines[-1]

    @property
    def asked(self) -> list[list[str]]:
        return [batch for line in self.lines for batch in line.asked]


def make(hop: Hop, now: list[float] | None = None, *, may_go_plain: bool = False, **limits: Any) -> Pool:
    clock: Callable[[], float] = (lambda: now[0]) if now else asyncio.get_running_loop().time
    given = Limits(**{"connections": 3, "timeout": 5.0, **limits})
    return Pool("lmtp:one:24", hop.open, given, Breaker(lambda: 0.0), may_go_plain=may_go_plain, clock=clock)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "whoever closes a pool leaves nothing behind"

    asyncio.run(bounded())


async def ask(pool: Pool, *recipients: Recipient) -> Outcome:
    return (await pool.ask(recipients or (ANNA,)))[0]


async def ask_many(pool: Pool, number: int) -> list[Outcome]:
    return list(await asyncio.gather(*(ask(pool, Recipient(f"u{at}", "example.org")) for at in range(number))))


# Connections.


def test_a_connection_is_used_again() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        for _ in range(5):
            assert await ask(pool) is EXISTS
        assert len(hop.lines) == 1
        assert pool.describe() == "1 connections up, 1 of them idle, 0 questions waiting"
        assert not pool.is_unused
        await pool.aclose()
        assert hop.lines[0].end == "quit"
        assert pool.is_unused
        assert pool.counts == {"found": 5}
        assert "closed" in str(await ask(pool))

    run(main)


def test_a_question_may_come_in_the_turn_in_which_a_connection_was_idle_too_long() -> None:
    async def main() -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        hop = Hop()
        pool = make(hop, idle=0.05)
        assert await ask(pool) is EXISTS
        await asyncio.sleep(0.01)
        asking = asyncio.create_task(ask(pool))
        time.sleep(0.1)  # noqa: ASYNC251 - the timer is due in the same turn as the question
        assert await asking is EXISTS
        assert len(hop.lines) == 1
        assert faults == []
        await pool.aclose()

    run(main)


def test_while_there_may_be_more_connections_nobody_waits_for_another() -> None:
    async def main() -> None:
        hop = Hop(delay=0.1)
        pool = make(hop, connections=30)
        start = asyncio.get_running_loop().time()
        assert await ask_many(pool, 30) == [EXISTS] * 30
        assert asyncio.get_running_loop().time() - start < 0.25, "one after the other would be 3 s"
        assert hop.most == 30
        await pool.aclose()

    run(main)


def test_beyond_the_cap_questions_wait_and_are_taken_in_fair_shares() -> None:
    async def main() -> None:
        hop = Hop(delay=0.01)
        pool = make(hop, connections=3)
        assert await ask_many(pool, 30) == [EXISTS] * 30
        assert len(hop.lines) == hop.most == 3
        sizes = [len(batch) for batch in hop.asked]
        assert sum(sizes) == 30
        assert max(sizes) <= 10
        assert len(sizes) < 15
        await pool.aclose()

    run(main)


def test_without_pipelining_each_is_asked_alone() -> None:
    async def main() -> None:
        hop = Hop(room=1)
        pool = make(hop)
        await ask_many(pool, 12)
        assert [len(batch) for batch in hop.asked] == [1] * 12
        await pool.aclose()

    run(main)


def test_the_connection_that_was_last_used_is_used_first_and_idle_ones_go() -> None:
    async def main() -> None:
        hop = Hop(delay=0.02)
        pool = make(hop, idle=0.15)
        await ask_many(pool, 3)
        for _ in range(6):
            await ask(pool)
            await asyncio.sleep(0.03)
        assert sorted(line.end for line in hop.lines) == ["", "quit", "quit"]
        await asyncio.sleep(0.25)
        assert pool.is_unused
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)


def test_an_old_connection_is_replaced() -> None:
    async def main() -> None:
        hop = Hop()
        now = [100.0]
        pool = make(hop, now, age=60.0)
        await ask(pool)
        now[0] += 61
        assert await ask(pool) is EXISTS
        await ask(pool)
        assert len(hop.lines) == 2
        await pool.aclose()

    run(main)


def test_a_connection_is_asked_once_however_short_its_life() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop, age=0.0)
        assert await ask_many(pool, 9) == [EXISTS] * 9
        assert len(hop.lines) == len(hop.asked)
        await pool.aclose()

    run(main)


def test_a_transaction_does_not_stay_open_while_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcptd.stores.callahead.pool.QUIET", 0.05)

    async def main() -> None:
        hop = Hop()
        pool = make(hop, idle=5.0)
        await ask(pool)
        await ask(pool)
        await asyncio.sleep(0.15)
        assert hop.asked == [["anna"], ["anna"], ["RSET"]]
        await ask(pool)
        assert len(hop.lines) == 1
        hop.lost_at_reset = True
        await asyncio.sleep(0.15)
        assert pool.describe().startswith("0 connections up")
        await ask(pool)
        assert len(hop.lines) == 2
        await pool.aclose()

    run(main)


def test_a_question_that_comes_at_the_end_of_a_transaction_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcptd.stores.callahead.pool.QUIET", 0.05)

    async def main() -> None:
        hop = Hop()
        pool = make(hop, idle=5.0, connections=1)
        await ask(pool)
        asking: list[asyncio.Task[Outcome]] = []
        line = hop.lines[0]
        reset = line.reset

        async def slow(*, until: float) -> None:
            asking.append(asyncio.create_task(ask(pool)))
            await asyncio.sleep(0.05)
            await reset(until=until)

        line.reset = slow  # type: ignore[method-assign]
        await asyncio.sleep(0.2)
        assert hop.asked[:3] == [["anna"], ["RSET"], ["anna"]]
        await asyncio.gather(*asking)
        await pool.aclose()

    run(main)


def test_a_connection_that_died_while_idle_is_not_asked() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)
        hop.lines[0].usable = False
        assert await ask(pool) is EXISTS
        assert [len(line.asked) for line in hop.lines] == [1, 1]
        await pool.aclose()

    run(main)


def test_closing_does_not_wait_for_who_does_not_take_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CLOSING", 0.05)

    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)
        hop.quits_in = 60
        hop.free.clear()
        busy = asyncio.create_task(ask(pool))
        waiting = [asyncio.create_task(ask(pool)) for _ in range(5)]
        await asyncio.sleep(0.02)
        await pool.aclose()
        assert all("closed" in str(one) for one in await asyncio.gather(busy, *waiting))
        assert {line.end for line in hop.lines} == {"aborted"}

    run(main)


def test_closing_while_it_connects_ends_that() -> None:
    async def main() -> None:
        hop = Hop()
        hop.opens_in = 0.05
        pool = make(hop)
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        assert "1 connecting" in pool.describe()
        await pool.aclose()
        assert "closed" in str(await waiting)
        assert [line.end for line in hop.lines] == ["quit"]

    run(main)


# Who gives up.


def test_who_gives_up_leaves_the_queue_unasked() -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=1)
        first = asyncio.create_task(ask(pool, ANNA))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(pool, BOB))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        hop.free.set()
        assert await first is EXISTS
        await asyncio.sleep(0.01)
        assert hop.asked == [["anna"]]
        await pool.aclose()

    run(main)


@pytest.mark.parametrize("said", [GOING, EXISTS])
def test_who_gives_up_while_it_is_asked_harms_nobody(said: Outcome) -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=1)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        first.cancel()
        hop.says = [said]
        second = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        hop.free.set()
        assert await second is EXISTS
        await pool.aclose()

    run(main)


def test_an_idle_connection_that_is_called_for_nobody_stays_idle() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0.01)
        assert await ask(pool) is EXISTS
        assert len(hop.lines) == 1
        assert hop.asked == [["anna"], ["anna"]]
        await pool.aclose()

    run(main)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "QUEUE", 2)

    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=1)
        tasks = [asyncio.create_task(ask(pool)) for _ in range(1)]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(ask(pool)) for _ in range(2)]
        await asyncio.sleep(0)
        assert "2 questions wait already" in str(await ask(pool))
        hop.free.set()
        assert await asyncio.gather(*tasks) == [EXISTS] * 3
        assert pool.counts["queue full"] == 1
        await pool.aclose()

    run(main)


# Trouble.


@pytest.mark.parametrize("trouble", [LOST, GOING])
def test_a_used_connection_that_turns_out_dead_is_tried_again_on_a_fresh_one(trouble: HopTrouble) -> None:
    async def main() -> None:
        hop = Hop(delay=0.01)
        pool = make(hop)
        await ask_many(pool, 3)
        hop.says = [trouble]
        assert await ask(pool, BOB) is EXISTS
        await asyncio.sleep(0)
        assert len(hop.lines) == 4, "those that were idle as long are not tried"
        assert [line.end for line in hop.lines] == ["quit", "quit", "quit", ""]
        assert pool.counts == {"found": 4}
        await pool.aclose()

    run(main)


def test_a_second_loss_is_the_answer() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)
        hop.says = [GOING, GOING]
        assert await ask(pool) is GOING
        assert len(hop.lines) == 2
        await pool.aclose()

    run(main)


def test_a_fresh_connection_that_is_lost_is_trouble_at_once() -> None:
    async def main() -> None:
        hop = Hop()
        hop.says = [LOST]
        pool = make(hop)
        assert await ask(pool) is LOST
        assert pool.counts == {"connection lost or nonsense": 1}
        await pool.aclose()

    run(main)


def test_a_connection_that_was_only_idle_so_far_is_not_fresh() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        assert await ask(pool) is EXISTS
        hop.opens_in = 0.03
        # The second of these calls for a connection, but the first connection is quicker than that opens.
        one, other = await asyncio.gather(ask(pool), ask(pool))
        assert (one, other) == (EXISTS, EXISTS)
        await asyncio.sleep(0.06)
        assert [len(line.asked) for line in hop.lines] == [3, 0]
        hop.says = [LOST]
        assert await ask(pool) is EXISTS
        assert [len(line.asked) for line in hop.lines] == [3, 1, 1]
        await pool.aclose()

    run(main)


def test_421_on_a_fresh_connection_is_asked_once_more() -> None:
    async def main() -> None:
        hop = Hop()
        hop.says = [GOING]
        pool = make(hop)
        assert await ask(pool) is EXISTS
        assert len(hop.lines) == 2
        await pool.aclose()

    run(main)


def test_silence_is_not_tried_again() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)
        hop.says = [SLOW]
        assert await ask(pool) is SLOW
        await pool.aclose()

    run(main)


def test_a_batch_keeps_the_answers_that_it_has() -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=1)
        tasks = [asyncio.create_task(ask(pool))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(ask(pool, parse(f"u{at}@example.org"))) for at in range(4)]
        await asyncio.sleep(0)
        hop.says = [EXISTS, [NOT_FOUND, EXISTS, GOING, GOING]]
        hop.free.set()
        assert await asyncio.gather(*tasks) == [EXISTS, NOT_FOUND, EXISTS, EXISTS, EXISTS]
        assert hop.asked == [["anna"], ["u0", "u1", "u2", "u3"], ["u2", "u3"]]
        await pool.aclose()

    run(main)


def test_a_connection_without_room_leaves_the_question_to_another() -> None:
    async def main() -> None:
        hop = Hop()
        hop.says = [TRY_AGAIN, TRY_AGAIN]
        pool = make(hop)
        assert await ask(pool) is EXISTS
        hop.says = [TRY_AGAIN] * 3
        assert "no room for it, 3 times" in str(await ask(pool))
        await pool.aclose()

    run(main)


def test_trouble_of_what_was_asked_beside_it_does_not_harm_an_answer() -> None:
    async def main() -> None:
        hop = Hop()
        hop.says = [[EXISTS, GOING]]
        pool = make(hop)
        assert await pool.ask((ANNA, BOB)) == [EXISTS, GOING]
        assert pool.counts == {"found": 1}
        await pool.aclose()

    run(main)


def test_a_fault_of_ours_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        hop = Hop()
        hop.says = [ValueError("odd")]
        pool = make(hop)
        assert "ValueError('odd')" in str(await ask(pool))
        hop.opens = [ValueError("odd, too")]
        assert "ValueError('odd, too')" in str(await ask(pool))
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)
    assert caplog.text.count("our fault") == 2


def test_an_accident_of_a_connection_is_told_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        await ask(pool)

        async def fail(*, within: float = 1.0) -> None:
            raise ValueError(within)

        hop.lines[0].quit = fail  # type: ignore[method-assign]
        hop.lines[0].usable = False
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)
    assert "our fault" in caplog.text


# Connecting.


def test_a_connection_that_cannot_be_opened_is_trouble_at_once() -> None:
    async def main() -> None:
        hop = Hop()
        hop.opens = [UNREACHABLE]
        pool = make(hop)
        assert await ask(pool) is UNREACHABLE
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)


def test_the_last_failure_takes_all_who_wait() -> None:
    async def main() -> None:
        hop = Hop()
        hop.opens_in = 0.01
        hop.opens = [UNREACHABLE] * 2
        pool = make(hop, connections=2)
        assert await ask_many(pool, 9) == [UNREACHABLE] * 9
        await pool.aclose()

    run(main)


def test_while_others_are_up_one_failure_takes_one_question() -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=2)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        hop.opens = [UNREACHABLE]
        rest = [asyncio.create_task(ask(pool)) for _ in range(2)]
        await asyncio.sleep(0.01)
        hop.free.set()
        assert list(await asyncio.gather(first, *rest)) == [EXISTS, UNREACHABLE, EXISTS]
        await pool.aclose()

    run(main)


def test_who_gave_up_while_it_connected_takes_no_other_with_it() -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop, connections=2)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        hop.opens = [UNREACHABLE]
        hop.opens_in = 0.02
        second = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0.03)
        hop.free.set()
        assert await first is EXISTS
        await pool.aclose()

    run(main)


def test_a_limit_on_connections_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        now = [100.0]
        pool = make(hop, now)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        hop.opens = [REFUSED] * 10
        rest = [asyncio.create_task(ask(pool)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert "takes no more connections" in pool.describe()
        assert len(hop.opens) == 8, "the two that were on their way"
        hop.free.set()
        assert await asyncio.gather(first, *rest) == [EXISTS] * 6
        assert not pool.breaker.is_open
        assert not pool.condition()
        hop.opens.clear()
        now[0] += pools.FULL
        hop.free.clear()
        more = [asyncio.create_task(ask(pool)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert len(hop.lines) == 3
        hop.free.set()
        await asyncio.gather(*more)
        await pool.aclose()

    run(main)
    assert not caplog.records


def test_a_limit_does_not_outlive_the_connections(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        hop = Hop()
        hop.free.clear()
        pool = make(hop)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        hop.opens = [REFUSED]
        second = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        hop.says = [SLOW]
        hop.free.set()
        assert list(await asyncio.gather(first, second)) == [SLOW, EXISTS]
        await pool.aclose()

    run(main)
    assert not caplog.records


# The breaker, and what is told.


@pytest.mark.parametrize("trouble", [UNREACHABLE, REFUSED])
def test_a_hop_that_keeps_failing_is_left_in_peace(trouble: HopTrouble, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        hop = Hop()
        now = [100.0]
        pool = make(hop, now)
        hop.opens = [trouble] * FAILURES
        for _ in range(FAILURES):
            assert await ask(pool) is trouble
        for _ in range(10):
            assert "left in peace for 1 s more" in str(await ask(pool))
        assert len(hop.plain) == FAILURES, "nobody waited for it"
        assert pool.counts["breaker open"] == 10
        assert "breaker open, next probe in 1 s" in pool.describe()
        assert pool.condition() == "not well, left in peace for 1 s"
        now[0] += 1.0
        probe = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        assert "left in peace" in str(await ask(pool)), "one probe at a time"
        assert await probe is EXISTS
        assert not pool.condition()
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("left in peace" in one for one in told) == 1
    assert sum("is well again" in one for one in told) == 1


def test_a_probe_that_is_given_up_leaves_the_next_question_to_be_one() -> None:
    async def main() -> None:
        hop = Hop()
        now = [100.0]
        pool = make(hop, now)
        hop.opens = [UNREACHABLE] * FAILURES
        for _ in range(FAILURES):
            await ask(pool)
        now[0] += 1.0
        hop.opens_in = 0.01
        probe = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.sleep(0)
        assert await ask(pool) is EXISTS
        await pool.aclose()

    run(main)


def test_a_breaker_that_opens_takes_all_who_wait() -> None:
    async def main() -> None:
        hop = Hop()
        pool = make(hop, connections=5)
        hop.opens = [UNREACHABLE] * 5
        hop.opens_in = 0.01
        start = asyncio.get_running_loop().time()
        assert await ask_many(pool, 50) == [UNREACHABLE] * 50
        assert asyncio.get_running_loop().time() - start < 0.5
        await pool.aclose()

    run(main)


def test_a_transaction_that_fails_is_one_trouble_however_many_it_asked_about() -> None:
    async def main() -> None:
        hop = Hop(delay=0.01)
        pool = make(hop, connections=1)
        assert await ask(pool) is EXISTS
        hop.says = [SLOW] * (FAILURES - 1)
        for _ in range(FAILURES - 1):
            assert await ask_many(pool, 8) == [SLOW] * 8
        assert pool.counts["too slow"] == 8 * (FAILURES - 1)
        assert not pool.breaker.is_open
        await pool.aclose()

    run(main)


def test_a_hop_that_falls_silent_keeps_nobody_waiting_once_that_is_known() -> None:
    async def main() -> None:
        hop = Hop(room=1)
        hop.says = [SLOW] * FAILURES
        pool = make(hop, connections=1)
        assert await ask_many(pool, 20) == [SLOW] * 20
        assert len(hop.asked) == FAILURES
        await pool.aclose()

    run(main)


def test_a_refusal_of_us_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    refused = HopTrouble(Trouble.REFUSED, Step.MAIL, "550 5.7.1 your address is listed", 550)

    async def main() -> None:
        hop = Hop()
        hop.says = [refused] * 20
        pool = make(hop)
        for _ in range(20):
            assert await ask(pool) is refused
        assert not pool.breaker.is_open, "a hop that answers is there"
        assert "refuses us" in pool.describe()
        assert pool.condition() == "refuses us"
        assert "listed" not in pool.condition(), "its text is for the log"
        assert pool.counts == {"refuses us": 20}
        assert await ask(pool) is EXISTS
        assert not pool.condition()
        await pool.aclose()

    run(main)
    assert [record.getMessage() for record in caplog.records] == [
        "next hop: lmtp:one:24: refuses us, which says nothing of recipients: 550 5.7.1 your address is listed",
        "next hop: lmtp:one:24: is well again",
    ]


def test_what_a_hop_cannot_tell_of_a_recipient_is_no_trouble_of_its() -> None:
    grey = Greylisted("450 greylisted", of_recipient=True)

    async def main() -> None:
        hop = Hop()
        hop.says = [grey, NOT_FOUND] * 5 + [Unavailable("450 odd", of_recipient=True)]
        pool = make(hop)
        for _ in range(5):
            assert await ask(pool) is grey
            assert await ask(pool) is NOT_FOUND
        await ask(pool)
        assert pool.counts == {"greylisted": 5, "not found": 5, "cannot tell of the recipient": 1}
        await pool.aclose()

    run(main)


# TLS.


def test_tls_that_fails_is_done_without_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    failed = HopTrouble(Trouble.TLS, Step.TLS, "no cipher in common")

    async def main() -> None:
        hop = Hop()
        now = [100.0]
        pool = make(hop, now, may_go_plain=True, age=1.0)
        hop.opens = [failed]
        assert await ask(pool) is EXISTS
        assert "without TLS, which failed" in pool.describe()
        now[0] += 2
        assert await ask(pool) is EXISTS
        now[0] += pools.PLAIN
        assert await ask(pool) is EXISTS
        assert hop.plain == [False, True, True, False]
        await pool.aclose()

    run(main)
    assert "without TLS for 600 s" in caplog.text


def test_tls_that_is_required_is_never_done_without() -> None:
    failed = HopTrouble(Trouble.TLS, Step.TLS, "no certificate")

    async def main() -> None:
        hop = Hop()
        pool = make(hop)
        hop.opens = [failed]
        assert await ask(pool) is failed
        assert hop.plain == [False]
        await pool.aclose()

    run(main)


def test_one_pool_does_not_slow_another() -> None:
    async def main() -> None:
        slow, quick = Hop(), Hop()
        slow.free.clear()
        one, other = make(slow, connections=1), make(quick, connections=1)
        tasks = [asyncio.create_task(ask(one)) for _ in range(100)]
        await asyncio.sleep(0.01)
        start = asyncio.get_running_loop().time()
        assert await ask_many(other, 100) == [EXISTS] * 100
        assert asyncio.get_running_loop().time() - start < 0.5
        slow.free.set()
        await asyncio.gather(*tasks)
        await asyncio.gather(one.aclose(), other.aclose())

    run(main)
