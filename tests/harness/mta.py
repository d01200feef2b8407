"""A small MTA for tests and for `make run`: aiosmtpd that asks a milter, a socketmap, or both, at RCPT.

    async with HarnessMTA(milter="unix:/run/rcptd/milter.sock", domains=["example.org"]) as mta:
        ...                                   # an SMTP server on 127.0.0.1, port mta.port
    await serve("127.0.0.1", 2525, milter="inet:127.0.0.1:7851", domains=["example.org"])   # until cancelled

It treats what it hears as a real MTA does (measured on Postfix 3.7 and Sendmail 8.17), in this order:
relay check, then the map, then the milter. `manner` says how a map's reply is taken:

    key, smmapd   as Postfix takes a recipient table (relay_recipient_maps); own domains only
    access        as Postfix takes check_recipient_access; every recipient, key case-folded
    error         as the Sendmail ruleset for `error:` values does; own domains only

Unlike those two it judges no syntax: what a client types goes to the filter as it is, so that junk tests
the filter. An SMTP session has one milter connection and one socketmap connection. After trouble with
the milter every recipient of that session gets 451 4.7.1, as on Postfix. Messages are counted and
thrown away.
"""

# ruff: noqa: N802 - aiosmtpd finds its handlers by these names

import asyncio
import collections
import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.harness.filters import Filters, Manner, Wiring, bare

SIZE_LIMIT = 50 << 20
_MAP_NAMES = {"key": "recipients", "smmapd": "smmapd", "access": "access", "error": "sendmail"}

NO_RELAY = "550 5.7.1 Relaying denied"
_PATH = re.compile(r'\s*(<(?:"(?:[^"\\]|\\.)*"|[^">])*>+(?=\s|$)|\S+)(.*)', re.DOTALL)


