"""The connections to one next hop, and the questions that wait for them.

Theory of operation. Questions stand in a queue; connections come and take them, each a task of its own. A
question that arrives wakes an idle connection, the one that was last used; where none is idle a new one is opened,
as long as there are fewer than `connections`; else it waits. A connection that is free takes its fair share of the
queue, and asks that in one transaction: the queue divided by the connections that are there or on their way. So where
there may still be as many connections as questions, each asks one, and a slow hop is asked at once; where there may
not, PIPELINING carries the rest.

Trouble goes two ways. What a hop does to a connection that has been used before may be no trouble at all: hops close
idle connections when they like, and restart. Such questions go back to the head of the queue, once, and all
connections that are idle go with the one that was found dead. All other trouble is the answer. A connection that
cannot be opened takes the question that has waited longest with it, or all of them where no other is on its way.

While some connections are up, a refusal of another one is a limit of the hop's, not an outage: for a moment
no more are opened, the questions wait for those that are there, and the breaker hears nothing of it.

All of it is for the loop, and of one hop only: pools know nothing of each other, so none can slow another. Whoever
gives up leaves the queue; a question that is already under way is asked to its end, which is bounded by `timeout`.

LIMITS. A transaction is answered as a whole: the first recipient of a batch waits for the last.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rcptd.address import Recipient
from rcptd.question import Answer, Found, NotFound, Unavailable
from rcptd.stores.callahead import conduct
from rcptd.stores.callahead.breaker import Breaker
from rcptd.stores.callahead.meaning import Greylisted, HopTrouble, Outcome, Step, Trouble, TryAgain
from rcptd.stores.callahead.waiting import AGAIN, Conversation, Open, Question, Waiting

_log = logging.getLogger(__name__)

QUEUE = 20_000  # questions that may wait for one hop
FULL = 10.0  # seconds without new connections after the hop has refused one beside others
QUIET = 0.2  # seconds without a question after which a transaction is ended: the hop may hold something for it
PLAIN = 600.0  # seconds for which a failure of opportunistic TLS is remembered
GOODBYE = 1.0  # seconds that QUIT may take
CLOSING = 1.0  # seconds that all connections have to end, together

_KINDS: dict[type[Answer], str] = {
    Found: "found",
    NotFound: "not found",
    Unavailable: "cannot tell of the recipient",
    Greylisted: "greylisted",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a pool may have, and how long they last and wait; times in seconds."""

    connections: int = 20
    idle: float = 20.0
    age: float = 600.0
    timeout: float = 30.0


