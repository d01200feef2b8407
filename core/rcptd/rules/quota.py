"""A full mailbox takes no more, and a message that would never fit is refused at once."""

from rcptd.query import UNKNOWN, Unknown
from rcptd.question import Mailbox
from rcptd.verdict import FULL, FULL_FOR_NOW, TOO_LARGE, Verdict


def quota(mailbox: Mailbox, size: int | Unknown, full: Verdict) -> Verdict | None:
    """Give `full` for a mailbox over quota, counting a message of `size` octets where that is known.

    Without a size only a mailbox that is full already is over.
    """
    limits = mailbox.quota
    if limits is None:
        return None
    if limits.final is not None:
        full = FULL if limits.final else FULL_FOR_NOW
    if limits.messages_limit is not None and limits.messages_used >= limits.messages_limit:
        return full
    limit = limits.bytes_limit
    if limit is None:
        return None
    # MAIL FROM without SIZE is told as 0 (RFC 1870 makes it optional).
    if size is UNKNOWN or size == 0:
        size = limits.unsized
    elif size > limit:
        return TOO_LARGE
    return full if limits.bytes_used + size > limit else None
