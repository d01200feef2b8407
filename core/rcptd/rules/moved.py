"""One who moved is refused with the new address (RFC 5321 3.4)."""

from rcptd.question import Mailbox
from rcptd.verdict import MOVED, Verdict, safe_text


def moved(mailbox: Mailbox) -> Verdict | None:
    """Refuse for a mailbox that has moved, naming where to."""
    if not mailbox.moved_to:
        return None
    text = f"Mailbox has moved, please try <{mailbox.moved_to}>"
    # A reply carries only the safe alphabet, and a mangled or shortened address leads to somebody else.
    return MOVED.with_text(text) if safe_text(text) == text else MOVED
