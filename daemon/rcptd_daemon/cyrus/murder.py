"""A Cyrus Murder: the mupdate process that keeps our mailbox list, and the backend that has a remote mailbox.

Both are asked as the original asks them, but with a limit to how long and to how many at once. A backend's reply is
taken only when it is one whole netstring, for whatever else were relayed would be read as the replies to later
questions.
"""

import asyncio
import logging
import socket
from enum import Enum
from pathlib import Path

from rcptd.netstring import Decoder, encode

_log = logging.getLogger(__name__)

PORT = 12345  # where the original asks a backend
RELAYED = 2047  # bytes of a backend's reply
AT_ONCE = 100  # connections of either kind; the other questions wait
_END = b"\x04"  # what the original sends behind its question


class Silence(Enum):
    """What a backend said, where it said nothing that can be relayed."""

    NOTHING = "nothing"
    """no such host, nobody there, or no answer: the original takes that for a yes, or waits for ever"""
    GARBAGE = "garbage"


class Murder:
    """The other hosts of a Murder; on the loop."""

    def __init__(self, mupdate: Path, *, port: int = PORT) -> None:
        self._mupdate = mupdate
        self._port = port
        self._room = asyncio.Semaphore(AT_ONCE)

    async def kick(self, patience: float) -> bool:
        """Have the mailbox list brought up to date; says whether it was. `patience` is in seconds."""
        try:
            async with asyncio.timeout(patience), self._room:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.setblocking(False)
                    loop = asyncio.get_running_loop()
                    await loop.sock_connect(connection, str(self._mupdate))
                    await loop.sock_recv(connection, 1)
        except (OSError, ValueError) as error:
            _log.warning("cannot have mupdate bring the mailbox list up to date at %s: %r", self._mupdate, error)
            return False
        return True

    async def ask(self, server: bytes, key: bytes, patience: float) -> bytes | Silence:
        """Ask the backend of a remote mailbox; gives its reply, framed. `patience` is in seconds."""
        said = b""
        try:
            async with asyncio.timeout(patience), self._room:
                loop = asyncio.get_running_loop()
                ways = await loop.getaddrinfo(
                    server, self._port, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
                    connection.setblocking(False)
                    await loop.sock_connect(connection, ways[0][4])
                    await loop.sock_sendall(connection, encode(b"cyrus " + key) + _END)
                    while len(said) < RELAYED:
                        chunk = await loop.sock_recv(connection, RELAYED - len(said))
                        said += chunk
                        decoder = Decoder(RELAYED)
                        if bodies := decoder.feed(said, 1):
                            return encode(bodies[0])
                        if not chunk or decoder.fault:
                            break
        except (OSError, ValueError) as error:  # a host name may be none
            _log.warning("backend %r does not answer: %r", server, error)
        if said:
            _log.error("backend %r gave no netstring: %r", server, said[:80])
        return Silence.GARBAGE if said else Silence.NOTHING
