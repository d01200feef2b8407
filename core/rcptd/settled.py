"""What was decided and still stands: the same question again has the same verdict, and costs no decision.

Theory of operation. A decision on tables, and on what services remember, is a function of the question, of the policy
and of what those stores hold. So its verdict is kept by the question, as whoever asks spells that, for as long as all
of them are as they were. That is a `Ground`: a world, with the token that each of its stores gave (`Stands`). Where the
world is another one, or any token, nothing that was settled before counts, and the next question begins a new ground.
What a service remembers has its end besides, after which the question goes its usual way, so that the memory is kept
fresh as ever.

Not settled is what had to wait for an answer, what some store could not tell, what a rule in shadow has yet to judge,
what depends on the hour, and a refusal with a reference in its text. So trouble is never settled.

Who asks sees to it that its question holds all that the verdict depends on.

Bounds. There are two generations, each of half of `most` at most. A question that is met in the old one moves to the
young one; when that is full it becomes the old one, and what nobody has asked again meanwhile is gone. A question
longer than OCTETS is not kept.

Whether all stores are as they were may cost more than to find a verdict (SQLite has to be asked), so that is looked at
once for each question: before a verdict is given again, and before one is kept.

Threads. Any may call. A ground is taken before the decision and looked at before its verdict is kept. No store gives
the same token for two states, so if it is as when the ground was made, it was so all the while, and what is kept was
decided on that ground.
"""

import logging
import time
from collections.abc import Callable, Hashable, Sized
from typing import Generic, Protocol, TypeVar

from rcptd.case import Case
from rcptd.question import Answer, Busy, Found, NotFound, Stands
from rcptd.trace import Asked
from rcptd.verdict import Action, Cause, Verdict
from rcptd.world import World

_log = logging.getLogger("rcptd.settled")

MOST = 100_000
"""How many verdicts are kept; each takes some 300 octets with its question."""

OCTETS = 400
"""How long a question may be that is kept; an address has 254 octets at most."""

_TROUBLE = {Cause.UNKNOWN, Cause.OUR_FAULT}
_monotonic = time.monotonic

Said = tuple[str, Answer | Busy]
"""A store, and what it said."""


class Question(Hashable, Sized, Protocol):
    """Whatever a front end knows a question by: octets or a text."""


T = TypeVar("T")


class Settled(Generic[T]):
    """One verdict, and the reply that it was told by.

    It stands until the time `until`, on the monotonic clock. `logged` says that somebody wants to know each time that
    it is given, and `said` is for him: which store was asked last, and what it said.
    """

    __slots__ = ("logged", "reply", "said", "until", "verdict")

    def __init__(self, reply: T, verdict: Verdict | None, until: float, said: Said | None, *, logged: bool) -> None:
        self.reply = reply
        self.verdict = verdict
        self.until = until
        self.said = said
        self.logged = logged


class Ground(Generic[T]):
    """A world as its stores were at one time, and what was settled on it.

    `lasts` as long as no store was seen to have changed; never where one could not tell its state from the beginning.
    """

    __slots__ = ("_half", "_old", "_stores", "_tokens", "_young", "lasts", "world")

    def __init__(self, world: World, most: int = MOST) -> None:
        self.world = world
        self.lasts = True
        self._tokens: list[tuple[Callable[[], object], object]] = []
        self._stores: dict[str, Stands] = {}
        for name, store in world.standing.items():
            try:
                token = store.standing()
            except Exception:
                _log.exception("store %r cannot tell whether its answers stand; it is asked each time", name)
                continue
            self._tokens.append((store.standing, token))
            if token is not None:
                self._stores[name] = store
            else:
                self.lasts = False  # nothing can be known to stand, until it can tell
        self._half = max(1, most // 2)
        self._young: dict[Question, Settled[T]] = {}
        self._old: dict[Question, Settled[T]] = {}

    def stands(self) -> bool:
        """Say whether all stores are as they were."""
        try:
            for standing, token in self._tokens:
                if standing() is not token:
                    break
            else:
                return True
        except Exception:  # noqa: S110 - the next ground will tell
            pass
        self.lasts = False
        return False

    def recall(self, question: Question) -> Settled[T] | None:
        """Give what was settled of a question, None where that must be decided; it counts if the ground `stands`."""
        settled = self._young.get(question)
        if settled is None:
            settled = self._old.get(question)
            if settled is None:
                return None
            self._put(question, settled)
        return settled if _monotonic() < settled.until else None

    def keep(self, question: Question, reply: T, case: Case, verdict: Verdict | None, *, logged: bool) -> None:
        """Keep the verdict of a case that was decided at once, if it can be known how long it stands."""
        if not self._is_lasting(case, verdict) or len(question) > OCTETS:
            return
        until = float("inf")
        said = None
        for asked in case.trace.entries:
            if not isinstance(asked, Asked) or not _stands(asked):
                return
            store = self._stores.get(asked.store)
            if store is None:
                return
            until = min(until, store.stands_until(asked.recipient))
            said = (asked.store, asked.answer)
        if self.stands():
            self._put(question, Settled(reply, verdict, until, said if logged else None, logged=logged))

    def _is_lasting(self, case: Case, verdict: Verdict | None) -> bool:
        if case.shadows or case.policy is not self.world.policy:
            return False
        if verdict is None or verdict.action is Action.ACCEPT:
            return True
        return verdict.cause not in _TROUBLE and not self.world.reference_in_reply

    def _put(self, question: Question, settled: Settled[T]) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[question] = settled


class HasWorld(Protocol):
    """Who knows the world that is in force."""

    world: World


class Settling(Generic[T]):
    """The ground that the verdicts of one asker stand on: a new one whenever the last does not."""

    __slots__ = ("_ground", "_most", "_of")

    def __init__(self, of: HasWorld, most: int = MOST) -> None:
        self._of = of
        self._most = most
        self._ground: Ground[T] = Ground(of.world, most)

    def recall(self, question: Question, *, unlogged: bool = False) -> Settled[T] | None:
        """Give what was settled of a question and still stands, None where that must be decided.

        With `unlogged` what somebody wants to know of is left out.
        """
        ground = self._ground
        settled = ground.recall(question)
        if settled is None or (unlogged and settled.logged):
            return None
        return settled if ground.world is self._of.world and ground.stands() else None

    def ground(self) -> Ground[T]:
        """Give the ground for a question that is to be decided; to be taken for each anew, before it is."""
        ground = self._ground
        if ground.world is not self._of.world or not (ground.lasts or ground.stands()):
            ground = self._ground = Ground(self._of.world, self._most)
        return ground


def is_of_recipient_alone(case: Case) -> bool:
    """Say whether the verdict would be the same for whoever asks, if only the recipient is the same."""
    if case.policy.asks_about_asker or not case.query.recipient.isascii():
        return False
    for asked in case.trace.entries:
        if isinstance(asked, Asked) and isinstance(asked.answer, Found):
            mailbox = asked.answer.mailbox
            if mailbox.posting or mailbox.quota:
                return False
    return True


def _stands(asked: Asked) -> bool:
    """Say whether an answer is one that neither trouble nor the hour may change."""
    answer = asked.answer
    if isinstance(answer, Found):
        disabled = answer.mailbox.disabled
        return disabled is None or disabled.until is None
    return isinstance(answer, NotFound)
