"""What the owner of a domain refuses of an address that reads well enough to find its domain."""

from rcptd.address import Recipient
from rcptd.query import Query
from rcptd.verdict import BAD_SYNTAX, NEEDS_SMTPUTF8, Verdict


def syntax(query: Query, recipient: Recipient) -> Verdict | None:
    """Refuse an address of ours with a fault, or in UTF-8 where MAIL FROM did not ask for that."""
    if recipient.fault:
        return BAD_SYNTAX
    if not recipient.ascii and query.smtputf8 is False:
        return NEEDS_SMTPUTF8  # RFC 6531 3.5
    return None
