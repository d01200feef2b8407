"""The driver: runs decisions to their end, and is the only place where I/O meets them.

Theory of operation. `advance` answers, on the spot, every question that a table can answer; it is all
that a decision on local stores ever needs, on the loop and in libmilter's threads alike. Where it
meets a question for a service, or a table that is busy, the rest of the decision moves to the loop,
once, and stays there: from then on only the loop touches the generator (closing one from another thread
raises "generator already executing"), and a waiting thread just waits for the future.

Deadlines are the driver's. A decision that is late is deferred, its waiting lookup is cancelled, and
nobody waits longer than `deadline` plus a moment. A bug in a rule or a store defers too, and is logged.

A reload swaps policy and stores in one assignment; a decision keeps those that it began with. As no
decision outlives its deadline, the old stores are closed when that has passed, which costs the hot path
neither a lock nor a counter.

Rules in shadow are evaluated after the reply, on the loop, a bounded number at a time; under load they
are dropped, and counted.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from dataclasses import dataclass, field
from itertools import count

from rcptd import engine
from rcptd.address import Recipient
from rcptd.case import Case, Steps
from rcptd.policy import Policy, Walked
from rcptd.query import Query
from rcptd.question import Answer, Busy, Lookup, Service, Store, Table, Unavailable
from rcptd.trace import Asked, Trace
from rcptd.verdict import OUR_FAULT, UNKNOWN, Action, Verdict, safe_text

_log = logging.getLogger("rcptd.drive")

GRACE = 0.5
"""How long, in seconds, a thread waits past the deadline for a loop that is late itself."""

BUSY_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""How long the loop waits, in seconds, before it asks a busy table again; the last one repeats."""

MOST_SHADOWS = 256
"""How many shadow evaluations may be under way; beyond, they are dropped."""

_monotonic = time.monotonic
_numbers = count(1)
# Unlike for another process or the next start, so that a reference leads to one line of one log.
_START = os.urandom(2).hex()


@dataclass(frozen=True, slots=True)
class World:
    """A policy with the stores that its rules name; swapped whole by a reload."""

    policy: Policy
    stores: Mapping[str, Store]
    deadline: float = 6.0
    """Seconds in which every question is answered."""
    reference_in_reply: bool = False
    tables: Mapping[str, Callable[[Recipient], Answer | Busy]] = field(init=False)

    def __post_init__(self) -> None:
        tables = {name: store.lookup for name, store in self.stores.items() if isinstance(store, Table)}
        object.__setattr__(self, "tables", tables)

    async def aclose(self) -> None:
        """Close the stores."""
        for store in self.stores.values():
            if isinstance(store, Table):
                store.close()
            else:
                await store.aclose()


class Decision:
    """One decision, from the query to the verdict. Owned by its asker until it moves to the loop.

    `verdict` counts once `done`: None is "no opinion". `question` is what the decision waits for.
    `began` is on the monotonic clock, in seconds.
    """

    __slots__ = ("began", "case", "done", "ended", "number", "query", "question", "steps", "verdict", "world")

    def __init__(self, world: World, query: Query, *, verbose: bool = False) -> None:
        self.world = world
        self.query = query
        self.case: Case = engine.open_case(world.policy, query, Trace(verbose=verbose), time.time())
        self.steps: Steps[Verdict | None] = engine.decide(self.case)
        self.question: Lookup | None = None
        self.verdict: Verdict | None = None
        self.done = False
        self.number = next(_numbers)
        self.began = _monotonic()
        self.ended = 0.0

    @property
    def trace(self) -> Trace:
        """What was asked and answered so far."""
        return self.case.trace

    @property
    def reference(self) -> str:
        """A short id that names this decision in the log and, if wanted, in the refusal."""
        return f"{_START}-{self.number:x}"

    @property
    def seconds(self) -> float:
        """How long the decision took."""
        return self.ended - self.began

    def end(self, verdict: Verdict | None) -> None:
        """Set the verdict."""
        self.verdict = verdict
        self.question = None
        self.ended = _monotonic()
        self.done = True


def advance(
    steps: Steps[Verdict | None], world: World, trace: Trace, answer: Answer | None
) -> Lookup | Verdict | None:
    """Run steps as far as tables can take them; never waits, any thread may call.

    `answer` is the one to the question that the steps stopped at, None to begin. Gives that next
    question, or the verdict at the end.
    """
    tables = world.tables
    try:
        question = next(steps) if answer is None else steps.send(answer)
        while True:
            lookup = tables.get(question.store)
            if lookup is None:
                return question
            began = _monotonic()
            said = lookup(question.recipient)
            trace.entries.append(Asked(question.store, question.recipient.key, said, _monotonic() - began))
            if isinstance(said, Busy):
                return question
            question = steps.send(said)
    except StopIteration as end:
        verdict: Verdict | None = end.value
        return verdict


