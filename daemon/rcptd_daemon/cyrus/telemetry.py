"""Telemetry: the questions and answers of each connection in a file, as Cyrus does for imapd.

An administrator turns it on by making a directory that we may write to: `log/smmapd` in the configuration directory
for everybody, or one named like a client's address (`log/192.0.2.7`, or `log/unix`). Each connection gets a file
`<service>-<pid>-<number>` there, in imapd's form: `<seconds<` before what came in, `>seconds>` before what went out.

LIMITS: a file ends at FILE_OCTETS, and a process writes FILES of them.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import cast

_log = logging.getLogger(__name__)

EVERYBODY = "smmapd"
FILE_OCTETS = 1 << 20
FILES = 10_000


class Telemetry:
    """Which connections are recorded, and where; on the loop."""

    def __init__(self, configdirectory: Path, service: str) -> None:
        self._directory = configdirectory / "log"
        self._name = f"{service}-{os.getpid()}"
        self._number = 0

    def around(self, connection: asyncio.Protocol, client: str) -> asyncio.Protocol:
        """Give a connection that is recorded, or as it is where nobody wants that."""
        for name in (client, EVERYBODY):
            directory = self._directory / name
            if os.access(directory, os.W_OK | os.X_OK) and directory.is_dir() and self._number < FILES:
                self._number += 1
                record = _Record.begin(directory / f"{self._name}-{self._number}", client)
                return _Heard(connection, record) if record else connection
        return connection


class _Record:
    """One file; what cannot be written is not recorded, whatever the reason."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = FILE_OCTETS

    @classmethod
    def begin(cls, path: Path, client: str) -> "_Record | None":
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            record = cls(os.open(path, flags, 0o600))
        except OSError as error:
            _log.warning("cannot record a connection: %s", error)
            return None
        record.write(b"---------- %b %b\n" % (client.encode("ascii", "replace"), time.ctime().encode("ascii")))
        return record

    def write(self, octets: bytes) -> None:
        if self._left <= 0:
            return
        octets = octets[: self._left]
        self._left -= len(octets)
        try:
            os.write(self._descriptor, octets)
        except OSError as error:
            self._left = 0
            _log.warning("cannot go on recording a connection: %s", error.strerror)

    def end(self) -> None:
        os.close(self._descriptor)


class _Heard(asyncio.Protocol):
    """Hands everything to a connection, and writes down what comes in."""

    def __init__(self, connection: asyncio.Protocol, record: _Record) -> None:
        self._connection = connection
        self._record = record

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(_Said(cast(asyncio.Transport, transport), self._record))

    def data_received(self, data: bytes) -> None:
        self._record.write(b"\n<%d<%b" % (time.time(), data))
        self._connection.data_received(data)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        self._record.end()


class _Said(asyncio.Transport):
    """Hands everything to a transport, and writes down what goes out."""

    def __init__(self, transport: asyncio.Transport, record: _Record) -> None:
        super().__init__()
        self._transport = transport
        self._record = record

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._record.write(b"\n>%d>%b" % (time.time(), bytes(data)))
        self._transport.write(data)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
