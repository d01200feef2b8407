"""Recipients in memory: for tests, and for a handful written into the configuration itself.

As in `recipients = ["postmaster@example.org", "@example.net"]`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rcptd import schema
from rcptd.address import NotAnAddress, Recipient
from rcptd.question import Answer, Busy, Mailbox, Unavailable
from rcptd.schema import option
from rcptd.stores.entries import Snapshot, Subject, subject


def _address(value: object) -> Subject:
    try:
        return subject(schema.text(value))
    except NotAnAddress as error:
        raise ValueError(f"{value!r} is neither user@domain nor @domain: {error}") from None


@dataclass(frozen=True, slots=True)
class Settings:
    """A store of type `memory`."""

    recipients: tuple[Subject, ...] = option(
        schema.many(_address),
        default=None,
        doc="The recipients, each user@domain or @domain for a whole domain.",
    )
    allow_empty: bool = option(
        schema.boolean,
        default=False,
        doc="Whether a domain of which nobody is here has nobody (else: cannot tell).",
    )


class Memory:
    """A table of recipients; `trouble`, when set, is what it answers instead."""

    def __init__(self, recipients: Mapping[str, Mailbox], *, allow_empty: bool = False) -> None:
        """Take recipients by address, `@domain` for a catch-all; raises `NotAnAddress`."""
        self.trouble: Unavailable | Busy | None = None
        self._allow_empty = allow_empty
        self._entries = Snapshot()
        for text, mailbox in recipients.items():
            self._entries.add(subject(text), mailbox)

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Say what the table knows of the recipient; any thread may call."""
        return self.trouble or self._entries.lookup(recipient, allow_empty=self._allow_empty)

    def standing(self) -> object:
        """Give the table, which never changes; any thread may call."""
        return None if self.trouble else self

    def stands_until(self, recipient: Recipient) -> float:  # noqa: ARG002 - all of it stands alike
        """Say that time alone changes no answer."""
        return math.inf

    def close(self) -> None:
        """Answer no more."""
        self.trouble = Unavailable("closed")


def open_store(name: str, settings: Settings) -> Memory:  # noqa: ARG001 - one shape for all stores
    """Open the store of a configuration."""
    recipients = {str(one): Mailbox(spelling=one.spelling) for one in settings.recipients or ()}
    return Memory(recipients, allow_empty=settings.allow_empty)
