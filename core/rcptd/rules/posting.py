"""Who may post: a mailbox may be closed to all but its own."""

from ipaddress import ip_network

from rcptd.query import UNKNOWN, Query
from rcptd.question import Mailbox, Posting
from rcptd.verdict import NOT_ALLOWED, Verdict
from rcptd.verdict import UNKNOWN as DO_NOT_KNOW
from rcptd.when import sender_key

_WHERE_UNKNOWN = {"accept": None, "defer": DO_NOT_KNOW, "reject": NOT_ALLOWED}


def posting(mailbox: Mailbox, query: Query, where_unknown: str) -> Verdict | None:
    """Refuse a client that meets none of the mailbox's conditions for posting.

    A fact that the front end does not know is no "no": where one might have opened the mailbox,
    `where_unknown` says what to do ("accept", "defer" or "reject").
    """
    if mailbox.posting is None:
        return None
    met = _met(mailbox.posting, query)
    if met is None:
        return _WHERE_UNKNOWN[where_unknown]
    return None if met else NOT_ALLOWED


def _met(wanted: Posting, query: Query) -> bool | None:
    """Say whether one condition is met: True, False, or None where that cannot be known."""
    unknown = False
    if wanted.authenticated:
        if query.authenticated is UNKNOWN:
            unknown = True
        elif query.authenticated:
            return True
    if wanted.networks:
        client = query.client
        if client is UNKNOWN:
            unknown = True
        elif client is not None and any(client in ip_network(text, strict=False) for text in wanted.networks):
            return True
    if wanted.senders:
        if query.sender is UNKNOWN:
            unknown = True
        else:
            key = sender_key(query.sender)
            if key in wanted.senders or f"@{key.rpartition('@')[2]}" in wanted.senders:
                return True
    return None if unknown else False
