"""The trace of a decision: which rules were looked at, which stores were asked, what they said.

Store answers are always kept, as plain tuples, because they are few and a bad answer must be
explainable afterwards. Why each rule did not apply is only kept where somebody asked (`verbose`).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rcptd.address import Recipient
from rcptd.question import Absence, Answer, Busy, Found, Mailbox, NotFound, Unavailable


class Asked(NamedTuple):
    """A store was asked about a recipient and answered, `seconds` later."""

    store: str
    recipient: Recipient
    answer: Answer | Busy
    seconds: float


class Note(NamedTuple):
    """What happened at a rule, in words, and to which address where that matters."""

    rule: str
    what: str
    address: str = ""


class Trace:
    """The entries of one decision, in order. Owned by whoever drives the decision."""

    __slots__ = ("entries", "verbose")

    def __init__(self, *, verbose: bool = False) -> None:
        self.entries: list[Asked | Note] = []
        self.verbose = verbose

    def note(self, rule: str, what: str, address: str = "") -> None:
        """Keep a remark about a rule, if somebody wants to read it.

        An address stands by itself, so that a trace can be shown without naming people.
        """
        if self.verbose:
            self.entries.append(Note(rule, what, address))

    @property
    def last_asked(self) -> Asked | None:
        """The store that was asked last, which is most often the one that decided."""
        for entry in reversed(self.entries):
            if isinstance(entry, Asked):
                return entry
        return None


Mask = Callable[[str], str]
"""Puts an address as it may be shown: whole, hashed, or less its local part."""


def describe(answer: Answer | Busy, mask: Mask = str) -> str:
    """Put a store's answer into words, with whatever it knows that is not the default."""
    match answer:
        case Found(mailbox, source):
            facts = facts_of(mailbox, mask)
            words = ", ".join(f"{name} {value}" for name, value in facts.items())
            return (f"found ({words})" if words else "found") + _said(source, mask)
        case Unavailable(why):
            return f"unavailable: {_masked(why, mask)}"
        case Busy(why):
            return f"busy: {_masked(why, mask)}"
        case NotFound(absence, source):
            what = "" if absence is Absence.MAILBOX else f" ({absence.value})"
            return f"not found{what}{_said(source, mask)}"
        case _:
            return f"no answer: {answer!r}"  # a store that breaks its word


def _said(source: str, mask: Mask) -> str:
    return f", as {_masked(source, mask)}" if source else ""


_ADDRESS = re.compile(r"""[^\s'"<>]+@[^\s'"<>:,;]+""")


def _masked(why: str, mask: Mask) -> str:
    """Mask the addresses that a store names in its reason, as in that of a faulty row."""
    return _ADDRESS.sub(lambda found: mask(found[0]), why)


def facts_of(mailbox: Mailbox, mask: Mask = str) -> dict[str, Any]:
    """List what a store knows of a mailbox beyond that it exists, in plain types."""
    plain = {
        "spelling": mailbox.spelling and mask(mailbox.spelling),
        "catch-all": mailbox.catch_all,
        "unproven": mailbox.unproven,
        "on server": mailbox.server,
        "targets": [mask(target) for target in mailbox.targets],
        "moved to": mailbox.moved_to and mask(mailbox.moved_to),
    }
    facts: dict[str, Any] = {name: value for name, value in plain.items() if value}
    if mailbox.disabled:
        state = mailbox.disabled
        facts["disabled"] = "for now" if state.temporary else "for good"
        if state.until is not None:
            facts["until"] = state.until
    if mailbox.posting:
        limits = mailbox.posting
        facts["posting"] = [
            *(["authenticated"] if limits.authenticated else []),
            *limits.networks,
            *map(mask, limits.senders),
        ]
    if mailbox.quota:
        quota = mailbox.quota
        if quota.bytes_limit is not None:
            facts["bytes"] = f"{quota.bytes_used}/{quota.bytes_limit}"
        if quota.messages_limit is not None:
            facts["messages"] = f"{quota.messages_used}/{quota.messages_limit}"
    return facts
