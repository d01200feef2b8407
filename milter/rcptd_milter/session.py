"""A milter session as pure steps: what one SMTP connection tells us, and what we answer at RCPT.

The steps are those of the milter protocol that we ask for: CONNECT, MAIL, RCPT, and the end of a
transaction by RSET, by the end of the message or by a new MAIL. Facts of the connection (the client's
address) live as long as the session; facts of the transaction (sender, SIZE, SMTPUTF8, who is
authenticated) from MAIL to its end, and outside of one they are UNKNOWN, not those of the last. A
session may have many transactions, a transaction many recipients.

Nothing here waits, does I/O or knows of pymilter. Any thread may take a step, one at a time per
session: libmilter's pool runs the steps of one session on different threads, never two at once.

Arguments come as bytes and what is not UTF-8 in them as surrogates, so that it reaches the address
parser and is refused there. libmilter bounds a packet at 65,535 octets before it reads it (MDS_64K);
what we keep of a client beyond its transaction is cut shorter.

LIMITS. libmilter keeps the macros of a recipient until the MTA sends those of the next. Sendmail and
Postfix send them for each; an MTA that did so for some recipients only would have `{rcpt_addr}` of one
taken for that of another when `recipient = "routed"`.
"""

import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from rcptd.query import UNKNOWN, Query, Unknown
from rcptd.settled import Settled
from rcptd.verdict import Verdict
from rcptd_milter.replies import FAULT, GO_ON, RESTARTING, Reply, reply

Decide = Callable[[Query], Verdict | None]
"""Gives the verdict, None for no opinion, within the deadline; any thread may call; never raises."""

Recall = Callable[[str], Settled[Any] | None]
"""Gives what was settled of a recipient and still stands, None where that must be decided; any thread may call."""

Macros = Callable[[str], str | None]
"""Gives the value of an MTA's macro, None for one that was not sent."""

SIZE_LIMIT = 2**63 - 1  # octets; RFC 1870 3 has twenty digits, no store holds more than this
_HOSTNAME_LENGTH = 255  # RFC 5321 4.5.3.1.2; what is longer is a forger's

Client = IPv4Address | IPv6Address | Unknown | None


def _nothing(_: str) -> None:
    """Recall nothing."""


