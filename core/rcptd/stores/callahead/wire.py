"""The wire to a next hop: whole replies out of it, command lines into it, and a limit to every wait.

An asyncio protocol, so it lives on its loop. It counts how many replies are owed: a hop that sends more than that, and
more than the one 421 with which it may close (RFC 5321 3.8), is out of step, and the wire ends there and then. That
and the bounds of `replies` are what limits memory.

All trouble is `HopTrouble`, with the step at which it came.
"""

import asyncio
import ssl
from collections import deque
from typing import Any, cast

from rcptd.stores.callahead.meaning import HopTrouble, Step, Trouble
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.replies import Replies, Reply


class Wire(asyncio.Protocol):
    """One transport, from `connection_made` to `abort`; a reply may take `reply_timeout` seconds.

    `family` is that of its socket, `ours` and `theirs` are the names of its ends.
    """

    transport: asyncio.Transport
    family: int
    ours: Any
    theirs: Any  # None where the hop was gone before we looked

    def __init__(self, hop: NextHop, reply_timeout: float) -> None:
        self._hop = hop
        self._reply_timeout = reply_timeout
        self._loop = asyncio.get_running_loop()
        self._replies = Replies()
        self._ready: deque[Reply] = deque()
        self._owed = 1  # the banner
        self._waiter: asyncio.Future[None] | None = None
        self._ended = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the loop."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        # Asked now, as uvloop tells nothing of a transport that is closed.
        self.family = transport.get_extra_info("socket").family
        self.ours, self.theirs = transport.get_extra_info("sockname"), transport.get_extra_info("peername")

    def data_received(self, data: bytes) -> None:
        """Take what the hop sent; called by the loop."""
        self._ready += self._replies.feed(data)
        if self._replies.fault:
            self._end(f"sent {self._replies.fault}")
        elif len(self._ready) > self._owed + 1:
            self._end("sends replies that nobody asked for")
        self._wake()

    def eof_received(self) -> None:
        """Note that the hop hung up; called by the loop."""
        self._end("hung up")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone; called by the loop."""
        self._end(f"connection lost: {exc}" if exc else "connection closed")
        self._wake()

    def _end(self, why: str) -> None:
        if not self._ended:
            self._ended = why
            self.transport.abort()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def silent(self) -> bool:
        """Say whether the connection is there, and all that came has been read."""
        return not (self._ended or self._ready or self._replies.partial)

    @property
    def unread(self) -> Reply | None:
        """Give the reply that would be read next, None where none has come."""
        return self._ready[0] if self._ready else None

    def write(self, step: Step, *lines: str) -> None:
        """Send command lines; raises `HopTrouble` where the hop spoke unasked, or is gone."""
        for line in lines:
            assert not set("\r\n\0") & set(line), line
        if not self.silent:
            raise self._unasked(step)
        self._owed += len(lines)
        self.transport.write(b"".join(line.encode() + b"\r\n" for line in lines))

    async def read(self, step: Step, until: float) -> Reply:
        """Wait for the next reply, until the loop's time `until` at most; raises `HopTrouble`."""
        if not self._ready:
            await self._something(step, until)
            if not self._ready:
                raise self.trouble(Trouble.BROKEN, step, self._ended)
        self._owed -= 1
        return self._ready.popleft()

    async def _something(self, step: Step, until: float) -> None:
        begun = self._loop.time()
        try:
            async with asyncio.timeout_at(self.limit(until)):
                while not (self._ready or self._ended):
                    self._waiter = self._loop.create_future()
                    await self._waiter
        except TimeoutError:
            waited = f"no whole reply within {self._loop.time() - begun:.1f} s"
            raise self.trouble(Trouble.TIMEOUT, step, waited) from None
        finally:
            self._waiter = None

    def limit(self, until: float) -> float:
        """Give the loop's time at which what begins now must be over."""
        return min(until, self._loop.time() + self._reply_timeout)

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go over to TLS with a server of that name ("" for none); raises what `loop.start_tls` does."""
        transport = await self._loop.start_tls(self.transport, self, context, server_hostname=name or None)
        self.transport = cast(asyncio.Transport, transport)

    async def command(self, step: Step, line: str, until: float) -> Reply:
        """Send one command line and wait for its reply."""
        self.write(step, line)
        return await self.read(step, until)

    def trouble(self, kind: Trouble, step: Step, what: object, code: int = 0) -> HopTrouble:
        """Make a trouble of this hop."""
        return HopTrouble(kind, step, f"{self._hop}: {step.value}: {what}", code)

    def _unasked(self, step: Step) -> HopTrouble:
        reply = self.unread
        if reply and reply.code == 421:
            return self.trouble(Trouble.REFUSED, step, reply, reply.code)
        return self.trouble(Trouble.BROKEN, step, self._ended or "spoke unasked")

    def abort(self) -> None:
        """Close at once."""
        self._end("closed by us")
