"""A full mailbox takes no more, and a message that would never fit is refused at once."""

from rcptd.query import UNKNOWN, Unknown
from rcptd.question import Mailbox
from rcptd.verdict import TOO_LARGE, Verdict


def quota(mailbox: Mailbox, size: int | Unknown, full: Verdict) -> Verdict | None:
    """Give `full` for a mailbox over quota, counting a message of `size` octets where that is known.

    Without a size (RFC 1870 makes it optional) only a mailbox that is full already is over.
    """
    limits = mailbox.quota
    if limits is None:
        return None
    if limits.messages_limit is not None and limits.messages_used >= limits.messages_limit:
        return full
    limit = limits.bytes_limit
    if limit is None:
        return None
    octets = 0 if size is UNKNOWN else size
    if octets > limit:
        return TOO_LARGE
    # A message is never empty, so one without a known size needs at least one octet.
    return full if limits.bytes_used + max(octets, 1) > limit else None
