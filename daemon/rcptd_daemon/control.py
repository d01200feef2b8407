"""The control socket: a running daemon's ear for its own command line; unix only, mode 0660.

One JSON object a line each way: `{"op": "check", "address": "…", …}` is answered by
`{"ok": true, "result": {…}}` or `{"ok": false, "error": "…"}`. Lines are bounded, so is the number of
connections and the time for each line; who connects is logged with the pid and uid that the kernel vouches
for.
"""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

LINE = 64 * 1024
"""How many octets a request may have."""

ANSWER = 256 * LINE
"""How many octets an answer may have: 64 workers tell what they remember, 200 addresses each."""

CONNECTIONS = 32
PATIENCE = 60.0
"""How long, in seconds, a connection may be silent."""

ASKING = 10.0
"""How long, in seconds, one worker waits for the answer of another."""

Operation = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Takes a request, gives its result; a `ValueError` is the asker's fault."""


class Server:
    """Answers on connections of a listening socket; on the loop."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Serve a listening unix socket."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=LINE)

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._server:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= CONNECTIONS:
            _log.warning("control: more than %d connections; one is closed", CONNECTIONS)
            writer.close()
            return
        self._connections.add(task)
        try:
            _log.info("control: connection from %s", peer_of(writer.get_extra_info("socket")))
            async with asyncio.timeout(None) as limit:
                loop = asyncio.get_running_loop()
                limit.reschedule(loop.time() + PATIENCE)
                while line := await reader.readline():
                    writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                    await writer.drain()
                    limit.reschedule(loop.time() + PATIENCE)
        except ValueError:
            # StreamReader's word for a line beyond its limit.
            writer.write(json.dumps(_failed(f"a line may have {LINE} octets")).encode() + b"\n")
        except (TimeoutError, OSError, asyncio.CancelledError):
            # Gone, silent, or we are stopping: nobody is left to be told. Closing would wait for ever for one who
            # does not take its answers, beside the cap.
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _failed("the line is no JSON")
        if not isinstance(request, dict):
            return _failed("the line is no JSON object")
        operation = self._operations.get(str(request.get("op")))
        if operation is None:
            return _failed(f"there is no operation {request.get('op')!r}; known: {', '.join(self._operations)}")
        try:
            return {"ok": True, "result": await operation(request)}
        except ValueError as error:
            return _failed(str(error))
        except Exception:
            _log.exception("control: %s failed", request.get("op"))
            return _failed("failed inside the daemon; its log says why")


def _failed(why: str) -> dict[str, Any]:
    return {"ok": False, "error": why}


def peer_of(connection: socket.socket) -> str:
    """Name the process at the other end, as the kernel knows it (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return f"pid {pid} uid {uid}"


async def ask_all(paths: Sequence[Path], request: Mapping[str, Any]) -> list[Any]:
    """Ask several daemons the same; gives the result of each, or the `OSError` or `ValueError` that came instead."""
    asking = (_ask_one(path, request) for path in paths)
    return await asyncio.gather(*asking, return_exceptions=True)


async def _ask_one(path: Path, request: Mapping[str, Any]) -> Any:
    async with asyncio.timeout(ASKING):
        reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
    return _result(line)


def _result(line: bytes) -> Any:
    """Take the result out of an answer; raises `ValueError` where the daemon refused, else `ConnectionError`."""
    if not line.endswith(b"\n"):
        raise ConnectionError("the daemon closed the connection")
    answer = json.loads(line)
    if not answer.get("ok"):
        raise ValueError(answer.get("error", "the daemon refused"))
    return answer["result"]


Ask = Callable[[Mapping[str, Any]], Any]


@contextmanager
def connected(path: Path, patience: float) -> Iterator[Ask]:
    """Connect to a running daemon; gives a function from request to result.

    That raises `OSError` where nobody answers within `patience` seconds, `ValueError` where the daemon
    refuses the request.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        connection.connect(str(path))
        with connection.makefile("rb") as answers:

            def ask(request: Mapping[str, Any]) -> Any:
                connection.sendall(json.dumps(request).encode() + b"\n")
                line = answers.readline(ANSWER)
                return _result(line)

            yield ask


def no_answer(error: OSError) -> str:
    """Say why the control socket gave none, and what helps."""
    what = error.strerror or str(error)
    match error:
        case PermissionError():
            return f"{what}; root may ask, and whoever is in the group of the socket"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"{what}; is rcptd running, with this configuration?"
        case _:
            return what
