"""How long each kind of answer counts: the options of `[stores.NAME.memo]`.

The defaults are short where being wrong costs mail and long where it costs a question: see
docs/decisions/0017-memo.md for what others have and why ours differ.
"""

import math
from dataclasses import dataclass

from rcptd import schema
from rcptd.memo.vanish import MOST_ADDRESSES
from rcptd.question import Answer, Found, Mailbox, NotFound
from rcptd.schema import option

_WEEKS = 90 * 86400


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long answers are remembered, and how a yes that turns into a no is taken."""

    yes: float = option(
        schema.duration(0, _WEEKS), default="2h", doc="How long a yes answers without the store being asked."
    )
    refresh: float = option(
        schema.duration(0, _WEEKS),
        default="15m",
        doc="After this a yes that is used is asked about again, while it still answers.",
    )
    no: float = option(
        schema.duration(0, 86400),
        default="2m",
        doc="How long a no is remembered, and so how long a new mailbox may be refused.",
    )
    full: float = option(schema.duration(0, 86400), default="5m", doc="How long a full mailbox is remembered.")
    accept_all: float = option(
        schema.duration(0, _WEEKS),
        default="1h",
        doc="How long the yes of a next hop counts that says it to every local part.",
    )
    unknown: float = option(
        schema.duration(0, 3600),
        default="20s",
        doc='How long a "cannot tell" of one recipient is remembered, as of one who is greylisted. Trouble of '
        "the store itself never is.",
    )
    stale: float = option(
        schema.duration(0, _WEEKS),
        default="7d",
        doc="How long past its life a yes still counts while the store cannot tell; 0s for never.",
    )
    soft_landing: float = option(
        schema.duration(0, _WEEKS),
        default="1h",
        doc="How long an address that was good is deferred, not refused, once the store says no; 0s for never.",
    )
    vanish: int = option(
        schema.number(0, MOST_ADDRESSES),
        default=10,
        doc="So many good addresses that turn into noes together make every no of their domain a deferral; 0 for "
        "never.",
    )
    vanish_share: int = option(
        schema.number(1, 100),
        default=50,
        doc="What share of the good addresses asked about again that must be, in per cent.",
    )
    vanish_window: float = option(
        schema.duration(1, 86400), default="30m", doc="Within which time that counts as together."
    )
    vanish_hold: float = option(
        schema.duration(1, _WEEKS), default="4h", doc="After which time the noes are believed all the same."
    )
    most: int = option(
        schema.number(100, 10_000_000), default=200_000, doc="How many answers are remembered at most."
    )

    def life(self, answer: Answer) -> float:
        """Say how long an answer counts, in seconds."""
        match answer:
            case Found(mailbox):
                if mailbox.unproven:
                    return self.accept_all
                if mailbox.quota:
                    return self.full
                return self.yes if is_good(mailbox) else self.no
            case NotFound():
                return self.no
            case _:
                return self.unknown if answer.of_recipient else 0.0

    def refresh_after(self, answer: Answer) -> float:
        """Say after how many seconds an answer that still counts is asked about again; infinite for never."""
        good = isinstance(answer, Found) and is_good(answer.mailbox)
        return self.refresh if good and self.refresh < self.yes else math.inf


def is_good(mailbox: Mailbox) -> bool:
    """Say whether a mailbox takes mail from anybody, as far as is known, and was proven to be there.

    Only such an answer may stand in while nobody answers: what is full, disabled or closed may be open again, and to
    refuse for good by an old answer would be wrong for good.
    """
    return not (
        mailbox.unproven or mailbox.disabled or mailbox.moved_to or mailbox.quota or mailbox.posting is not None
    )
