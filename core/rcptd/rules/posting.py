"""Who may post: a mailbox may be closed to all but its own."""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from rcptd.query import UNKNOWN, Query
from rcptd.question import Mailbox, Posting
from rcptd.schema import unmapped
from rcptd.verdict import NOT_ALLOWED, Verdict
from rcptd.verdict import UNKNOWN as DO_NOT_KNOW
from rcptd.when import Addresses, addresses, sender_key

_WHERE_UNKNOWN = {"accept": None, "defer": DO_NOT_KNOW, "reject": NOT_ALLOWED}


def posting(mailbox: Mailbox, query: Query, where_unknown: str) -> Verdict | None:
    """Refuse a client that meets none of the mailbox's conditions for posting.

    A fact that the front end does not know is no "no": where one might have opened the mailbox,
    `where_unknown` says what to do ("accept", "defer" or "reject"). Raises `ValueError` where a store let
    through what is no network or address.
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
        elif client is not None and any(client in network for network in _networks(wanted.networks)):
            return True
    if wanted.senders:
        if query.sender is UNKNOWN:
            unknown = True
        elif _senders(wanted.senders).holds(sender_key(query.sender)):
            return True
    return None if unknown else False


# Reading them takes longer than the whole decision, and mailboxes with limits are asked for again.
@lru_cache(maxsize=1024)
def _networks(texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(unmapped(ip_network(text, strict=False)) for text in texts)


@lru_cache(maxsize=1024)
def _senders(texts: tuple[str, ...]) -> Addresses:
    return addresses(list(texts))