class Pool:
    """The connections to one next hop, by which questions go; only the loop may call."""

    def __init__(
        self,
        name: str,
        open_conversation: Open,
        limits: Limits,
        breaker: Breaker,
        *,
        may_go_plain: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.breaker = breaker
        self.counts: Counter[str] = Counter()
        self.refusing = ""
        self.last_used = clock()
        self._open = open_conversation
        self._may_go_plain = may_go_plain
        self._limits = limits
        self._clock = clock
        self._waiting = Waiting()
        self._idle: dict[asyncio.Future[bool | None], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting = 0
        self._up = 0
        self._full_until = 0.0
        self._plain_until = 0.0
        self._closed = False

    @property
    def is_unused(self) -> bool:
        """Say whether nothing waits and nothing is open."""
        return not self._waiting and not self._tasks

    async def ask(self, recipients: tuple[Recipient, ...]) -> list[Outcome]:
        """Ask about recipients in one transaction; one outcome for each. Ends at once when it is cancelled."""
        now = self.last_used = self._clock()
        if why := self._why_not(now):
            return [HopTrouble(Trouble.CONNECT, Step.CONNECT, f"{self.name}: {why}")] * len(recipients)
        question = Question(recipients, asyncio.get_running_loop().create_future())
        self._waiting.add(question)
        self._call_one()
        try:
            return await question.outcomes
        except asyncio.CancelledError:
            self._waiting.leave(question)
            if not question.under_way:
                # It may have been the probe of a breaker that is half open.
                self.breaker.withdrawn()
            raise

    def _why_not(self, now: float) -> str:
        """Say why the hop is not asked at all, "" where it is."""
        if self._closed:
            return "closed"
        if len(self._waiting) >= QUEUE:
            self.counts["queue full"] += 1
            return f"{QUEUE} questions wait already"
        if not self.breaker.admits(now):
            self.counts["breaker open"] += 1
            return f"not well, left in peace for {self.breaker.pause(now):.0f} s more"
        return ""

    def condition(self) -> str:
        """Say what is wrong in a few words, "" while the hop is well."""
        if self.breaker.is_open:
            return f"not well, left in peace for {self.breaker.pause(self._clock()):.0f} s"
        return "refuses us" if self.refusing else ""

    def describe(self) -> str:
        """Tell how the pool is, in a line."""
        words = [f"{self._up} connections up, {len(self._idle)} of them idle, {len(self._waiting)} questions waiting"]
        now = self._clock()
        if self._connecting:
            words.append(f"{self._connecting} connecting")
        if self.breaker.is_open:
            words.append(f"breaker open, next probe in {self.breaker.pause(now):.0f} s")
        if self.refusing:
            words.append("refuses us")
        if now < self._full_until:
            words.append("takes no more connections")
        if now < self._plain_until:
            words.append("without TLS, which failed")
        return ", ".join(words)

    async def aclose(self) -> None:
        """Answer whoever waits, say QUIT where that is quick, and end."""
        self._closed = True
        self._fail_all(self._closing())
        self._dismiss_idle()
        tasks = set(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Connections.

    def _call_one(self) -> None:
        """See that a connection comes for a question that waits."""
        if self._idle:
            waiter, _ = self._idle.popitem()  # the last one used: the others may grow old and go
            waiter.set_result(True)
        elif (
            self._connecting < len(self._waiting)
            and len(self._tasks) < self._limits.connections
            and (self._clock() >= self._full_until or not self._tasks)
        ):
            self._connecting += 1
            task = asyncio.get_running_loop().create_task(self._work(), name="rcptd next hop")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("next hop: %s: our fault", self.name, exc_info=error)
        if self._waiting and not self._closed:
            self._call_one()

    async def _work(self) -> None:
        """Live as one connection, from opening to end."""
        try:
            conversation = await self._opened()
        finally:
            self._connecting -= 1
        if conversation is None:
            return
        self._up += 1
        try:
            await self._converse(conversation)
        except BaseException:
            conversation.abort()
            raise
        finally:
            self._up -= 1
        await conversation.quit(within=GOODBYE)

    async def _opened(self) -> Conversation | None:
        try:
            return await self._open_or_plain()
        except HopTrouble as trouble:
            self._not_opened(trouble)
        except Exception as error:
            _log.exception("next hop: %s: our fault", self.name)
            self._not_opened(HopTrouble(Trouble.CONNECT, Step.CONNECT, f"{self.name}: {error!r}"))
        return None

    async def _open_or_plain(self) -> Conversation:
        """Open a connection; where opportunistic TLS fails, another one without, and so for a while."""
        if self._clock() < self._plain_until:
            return await self._open(True)
        try:
            return await self._open(False)
        except HopTrouble as trouble:
            if trouble.kind is not Trouble.TLS or not self._may_go_plain:
                raise
            _log.warning("next hop: %s: spoken without TLS for %.0f s: %s", self.name, PLAIN, trouble)
            self._plain_until = self._clock() + PLAIN
            return await self._open(True)

    def _not_opened(self, trouble: HopTrouble) -> None:
        if self._up and conduct.is_limit(trouble):
            # The hop is well, and takes no more of us; the questions wait for the connections that are up.
            self._full_until = self._clock() + FULL
            self.counts["connection refused beside others"] += 1
            return
        self._troubled(trouble)
        if self._up + self._connecting == 1:
            self._fail_all(trouble)
        elif self._waiting:
            self._waiting.first().fail(trouble)

    async def _converse(self, conversation: Conversation) -> None:
        """Ask what waits, until the connection is too old, too long idle, used up or dead."""
        old = self._clock() + self._limits.age
        fresh = True
        while conversation.usable and (fresh or self._clock() < old) and not self._closed:
            if batch := self._taken(conversation):
                await self._put(conversation, batch, fresh=fresh)
            elif not await self._rest(conversation):
                return
            fresh = False  # also where it only waited: it may have died meanwhile

    async def _rest(self, conversation: Conversation) -> bool:
        """Wait for a question; says whether one came before the connection was too long idle."""
        came = await self._wait(min(QUIET, self._limits.idle))
        if came is not False or self._limits.idle <= QUIET:
            return bool(came)
        # Dovecot counts the recipient of an open transaction as a delivery, and has a limit for each user.
        await conversation.reset(until=asyncio.get_running_loop().time() + self._limits.timeout)
        return conversation.usable and (bool(self._waiting) or bool(await self._wait(self._limits.idle - QUIET)))

    async def _wait(self, seconds: float) -> bool | None:
        """Wait for a question, as one of those that are idle; says whether one came, None to be done with it."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool | None] = loop.create_future()
        self._idle[waiter] = None
        timer = loop.call_later(seconds, self._dismiss, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._idle.pop(waiter, None)

    def _dismiss(self, waiter: "asyncio.Future[bool | None]", said: bool | None = None) -> None:
        if not waiter.done():  # a question may have come in the same turn of the loop
            del self._idle[waiter]
            waiter.set_result(said)

    def _dismiss_idle(self) -> None:
        for waiter in list(self._idle):
            self._dismiss(waiter)

    # Questions.

    def _taken(self, conversation: Conversation) -> list[Question]:
        """Take a fair share of what waits."""
        share = len(self._waiting) // (self._up + self._connecting)
        return self._waiting.take(max(1, share), conversation.room)

    async def _put(self, conversation: Conversation, batch: list[Question], *, fresh: bool) -> None:
        recipients = [one for question in batch for one in question.recipients]
        try:
            until = asyncio.get_running_loop().time() + self._limits.timeout
            outcomes = await conversation.ask(recipients, until=until)
        except Exception as error:
            conversation.abort()
            _log.exception("next hop: %s: our fault", self.name)
            trouble = HopTrouble(Trouble.BROKEN, Step.RCPT, f"{self.name}: {error!r}")
            outcomes = [trouble] * len(recipients)
        except asyncio.CancelledError:
            for question in batch:
                question.fail(self._closing())
            raise
        again: list[Question] = []
        trouble_before: Outcome | None = None
        at = 0
        for question in batch:
            own = outcomes[at : at + len(question.recipients)]
            at += len(own)
            if self._goes_back(question, own[0], fresh=fresh):
                again.append(question)
            elif isinstance(own[0], TryAgain):
                why = f"{self.name}: had no room for it, {AGAIN + 1} times"
                question.fail(HopTrouble(Trouble.REFUSED, Step.RCPT, why))
            else:
                self._count(own[0], news=own[0] is not trouble_before)
                trouble_before = own[0]
                question.answer(own)
        if again:
            self._ask_again(again)

    def _goes_back(self, question: Question, outcome: Outcome, *, fresh: bool) -> bool:
        """Say whether a question is asked once more, on another connection."""
        if question.again >= AGAIN or self._closed:
            return False
        if isinstance(outcome, TryAgain):
            return True
        if not isinstance(outcome, HopTrouble) or question.lost:
            return False
        # On a connection that has never served, a loss is trouble of the hop's, unless it says that it is going.
        if conduct.is_farewell(outcome) or (conduct.is_loss(outcome) and not fresh):
            question.lost = True
            return True
        return False

    def _ask_again(self, questions: list[Question]) -> None:
        """Put questions back to the head of the queue, for a connection that is not as old as this one was."""
        for question in reversed(questions):
            question.again += 1
            if not question.outcomes.done():
                self._waiting.put_back(question)
        if any(question.lost for question in questions):
            self._dismiss_idle()
        # A new one comes when this one has ended; this is for those that there is room for now.
        for _ in questions:
            self._call_one()

    def _count(self, outcome: Answer | HopTrouble, *, news: bool) -> None:
        """Count an outcome, and let the breaker and the log know what it says of the hop, if that is news.

        A connection that is lost in a transaction is one trouble, however many questions it had.
        """
        if isinstance(outcome, HopTrouble):
            if news:
                self._troubled(outcome)
            else:
                self.counts[outcome.kind.value] += 1
            return
        vague = isinstance(outcome, Unavailable) and not outcome.of_recipient
        self.counts["cannot tell" if vague else _KINDS[type(outcome)]] += 1
        if self.breaker.succeeded() or self.refusing:
            self.refusing = ""
            _log.warning("next hop: %s: is well again", self.name)

    def _troubled(self, trouble: HopTrouble) -> None:
        self.counts[trouble.kind.value] += 1
        if conduct.is_refusal(trouble) and not self.refusing:
            self.refusing = str(trouble)
            _log.warning("next hop: %s: refuses us, which says nothing of recipients: %s", self.name, trouble)
        if conduct.is_outage(trouble) and self.breaker.failed(self._clock()):
            _log.warning("next hop: %s: left in peace for a while: %s", self.name, trouble)
            # Whoever waits may have another next hop to go to, and time left for it.
            self._fail_all(trouble)

    def _closing(self) -> HopTrouble:
        return HopTrouble(Trouble.CONNECT, Step.CONNECT, f"{self.name}: closed")

    def _fail_all(self, trouble: HopTrouble) -> None:
        while self._waiting:
            self._waiting.first().fail(trouble)
