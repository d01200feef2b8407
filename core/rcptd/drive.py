"""The driver: runs decisions to their end, and is the only place where I/O meets them.

Theory of operation. `advance` answers, on the spot, every question that a table can answer; it is all
that a decision on local stores ever needs, on the loop and in libmilter's threads alike. Where it
meets a question for a service, or a table that is busy, the rest of the decision moves to the loop,
once, and stays there: from then on only the loop touches the generator (closing one from another thread
raises "generator already executing"), and a waiting thread just waits for the future. What a service
remembers counts as a table's answer.

Deadlines are the driver's. A decision that is late takes the last good answer where its store has one that
may still be used, else it is deferred; its waiting lookup is cancelled, and nobody waits longer than `deadline`
plus a moment, also not for a service that ignores its cancellation: each question to a service is a task of its
own. A bug in a rule or a store defers too, and is logged.

A reload swaps policy and stores in one assignment; a decision keeps those that it began with. As no
decision outlives its deadline, nor the shadows that it leaves behind another one, the old stores are closed
when both have passed, which costs the hot path neither a lock nor a counter.

Rules in shadow are evaluated after the reply, on the loop, a bounded number at a time; under load they
are dropped, and counted.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar

from rcptd import engine
from rcptd.address import Recipient
from rcptd.case import Steps
from rcptd.decision import Again, Decision, Told
from rcptd.policy import Walked
from rcptd.query import Query
from rcptd.question import Answer, AsksServers, Busy, Lookup, Remembers, Store, Table, Unavailable
from rcptd.settled import Ground, Question, Settled, Settling, is_of_recipient_alone
from rcptd.trace import Asked, Trace
from rcptd.verdict import OUR_FAULT, UNKNOWN, Action, Verdict, safe_text
from rcptd.world import CLOSING, AtOnce, World, end_within

_log = logging.getLogger("rcptd.drive")

GRACE = 0.5
"""How long, in seconds, a thread waits past the deadline for a loop that is late itself."""

BUSY_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""How long the loop waits, in seconds, before it asks a busy table again; the last one repeats."""

MOST_SHADOWS = 256
"""How many decisions may have shadow evaluations waiting or under way; beyond, they are dropped."""

MOST_STRAYS = 256
"""How many questions to one store may go on although they were cancelled; beyond, it is asked no more."""

T = TypeVar("T")

_monotonic = time.monotonic
_STOPPING = OUR_FAULT.said_by("stopping")
_ABANDONED = OUR_FAULT.said_by("abandoned")


class _Late(Exception):
    """The deadline has passed."""


def advance(
    steps: Steps[Verdict | None], at_once: AtOnce, trace: Trace, answer: Answer | None
) -> Lookup | Verdict | None:
    """Run steps as far as answers on the spot can take them; never waits, any thread may call.

    `answer` is the one to the question that the steps stopped at, None to begin. Gives that next
    question, or the verdict at the end.
    """
    while True:
        # Nothing but the steps inside: a table that raises StopIteration must not pass for "no opinion".
        try:
            question = next(steps) if answer is None else steps.send(answer)
        except StopIteration as end:
            verdict: Verdict | None = end.value
            return verdict
        lookup = at_once.get(question.store)
        if lookup is None or question.server:
            return question
        began = _monotonic()
        said = lookup(question.recipient)
        if isinstance(said, Busy):
            if said.why:
                trace.entries.append(Asked(question.store, question.recipient, said, _monotonic() - began))
            return question
        trace.entries.append(Asked(question.store, question.recipient, said, _monotonic() - began))
        answer = said


