"""What a front end knows when it asks: the recipient and, where the wire tells, who is posting.

A fact that the wire does not carry is `UNKNOWN`, which is neither true nor false: no condition on it
holds, under `not` too. A socketmap knows the recipient and the map name and nothing else.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal


class _Unknown(Enum):
    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown.UNKNOWN
Unknown = Literal[_Unknown.UNKNOWN]


@dataclass(slots=True)
class Query:
    """One question of a front end; treat as immutable once asked.

    `recipient` is what the wire carried, undecodable bytes as surrogates. `sender` is the bare address of
    MAIL FROM, "" for the null sender. `client` is None for a peer without an address (a local one), and
    an IPv4 address where an IPv6 one stands for it. `authenticated` is the name of SASL, "" for nobody.
    `size` is in octets, 0 where MAIL FROM named none. `smtputf8` says whether MAIL FROM asked for it.
    `session` is whatever helps to find the MTA's own lines: its queue id, or the peer; it is logged and
    never judged. `wire` is the shape in which a map tells the answer, for stores that have words of their own
    on one of them.
    """

    recipient: str
    front_end: Literal["milter", "socketmap"]
    map: str = ""
    sender: str | Unknown = UNKNOWN
    client: IPv4Address | IPv6Address | Unknown | None = UNKNOWN
    authenticated: str | Unknown = UNKNOWN
    size: int | Unknown = UNKNOWN
    smtputf8: bool | Unknown = UNKNOWN
    session: str = ""
    wire: str = ""

    def __post_init__(self) -> None:
        # An MTA on a dual-stack socket may name an IPv4 client ::ffff:192.0.2.7; it is in 192.0.2.0/24. Here,
        # so that no front end and no rule has to think of it.
        if isinstance(self.client, IPv6Address) and self.client.ipv4_mapped:
            self.client = self.client.ipv4_mapped
