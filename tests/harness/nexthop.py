"""A next hop that says what a test wrote down, faults included: SMTP and LMTP, over TCP or a unix socket.

    hop = ScriptedHop({"RCPT": by_recipient({"a@example.org": "250 2.1.5 OK"})})
    async with hop: ...            on the test's loop
    with in_thread(hop): ...       beside whatever else runs

What it says at a step (banner, EHLO, LHLO, HELO, STARTTLS, AUTH, MAIL, RCPT, RSET, QUIT, and "other") is an `Action`:

    "550 5.1.1 no"              a reply; lines are parted by newlines and get their CRLF
    b"550 no\n"                 these octets
    DROP, STALL                 close the connection, say nothing more
    Drip("250 OK", 0.01)        an octet at a time, with a pause before each
    Flood("250-more")           the same line without end
    ("250 OK", DROP)            one after the other
    Turns("450 no", "250 OK")   for the first who asks, for the second, ...; the last for all further ones
    Late("250 OK", 0.01)        after so many seconds
    Exchange("334 ", "235 OK")  with a line of the client's between each two
    function(session, line)     gives the action for a command line

It takes notes: `lines` are all command lines, by connection, `headers` all PROXY headers, `connections` and `most` how
many came, and how many there were at once.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from ssl import SSLContext
from typing import Literal, Self


class End(Enum):
    """The ways to stop talking."""

    DROP = "close the connection"
    STALL = "say nothing more"


DROP, STALL = End.DROP, End.STALL


@dataclass(frozen=True)
class Drip:
    """A reply, an octet at a time."""

    text: str
    pause: float


@dataclass(frozen=True)
class Flood:
    """A line without end."""

    text: str


@dataclass(frozen=True)
class Late:
    """Something, after some seconds."""

    action: "Action"
    seconds: float


class Turns:
    """One action after the other, for one command after the other, whatever the connection."""

    def __init__(self, *actions: "Action") -> None:
        self._left = list(actions)

    def next(self) -> "Action":
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]


class Exchange:
    """Replies with a line of the client's between each two."""

    def __init__(self, *replies: str) -> None:
        self.replies = replies


Decide = Callable[["Session", str], "Action"]
Action = str | bytes | End | Drip | Flood | Late | Turns | Exchange | Decide | tuple["Action", ...]


def address(line: str) -> str:
    """Give the address of a MAIL or RCPT line."""
    return line[line.index("<") + 1 : line.rindex(">")]


def by_recipient(table: Mapping[str, Action], otherwise: Action = "550 5.1.1 no such user") -> Decide:
    """Answer each recipient as a table has it."""
    return lambda _session, line: table.get(address(line), otherwise)


def greylisting() -> Decide:
    """Answer each recipient 450 at first, and 250 from then on."""
    seen = set()

    def decide(_session: "Session", line: str) -> Action:
        new = address(line) not in seen
        seen.add(address(line))
        return "450 4.7.1 Greylisted, come back" if new else "250 2.1.5 OK"

    return decide


def hanging_up_after(errors: int, soft: int = 0, pause: float = 0.0) -> Decide:
    """Refuse all, slower after `soft` errors, and close at the last one, as Postfix does."""

    def decide(session: "Session", _line: str) -> Action:
        session.errors += 1
        if session.errors >= errors:
            return ("421 4.7.0 Error: too many errors", DROP)
        return Late("550 5.1.1 no such user", pause if session.errors > soft else 0.0)

    return decide


@dataclass
class Session:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lines: list[str] = field(default_factory=list)
    errors: int = 0
    encrypted: bool = False


