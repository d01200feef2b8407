"""What stands between those who ask a next hop and the connections to it: questions, and the queue of them."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from rcptd.address import Recipient
from rcptd.stores.callahead.meaning import HopTrouble, Outcome

AGAIN = 2  # times that a question goes back into the queue: once for a lost connection, once for one that was full


class Conversation(Protocol):
    """What a pool wants of a connection."""

    @property
    def usable(self) -> bool:
        """Say whether the connection may be asked again."""
        ...

    @property
    def room(self) -> int:
        """Say how many recipients fit into one transaction."""
        ...

    async def ask(self, recipients: Sequence[Recipient], *, until: float) -> list[Outcome]:
        """Ask about recipients in one transaction, until the loop's time."""
        ...

    async def reset(self, *, until: float) -> None:
        """End the transaction that is open."""
        ...

    async def quit(self, *, within: float = 1.0) -> None:
        """Take leave, and close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


Open = Callable[[bool], Awaitable[Conversation]]
"""Opens a connection, without TLS where told so; raises `HopTrouble`."""


class Question:
    """Recipients that are asked about in one transaction, and who waits for the outcomes.

    `under_way` says that a connection has taken it, `lost` that a connection was lost with it, and `again` how often
    it went back into the queue.
    """

    __slots__ = ("again", "lost", "outcomes", "recipients", "under_way")

    def __init__(self, recipients: tuple[Recipient, ...], outcomes: "asyncio.Future[list[Outcome]]") -> None:
        self.recipients = recipients
        self.outcomes = outcomes
        self.under_way = self.lost = False
        self.again = 0

    def answer(self, outcomes: list[Outcome]) -> None:
        """Tell whoever waits, if anybody still does."""
        if not self.outcomes.done():
            self.outcomes.set_result(outcomes)

    def fail(self, trouble: HopTrouble) -> None:
        """Tell whoever waits of a trouble that was everybody's."""
        self.answer([trouble] * len(self.recipients))


class Waiting:
    """The questions that wait for a connection, first come first served; whoever gives up leaves at no cost."""

    def __init__(self) -> None:
        self._questions: OrderedDict[Question, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._questions)

    def add(self, question: Question) -> None:
        """Put a question at the end."""
        self._questions[question] = None

    def put_back(self, question: Question) -> None:
        """Put a question at the head again."""
        question.under_way = False
        self._questions[question] = None
        self._questions.move_to_end(question, last=False)

    def leave(self, question: Question) -> None:
        """Take out a question that nobody waits for any more, if it is still here."""
        self._questions.pop(question, None)

    def first(self) -> Question:
        """Take the question that has waited longest."""
        return self._questions.popitem(last=False)[0]

    def take(self, share: int, recipients: int) -> list[Question]:
        """Take so many questions, and no more than begin within so many recipients."""
        taken: list[Question] = []
        asked = 0
        while self._questions and len(taken) < share and asked < recipients:
            question = self.first()
            if question.outcomes.done():
                continue  # given up a moment ago
            question.under_way = True
            taken.append(question)
            asked += len(question.recipients)
        return taken
