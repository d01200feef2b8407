"""A decision, from the query to the verdict, and what the log is told of it; and of a verdict that is given again."""

import os
import time
from itertools import count
from typing import Protocol

from rcptd import engine
from rcptd.case import Case, Steps
from rcptd.query import Query
from rcptd.question import Lookup
from rcptd.settled import Said
from rcptd.trace import Trace
from rcptd.verdict import Verdict
from rcptd.world import World

_monotonic = time.monotonic
_numbers = count(1)
# Unlike for another process or the next start, so that a reference leads to one line of one log.
_START = os.urandom(2).hex()


def _start_anew() -> None:
    global _START  # noqa: PLW0603 - a forked worker counts from where its parent does, too
    _START = os.urandom(2).hex()


os.register_at_fork(after_in_child=_start_anew)


class Told(Protocol):
    """A verdict that was told, as the log sees it: one just decided, or one that still stands."""

    @property
    def query(self) -> Query:
        """What was asked."""
        ...

    @property
    def verdict(self) -> Verdict | None:
        """What was answered, None for no opinion."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether the asker went away before."""
        ...

    @property
    def said(self) -> Said | None:
        """The store that was asked last, and what it said."""
        ...

    @property
    def reference(self) -> str:
        """A short id, this one's only."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...


class Decision:
    """One decision, from the query to the verdict. Owned by its asker until it moves to the loop.

    `verdict` counts once `done`: None is "no opinion". `question` is what the decision waits for.
    `abandoned` says that the asker went away before the verdict, which is then a deferral that nobody hears.
    `began` is on the monotonic clock, in seconds.
    """

    __slots__ = (
        "abandoned", "began", "case", "done", "ended", "number", "query", "question", "steps", "verdict", "world",
    )  # fmt: skip

    def __init__(self, world: World, query: Query, *, verbose: bool = False) -> None:
        self.world = world
        self.query = query
        self.case: Case = engine.open_case(world.policy, query, Trace(verbose=verbose), time.time())
        self.steps: Steps[Verdict | None] | None = None
        self.question: Lookup | None = None
        self.verdict: Verdict | None = None
        self.done = False
        self.abandoned = False
        self.number = next(_numbers)
        self.began = _monotonic()
        self.ended = 0.0

    @property
    def trace(self) -> Trace:
        """What was asked and answered so far."""
        return self.case.trace

    @property
    def said(self) -> Said | None:
        """The store that was asked last, which is most often the one that decided, and what it said."""
        asked = self.case.trace.last_asked
        return (asked.store, asked.answer) if asked else None

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


class Again:
    """A verdict that was given again, as it still stands; `Told`, and for whoever is told of decisions."""

    __slots__ = ("number", "query", "said", "verdict")

    abandoned = False
    seconds = 0.0

    def __init__(self, query: Query, verdict: Verdict | None, said: Said | None) -> None:
        self.query = query
        self.verdict = verdict
        self.said = said
        self.number = next(_numbers)

    @property
    def reference(self) -> str:
        """A short id that names this answer in the log."""
        return f"{_START}-{self.number:x}"
