"""The socketmap daemon: accepting, the cap, the time limits, and draining.

Theory of operation. Accepting is our own, on both event loops: it keeps the cap, at which further clients see
an immediate close (a temporary failure to every MTA, where a wait would hold up its session), and it rests
for a moment where no descriptor is left, which asyncio repeats and logs without end and uvloop passes over in
silence. One line is logged when the cap is reached and one when that has eased.

One periodic sweep asks each connection whether a limit has passed. Thousands of them cost a millisecond.

The listeners ought to be deep and never stop: Sendmail bounds its reading but not its connecting (measured).

A `Gate` stands before them where a process shares its listener with others, or is to end after so many.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import time
from collections.abc import Sequence
from typing import Protocol, cast

from rcptd.sockets import Listening, allow_descriptors
from rcptd_socketmap.connection import Connection, Respondent
from rcptd_socketmap.protocol import OWN, Dialect

_log = logging.getLogger(__name__)

ACCEPTS = 64
"""How many connections are accepted in one turn of the loop."""

REST = 0.5
"""How long to rest, in seconds, where accepting fails."""

REST_LOGGED = 60.0
"""How often, in seconds, that is worth a line."""

EASED = 0.9
"""The part of the cap at which it counts as eased, so that a crowd at the edge does not fill the log."""

OTHER_DESCRIPTORS = 128
"""What the rest of the daemon may have open beside our connections."""

_TRANSIENT = {errno.ECONNABORTED, errno.EINTR, errno.EPROTO}  # accept(2): of that one client, take the next
_PEER_CREDENTIALS = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid


class Limits(Protocol):
    """What a server needs of its settings: see there."""

    @property
    def max_connections(self) -> int:
        """How many connections may be open."""
        ...

    @property
    def idle(self) -> float:
        """How long a connection may be silent between requests, in seconds."""
        ...

    @property
    def stall(self) -> float:
        """How long a client may take to send one request, or to take its replies, in seconds."""
        ...


class Gate:
    """Who may come in, and under which name: everybody; on the loop, never waits, never raises."""

    def open(self) -> bool:
        """Say whether the next client may be accepted; asked before each."""
        return True

    def admit(self, accepted: socket.socket, address: object) -> str | None:
        """Take note of a client and name it for the log, or give None to turn it away."""
        return peer_name(accepted, address)

    def protocol(self, connection: Connection) -> asyncio.Protocol:
        """Give what stands between the client and its connection: nothing."""
        return connection

    def left(self, remaining: int) -> None:
        """Take note of the end of an admitted client, and of how many remain."""


class Server:
    """The listeners and their connections, on the loop."""

    def __init__(
        self,
        respondent: Respondent,
        limits: Limits,
        *,
        dialect: Dialect = OWN,
        gate: Gate | None = None,
        accepts: int = ACCEPTS,
    ) -> None:
        """Answer by a respondent; with few `accepts` a turn, processes that share a listener share its clients, too."""
        self._respondent = respondent
        self._limits = limits
        self._dialect = dialect
        self._gate = gate or Gate()
        self._accepts = accepts
        self._listening: list[Listening] = []
        self._connections: set[Connection] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._turned_away = 0  # since the cap was reached, 0 while it is not
        self._rest_logged = -REST_LOGGED
        self._emptied = asyncio.Event()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def start(self, listening: Sequence[Listening]) -> None:
        """Accept at these sockets, which are ours from now on."""
        wanted = self._limits.max_connections + OTHER_DESCRIPTORS
        if (limit := allow_descriptors(wanted)) < wanted:
            _log.warning(
                "%d open descriptors are allowed, too few for max_connections = %d; raise LimitNOFILE= or ulimit -n",
                limit, self._limits.max_connections,
            )  # fmt: skip
        for each in listening:
            self._listening.append(each)
            self._accept_at(each)
            _log.info("listening at %s", each.address)
        self._sweep()

    def reconfigure(self, respondent: Respondent, limits: Limits) -> None:
        """Put other maps and limits in force, for open connections too; the listeners stay as they are."""
        self._respondent = respondent
        self._limits = limits
        for connection in self._connections:
            connection.use(respondent)

    async def drain(self, patience: float) -> int:
        """Stop accepting, close what is idle, answer what was asked; gives how many were cut after all.

        `patience` is in seconds. Afterwards nothing of this server is open.
        """
        self.stop_accepting()
        for connection in tuple(self._connections):
            connection.drain()
        if self._connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._emptied.wait()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        cut = len(self._connections)
        for task in tuple(self._adopting):
            task.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        if cut:
            _log.warning("%d connections were cut with something unanswered", cut)
            await asyncio.sleep(0)  # the loop tells them in its next turn
        return cut

    def stop_accepting(self) -> None:
        """Close the listeners; what is open goes on."""
        loop = asyncio.get_running_loop()
        for each in self._listening:
            if timer := self._timers.pop(each, None):
                timer.cancel()
            loop.remove_reader(each.socket.fileno())
            each.close()
        self._listening.clear()

    def _accept_at(self, listening: Listening) -> None:
        self._timers.pop(listening, None)
        asyncio.get_running_loop().add_reader(listening.socket.fileno(), self._accept, listening)

    def _accept(self, listening: Listening) -> None:
        for _ in range(self._accepts):
            if not self._gate.open():
                return
            try:
                accepted, address = listening.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _TRANSIENT:
                    continue
                self._rest(listening, error)
                return
            if len(self._connections) >= self._limits.max_connections:
                accepted.close()
                self._turn_away()
            elif (peer := self._gate.admit(accepted, address)) is None:
                accepted.close()
            else:
                self._admit(accepted, peer)

    def _rest(self, listening: Listening, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        if (now := time.monotonic()) - self._rest_logged >= REST_LOGGED:
            self._rest_logged = now
            _log.error(
                "cannot accept at %s: %s; trying again every %g s with %d connections open",
                listening.address, error.strerror, REST, len(self._connections),
            )  # fmt: skip
        loop.remove_reader(listening.socket.fileno())
        self._timers[listening] = loop.call_later(REST, self._accept_at, listening)

    def _turn_away(self) -> None:
        self._turned_away += 1
        if self._turned_away == 1:
            _log.warning(
                "%d connections are open, which is max_connections; further ones are closed at once",
                self._limits.max_connections,
            )

    def _admit(self, accepted: socket.socket, peer: str) -> None:
        connection = Connection(self._respondent, peer=peer, on_lost=self._forget, dialect=self._dialect)
        self._connections.add(connection)
        task = asyncio.get_running_loop().create_task(self._adopt(accepted, connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt(self, accepted: socket.socket, connection: Connection) -> None:
        loop, protocol = asyncio.get_running_loop(), self._gate.protocol(connection)
        try:
            await loop.connect_accepted_socket(lambda: protocol, accepted)
        except (OSError, asyncio.CancelledError) as error:
            accepted.close()
            self._forget(connection)
            _log.info("%s: gone before its first request: %s", connection.peer, error)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()
        self._gate.left(len(self._connections))
        if self._turned_away and len(self._connections) <= EASED * self._limits.max_connections:
            _log.warning(
                "%d connections are open, fewer than max_connections again; %d were turned away",
                len(self._connections), self._turned_away,
            )  # fmt: skip
            self._turned_away = 0

    def _sweep(self) -> None:
        now, limits = time.monotonic(), self._limits
        period = sweep_period(limits)
        self._timers["sweep"] = asyncio.get_running_loop().call_later(period, self._sweep)
        for connection in tuple(self._connections):
            connection.sweep(now, idle=limits.idle, stall=limits.stall)


def sweep_period(limits: Limits) -> float:
    """Choose how often to look for passed limits, in seconds: they are kept to a quarter, or to 5 s."""
    return min(5.0, limits.stall / 4, limits.idle / 4)


def peer_name(connected: socket.socket, address: object) -> str:
    """Name a client so that its own log lines can be found: the process of a unix one, the port of others."""
    if connected.family == socket.AF_UNIX:
        size = _PEER_CREDENTIALS.size
        pid, _, _ = _PEER_CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return f"unix pid {pid}"
    if connected.family == socket.AF_INET6:
        host, port = cast(tuple[str, int], address)[:2]
        return f"[{host}]:{port}"
    host, port = cast(tuple[str, int], address)
    return f"{host}:{port}"
