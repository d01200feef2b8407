"""A next hop that is as quick as Python allows, or takes its time over each RCPT: for benchmarks/callahead.py.

It speaks enough LMTP for RCPT: LHLO, MAIL, RCPT, RSET, QUIT, with PIPELINING. A recipient whose local part begins with
`u` is there, nobody else is. With a delay the replies to one connection's RCPTs come one after the other, each after
its time, as those of a server that looks each recipient up.
"""

import argparse
import asyncio
import os
import sys
from collections import deque
from typing import cast

GREETING = b"220 fast LMTP\r\n"
FEATURES = b"250-fast\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n"
OK, SENDER = b"250 2.0.0 ok\r\n", b"250 2.1.0 ok\r\n"
THERE, NOBODY = b"250 2.1.5 ok\r\n", b"550 5.1.1 no such mailbox\r\n"
BYE = b"221 2.0.0 bye\r\n"


class Hop(asyncio.Protocol):
    """One connection."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._left = b""
        self._due: deque[bytes] = deque()
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        """Answer the commands that are whole."""
        *lines, self._left = (self._left + data).split(b"\r\n")
        self._due.extend(lines)
        if not self._waits:
            self._answer()

    def _answer(self) -> None:
        replies = []
        while self._due:
            line = self._due.popleft()
            verb = line[:4].upper()
            if verb == b"RCPT":
                reply = THERE if line[9:10] == b"u" else NOBODY
                if self._delay:
                    self._waits = True
                    asyncio.get_running_loop().call_later(self._delay, self._after, reply)
                    break
                replies.append(reply)
            elif verb in (b"LHLO", b"EHLO"):
                replies.append(FEATURES)
            elif verb == b"QUIT":
                self._transport.write(BYE)
                self._transport.close()
            else:
                replies.append(SENDER if verb == b"MAIL" else OK)
        if replies:
            self._transport.write(b"".join(replies))

    def _after(self, reply: bytes) -> None:
        self._waits = False
        self._transport.write(reply)
        self._answer()


async def serve(path: str, delay: float) -> None:
    """Listen until standard input ends, and say when it has begun."""
    loop = asyncio.get_running_loop()
    if path.startswith("/"):
        server = await loop.create_unix_server(lambda: Hop(delay), path, backlog=4096)
        print(path, flush=True)
    else:
        server = await loop.create_server(lambda: Hop(delay), "127.0.0.1", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)  # thousands of connections have nothing to be told


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.fasthop", description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds for each RCPT")
    parser.add_argument("--path", default="", help="a unix socket; without it a port on loopback, which is printed")
    given = parser.parse_args()
    import uvloop  # noqa: PLC0415

    uvloop.run(serve(given.path, given.delay))


if __name__ == "__main__":
    main()
