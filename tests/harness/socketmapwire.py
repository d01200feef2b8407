"""The MTA side of a socketmap: one connection, netstrings, one question at a time.

    async with SocketmapConnection("inet:127.0.0.1:7850") as s:
        answer = await s.ask("access", "user@example.org")      # "OK DUNNO"

As Postfix's client does, a connection that turns out broken is opened once more for the same question;
whatever else goes wrong raises `SocketmapTrouble`. Replies over 100,000 octets are not read (Postfix's
own limit), and every wait ends after `patience` seconds.
"""

import asyncio
import contextlib
import re
from types import TracebackType
from typing import Self

from tests.harness.milterwire import open_socket

REPLY_OCTETS = 100_000
_LENGTH = re.compile(rb"(0|[1-9]\d{0,5}):")


class SocketmapTrouble(Exception):
    """The server broke the protocol, closed, or did not answer in time."""


class _Broken(Exception):
    """The connection was closed before a reply began; worth one more try."""


class SocketmapConnection:
    """One connection to a socketmap server, opened at the first question; for one task at a time."""

    def __init__(self, address: str, *, patience: float = 10.0) -> None:
        self.address = address
        self.patience = patience
        self.asked: list[str] = []
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, name: str, key: str) -> str:
        """Ask map `name` about `key` and give the reply's payload, such as `NOTFOUND No such mailbox`."""
        request = f"{name} {key}".encode("utf-8", "surrogateescape")
        self.asked.append(f"{name} {key}")
        fresh = self._writer is None
        try:
            async with asyncio.timeout(self.patience):
                try:
                    return await self._exchange(request)
                except _Broken:
                    await self.close()
                    if fresh:
                        raise
                    return await self._exchange(request)
        except SocketmapTrouble:
            await self.close()
            raise
        except (_Broken, OSError) as error:  # TimeoutError among them
            await self.close()
            raise SocketmapTrouble(str(error) or f"no answer within {self.patience:g} s") from error

    async def close(self) -> None:
        """Close the connection; the next question opens another."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self.patience):
                    await writer.wait_closed()

    async def _exchange(self, request: bytes) -> str:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await open_socket(self.address, self.patience)
        try:
            self._writer.write(b"%d:%b," % (len(request), request))
            await self._writer.drain()
            first = await self._reader.read(1)
        except ConnectionError as error:
            raise _Broken("the connection broke") from error
        if not first:
            raise _Broken("the server closed the connection")
        try:
            head = first
            while not head.endswith(b":") and len(head) < 8:
                head += await self._reader.readexactly(1)
            length = _LENGTH.fullmatch(head)
            if not length or int(length[1]) > REPLY_OCTETS:
                raise SocketmapTrouble(f"{head!r} is no length of a reply")
            payload = await self._reader.readexactly(int(length[1]) + 1)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise SocketmapTrouble("the server closed in the middle of a reply") from error
        if not payload.endswith(b","):
            raise SocketmapTrouble("no comma at the end of a reply")
        return payload[:-1].decode("utf-8", "surrogateescape")
