"""A socketmap server that says what a test wrote down, faults included.

It is no reference: rcptd's own server is tested elsewhere. It shows what an MTA makes of a reply, and forces
what a well server never does: no answer, a closed connection, bytes that are no netstring.
"""

import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Self, cast

from tests.rig.ports import LOOPBACK

ANY_MAP = "*"
KEY_SIZE = 100_000  # bytes of a request; Postfix asks with at most 10,000


class Fault(Enum):
    """What a sick server does instead of answering."""

    STALL = "never answer"
    DROP = "close the connection"
    GARBLE = "send what is no netstring"
    HALF = "send half a reply and close"


Answers = Mapping[tuple[str, str], str | Fault]


def read_netstring(stream: BinaryIO) -> bytes | None:
    """Read one netstring; None at the end of the stream or at what is none."""
    digits = b""
    while (byte := stream.read(1)).isdigit() and len(digits) < 7:
        digits += byte
    if byte != b":" or not digits or int(digits) > KEY_SIZE:
        return None
    body = stream.read(int(digits))
    return body if stream.read(1) == b"," else None


def netstring(body: str) -> bytes:
    """Encode one netstring."""
    raw = body.encode()
    return b"%d:%b," % (len(raw), raw)


class ScriptedSocketmap:
    """A threaded server that answers from a table by (map name, key); a context manager.

    `where` is a path, or None for a port on loopback. `answers` may be changed at any time, by `("*", key)`
    for whatever map; what it does not hold gets `default`. `asked` is every question in order. The whole
    server can be sick: `fault` overrides all answers while it is set.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        where: Path | None = None,
        default: str | Fault = "NOTFOUND ",
        port: int = 0,
        mode: int = 0o666,
    ) -> None:
        self.answers = dict(answers or {})
        self.default = default
        self.fault: Fault | None = None
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        self.where = where
        self.port = port
        self._mode = mode  # of a unix socket; by default whoever the rig's MTAs come as
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._leave = threading.Event()
        self._server: socketserver.BaseServer | None = None

    @property
    def postfix(self) -> str:
        """Where it listens, as Postfix writes it."""
        return f"unix:{self.where}" if self.where else f"inet:{LOOPBACK}:{self.port}"

    @property
    def sendmail(self) -> str:
        """Where it listens, as Sendmail's K line writes it."""
        return f"local:{self.where}" if self.where else f"inet:{self.port}@{LOOPBACK}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the same port again after a stop."""
        script = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                script._serve(self.connection, cast("BinaryIO", self.rfile))

        class Tcp(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

        class Unix(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

        self._leave.clear()
        if self.where:
            self.where.unlink(missing_ok=True)
            self._server = Unix(str(self.where), Connection)
            self.where.chmod(self._mode)
        else:
            server = Tcp((LOOPBACK, self.port), Connection)
            self.port = server.server_address[1]
            self._server = server
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go down: nobody listens any more, and every connection is cut."""
        if not self._server:
            return
        self._leave.set()
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.cut()
        if self.where:
            self.where.unlink(missing_ok=True)

    def cut(self) -> None:
        """Cut every open connection, as a restart without a listener of its own does."""
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket, stream: BinaryIO) -> None:
        with self._lock:
            self._open.add(connection)
            self.connections += 1
        try:
            while (request := read_netstring(stream)) is not None:
                name, _, key = request.decode("utf-8", "backslashreplace").partition(" ")
                self.asked.append((name, key))
                any_map = self.answers.get((ANY_MAP, key), self.default)
                answer = self.fault or self.answers.get((name, key), any_map)
                if isinstance(answer, str):
                    connection.sendall(netstring(answer))
                    continue
                self._misbehave(answer, connection)
                return
        except OSError:
            pass  # the MTA has gone, or stop() cut us
        finally:
            with self._lock:
                self._open.discard(connection)

    def _misbehave(self, fault: Fault, connection: socket.socket) -> None:
        if fault is Fault.STALL:
            self._leave.wait(120)
        elif fault is Fault.GARBLE:
            connection.sendall(b"OK this is no netstring\n")
            time.sleep(0.2)  # let it be read before the connection closes
        elif fault is Fault.HALF:
            connection.sendall(b"20:OK so")