class ScriptedHop:
    """The next hop; `says` is what it says at each step, otherwise it takes everything."""

    def __init__(
        self,
        says: Mapping[str, Action] | None = None,
        *,
        name: str = "hop.example",
        offers: tuple[str, ...] = ("PIPELINING", "SMTPUTF8"),
        tls: SSLContext | None = None,
        proxy: Literal["v1", "v2"] | None = None,
        path: Path | None = None,
        port: int = 0,
    ) -> None:
        greeting = "\n".join(f"250-{line}" for line in (name, *offers)) + "\n250 ENHANCEDSTATUSCODES"
        self.says: dict[str, Action] = {
            "banner": f"220 {name} ready",
            "EHLO": greeting,
            "LHLO": greeting,
            "HELO": f"250 {name}",
            "STARTTLS": "220 2.0.0 go ahead",
            "MAIL": "250 2.1.0 OK",
            "RCPT": "250 2.1.5 OK",
            "RSET": "250 2.0.0 OK",
            "QUIT": ("221 2.0.0 Bye", DROP),
            "other": "502 5.5.2 what",
            **(says or {}),
        }
        self.port = port
        self.lines: list[list[str]] = []
        self.headers: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.most = 0
        self._tls = tls
        self._proxy = proxy
        self.path = path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        if self.path:
            self._server = await asyncio.start_unix_server(self._accept, self.path)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1000)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        for _turn in range(5):
            await asyncio.sleep(0)  # whoever was accepted gets a task now; asyncio trips over it after the closing
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # a task that never began has closed nothing
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def said(self) -> list[str]:
        """All command lines of all connections."""
        return [line for lines in self.lines for line in lines]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Session(reader, writer)))
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, session: Session) -> None:
        self.connections += 1
        self.open += 1
        self.most = max(self.most, self.open)
        self.lines.append(session.lines)
        try:
            if self._proxy:
                self.headers.append(await _proxy_header(session.reader, self._proxy))
            going = await self._do(session, self.says["banner"], "")
            while going and (raw := await session.reader.readline()):
                line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
                session.lines.append(line)
                verb = line.partition(" ")[0].upper()
                going = await self._do(session, self.says.get(verb, self.says["other"]), line)
                if going and verb == "STARTTLS" and self._tls:
                    await session.writer.start_tls(self._tls)
                    session.encrypted = True
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # the client is gone, or sent a line that is too long
        finally:
            self.open -= 1
            session.writer.transport.abort()
            self._writers.discard(session.writer)

    async def _do(self, session: Session, action: Action, line: str) -> bool:
        """Do it; say whether the session goes on."""
        while isinstance(action, Turns) or callable(action):
            action = action.next() if isinstance(action, Turns) else action(session, line)
        match action:
            case End.DROP:
                session.writer.close()
                return False
            case End.STALL:
                while await session.reader.read(4096):
                    pass  # until the client goes
                return False
            case Late():
                await asyncio.sleep(action.seconds)
                return await self._do(session, action.action, line)
            case tuple():
                for each in action:
                    if not await self._do(session, each, line):
                        return False
            case str() | bytes() | Drip() | Flood() | Exchange():
                await _say(session, action)
        return True


async def _say(session: Session, action: str | bytes | Drip | Flood | Exchange) -> None:
    writer = session.writer
    match action:
        case str():
            writer.write("".join(f"{each}\r\n" for each in action.split("\n")).encode())
        case bytes():
            writer.write(action)
        case Drip():
            for octet in action.text.encode() + b"\r\n":
                await asyncio.sleep(action.pause)
                writer.write(bytes([octet]))
        case Flood():
            while True:
                writer.write(f"{action.text}\r\n".encode() * 50)
                await writer.drain()
                await asyncio.sleep(0)  # the client may live on the same loop
        case Exchange():
            for number, reply in enumerate(action.replies):
                if number:
                    session.lines.append((await session.reader.readline()).decode().rstrip("\r\n"))
                writer.write(f"{reply}\r\n".encode())
    await writer.drain()


async def _proxy_header(reader: asyncio.StreamReader, version: Literal["v1", "v2"]) -> bytes:
    if version == "v1":
        return await reader.readline()
    start = await reader.readexactly(16)
    return start + await reader.readexactly(int.from_bytes(start[14:]))


@contextmanager
def in_thread(hop: ScriptedHop) -> Iterator[ScriptedHop]:
    """Run a hop on a loop of its own, in a thread."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def run() -> None:
        async with hop:
            ready.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.Runner(loop_factory=lambda: loop).run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield hop
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
