"""Which next hops are asked about a recipient, as the operator declares it; nobody else is ever asked.

    user@example.org      this address alone
    example.org           the domain
    *.example.org         every domain below it, not example.org itself

The most specific pattern counts, whether `routes` of the configuration or the routes file has it; where both
have the same one, the configuration goes before the file. `next_hops` are for everything that no pattern takes.

`mx`, the mail exchangers that the DNS names, is for domains that are named one by one: under a `*`, or for everything,
it would have us ask strangers about their users, which gets one listed as a harvester.

A server that another store named, as Cyrus does in a Murder, is put in place of the star in `servers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from rcptd import address
from rcptd.address import NotAnAddress, Recipient
from rcptd.stores.callahead import nexthop
from rcptd.stores.callahead.nexthop import MX, NextHop

Route = tuple[NextHop | str, ...]
"""Next hops in the order to be asked; `MX` stands for those of the recipient's domain."""

PLACE = "*"  # stands for the host in `servers`
MOST_HOPS = 16  # of one route; each costs a part of the deadline


def pattern(text: str) -> str:
    """Give the canonical form of a pattern; raises `ValueError`."""
    try:
        if "@" in text:
            recipient = address.parse(text)
            if recipient.domain and recipient.local:
                return recipient.key
        elif text.startswith("*."):
            return f"*.{address.domain(text[2:])}"
        else:
            return address.domain(text)
    except NotAnAddress as error:
        raise ValueError(f"{text[:80]!r}: {error}; {_PATTERNS}") from None
    raise ValueError(f"{text[:80]!r} has no domain; {_PATTERNS}")


_PATTERNS = 'write "user@example.org", "example.org", or "*.example.org" for all below it'


def hop(text: object) -> NextHop | str:
    """Read one next hop, or `mx`; raises `ValueError`."""
    if not isinstance(text, str):
        raise ValueError('write a next hop in quotes, as in "lmtp:unix:/path" or "smtp:host:25"')  # noqa: TRY004
    return MX if text == MX else nexthop.read(text)


def route(of: str, hops: list[object]) -> Route:
    """Read the next hops of a pattern in canonical form; raises `ValueError`."""
    if not hops:
        raise ValueError(f"{of!r} has no next hop")
    if len(hops) > MOST_HOPS:
        raise ValueError(f"{of!r} has {len(hops)} next hops; {MOST_HOPS} are the most")
    found = tuple(map(hop, hops))
    if MX in found and of.startswith("*"):
        raise ValueError(
            f'{of!r}: "mx" is for domains that are named one by one, so that no stranger is ever asked; '
            f"name each domain"
        )
    return found


def read_table(value: object) -> Mapping[str, Route]:
    """Read the option `routes`; raises `ValueError`."""
    if not isinstance(value, Mapping):
        raise ValueError('write a table, as in { "example.org" = "lmtp:host:24" }')  # noqa: TRY004
    table: dict[str, Route] = {}
    for text, hops in value.items():
        of = pattern(text)
        if of in table:
            raise ValueError(f"{text!r} stands here a second time, as {of!r}")
        table[of] = route(of, hops if isinstance(hops, list) else [hops])
    return table


def read_next_hops(value: object) -> tuple[NextHop, ...]:
    """Read the option `next_hops`; raises `ValueError`."""
    hops = value if isinstance(value, list) else [value]
    if MX in hops:
        raise ValueError(
            '"mx" for everything would ask strangers; name the domains in routes, as in { "example.org" = "mx" }'
        )
    return tuple(one for one in route("next_hops", hops) if isinstance(one, NextHop))


def read_servers(value: object) -> NextHop:
    """Read the option `servers`, a next hop with a star in place of its host; raises `ValueError`."""
    wrong = 'write a next hop with a star in place of the host, as in "lmtp:*:2003"'
    if not isinstance(value, str):
        raise ValueError(wrong)  # noqa: TRY004 - one kind of fault
    kind, _, rest = value.partition(":")
    if not rest.startswith(PLACE + ":"):
        raise ValueError(wrong)
    return replace(nexthop.read(f"{kind}:host.invalid{rest.removeprefix(PLACE)}"), host=PLACE)


def server(of: NextHop, named: str) -> NextHop:
    """Give the next hop of a server that another store named, `host` or `host!partition`; raises `ValueError`."""
    host = named.partition("!")[0]
    try:
        name = address.domain(host) if host.isascii() else ""
    except NotAnAddress:
        name = ""
    if not name or name.startswith("["):
        raise ValueError(f"{named[:80]!r} is no host name")
    return replace(of, host=name)


class Routes:
    """What the operator declared; `of_file` gives what the routes file says, or why it cannot tell."""

    def __init__(
        self,
        table: Mapping[str, Route],
        next_hops: tuple[NextHop, ...],
        of_file: Callable[[], Mapping[str, Route] | str] | None = None,
    ) -> None:
        self._table = table
        self._next_hops = next_hops
        self._of_file = of_file

    def of(self, recipient: Recipient) -> Route | str:
        """Give the next hops that are asked about the recipient, or say why there are none."""
        # By the address only the configuration can be surer than a file that cannot be read: a file may
        # say of every single address that another hop knows it, and this one would refuse it.
        if (found := self._table.get(recipient.key)) and recipient.domain:
            return found
        if not recipient.domain:
            return self._next_hops or f"{recipient} has no domain to find a next hop by"
        if self._of_file is None:
            tables: tuple[Mapping[str, Route], ...] = (self._table,)
        else:
            in_file = self._of_file()
            if isinstance(in_file, str):
                return in_file
            tables = (self._table, in_file)
        for of in _patterns(recipient):
            for table in tables:
                if found := table.get(of):
                    return found
        return self._next_hops or (
            f"no route for {recipient.domain}; add it to routes or to the routes file, "
            f"or give next_hops for everything"
        )


def _patterns(recipient: Recipient) -> list[str]:
    """Give the patterns that take the recipient, the most specific first."""
    found = [recipient.key, recipient.domain]
    rest = recipient.domain
    while "." in rest:
        rest = rest.partition(".")[2]
        found.append(f"*.{rest}")
    return found