class Driver:
    """Runs decisions under the current world.

    `on_verdict` is told of every decision that ended, and of every verdict that is given again if it `is_logged`;
    `on_shadow` of every shadow evaluation. All are called in whichever thread ended it and must not wait.
    """

    def __init__(
        self,
        world: World,
        on_verdict: Callable[[Told], None] = lambda _: None,
        on_shadow: Callable[[Decision, str, Verdict | None], None] = lambda *_: None,
        is_logged: Callable[[Verdict | None], bool] = lambda _: True,
    ) -> None:
        self.world = world
        self._settling: Settling[None] = Settling(self)
        self.shadow_counts: Counter[tuple[str, str]] = Counter()
        self.shadows_dropped = 0
        self._on_verdict = on_verdict
        self._on_shadow = on_shadow
        self._is_logged = is_logged
        self.loop: asyncio.AbstractEventLoop | None = None
        self.while_waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        """What a thread is in while it waits for the loop; whoever owns the threads may want to know."""
        self._shadows: set[asyncio.Task[None]] = set()
        self._shadow_room = threading.BoundedSemaphore(MOST_SHADOWS)
        self._strays: dict[str, set[asyncio.Task[Answer]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._in_use_until = 0.0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that services live on, before the first thread asks."""
        self.loop = loop

    def begin(self, query: Query, *, verbose: bool = False) -> Decision:
        """Begin a decision and take it as far as tables can; never waits, never raises.

        Any thread may call; if the decision is not `done`, `finish` it on the loop.
        """
        decision = Decision(self.world, query, verbose=verbose)
        self._advance(decision, None)
        return decision

    def settling(self) -> Settling[T]:
        """Make a place for the verdicts of one asker that still stand; any thread may call."""
        return Settling(self)

    def settle(self, ground: Ground[T], question: Question, reply: T, decision: Decision) -> None:
        """Keep the verdict of a decision that is `done` where it began, as far as it stands; any thread may call."""
        verdict = decision.verdict
        try:
            ground.keep(question, reply, decision.case, verdict, logged=self._is_logged(verdict))
        except Exception:
            _log.exception("whether decision %s stands cannot be told", decision.reference)

    def give_again(self, settled: Settled[Any], query: Query) -> None:
        """Have it logged, if it is, that a verdict was given again; any thread may call."""
        if settled.logged:
            self._tell(Again(query, settled.verdict, settled.said))

    async def finish(self, decision: Decision) -> None:
        """Take a decision to its verdict within its deadline; on the loop only, never raises.

        Cancelling it says that nobody waits any more: the decision is abandoned.
        """
        try:
            await self._finish(decision)
        except asyncio.CancelledError:
            decision.abandoned = True
            self._end(decision, _ABANDONED)
            raise

    async def _finish(self, decision: Decision) -> None:
        until = decision.began + decision.world.deadline
        try:
            while question := decision.question:
                self._advance(decision, await self._ask(decision.world, question, decision.trace, until))
        except _Late:
            self._end(decision, UNKNOWN.said_by("deadline"))
        except Exception:
            _log.exception("a store failed in decision %s; deferred", decision.reference)
            self._end(decision, OUR_FAULT.said_by("fault"))

    async def _finish_for_thread(self, decision: Decision) -> None:
        try:
            await self._finish(decision)
        except asyncio.CancelledError:
            self._end(decision, _STOPPING)  # the loop stops, but the thread still tells the MTA
            raise

    def recall(self, recipient: str) -> Settled[None] | None:
        """Give what still stands of a recipient, whoever asks, where that needs no log; any thread may call.

        None says to decide.
        """
        return self._settling.recall(recipient, unlogged=True)

    def decide_from_thread(self, query: Query) -> Verdict | None:
        """Decide while a thread of libmilter waits; never raises, ends shortly after the deadline at most.

        At most one hop to the loop, and none where tables have all the answers.
        """
        settled = self._settling.recall(query.recipient)
        if settled:
            self.give_again(settled, query)
            return settled.verdict
        ground = self._settling.ground()
        decision = self.begin(query)
        if decision.done:
            if is_of_recipient_alone(decision.case):
                self.settle(ground, query.recipient, None, decision)
            return decision.verdict
        rest = self._finish_for_thread(decision)
        try:
            if self.loop is None or not self.loop.is_running():
                raise RuntimeError("nobody runs the loop")  # noqa: TRY301 - as where it has just been closed
            waiting = asyncio.run_coroutine_threadsafe(rest, self.loop)
        except RuntimeError:
            rest.close()
            self._end(decision, _STOPPING)
            return decision.verdict
        try:
            with self.while_waiting():
                waiting.result(decision.began + decision.world.deadline + GRACE - _monotonic())
        except TimeoutError:
            # The loop itself is late. The decision is its to end; we only stop waiting for it.
            _log.error("the loop is late; decision %s deferred without it", decision.reference)
            return UNKNOWN.said_by("deadline")
        except Exception:  # cancelled, as when the loop stops
            return _STOPPING
        return decision.verdict

    def replace(self, world: World) -> None:
        """Put a new world in force; on the loop only.

        The old one's stores that are not in the new are closed when the last decision that may use them has
        ended: one of this world, or of a world before it with a longer deadline.
        """
        old, self.world = self.world, world
        self._in_use_until = max(self._in_use_until, _monotonic() + 2 * (old.deadline + GRACE))
        # What the old store under a name left behind is nothing against the new one.
        same = {name for name, store in world.stores.items() if store is old.stores.get(name)}
        self._strays = {name: strays for name, strays in self._strays.items() if name in same}
        kept = {id(store) for store in world.stores.values()}
        rest = {name: store for name, store in old.stores.items() if id(store) not in kept}
        closing = _close_at(self._in_use_until, World(old.policy, rest))
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Drop what runs in shadow and close all stores, those of older worlds too; on the loop only."""
        ending = (*self._shadows, *self._closing)
        for task in ending:
            task.cancel()
        await end_within(CLOSING + GRACE, ending)
        await self.world.aclose()

    def _advance(self, decision: Decision, answer: Answer | None) -> None:
        try:
            steps = decision.steps
            if steps is None:
                steps = decision.steps = engine.decide(decision.case)
            result = advance(steps, decision.world.at_once, decision.case.trace, answer)
        except Exception:
            _log.exception("decision %s failed; deferred", decision.reference)
            self._end(decision, OUR_FAULT.said_by("fault"))
            return
        if isinstance(result, Lookup):
            decision.question = result
        else:
            self._end(decision, result)

    def _end(self, decision: Decision, verdict: Verdict | None) -> None:
        if verdict is not None and verdict.action is not Action.ACCEPT and decision.world.reference_in_reply:
            verdict = _with_reference(verdict, decision.reference)
        decision.end(verdict)
        self._tell(decision)
        if decision.case.shadows and not decision.abandoned:
            self._shadow_later(decision)

    def _tell(self, told: Told) -> None:
        try:
            self._on_verdict(told)
        except Exception:
            _log.exception("decision %s could not be told of", told.reference)

    async def _ask(
        self, world: World, question: Lookup, trace: Trace, until: float, *, in_shadow: bool = False
    ) -> Answer:
        """Ask a service, or a busy table again until it is not; raises `_Late` at `until`, or as the store.

        The asking is a task of its own, and no more than cancelled: it may not hold up the decision by
        ignoring that, and its own TimeoutError or CancelledError is no deadline and no cancellation of ours.
        """
        name = question.store
        began = _monotonic()
        said: Answer = Unavailable("no answer: it failed or was stopped")
        strays = self._strays.setdefault(name, set())
        if len(strays) >= MOST_STRAYS:
            said = Unavailable("has questions that do not end when they are cancelled")
            trace.entries.append(Asked(name, question.recipient, said, 0.0))
            return said
        asking = asyncio.get_running_loop().create_task(
            _ask_patiently(world.stores[name], question, in_shadow=in_shadow)
        )
        try:
            await asyncio.wait({asking}, timeout=max(until - began, 0.0))
            if not asking.done() or _monotonic() >= until:
                known = None if question.server else _last_known(world.stores[name], question.recipient)
                if known is None:
                    said = Unavailable("no answer by the deadline")
                    raise _Late
                said = known
                return said
            if asking.cancelled():
                raise RuntimeError(f"store {name!r} cancelled its own answer")
            said = asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                strays.add(asking)
                asking.add_done_callback(strays.discard)
            asking.add_done_callback(_look_at)
            trace.entries.append(Asked(name, question.recipient, said, _monotonic() - began))
        return said

    def _shadow_later(self, decision: Decision) -> None:
        if self.loop is not None and self._shadow_room.acquire(blocking=False):
            with suppress(RuntimeError):  # where the loop is closed
                self.loop.call_soon_threadsafe(self._start_shadow, decision)
                return
            self._shadow_room.release()
        self.shadows_dropped += 1

    def _start_shadow(self, decision: Decision) -> None:
        task = asyncio.get_running_loop().create_task(self._run_shadows(decision))
        self._shadows.add(task)
        task.add_done_callback(self._shadow_ended)

    def _shadow_ended(self, task: asyncio.Task[None]) -> None:
        self._shadows.discard(task)
        self._shadow_room.release()

    async def _run_shadows(self, decision: Decision) -> None:
        until = _monotonic() + decision.world.deadline
        for walked, recipient in decision.case.shadows or ():
            name = walked.rule.name
            try:
                try:
                    verdict = await self._run_shadow(decision, walked, recipient, until)
                except _Late:
                    verdict = UNKNOWN.said_by(name)
                self.shadow_counts[name, verdict.cause.value if verdict else "no opinion"] += 1
                self._on_shadow(decision, name, verdict)
            except Exception:
                _log.exception("rule %r in shadow failed", name)

    async def _run_shadow(
        self, decision: Decision, walked: Walked, recipient: Recipient, until: float
    ) -> Verdict | None:
        world = decision.world
        case = engine.open_case(world.policy, decision.query, Trace(), time.time())
        steps = engine.shadow(case, walked, recipient)
        answer: Answer | None = None
        while True:
            result = advance(steps, world.in_shadow, case.trace, answer)
            if not isinstance(result, Lookup):
                return result
            if result.store in world.policy.next_hops and not walked.rule.shadow_probes:
                answer = Unavailable("not asked in shadow")
            else:
                answer = await self._ask(world, result, case.trace, until, in_shadow=True)


async def _ask_patiently(store: Store, question: Lookup, *, in_shadow: bool) -> Answer:
    if not isinstance(store, Table):
        if question.server:
            if isinstance(store, AsksServers):
                return await store.ask_at(question.server, question.recipient)
            return Unavailable(f"cannot ask the server {question.server}")
        if in_shadow and isinstance(store, Remembers):
            return await store.ask_in_shadow(question.recipient)
        return await store.ask(question.recipient)
    pauses = iter(BUSY_PAUSES)
    while isinstance(said := store.lookup(question.recipient), Busy):  # noqa: ASYNC110 - it signals nothing
        await asyncio.sleep(next(pauses, BUSY_PAUSES[-1]))
    return said


def _last_known(store: Store, recipient: Recipient) -> Answer | None:
    return store.last_known(recipient) if isinstance(store, Remembers) else None


def _look_at(asked: asyncio.Task[Answer]) -> None:
    """Look at how a question ended, as asyncio complains about exceptions that nobody has looked at."""
    if not asked.cancelled():
        asked.exception()


async def _close_at(when: float, world: World) -> None:
    """Close a world's stores at a time on the monotonic clock, or at once when cancelled."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(when - _monotonic())
    await world.aclose()


def _with_reference(verdict: Verdict, reference: str) -> Verdict:
    note = f" (ref {reference})"
    return verdict.with_text(safe_text(verdict.text)[: 200 - len(note)] + note)
