"""A case: one query on its way through a policy, with what must be remembered on that way."""

from collections.abc import Callable, Generator
from typing import TypeVar

from rcptd.address import Recipient
from rcptd.policy import Policy, Rule, Walked
from rcptd.query import Query
from rcptd.question import Answer, Lookup
from rcptd.trace import Trace
from rcptd.verdict import Verdict

T = TypeVar("T")
Steps = Generator[Lookup, Answer, T]
"""A part of a decision: yields questions, is sent answers, returns a T. Never does I/O itself."""


class Case:
    """One query under one policy. Belongs to one decision; not for several threads at once.

    `now` is seconds since the epoch. `path` holds the aliases being followed, outermost first; `ends`
    counts all ends followed so far; `shadows` are the rules that apply in shadow, to be evaluated after
    the reply. `walk` is the engine's, handed in so that the rule for aliases can send an end through
    the whole policy again without importing upward. `in_shadow` is set while such a rule is evaluated.
    """

    __slots__ = ("ends", "in_shadow", "now", "path", "policy", "query", "shadows", "trace", "walk")

    def __init__(
        self,
        policy: Policy,
        query: Query,
        trace: Trace,
        now: float,
        walk: "Callable[[Case, Recipient, bool], Steps[Verdict | None]]",
    ) -> None:
        self.policy = policy
        self.query = query
        self.trace = trace
        self.now = now
        self.walk = walk
        self.path: list[str] = []
        self.ends = 0
        self.shadows: list[tuple[Walked, Recipient]] | None = None
        self.in_shadow = False

    def unasked(self, store: str, rule: Rule) -> bool:
        """Say whether a store is left alone at the end of an alias: a slow one is, unless the rule says so.

        Otherwise one recipient could become fifty questions to a directory or to another mail server.
        """
        return store in self.policy.slow and not rule.verify_targets
