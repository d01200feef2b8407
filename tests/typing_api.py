"""The public API as another package uses it: never run, only type-checked (`make types`).

A wrong line here is a promise broken: what another package wrote against this version would no longer check.
"""

from dataclasses import dataclass
from typing import assert_never, assert_type

from rcptd import schema
from rcptd.address import NotAnAddress, Recipient, parse
from rcptd.case import Case, Steps
from rcptd.decision import Decision
from rcptd.drive import Driver
from rcptd.engine import decide, open_case
from rcptd.policy import Policy
from rcptd.query import UNKNOWN, Query
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Answer,
    Busy,
    Found,
    Lookup,
    Mailbox,
    NotFound,
    Quota,
    Service,
    Store,
    Table,
    Unavailable,
)  # fmt: skip
from rcptd.schema import option
from rcptd.stores import StoreType, memory
from rcptd.trace import Trace
from rcptd.verdict import NO_SUCH_MAILBOX, Action, Cause, Verdict, from_reply, safe_text
from rcptd.world import World

# A store of another package: its module has Settings and open_store, as this one.


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """A section of the configuration."""

    url: str = option(schema.text, doc="Where the directory is.")
    patience: float = option(schema.duration(0.1, 60), default="2s", doc="How long to wait for it.")
    probing: bool = option(schema.boolean, default=False, doc="Whether it asks the next hop.")


class Directory:
    """A service: it may wait, on the loop."""

    def __init__(self, settings: DirectorySettings) -> None:
        self.next_hop = settings.probing

    async def ask(self, recipient: Recipient) -> Answer:
        """Answer one of three things."""
        if recipient.domain == "down.example":
            return Unavailable("the directory is down")
        if recipient.local == "nobody":
            return NOT_FOUND
        return Found(Mailbox(spelling=str(recipient), quota=Quota(bytes_limit=1 << 20)))

    async def aclose(self) -> None:
        """Let go of everything."""


class Few:
    """A table: it never waits, in any thread."""

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Answer at once, or say that this would take waiting."""
        return EXISTS if recipient.key == "a@b.example" else Busy("a writer")

    def close(self) -> None:
        """Let go of everything."""


def open_store(name: str, settings: DirectorySettings) -> Store:
    """Open either kind."""
    return Few() if name == "few" else Directory(settings)


a_type: StoreType = memory  # a module with Settings and open_store
a_table: Table = Few()
a_service: Service = Directory(DirectorySettings("ldap://directory.example", 2.0, probing=False))
neither: Table = Directory(DirectorySettings("x", 1.0, probing=True))  # type: ignore[assignment]
nor: Service = Few()  # type: ignore[assignment]


class Forgetful:
    """A table that answers None or a truth: it does not check."""

    def lookup(self, recipient: Recipient) -> bool | None:
        """Answer what nobody understands."""
        return recipient.key == "a@b.example" or None

    def close(self) -> None:
        """Let go of nothing."""


no_table: Table = Forgetful()  # type: ignore[assignment]


# A rule: facts in, a verdict or no opinion out; each of the three answers has to be treated.


def listed(store: str, recipient: Recipient) -> Steps[Verdict | None]:
    """Ask one store."""
    answer = yield Lookup(store, recipient)
    match answer:
        case Found(mailbox):
            return NO_SUCH_MAILBOX.said_by("mine") if mailbox.moved_to else None
        case NotFound():
            return NO_SUCH_MAILBOX
        case Unavailable():
            return None
        case _:
            assert_never(answer)


def both(recipient: Recipient) -> Steps[Verdict | None]:
    """Compose two rules."""
    verdict = yield from listed("one", recipient)
    assert_type(verdict, Verdict | None)
    forgotten = listed("two", recipient)
    if forgotten is None:  # what forgot its `yield from` is a generator, and no verdict
        return None
    return verdict


def incomplete(recipient: Recipient) -> Steps[bool]:
    """Forget what a store may say, too: that does not check."""
    answer = yield Lookup("one", recipient)
    match answer:
        case Found():
            return True
        case NotFound():
            return False
        case _:
            assert_never(answer)  # type: ignore[arg-type]


def walked_by_hand(policy: Policy) -> Verdict | None:
    """Feed a decision as a test does."""
    query = Query("user@example.org", "socketmap", "virtual")
    assert_type(query.recipient, str)
    case = open_case(policy, query, Trace(verbose=True), 0.0)
    assert_type(case, Case)
    steps = decide(case)
    question = next(steps)
    assert_type(question, Lookup)
    try:
        while True:
            question = steps.send(EXISTS)
    except StopIteration as end:
        verdict: Verdict | None = end.value
    steps.send(Busy("never reaches a rule"))  # type: ignore[arg-type]
    return verdict


def front_end(driver: Driver, world: World) -> None:
    """Ask as a front end does."""
    decision = driver.begin(Query("user@example.org", "milter", sender="", client=None, size=0))
    assert_type(decision, Decision)
    assert_type(driver.decide_from_thread(decision.query), Verdict | None)
    driver.replace(world)
    Query("user@example.org", "smtp")  # type: ignore[arg-type]
    if decision.query.size is not UNKNOWN:
        assert_type(decision.query.size, int)


def words() -> None:
    """Use the vocabulary."""
    verdict = from_reply("550 5.7.1 " + safe_text("No"))
    assert_type(verdict.action, Action)
    assert_type(verdict.cause, Cause)
    verdict.code = 451  # type: ignore[misc]
    try:
        recipient = parse("user@example.org")
    except NotAnAddress:
        return
    assert_type(recipient.without_detail("+"), Recipient | None)
    assert_type(recipient.key, str)
