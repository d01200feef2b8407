"""The running service: one process that serves many clients at once, and ends when Cyrus' would.

Theory of operation. Before each client is accepted we look whether another may be: the uses that -U allows are not
spent, and our program was not replaced. Otherwise we accept no more, finish what is open, and end with 0, as we do
after -T seconds, and as many more by chance again, without a client since the last one. SIGHUP and SIGALRM end us with
0 as soon as what was asked is answered, SIGTERM, SIGINT and SIGQUIT with 75, which master does not take for a failure.
Both have a limit.

Under master, the status pipe is told of each client. When its other end is gone, so is master; we end then, for our
listener would keep the next master from having one.

LIMITS: a client is named by its address; no name is looked up.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rcptd.sockets import Listening
from rcptd_daemon.cyrus.answers import DEADLINE
from rcptd_daemon.cyrus.master import StatusPipe
from rcptd_daemon.cyrus.program import Program
from rcptd_daemon.cyrus.telemetry import Telemetry
from rcptd_daemon.cyrus.words import CYRUS
from rcptd_socketmap.connection import Connection, Respondent
from rcptd_socketmap.server import Gate, Server
from rcptd_socketmap.stdio import serve_stdio

_log = logging.getLogger(__name__)

EX_TEMPFAIL = 75  # sysexits(3)

PATIENCE = DEADLINE + 1.0
"""How long, in seconds, a signal waits for the answers to what was asked."""

UNIX = "[unix socket]"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients are served at once, and how long one may take, in seconds: the original waits 360 s."""

    max_connections: int = 4000
    idle: float = 360.0
    stall: float = 360.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The options tcp_keepalive_*, in seconds and probes; 0 leaves the system's."""

    count: int = 0
    idle: int = 0
    interval: int = 0

    def apply(self, accepted: socket.socket) -> None:
        """Set them on a TCP connection."""
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPCNT, self.count),
            (socket.TCP_KEEPIDLE, self.idle),
            (socket.TCP_KEEPINTVL, self.interval),
        ):
            if value > 0:
                accepted.setsockopt(socket.IPPROTO_TCP, option, value)


class Rules(Protocol):
    """Who is served by TCP: what we need of `wrappers.Wrappers`."""

    def allow(self, address: str, /) -> bool:
        """Say whether a client may be served, by its address."""
        ...


class Door(Gate):
    """Who comes in, whoever opened the listener."""

    def __init__(
        self,
        *,
        keepalive: Keepalive | None = None,
        rules: Rules | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._keepalive = keepalive
        self._rules = rules
        self._telemetry = telemetry

    def admit(self, accepted: socket.socket, address: object) -> str | None:
        """Name a client by its address, unless the rules refuse it."""
        if accepted.family == socket.AF_UNIX or not isinstance(address, tuple):
            return UNIX
        host = str(address[0])
        if self._rules and not self._rules.allow(host):
            _log.warning("refused connection from [%s]", host)
            return None
        if self._keepalive:
            try:
                self._keepalive.apply(accepted)
            except OSError as error:
                _log.warning("unable to set keepalive: %s", error.strerror)
        return f"[{host}]"

    def protocol(self, connection: Connection) -> asyncio.Protocol:
        """Record a connection, if that is wanted."""
        _log.debug("accepted connection")
        if self._telemetry is None:
            return connection
        client = "unix" if connection.peer == UNIX else connection.peer.strip("[]")
        return self._telemetry.around(connection, client)


class Service(Gate):
    """Serves at listeners until something ends it; on the loop.

    `uses` and `idle` (seconds) are None for no limit; `status` is None where no master started us.
    """

    def __init__(
        self,
        respondent: Respondent,
        door: Door,
        *,
        uses: int | None = None,
        idle: int | None = None,
        status: StatusPipe | None = None,
        program: Program | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._door = door
        self._uses = uses
        self._idle = idle
        self._status = status
        self._program = program
        self._server = Server(respondent, limits or Limits(), dialect=CYRUS, gate=self)
        self._timer: asyncio.TimerHandle | None = None
        self._wanted: asyncio.Future[int] | None = None  # the exit status
        self._finishing = False

    async def run(self, listening: Sequence[Listening]) -> int:
        """Serve, and give the exit status."""
        loop = asyncio.get_running_loop()
        self._wanted = loop.create_future()
        for number in (signal.SIGHUP, signal.SIGALRM):
            loop.add_signal_handler(number, self._end, 0)
        # Who is not under master is no less a good citizen for being told to stop.
        stopped = EX_TEMPFAIL if self._status else 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._end, stopped)
        if self._status:
            # A pipe that nobody reads any more is ready with an error.
            loop.add_reader(self._status.descriptor, self._master_is_gone)
        self._server.start(listening)
        status = await self._wanted
        self._accept_no_more()
        await self._server.drain(PATIENCE)
        return status

    # What the server asks.

    def open(self) -> bool:
        """Say whether the next client may come; the first no is the last word."""
        if self._uses == 0:
            self._finish("all uses are spent")
        elif self._program and self._program.replaced():
            self._finish("the program was replaced")
        return not self._finishing

    def admit(self, accepted: socket.socket, address: object) -> str | None:
        """Count a client that comes in."""
        peer = self._door.admit(accepted, address)
        if peer is not None:
            if self._uses is not None:
                self._uses -= 1
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._status:
                self._status.connection()
        return peer

    def protocol(self, connection: Connection) -> asyncio.Protocol:
        """Let the door decide."""
        return self._door.protocol(connection)

    def left(self, remaining: int) -> None:
        """Note that a client has gone."""
        if remaining:
            return
        if self._finishing:
            self._end(0)
        elif self._uses == 0:
            self._finish("all uses are spent")
        elif self._idle:
            wait = self._idle + int.from_bytes(os.urandom(4)) % self._idle
            self._timer = asyncio.get_running_loop().call_later(wait, self._finish, "nobody came")

    # The end.

    def _finish(self, why: str) -> None:
        """Accept no more, and end when those that are open have ended."""
        if self._finishing:
            return
        _log.debug("finishing: %s", why)
        self._accept_no_more()
        if not self._server.connections:
            self._end(0)

    def _accept_no_more(self) -> None:
        if self._finishing:
            return
        self._finishing = True
        self._server.stop_accepting()
        if self._status and self._server.connections:
            self._status.unavailable()  # so that master starts another meanwhile

    def _end(self, status: int) -> None:
        if self._wanted and not self._wanted.done():
            self._wanted.set_result(status)

    def _master_is_gone(self) -> None:
        if self._status:
            asyncio.get_running_loop().remove_reader(self._status.descriptor)
            _log.warning("master is gone")
            self._end(EX_TEMPFAIL)


async def serve_one(respondent: Respondent, door: Door, *, limits: Limits | None = None) -> int:
    """Serve the one client on standard input and output, and give the exit status; a signal cuts it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    for number in (signal.SIGHUP, signal.SIGALRM):
        loop.add_signal_handler(number, end, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, end, EX_TEMPFAIL)
    serving = loop.create_task(serve_stdio(respondent, limits or Limits(), dialect=CYRUS, gate=door))
    await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        serving.cancel()
        await asyncio.wait((serving,), timeout=1.0)
        return ended.result()
    await serving
    return 0
