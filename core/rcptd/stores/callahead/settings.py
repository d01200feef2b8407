"""The options of a store of type `callahead`."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import cast

from rcptd import address, schema
from rcptd.address import NotAnAddress
from rcptd.schema import option
from rcptd.stores.callahead.dialogue import Dialogue, Proxy, Tls
from rcptd.stores.callahead.nexthop import MX, NextHop
from rcptd.stores.callahead.routes import Route, read_next_hops, read_servers, read_table

NO_DNSPYTHON = "mx needs dnspython; install it by: pip install 'rcptd[mx]'"

_ENHANCED = re.compile(r"5\.\d{1,3}\.\d{1,3}")
_NAMESERVER = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?")


def _host(value: object) -> str:
    try:
        return address.domain(schema.text(value))
    except NotAnAddress as error:
        raise ValueError(f"{value!r} is no host name: {error}") from None


def _sender(value: object) -> str:
    if value in ("", "<>"):
        return ""
    try:
        sender = address.parse(schema.text(value))
    except NotAnAddress as error:
        raise ValueError(f"{value!r} is no address: {error}") from None
    if not sender.domain or not sender.ascii:
        raise ValueError(f'{value!r}: write an address in ASCII with its domain, or "" for the null sender')
    return str(sender)


def _enhanced(value: object) -> str:
    if not isinstance(value, str) or not _ENHANCED.fullmatch(value):
        raise ValueError(f'{value!r} is no enhanced status code that refuses for good, as in "5.4.1"')
    return value


def _nameserver(value: object) -> tuple[str, int]:
    parts = _NAMESERVER.fullmatch(schema.text(value))
    host, port = ("", 0) if not parts else (parts[1] or parts[2], int(parts[3] or 53))
    try:
        return str(ip_address(host if parts else str(value))), _port(port or 53)
    except ValueError:
        raise ValueError(f'{value!r}: write an IP address, as in "192.0.2.53" or "[2001:db8::53]:5353"') from None


_port = schema.number(1, 65535)


@dataclass(frozen=True, slots=True)
class Settings:
    """A store of type `callahead`."""

    next_hops: tuple[NextHop, ...] = option(
        read_next_hops,
        default=None,
        doc="The next hops for every recipient without a route, in the order to be asked.",
    )
    routes: Mapping[str, Route] = option(
        read_table,
        default=None,
        doc="The next hops by address or domain; a domain that is named may have mx, its mail exchangers by DNS.",
    )
    routes_file: Path = option(
        schema.path, default=None, doc="More routes, one to a line: the pattern, then its next hops."
    )
    servers: NextHop = option(
        read_servers,
        default=None,
        doc="How a server is asked that another store named, as in a Cyrus Murder; the star is its host.",
    )
    timeout: float = option(
        schema.duration(0.1, 600),
        default="30s",
        doc="How long a question may take in all; longer than [daemon] deadline lets a late answer still be learnt.",
    )
    connect_timeout: float = option(
        schema.duration(0.1, 60), default="3s", doc="How long connecting to a next hop may take."
    )
    connections: int = option(
        schema.number(1, 10_000), default=20, doc="Connections to each next hop, at most."
    )
    idle: float = option(
        schema.duration(0.1, 3600), default="20s", doc="How long a connection is kept that is not used."
    )
    age: float = option(
        schema.duration(0.1, 86400), default="10m", doc="How old a connection may become before it is replaced."
    )
    recipients_per_transaction: int = option(
        schema.number(1, 1000), default=20, doc="Recipients asked about in one transaction, at most."
    )
    refusals_per_connection: int = option(
        schema.number(0, 100_000),
        default=8,
        doc="Refused recipients after which an SMTP connection is replaced, since servers count them; 0 for no limit.",
    )
    accept_all: str = option(
        schema.choice("test", "ignore"),
        default="test",
        doc="Whether a next hop is tested for taking every local part; the yes of one that does proves nothing.",
    )
    accept_all_retest: float = option(
        schema.duration(60, 30 * 86400), default="4h", doc="How long the result of that test counts."
    )
    hello: str = option(_host, default=None, doc="The name given in EHLO and LHLO; without it the host's own.")
    sender: str = option(_sender, default="", doc='The sender given in MAIL FROM; "" is the null sender.')
    tls: str = option(
        schema.choice("off", "opportunistic", "required"),
        default="off",
        doc="Whether STARTTLS is used: never, where it is offered and works, or always and with a certificate that "
        "is verified.",
    )
    tls_ca: Path = option(
        schema.path, default=None, doc="A file of certificates to trust instead of the system's, for required."
    )
    tls_name: str = option(
        _host, default=None, doc="The name that the certificate must have; without it the next hop's host."
    )
    auth_user: str = option(schema.text, default=None, doc="The user to log in as, where the next hop wants AUTH.")
    auth_password_file: Path = option(
        schema.path, default=None, doc="A file whose first line is the password of auth_user."
    )
    auth_in_clear: bool = option(
        schema.boolean, default=False, doc="Whether the password may be sent without TLS over the network."
    )
    proxy: str = option(
        schema.choice("off", "v1", "v2"),
        default="off",
        doc="The PROXY protocol header that a connection begins with, for Cyrus' lmtpd with -H.",
    )
    bare_refusal: str = option(
        schema.choice("no", "unknown"),
        default="no",
        doc="What a 5xx to RCPT without an enhanced status code means.",
    )
    also_no: tuple[str, ...] = option(
        schema.many(_enhanced),
        default=None,
        doc='Further enhanced status codes that mean "no such mailbox" when RCPT gets them.',
    )
    nameservers: tuple[tuple[str, int], ...] = option(
        schema.many(_nameserver), default=None, doc="Name servers for mx; without them the system's."
    )
    mx_port: int = option(_port, default=25, doc="The port of mail exchangers.")
    mx_networks: tuple[IPv4Network | IPv6Network, ...] = option(
        schema.many(schema.network),
        default=None,
        doc="Networks in which mail exchangers may be though no server in the internet can have such an address.",
    )

    def __post_init__(self) -> None:
        """Look at what goes together; raises `ValueError`."""
        if not (self.next_hops or self.routes or self.routes_file or self.servers):
            raise ValueError("nobody to ask; give next_hops, routes, routes_file or servers")
        if bool(self.auth_user) != bool(self.auth_password_file):
            raise ValueError("auth_user and auth_password_file go together")
        if any(MX in route for route in (self.routes or {}).values()) and not find_spec("dns"):
            raise ValueError(NO_DNSPYTHON)
        servers = self.nameservers or ()
        if len(dict(servers)) != len(servers):
            raise ValueError("nameservers: one has two ports; each may stand there once")
        self.dialogue()

    def dialogue(self, password: str = "") -> Dialogue:
        """Give the options of a dialogue; raises `ValueError` for what could not be said on a line."""
        return Dialogue(
            hello=self.hello or socket.gethostname(),
            sender=self.sender,
            tls=cast(Tls, self.tls),
            tls_ca=str(self.tls_ca or ""),
            tls_name=self.tls_name or "",
            auth_user=self.auth_user or "",
            auth_password=password,
            auth_in_clear=self.auth_in_clear,
            proxy=cast(Proxy, self.proxy),
            recipients_per_transaction=self.recipients_per_transaction,
            refusals_per_connection=self.refusals_per_connection,
            bare_refusal="unknown" if self.bare_refusal == "unknown" else "no",
            also_no=frozenset(self.also_no or ()),
            reply_timeout=self.timeout,
        )
