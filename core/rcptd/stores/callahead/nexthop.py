"""Next hops: the mail servers that an operator declares, and where each of them is.

    lmtp:unix:/run/cyrus/socket/lmtp      LMTP over a unix socket
    lmtp:backend.example.org:2003         LMTP over TCP
    smtp:exchange.example.org:25          SMTP; smtp:[2001:db8::1]:25 for an IPv6 address
    mx                                    the mail exchangers of the recipient's domain, by DNS

A host is asked as it is named: its MX records do not count, as with the brackets of Postfix' transport(5),
which are taken here, too.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from rcptd.schema import UNIX_PATH_OCTETS

Protocol = Literal["lmtp", "smtp"]

_INET = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})")
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class NextHop:
    """One next hop: a unix socket at `path`, or a port of a host (a name, or an IP address without brackets)."""

    protocol: Protocol
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"{self.protocol}:unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}:{host}:{self.port}"


MX: Literal["mx"] = "mx"
"""Stands for the mail exchangers of whatever domain is asked about."""


def read(text: str) -> NextHop:
    """Read a next hop other than `mx`; raises `ValueError` with what would be right."""
    wrong = f'{text!r} is no next hop; write "lmtp:unix:/path", "lmtp:host:port" or "smtp:host:port"'
    kind, _, rest = text.partition(":")
    if kind not in ("lmtp", "smtp"):
        raise ValueError(wrong)
    protocol: Protocol = "lmtp" if kind == "lmtp" else "smtp"
    if rest.startswith("unix:"):
        path = rest.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text!r}: write the whole path of the unix socket, beginning with /")
        if len(path.encode(errors="surrogateescape")) > UNIX_PATH_OCTETS:
            raise ValueError(f"{text!r}: the path is too long for a unix socket")
        return NextHop(protocol, path=path)
    parts = _INET.fullmatch(rest)
    if not parts:
        raise ValueError(wrong)
    bracketed, plain, port = parts.groups()
    host = (bracketed or plain).lower()
    try:
        host = str(ip_address(host))
    except ValueError:
        if not _NAME.fullmatch(host):
            raise ValueError(f"{text!r}: {host!r} is neither a host name nor an IP address") from None
        host = host.removesuffix(".")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: the port must be from 1 to 65535")
    return NextHop(protocol, host=host, port=int(port))
