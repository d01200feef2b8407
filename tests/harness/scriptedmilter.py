"""A milter that sends the octets which a test wrote down, one piece for each packet that wants an answer.

It forces what no libmilter does: broken frames, replies that do not exist, silence. For a milter that
answers by recipient see `tests.rig.scripted_filter`.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.harness import milterpackets as wire

CONTINUE = wire.frame(b"c")


def agree(version: int = 6, actions: int = 0, steps: int = 0, lists: bytes = b"") -> bytes:
    """Write a milter's answer to the negotiation; `lists` are macro lists as on the wire."""
    return wire.frame(b"O", struct.pack("!III", version, actions, steps) + lists)


@asynccontextmanager
async def scripted(*answers: bytes, hold: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Listen, and give one answer for each packet that wants one; then close or, on `hold`, say nothing.

    Yields its address and the packets that it was told.
    """
    told: list[bytes] = []
    waiting = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = list(answers)
        try:
            while True:
                (length,) = struct.unpack("!I", await reader.readexactly(4))
                packet = await reader.readexactly(length)
                told.append(packet)
                if packet[:1] in b"DAQK":
                    continue
                if not script:
                    break
                writer.write(script.pop(0))
                await writer.drain()
            if hold:
                await waiting.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"inet:127.0.0.1:{server.sockets[0].getsockname()[1]}", told
    finally:
        waiting.set()
        server.close()
        await asyncio.sleep(0.01)
