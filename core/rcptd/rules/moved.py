"""One who moved is refused with the new address (RFC 5321 3.4)."""

from rcptd.question import Mailbox
from rcptd.verdict import MOVED, Verdict


def moved(mailbox: Mailbox) -> Verdict | None:
    """Refuse for a mailbox that has moved, naming where to."""
    if not mailbox.moved_to:
        return None
    if not mailbox.moved_to.isascii():
        return MOVED  # a reply line is ASCII, and a mangled address helps nobody
    return MOVED.with_text(f"Mailbox has moved, please try <{mailbox.moved_to}>")
