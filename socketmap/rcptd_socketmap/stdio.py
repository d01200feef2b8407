"""One socketmap connection on standard input and output, for inetd and Postfix's spawn(8).

They are one socket, or two pipes; spawn(8) makes standard error the same socket, so logs must go elsewhere.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import time
from typing import cast

from rcptd_socketmap.connection import Connection, Respondent
from rcptd_socketmap.protocol import OWN, Dialect
from rcptd_socketmap.server import Gate, Limits, sweep_period

STANDARD_INPUT = "standard input"
"""The name of a client that has none."""


async def serve_stdio(
    respondent: Respondent,
    limits: Limits,
    *,
    dialect: Dialect = OWN,
    gate: Gate | None = None,
    stdin: int = 0,
    stdout: int = 1,
) -> None:
    """Serve the one connection that we were started for, and return at its end.

    The gate names the client, and may turn it away. Cancelling cuts it. Raises `OSError` where the descriptors
    are neither a socket nor pipes.
    """
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[None] = loop.create_future()
    here, there = os.fstat(stdin), os.fstat(stdout)
    one_socket = stat.S_ISSOCK(here.st_mode) and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    connected = socket.socket(fileno=os.dup(stdin)) if one_socket else None

    def end(_: Connection) -> None:
        if not lost.done():
            lost.set_result(None)

    gate = gate or Gate()
    peer = _peer_at(connected, gate) if connected else STANDARD_INPUT
    connection = Connection(respondent, peer=peer or "", on_lost=end, dialect=dialect)
    protocol = gate.protocol(connection)
    reading: asyncio.BaseTransport | None = None
    try:
        if connected:
            if peer is None:
                return
            connected.setblocking(False)
            await loop.connect_accepted_socket(lambda: protocol, connected)
        else:
            reading = await _connect_pipes(protocol, stdin, stdout)
        while not lost.done():
            await asyncio.wait([lost], timeout=sweep_period(limits))
            connection.sweep(time.monotonic(), idle=limits.idle, stall=limits.stall)
    finally:
        connection.abort()
        if reading:
            reading.close()  # where the output was lost first
        if connected:
            # The client is to see the end now, though this process still has the socket as 0, 1 and perhaps 2.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(stdin)) as same:
                same.shutdown(socket.SHUT_RDWR)


def _peer_at(connected: socket.socket, gate: Gate) -> str | None:
    try:
        return gate.admit(connected, connected.getpeername())
    except OSError:
        return STANDARD_INPUT  # it has gone already


class _Output(asyncio.BaseProtocol):
    """Tells a connection how its output fares."""

    def __init__(self, connection: asyncio.Protocol) -> None:
        self._connection = connection

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


class _Input(asyncio.Protocol):
    """Hands what comes in to a connection that answers elsewhere."""

    def __init__(self, connection: asyncio.Protocol, output: asyncio.WriteTransport) -> None:
        self._connection = connection
        self._output = output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        both = _Pipes(cast(asyncio.ReadTransport, transport), self._output)
        self._connection.connection_made(both)

    def data_received(self, data: bytes) -> None:
        self._connection.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._connection.eof_received()


class _Pipes(asyncio.Transport):
    """Two pipes as one transport: what a `Connection` needs of one."""

    def __init__(self, reading: asyncio.ReadTransport, writing: asyncio.WriteTransport) -> None:
        super().__init__()
        self._reading = reading
        self._writing = writing

    def pause_reading(self) -> None:
        if not self._reading.is_closing():
            self._reading.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading.is_closing():
            self._reading.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._writing.write(data)

    def close(self) -> None:
        self._reading.close()
        self._writing.close()

    def abort(self) -> None:
        self._reading.close()
        self._writing.abort()


async def _connect_pipes(connection: asyncio.Protocol, stdin: int, stdout: int) -> asyncio.BaseTransport:
    for descriptor in (stdin, stdout):
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind not in (stat.S_IFIFO, stat.S_IFSOCK):  # asyncio would raise, uvloop would abort the process
            raise OSError(errno.EINVAL, "standard input and output must be one socket, or two pipes")
    loop = asyncio.get_running_loop()
    writing, _ = await loop.connect_write_pipe(
        lambda: _Output(connection), os.fdopen(os.dup(stdout), "wb", buffering=0)
    )
    reading, _ = await loop.connect_read_pipe(
        lambda: _Input(connection, writing), os.fdopen(os.dup(stdin), "rb", buffering=0)
    )
    return reading
