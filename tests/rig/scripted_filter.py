"""A milter that says at RCPT what a test wrote down, faults included: the wire protocol, without libmilter.

It shows what an MTA makes of a reply. Of the protocol it has what a recipient filter needs: the negotiation,
and an answer to each command; headers and body are negotiated away.
"""

import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.rig.ports import LOOPBACK
from tests.rig.scripted import Fault

PACKET_SIZE = 1_000_000
VERSION = 6
NO_HEADERS_NO_BODY = 0x10 | 0x20 | 0x40  # SMFIP_NOBODY, NOHDRS, NOEOH
_SILENT = b"ADK"  # abort, macros, QUIT with a new connection to come: no answer is due


class ScriptedMilter:
    """A threaded milter that answers each RCPT from a table by address; a context manager.

    Keys are addresses without brackets, in lower case; values a whole reply (`550 5.1.1 text`), an empty
    string to continue, or a fault. `where` is a path, or None for a port on loopback. `asked` is every RCPT
    argument.
    """

    def __init__(
        self,
        answers: Mapping[str, str | Fault] | None = None,
        *,
        where: Path | None = None,
        port: int = 0,
        mode: int = 0o666,
    ) -> None:
        self.answers = dict(answers or {})
        self.fault: Fault | None = None
        self.asked: list[str] = []
        self.where = where
        self.port = port
        self._mode = mode  # of a unix socket; by default whoever the rig's MTAs come as
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._leave = threading.Event()

    @property
    def postfix(self) -> str:
        """Where it listens, as Postfix writes it."""
        return f"unix:{self.where}" if self.where else f"inet:{LOOPBACK}:{self.port}"

    @property
    def sendmail(self) -> str:
        """Where it listens, as INPUT_MAIL_FILTER's S= writes it."""
        return f"local:{self.where}" if self.where else f"inet:{self.port}@{LOOPBACK}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the same port again after a stop."""
        self._leave.clear()
        if self.where:
            self.where.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.where))
            self.where.chmod(self._mode)
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, self.port))
            self.port = listener.getsockname()[1]
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Go down: nobody listens any more, and every connection is cut."""
        if not self._listener:
            return
        self._leave.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        if self.where:
            self.where.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            with connection, connection.makefile("rb") as stream:
                while len(head := stream.read(4)) == 4:
                    (length,) = struct.unpack("!I", head)
                    if not 0 < length <= PACKET_SIZE:
                        return
                    packet = stream.read(length)
                    if packet[:1] == b"Q" or not self._answer(connection, packet[:1], packet[1:]):
                        return
        except OSError:
            pass  # the MTA has gone, or stop() cut us
        finally:
            with self._lock:
                self._open.discard(connection)

    def _answer(self, connection: socket.socket, command: bytes, data: bytes) -> bool:
        if command == b"O":
            offered, _, _ = struct.unpack("!III", data[:12])
            _send(connection, b"O" + struct.pack("!III", min(offered, VERSION), 0, NO_HEADERS_NO_BODY))
        elif command == b"R":
            argument = data.split(b"\0")[0].decode("utf-8", "backslashreplace")
            self.asked.append(argument)
            return self._decide(connection, argument.strip("<>").lower())
        elif command not in _SILENT:
            _send(connection, b"c")
        return True

    def _decide(self, connection: socket.socket, recipient: str) -> bool:
        answer = self.fault or self.answers.get(recipient, "")
        if isinstance(answer, str):
            _send(connection, b"y" + answer.encode() + b"\0" if answer else b"c")
            return True
        if answer is Fault.STALL:
            self._leave.wait(120)
        elif answer is Fault.GARBLE:
            connection.sendall(b"\xff\xff\xff\xff no packet")
        elif answer is Fault.HALF:
            connection.sendall(struct.pack("!I", 20) + b"y550 5")
        return False


def _send(connection: socket.socket, packet: bytes) -> None:
    connection.sendall(struct.pack("!I", len(packet)) + packet)
