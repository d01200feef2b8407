"""What one SMTP session of the harness MTA asks, and how it takes the answers: a milter, a socketmap.

Each is one connection per session, opened when it is first needed. `manner` is how a map's reply is taken
(see `tests.harness.mta`); the functions at the end say so cell by cell, as measured.
"""

import re
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Literal

from tests.harness.milterwire import POSTFIX, Kind, MilterConnection, MilterTrouble, Reply
from tests.harness.socketmapwire import SocketmapConnection, SocketmapTrouble

Manner = Literal["key", "smmapd", "access", "error"]

OK = "250 2.1.5 Ok"
TROUBLE = "451 4.7.1 Service unavailable - try again later"
CONFIGURATION = "451 4.3.5 Server configuration error"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ROUTE = re.compile(r"@[^:\"]*:")
# Without a text Postfix reads past the end of the value (measured); here that is a fault to be seen.
_ACTION = re.compile(r"([45]\d\d)(?: ([245](?:\.\d{1,3}){2}))? (?![245](?:\.\d{1,3}){2}$)(\S.*)", re.DOTALL)
_ERROR = re.compile(r'error:(\d\.\d{1,3}\.\d{1,3}):"([45]\d\d) ([^"]{1,250})"')


@dataclass(slots=True)
class Wiring:
    """Whom an MTA asks, and how; `trouble` collects what went wrong, in order, for tests to read."""

    hostname: str
    milter: str | None
    milter_version: int
    socketmap: str | None
    manner: Manner
    map_name: str
    patience: float
    trouble: list[str] = field(default_factory=list)


def bare(path: str) -> str:
    """Give the address of a path: no brackets, no source route."""
    inner = path[1:-1] if path.startswith("<") and path.endswith(">") else path
    return _ROUTE.sub("", inner, count=1) if inner.startswith("@") else inner


class Filters:
    """What one SMTP session asks: a milter, a socketmap, each by one connection, opened when needed."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.milter: MilterConnection | None = None
        self.map = (
            SocketmapConnection(wiring.socketmap, patience=wiring.patience) if wiring.socketmap else None
        )
        self._milter_lost = False
        self._in_mail = False

    async def greet(self, client: str, port: int, name: str) -> None:
        """Tell the milter who connected and how it calls itself."""
        if not self.wiring.milter or self._milter_lost:
            return
        if self.milter:
            await self._told(self.milter.helo(name))
            return
        self.milter = MilterConnection(
            self.wiring.milter,
            version=self.wiring.milter_version,
            macros={
                "j": self.wiring.hostname,
                "_": f"[{client}]",
                "{client_addr}": client,
                "{client_name}": "unknown",
                "{daemon_name}": "harness",
            },
            lists=POSTFIX,
            patience=self.wiring.patience,
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

    async def _told(self, telling: Awaitable[Reply]) -> Reply | None:
        """Wait for the milter's reply; None after trouble."""
        if self._milter_lost and isinstance(telling, Coroutine):
            telling.close()
            return None
        try:
            return await telling
        except MilterTrouble as error:
            await self._lost(error)
            return None

    async def _lost(self, error: MilterTrouble) -> None:
        self.wiring.trouble.append(f"milter: {error}")
        self._milter_lost = True
        if self.milter:
            await self.milter.close()

    async def _from_map(self, address: str, *, ours: bool) -> str:
        manner = self.wiring.manner
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
            return await self.map.ask(self.wiring.map_name, key)
        except SocketmapTrouble as error:
            self.wiring.trouble.append(f"socketmap: {error}")
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
