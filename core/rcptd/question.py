"""What rules ask of stores, and the only three things a store may answer.

A rule yields a `Lookup` and is sent an `Answer`. There is no fourth answer, no None, no bool and no
exception across this boundary: "not there" and "cannot tell" are different types, so that a rule
which forgets one of them does not type-check. `Busy` never reaches a rule: a table says it when a
writer holds a lock, and whoever drives the decision asks again from the loop.

Also here is what a store can know of a recipient, a `Mailbox` and its parts.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from rcptd.address import Recipient


class Lookup(NamedTuple):
    """The question whether a store, by its configured name, knows a recipient.

    `server` is where another store knows the mailbox to be, "" where none said so.
    """

    store: str
    recipient: Recipient
    server: str = ""


@dataclass(frozen=True, slots=True)
class Disabled:
    """The mailbox takes no mail: for good (550 5.2.1) or, if `temporary`, for now (450 4.2.1).

    `text` is the operator's own and public, "" for the usual one; `until` is seconds since the epoch,
    None for no end.
    """

    temporary: bool = False
    text: str = ""
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Posting:
    """Who may post: whoever meets one of these, so with none of them nobody.

    Networks and senders are as the store's file spells them:
    `networks` are addresses and CIDR networks, `senders` are addresses or `@domain`.
    """

    authenticated: bool = False
    networks: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Quota:
    """How much fits, in bytes and in messages, and how much is used; a limit of None is none.

    `unsized` is what a message counts whose size nobody told: an octet, as none is empty, but nothing to Cyrus.
    `final` says whether being over quota is for good, None leaves that to the rule.
    """

    bytes_limit: int | None = None
    bytes_used: int = 0
    messages_limit: int | None = None
    messages_used: int = 0
    unsized: int = 1
    final: bool | None = None


@dataclass(frozen=True, slots=True)
class Mailbox:
    """What a store knows of a recipient that exists; the default is a mailbox open to everyone.

    `spelling` is the address as the store spells it, "" where that is the key itself; `catch_all` says
    that the domain's catch-all answered; `targets` are the addresses an alias leads to; `moved_to` is
    the new address of one who left; `posting` None means anyone. `unproven` says that who was asked takes every
    local part, so that its yes proves nothing; `server` names the host that keeps the mailbox, where that is
    another one, which has yet to be asked.
    """

    spelling: str = ""
    catch_all: bool = False
    disabled: Disabled | None = None
    posting: Posting | None = None
    quota: Quota | None = None
    targets: tuple[str, ...] = ()
    moved_to: str = ""
    unproven: bool = False
    server: str = ""


class Absence(Enum):
    """What is not there, by the words that logs and traces use."""

    MAILBOX = "no such mailbox"
    DOMAIN = "no such domain"
    NULL_MX = "the domain takes no mail"  # RFC 7505
    UTF8 = "its server takes no address in UTF-8"  # RFC 6531 3.5


@dataclass(frozen=True, slots=True)
class Found:
    """The store knows the recipient, and this is what it knows.

    `source` is who said so and in which words, where the store only passes it on; as `why` in `Unavailable`.
    """

    mailbox: Mailbox
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class NotFound:
    """The store is well and has no such recipient; `source` as in `Found`."""

    absence: Absence = Absence.MAILBOX
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The store cannot tell; `why` is for the log and the trace, never for the client.

    `of_recipient` says that whoever was asked is well and cannot tell of this recipient only, as with a mailbox
    that is greylisted: that may be remembered for a moment, all other trouble never is.
    """

    why: str
    of_recipient: bool = False


@dataclass(frozen=True, slots=True)
class Busy:
    """A table cannot tell without waiting; ask again from the loop. `why` as in `Unavailable`, "" for no story."""

    why: str


Answer = Found | NotFound | Unavailable

# What needs no detail, made once: it is the common case.
PLAIN = Mailbox()
EXISTS = Found(PLAIN)
NOT_FOUND = NotFound()


@runtime_checkable
class Table(Protocol):
    """A store that answers in microseconds and never blocks; any thread may call."""

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Say what the table knows of the recipient."""
        ...

    def close(self) -> None:
        """Let go of files and connections, after the last decision that uses the table."""
        ...


@runtime_checkable
class Service(Protocol):
    """A store that may wait; it lives on the loop and is called there only.

    `next_hop` says that asking it asks another mail server: rules in shadow leave such a store alone
    unless the operator allows probes.
    """

    next_hop: bool

    async def ask(self, recipient: Recipient) -> Answer:
        """Say what the service knows of the recipient; must end soon after being cancelled."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads, after the last decision that uses the service."""
        ...


@runtime_checkable
class AsksServers(Protocol):
    """A service that can ask a server which another store named; called as `Service.ask`."""

    async def ask_at(self, server: str, recipient: Recipient) -> Answer:
        """Say what the server knows of the recipient."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A service that remembers its answers; any thread may call all but `ask_in_shadow`, which is for the loop."""

    def recall(self, recipient: Recipient) -> Answer | Busy:
        """Give the remembered answer that still counts; `Busy` where one must ask."""
        ...

    def peek(self, recipient: Recipient) -> Answer | Busy:
        """Do as `recall`, but let nobody notice: no refresh follows."""
        ...

    def last_known(self, recipient: Recipient) -> Answer | None:
        """Give the last good answer that may be used while nobody answers, None for none."""
        ...

    async def ask_in_shadow(self, recipient: Recipient) -> Answer:
        """Ask past the memory, without changing it."""
        ...


Store = Table | Service


@runtime_checkable
class Stands(Protocol):
    """A store that can tell whether what it said is still what it would say, cheaper than it answers; any thread."""

    def standing(self) -> object:
        """Give the same object for as long as no answer has changed but by time; None where that cannot be told."""
        ...

    def stands_until(self, recipient: Recipient) -> float:
        """Say how long the answer on the spot stands by itself, on the monotonic clock in seconds."""
        ...


@runtime_checkable
class Reports(Protocol):
    """A store that can tell how it is, for the status of the daemon; must not wait, any thread may call."""

    def condition(self) -> str:
        """Say in a few words what is wrong, "" while all is well."""
        ...


@runtime_checkable
class SpeaksSmmapd(Protocol):
    """A table that has another to answer where the reply goes out in the words of Cyrus' smmapd, or None."""

    on_smmapd: Table | None


@runtime_checkable
class Explains(Protocol):
    """A store that can tell how it comes to an answer, for `check --explain`; never asked on the way to a verdict."""

    def explain(self, recipient: Recipient) -> list[str]:
        """Tell the steps that lead to the answer, for a person to read; must not wait or raise."""
        ...