class Driver:
    """Runs decisions under the current world.

    `on_verdict` is told of every decision that ended, `on_shadow` of every shadow evaluation; both are
    called in whichever thread ended it and must neither wait nor raise.
    """

    def __init__(
        self,
        world: World,
        on_verdict: Callable[[Decision], None] = lambda _: None,
        on_shadow: Callable[[Decision, str, Verdict | None], None] = lambda *_: None,
    ) -> None:
        self.world = world
        self.shadow_counts: Counter[tuple[str, str]] = Counter()
        self.shadows_dropped = 0
        self._on_verdict = on_verdict
        self._on_shadow = on_shadow
        self.loop: asyncio.AbstractEventLoop | None = None
        self._shadows: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

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

    async def finish(self, decision: Decision) -> None:
        """Take a decision to its verdict within its deadline; on the loop only, never raises."""
        if decision.done:
            return
        try:
            async with asyncio.timeout(decision.began + decision.world.deadline - _monotonic()):
                while not decision.done:
                    self._advance(decision, await self._ask(decision))
        except TimeoutError:
            question = decision.question
            decision.trace.note("deadline", f"passed asking {question.store if question else 'no store'}")
            self._end(decision, UNKNOWN.said_by("deadline"))
        except Exception:
            _log.exception("a store failed in decision %s; deferred", decision.reference)
            self._end(decision, OUR_FAULT.said_by("fault"))
        except asyncio.CancelledError:
            self._end(decision, OUR_FAULT.said_by("stopping"))
            raise

    def decide_from_thread(self, query: Query) -> Verdict | None:
        """Decide while a thread of libmilter waits; never raises, ends shortly after the deadline at most.

        At most one hop to the loop, and none where tables have all the answers.
        """
        decision = self.begin(query)
        if decision.done:
            return decision.verdict
        loop = self.loop
        if loop is None or loop.is_closed():
            return OUR_FAULT.said_by("stopping")
        waiting = asyncio.run_coroutine_threadsafe(self.finish(decision), loop)
        try:
            waiting.result(decision.began + decision.world.deadline + GRACE - _monotonic())
        except TimeoutError:
            # The loop itself is late. The decision is its to end; we only stop waiting for it.
            _log.error("the loop is late; decision %s deferred without it", decision.reference)
            return UNKNOWN.said_by("deadline")
        except (FutureCancelled, asyncio.CancelledError, RuntimeError):
            return OUR_FAULT.said_by("stopping")
        return decision.verdict

    def replace(self, world: World) -> None:
        """Put a new world in force; the old one's stores are closed when its last decision has ended."""
        old, self.world = self.world, world
        task = asyncio.get_running_loop().create_task(self._close_later(old, world))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_later(self, old: World, new: World) -> None:
        await asyncio.sleep(old.deadline + 2 * GRACE)
        kept = {id(store) for store in new.stores.values()}
        rest = {name: store for name, store in old.stores.items() if id(store) not in kept}
        await World(old.policy, rest).aclose()

    async def aclose(self) -> None:
        """Drop what runs in shadow and close the stores."""
        for task in (*self._shadows, *self._closing):
            task.cancel()
        await self.world.aclose()

    def _advance(self, decision: Decision, answer: Answer | None) -> None:
        try:
            result = advance(decision.steps, decision.world, decision.case.trace, answer)
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
        self._on_verdict(decision)
        if decision.case.shadows:
            self._shadow_later(decision)

    async def _ask(self, decision: Decision) -> Answer:
        """Ask whom the decision waits for: a service, or a busy table again until it is not."""
        question = decision.question
        assert question is not None
        store = decision.world.stores[question.store]
        began = _monotonic()
        said = await _ask_patiently(store, question)
        seconds = _monotonic() - began
        decision.trace.entries.append(Asked(question.store, question.recipient.key, said, seconds))
        return said

    def _shadow_later(self, decision: Decision) -> None:
        loop = self.loop
        if loop is None or len(self._shadows) >= MOST_SHADOWS:
            self.shadows_dropped += 1
            return
        loop.call_soon_threadsafe(self._start_shadow, decision)

    def _start_shadow(self, decision: Decision) -> None:
        if len(self._shadows) >= MOST_SHADOWS:
            self.shadows_dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._run_shadows(decision))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _run_shadows(self, decision: Decision) -> None:
        for walked, recipient in decision.case.shadows or ():
            try:
                async with asyncio.timeout(decision.world.deadline):
                    verdict = await self._run_shadow(decision, walked, recipient)
            except TimeoutError:
                verdict = UNKNOWN.said_by(walked.rule.name)
            except Exception:
                _log.exception("rule %r in shadow failed", walked.rule.name)
                continue
            said = verdict.cause.value if verdict else "no opinion"
            self.shadow_counts[walked.rule.name, said] += 1
            self._on_shadow(decision, walked.rule.name, verdict)

    async def _run_shadow(self, decision: Decision, walked: Walked, recipient: Recipient) -> Verdict | None:
        world = decision.world
        case = engine.open_case(world.policy, decision.query, Trace(), time.time())
        steps = engine.shadow(case, walked, recipient)
        answer: Answer | None = None
        while True:
            result = advance(steps, world, case.trace, answer)
            if not isinstance(result, Lookup):
                return result
            if result.store in world.policy.next_hops and not walked.rule.shadow_probes:
                answer = Unavailable("not asked in shadow")
            else:
                answer = await _ask_patiently(world.stores[result.store], result)


async def _ask_patiently(store: Store, question: Lookup) -> Answer:
    if isinstance(store, Service):
        return await store.ask(question.recipient)
    for attempt in count():
        said = store.lookup(question.recipient)
        if not isinstance(said, Busy):
            return said
        await asyncio.sleep(BUSY_PAUSES[min(attempt, len(BUSY_PAUSES) - 1)])
    raise AssertionError  # count() has no end


def _with_reference(verdict: Verdict, reference: str) -> Verdict:
    note = f" (ref {reference})"
    return verdict.with_text(safe_text(verdict.text)[: 200 - len(note)] + note)