class Session:
    """One connection of an MTA, which is one SMTP session of its client."""

    __slots__ = (
        "_authenticated",
        "_client",
        "_decide",
        "_recall",
        "_routed",
        "_sender",
        "_size",
        "_smtputf8",
        "_to_all",
        "in_transaction",
        "peer",
    )

    def __init__(self, decide: Decide, *, recall: Recall = _nothing, routed: bool = False) -> None:
        self._decide = decide
        self._recall = _nothing if routed else recall
        self._routed = routed
        self._client: Client = UNKNOWN
        self.peer = ""  # for logs: the client as Postfix and Sendmail write it
        self.in_transaction = False
        self._sender: str | Unknown = UNKNOWN
        self._size: int | Unknown = UNKNOWN
        self._smtputf8: bool | Unknown = UNKNOWN
        self._authenticated: str | Unknown = UNKNOWN
        self._to_all: Reply | None = None  # the one answer to all recipients of the transaction

    def connect(self, hostname: str, family: int, address: object, macros: Macros) -> None:
        """Take in who the client is; `family` and `address` as in the socket module, None for unknown."""
        self._client = _client(family, address)
        if self._client is UNKNOWN:
            self._client = _address(macros("{client_addr}") or "")
        name = hostname[:_HOSTNAME_LENGTH]
        if not name.isprintable():
            name = "".join(c if c.isprintable() else "?" for c in name)
        self.peer = name + _brackets(self._client)

    def mail(self, arguments: Sequence[bytes], macros: Macros, *, restarting: bool = False) -> None:
        """Begin a transaction; one begun while we are restarting has all its recipients deferred.

        So has one whose MAIL ended in an exception: its facts are not to be judged by.
        """
        # One that is deferred anyway is not waited for: on a busy MTA there is always one.
        self.in_transaction = not restarting
        self._to_all = FAULT
        if not self.peer:
            # CONNECT never came through: pymilter refuses a host name that is not UTF-8.
            self._client = _address(macros("{client_addr}") or "")
            self.peer = _brackets(self._client)
        self._sender = _bare(_text(arguments[0])) if arguments else ""
        self._size = 0
        self._smtputf8 = False
        for argument in arguments[1:]:
            keyword, _, value = argument.partition(b"=")
            match keyword.upper():
                case b"SIZE":
                    self._size = _octets(value)
                case b"SMTPUTF8":
                    self._smtputf8 = True
        # RFC 4954: what SASL took for the name; the macro is not sent where nobody is authenticated.
        self._authenticated = macros("{auth_authen}") or ""
        self._to_all = RESTARTING if restarting else None

    def again(self, arguments: Sequence[bytes], macros: Macros) -> Reply | None:
        """Answer one recipient as before, in a moment, if that still stands; None leaves it to `rcpt`.

        `macros` may raise `UnicodeDecodeError`.
        """
        if self._to_all or not arguments:
            return None
        settled = self._recall(arguments[0].decode("utf-8", "surrogateescape"))
        try:
            if settled is None or macros("{rcpt_mailer}") == "error":
                return None
        except UnicodeDecodeError:
            return None
        return reply(settled.verdict)

    def rcpt(self, arguments: Sequence[bytes], macros: Macros) -> Reply:
        """Answer one recipient."""
        if macros("{rcpt_mailer}") == "error":
            return GO_ON  # the MTA has refused it already, whatever we say (measured on both)
        if self._to_all:
            return self._to_all
        recipient = _text(arguments[0]) if arguments else ""
        if self._routed:
            recipient = macros("{rcpt_addr}") or recipient
        return reply(
            self._decide(
                Query(
                    recipient,
                    "milter",
                    sender=self._sender,
                    client=self._client,
                    authenticated=self._authenticated,
                    size=self._size,
                    smtputf8=self._smtputf8,
                    session=macros("i") or self.peer,
                )
            )
        )

    def end(self) -> None:
        """Forget the transaction: after RSET, after the end of the message, at the end of all."""
        self.in_transaction = False
        self._sender = self._size = self._smtputf8 = self._authenticated = UNKNOWN
        self._to_all = None


# Few clients make most sessions; to read an address and to write it again takes two microseconds each.
@lru_cache(maxsize=1024)
def _brackets(client: Client) -> str:
    return f"[{'unknown' if client is UNKNOWN else client or 'local'}]"


def _text(argument: bytes) -> str:
    return argument.decode("utf-8", "surrogateescape")


def _bare(path: str) -> str:
    """Strip the brackets of a reverse-path and its source route (RFC 5321 4.1.1.3, appendix C)."""
    if path.startswith("<") and path.endswith(">"):
        path = path[1:-1]
    if path.startswith("@") and ":" in path:
        path = path.partition(":")[2]
    return path


def _octets(value: bytes) -> int:
    """Read SIZE=: no number is no size, one that is too long to be true is the greatest."""
    if not value.isdigit():  # ASCII digits only, since these are bytes
        return 0
    value = value.lstrip(b"0")
    return int(value or b"0") if len(value) < 19 else SIZE_LIMIT


def _client(family: int, address: object) -> Client:
    if family == socket.AF_UNIX:
        return None
    if family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and address:
        return _address(str(address[0]))
    return UNKNOWN


@lru_cache(maxsize=1024)
def _address(text: str) -> IPv4Address | IPv6Address | Unknown:
    """Read an address as macros spell it, Sendmail with `IPv6:` before it."""
    try:
        address = ip_address(text.removeprefix("IPv6:"))
    except ValueError:
        return UNKNOWN
    # A client that came to a v6 socket by v4 is a v4 client to every network in a rule.
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
