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
import contextlib
import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any, Literal, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.harness.milterwire import POSTFIX, Kind, MilterConnection, MilterTrouble, Reply
from tests.harness.socketmapwire import SocketmapConnection, SocketmapTrouble

Manner = Literal["key", "smmapd", "access", "error"]
SIZE_LIMIT = 50 << 20
_MAP_NAMES = {"key": "recipients", "smmapd": "smmapd", "access": "access", "error": "sendmail"}

OK = "250 2.1.5 Ok"
NO_RELAY = "550 5.7.1 Relaying denied"
TROUBLE = "451 4.7.1 Service unavailable - try again later"
CONFIGURATION = "451 4.3.5 Server configuration error"
_PATH = re.compile(r'\s*(<(?:"(?:[^"\\]|\\.)*"|[^">])*>|\S+)(.*)', re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ROUTE = re.compile(r"@[^:\"]*:")
_ACTION = re.compile(r"([45]\d\d)(?: ([245]\.\d{1,3}\.\d{1,3}))? (\S.*)", re.DOTALL)
_ERROR = re.compile(r'error:(\d\.\d{1,3}\.\d{1,3}):"([45]\d\d) ([^"]{1,250})"')


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
        self.milter = milter
        self.milter_version = milter_version
        self.socketmap = socketmap
        self.manner = manner
        self.map_name = map_name or _MAP_NAMES[manner]
        self.domains = frozenset(name.lower() for name in domains)
        self.relay_clients = tuple(map(ip_network, relay_clients))
        self.users = dict(users or {})
        self.hostname = hostname
        self.patience = patience
        self.messages = 0
        self.trouble: list[str] = []
        """What went wrong with filters, in order; tests read it, nobody else does."""
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
        return not at or domain.lower().removesuffix(".") in self.domains

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

    def _end_later(self, filters: "_Filters") -> None:
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


def bare(path: str) -> str:
    """Give the address of a path: no brackets, no source route."""
    inner = path[1:-1] if path.startswith("<") and path.endswith(">") else path
    return _ROUTE.sub("", inner, count=1) if inner.startswith("@") else inner


class _Filters:
    """What one SMTP session asks: a milter, a socketmap, each by one connection, opened when needed."""

    def __init__(self, mta: HarnessMTA) -> None:
        self.mta = mta
        self.milter: MilterConnection | None = None
        self.map = SocketmapConnection(mta.socketmap, patience=mta.patience) if mta.socketmap else None
        self._milter_lost = False
        self._in_mail = False

    async def greet(self, client: str, port: int, name: str) -> None:
        """Tell the milter who connected and how it calls itself."""
        if not self.mta.milter or self._milter_lost:
            return
        if self.milter:
            await self._told(self.milter.helo(name))
            return
        self.milter = MilterConnection(
            self.mta.milter,
            version=self.mta.milter_version,
            macros={
                "j": self.mta.hostname,
                "_": f"[{client}]",
                "{client_addr}": client,
                "{client_name}": "unknown",
                "{daemon_name}": "harness",
            },
            lists=POSTFIX,
            patience=self.mta.patience,
        )
        try:
            await self.milter.open()
        except MilterTrouble as error:
            await self._lost(error)
            return
        await self._told(self.milter.connect(f"[{client}]", client, port))
        await self._told(self.milter.helo(name))

    async def mail(self, path: str, parameters: list[str], login: str) -> str:
        """Tell of MAIL and give the reply to it."""
        if self._milter_lost:
            return TROUBLE
        if not self.milter:
            return "250 2.1.0 Ok"
        await self.reset()
        for name in ("i", "{auth_authen}", "{auth_type}"):
            self.milter.macros.pop(name, None)
        if login:
            self.milter.macros.update({"{auth_authen}": login, "{auth_type}": "PLAIN"})
        reply = await self._told(self.milter.mail(path, *parameters))
        self._in_mail = True
        return _smtp(reply, "250 2.1.0 Ok")

    async def rcpt(self, path: str, *, ours: bool) -> str:
        """Ask about a recipient and give the reply: the map first, then the milter."""
        if self.map:
            reply = await self._from_map(bare(path), ours=ours)
            if not reply.startswith("2"):
                return reply
        if self._milter_lost:
            return TROUBLE
        if not self.milter:
            return OK
        reply = _smtp(await self._told(self.milter.rcpt(path)), OK)
        if reply.startswith("2"):
            # Postfix has a queue id once a recipient was accepted, and not before (measured).
            self.milter.macros.setdefault("i", f"{id(self):X}"[-10:])
        return reply

    async def message(self, content: bytes) -> str:
        """Show the milter as much of a message as it wants and give the reply to its end."""
        ok = "250 2.0.0 Ok: thrown away"
        if not self.milter or self._milter_lost:
            return TROUBLE if self._milter_lost else ok
        reply = await self._told(self.milter.data())
        header, _, body = content.partition(b"\r\n\r\n")
        for line in re.sub(rb"\r\n(?=[ \t])", b"\n", header).split(b"\r\n"):
            name, colon, value = line.decode("latin-1").partition(":")
            if colon and _smtp(reply, ok) == ok:
                reply = await self._told(self.milter.header(name, value.strip()))
        if _smtp(reply, ok) == ok:
            reply = await self._told(self.milter.end_of_headers())
        if _smtp(reply, ok) == ok:
            reply = await self._told(self.milter.body(body))
        if _smtp(reply, ok) == ok:
            reply = await self._told(self.milter.end_of_message())
        self._in_mail = False
        return _smtp(reply, ok)

    async def reset(self) -> None:
        """Tell the milter that the transaction is over, if there was one."""
        if self.milter and self._in_mail and not self._milter_lost:
            self._in_mail = False
            try:
                await self.milter.abort()
            except MilterTrouble as error:
                await self._lost(error)

    async def close(self) -> None:
        """End both connections; twice is harmless."""
        if self.map:
            await self.map.close()
        if self.milter:
            await self.milter.quit()

    async def _told(self, telling: collections.abc.Awaitable[Reply]) -> Reply | None:
        """Wait for the milter's reply; None after trouble."""
        if self._milter_lost and isinstance(telling, collections.abc.Coroutine):
            telling.close()
            return None
        try:
            return await telling
        except MilterTrouble as error:
            await self._lost(error)
            return None

    async def _lost(self, error: MilterTrouble) -> None:
        self.mta.trouble.append(f"milter: {error}")
        self._milter_lost = True
        if self.milter:
            await self.milter.close()

    async def _from_map(self, address: str, *, ours: bool) -> str:
        manner = self.mta.manner
        if manner != "access" and not ours:
            return OK
        # Postfix folds every key (sharp s becomes ss); Sendmail, with -f, does not (measured).
        keys = [address if manner == "error" else address.casefold()]
        if manner in ("key", "smmapd") and keys[0].startswith('"'):
            # A recipient table is asked a second time about a quoted local part, unquoted (measured).
            keys.append(_QUOTED.sub(lambda found: re.sub(r"\\(.)", r"\1", found[1]), keys[0], count=1))
        answer = ""
        for key in keys:
            answer = await self._ask(key)
            if answer.partition(" ")[0] != "NOTFOUND":
                break
        return {"access": _as_access, "error": _as_ruleset}.get(manner, _as_table)(answer)

    async def _ask(self, key: str) -> str:
        assert self.map
        try:
            return await self.map.ask(self.mta.map_name, key)
        except SocketmapTrouble as error:
            self.mta.trouble.append(f"socketmap: {error}")
            return "TEMP"


def _as_table(answer: str) -> str:
    """Take a map's reply as Postfix does in relay_recipient_maps."""
    word, _, value = answer.partition(" ")
    if word == "OK":
        return OK if value else CONFIGURATION
    if word == "NOTFOUND":
        return "550 5.1.1 Recipient address rejected: User unknown in relay recipient table"
    if word == "PERM":
        return CONFIGURATION
    return "451 4.3.0 Temporary lookup failure"


def _as_access(answer: str) -> str:
    """Take a map's reply as Postfix does in check_recipient_access; the last rule of that list permits."""
    word, _, value = answer.partition(" ")
    if word == "NOTFOUND" or (word == "OK" and value.split(" ", 1)[0].upper() == "DUNNO"):
        return OK
    action = _ACTION.fullmatch(value) if word == "OK" else None
    if not action:
        return CONFIGURATION
    code, enhanced, text = action.groups()
    enhanced = f"{code[0]}{enhanced[1:]}" if enhanced else f"{code[0]}.7.1"
    return f"{code} {enhanced} Recipient address rejected: {text}"


def _as_ruleset(answer: str) -> str:
    """Take a map's reply as the Sendmail ruleset for `error:` values does."""
    word, _, value = answer.partition(" ")
    if word == "OK" and value == "OK":
        return OK
    if word in ("NOTFOUND", "PERM"):
        return "550 5.1.1 User unknown"
    error = _ERROR.fullmatch(value) if word == "OK" else None
    if error:
        return f"{error[2]} {error[1]} {error[3]}"
    return "451 4.4.3 Recipient cannot be verified now, please try again later"


def _smtp(reply: Reply | None, ok: str) -> str:
    if reply is None:
        return TROUBLE
    if reply.kind is Kind.REPLY:
        return reply.text
    if reply.kind is Kind.REJECT:
        return "550 5.7.1 Command rejected"
    if reply.kind is Kind.TEMPFAIL:
        return TROUBLE
    return ok


class _Session(SMTP):
    """One SMTP session: aiosmtpd's, with our own reading of paths, which refuses nothing."""

    command_size_limit = 990
    command_size_limits = collections.defaultdict(lambda: 990)  # noqa: RUF012 - aiosmtpd's

    def __init__(self, mta: HarnessMTA) -> None:
        self.mta = mta
        self.filters = _Filters(mta)
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

    def __init__(self, mta: HarnessMTA, filters: _Filters) -> None:
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
        with contextlib.suppress(MilterTrouble):
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