class HarnessMTA:
    """The MTA: its settings, its listener, and what it counted."""

    def __init__(
        self,
        *,
        milter: str | None = None,
        milter_version: int = 6,
        socketmap: str | None = None,
        manner: Manner = "key",
        map_name: str = "",
        domains: Collection[str] = (),
        relay_clients: Collection[str] = ("127.0.0.1",),
        users: Mapping[str, str] | None = None,
        hostname: str = "mx.example.org",
        patience: float = 30.0,
    ) -> None:
        self.wiring = Wiring(
            hostname, milter, milter_version, socketmap, manner, map_name or _MAP_NAMES[manner], patience
        )
        self.domains = frozenset(name.lower() for name in domains)
        self.relay_clients = tuple(map(ip_network, relay_clients))
        self.users = dict(users or {})
        self.hostname = hostname
        self.patience = patience
        self.messages = 0
        self.sessions: list[_Session] = []
        """The sessions of the last while, newest last: what travelled on their connections."""
        self._server: asyncio.Server | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one, which `port` then tells."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._answer_phone, host, port, backlog=512)

    @property
    def trouble(self) -> list[str]:
        """What went wrong with filters, in order."""
        return self.wiring.trouble

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end all sessions."""
        if self._server:
            self._server.close()
        for session in self.sessions:
            if session.transport:
                session.transport.close()
        await asyncio.sleep(0)  # let connection_lost be called
        await asyncio.sleep(0)
        for session in self.sessions:
            await session.filters.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=self.patience)

    def ours(self, path: str) -> bool:
        """Tell whether the recipient is of a domain of ours; one without a domain is."""
        address = bare(path)
        _, at, domain = address.rpartition("@")
        return not at or domain.lower().rstrip(">").removesuffix(".") in self.domains

    def may_relay(self, client: str, login: str) -> bool:
        """Tell whether this client may send to other people's domains."""
        try:
            return bool(login) or any(ip_address(client) in network for network in self.relay_clients)
        except ValueError:
            return False

    def _answer_phone(self) -> "_Session":
        session = _Session(self)
        self.sessions.append(session)
        del self.sessions[:-1000]
        return session

    def _end_later(self, filters: "Filters") -> None:
        task = asyncio.get_running_loop().create_task(filters.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def serve(host: str, port: int, **settings: Any) -> None:
    """Run a `HarnessMTA` with these settings until cancelled."""
    mta = HarnessMTA(**settings)
    await mta.start(host, port)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await mta.stop()


class _Session(SMTP):
    """One SMTP session: aiosmtpd's, with our own reading of paths, which refuses nothing."""

    command_size_limit = 990
    command_size_limits = collections.defaultdict(lambda: 990)  # noqa: RUF012 - aiosmtpd's

    def __init__(self, mta: HarnessMTA) -> None:
        self.mta = mta
        self.filters = Filters(mta.wiring)
        super().__init__(
            _Handler(mta, self.filters),
            data_size_limit=SIZE_LIMIT,
            enable_SMTPUTF8=True,
            hostname=mta.hostname,
            ident="harness",
            authenticator=self._check_login,
            auth_require_tls=False,
            auth_exclude_mechanism=["LOGIN"],
            loop=asyncio.get_running_loop(),
        )

    def connection_lost(self, error: Exception | None) -> None:
        """End the filters' connections with the client's."""
        super().connection_lost(error)
        self.mta._end_later(self.filters)

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # What aiosmtpd would refuse as malformed is the filter's to judge here; brackets stay on.
        found = _PATH.fullmatch(arg)
        return (found[1], found[2]) if found else (arg, "")

    def _check_login(
        self, _server: object, _session: object, _envelope: object, _mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        name, password = data.login.decode(), data.password.decode()
        known = name in self.mta.users and self.mta.users[name] == password
        return AuthResult(success=known, handled=False, auth_data=data)


class _Handler:
    """What aiosmtpd asks at each command."""

    def __init__(self, mta: HarnessMTA, filters: Filters) -> None:
        self.mta = mta
        self.filters = filters

    async def handle_HELO(self, _server: SMTP, session: Session, _envelope: Envelope, name: str) -> str:
        await self._greet(session, name)
        return f"250 {self.mta.hostname}"

    async def handle_EHLO(
        self, _server: SMTP, session: Session, _envelope: Envelope, name: str, replies: list[str]
    ) -> list[str]:
        await self._greet(session, name)
        return [*replies[:-1], "250-ENHANCEDSTATUSCODES", replies[-1]]

    async def handle_MAIL(
        self, _server: SMTP, session: Session, envelope: Envelope, path: str, options: list[str]
    ) -> str:
        reply = await self.filters.mail(path, options, _login(session))
        if reply.startswith("2"):
            envelope.mail_from = path
            envelope.mail_options.extend(options)
        return reply

    async def handle_RCPT(
        self, _server: SMTP, session: Session, envelope: Envelope, path: str, options: list[str]
    ) -> str:
        ours = self.mta.ours(path)
        if not ours and not self.mta.may_relay(session.peer[0], _login(session)):  # type: ignore[index]
            return NO_RELAY
        reply = await self.filters.rcpt(path, ours=ours)
        if reply.startswith("2"):
            envelope.rcpt_tos.append(path)
            envelope.rcpt_options.extend(options)
        return reply

    async def handle_RSET(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:
        await self.filters.reset()
        return "250 2.0.0 Ok"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        content = envelope.content
        reply = await self.filters.message(content if isinstance(content, bytes) else b"")
        if reply.startswith("2"):
            self.mta.messages += 1
        return reply

    async def handle_QUIT(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:
        await self.filters.close()
        return "221 2.0.0 Bye"

    async def _greet(self, session: Session, name: str) -> None:
        session.host_name = name
        peer = session.peer
        client, port = (str(peer[0]), int(peer[1])) if peer else ("", 0)
        await self.filters.greet(client, port, name)


def _login(session: Session) -> str:
    data = session.auth_data if session.authenticated else None
    return data.login.decode() if isinstance(data, LoginPassword) else ""
