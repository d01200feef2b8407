"""A small SMTP and LMTP client for dialogues in lock step: a command out, one whole reply back.

It is deliberately dumb: it sends any bytes, judges nothing, and says what came back. The source address can
be chosen, since an MTA may let 127.0.0.1 relay and not 127.0.0.2. Every read has a limit in time and in
size, so that an MTA which hangs or babbles fails a test and does not stop the run.
"""

import re
import socket
import ssl
import time
from pathlib import Path
from typing import NamedTuple, Self

from tests.rig.ports import LOOPBACK

TRUSTED = LOOPBACK  # the rig's MTAs relay for this address ...
FOREIGN = "127.0.0.2"  # ... and not for this one
REPLY_SIZE = 64 * 1024  # bytes in one reply; the longest text that an MTA passed on was 2,000
REPLY_TIME = 40.0  # seconds for one reply: Postfix waits 30 s for a milter that hangs

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)")


class Closed(Exception):
    """The MTA closed the connection where a reply was due; the argument is what had come."""


class Reply(NamedTuple):
    """One whole reply: its code, and its text without codes, the lines of it joined by newlines."""

    code: int
    text: str

    @property
    def enhanced(self) -> str:
        """The enhanced status code that the text begins with, else an empty string."""
        found = _ENHANCED.match(self.text)
        return found[0] if found else ""

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Dialogue:
    """One session, greeting and EHLO done, or LHLO if `lmtp`; a context manager that says QUIT and closes."""

    def __init__(
        self,
        port: int | Path,
        *,
        host: str = LOOPBACK,
        source: str = TRUSTED,
        ehlo: str | None = "client.example.net",
        lmtp: bool = False,
        timeout: float = REPLY_TIME,
    ) -> None:
        self.timeout = timeout
        self._buffer = b""
        if isinstance(port, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout)
            self._socket.connect(str(port))
        else:
            self._socket = socket.create_connection((host, port), timeout=timeout, source_address=(source, 0))
        try:
            self.greeting = self.read()
            hello = f"{'LHLO' if lmtp else 'EHLO'} {ehlo}"
            self.hello = self.command(hello) if ehlo and self.greeting.code == 220 else None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say QUIT, wait a little for the answer, close."""
        self.timeout = min(self.timeout, 5.0)
        try:
            self.command("QUIT")
        except (OSError, Closed):
            pass  # whoever ended the session first, it is over
        finally:
            self._socket.close()

    def command(self, line: str | bytes) -> Reply:
        """Send one line and return the reply to it."""
        self.send(line)
        return self.read()

    def send(self, line: str | bytes) -> None:
        """Send one line (UTF-8 when it is text) and do not wait."""
        raw = line.encode() if isinstance(line, str) else line
        self._socket.settimeout(self.timeout)
        self._socket.sendall(raw + b"\r\n")

    def mail(self, sender: str = "sender@example.net", parameters: str = "") -> Reply:
        """MAIL FROM; `parameters` as in `SIZE=1000`."""
        return self.command(f"MAIL FROM:<{sender}> {parameters}".rstrip())

    def rcpt(self, recipient: str, parameters: str = "") -> Reply:
        """RCPT TO; the recipient without brackets, whatever it is."""
        return self.command(f"RCPT TO:<{recipient}> {parameters}".rstrip())

    def rset(self) -> Reply:
        """RSET."""
        return self.command("RSET")

    def starttls(self, context: ssl.SSLContext, name: str) -> None:
        """STARTTLS; `name` is the one that the certificate must have. EHLO or LHLO is to be said again."""
        reply = self.command("STARTTLS")
        if reply.code != 220:
            raise RuntimeError(f"STARTTLS: {reply}")
        self._socket = context.wrap_socket(self._socket, server_hostname=name)

    def read(self) -> Reply:
        """The next whole reply. Raises `Closed`, `TimeoutError`, or `ValueError` for what is no reply."""
        limit = time.monotonic() + self.timeout
        lines: list[str] = []
        while True:
            line = self._line(limit)
            if not re.match(r"\d{3}([ -]|$)", line):
                raise ValueError(f"not a reply line: {line!r}")
            lines.append(line[4:])
            if line[3:4] != "-":
                return Reply(int(line[:3]), "\n".join(lines))

    def _line(self, limit: float) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > REPLY_SIZE:
                raise ValueError(f"a reply line of more than {REPLY_SIZE} bytes")
            left = limit - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole reply in {self.timeout} s, only {self._buffer!r}")
            self._socket.settimeout(left)
            piece = self._socket.recv(4096)
            if not piece:
                raise Closed(self._buffer)
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "backslashreplace")


def ask(
    port: int,
    *recipients: str,
    sender: str = "sender@example.net",
    parameters: str = "",
    source: str = TRUSTED,
    timeout: float = REPLY_TIME,
) -> list[Reply]:
    """One session, one transaction: the reply to each recipient.

    A refused MAIL stands for each of them: that is where Postfix puts the trouble of a milter that is down.
    """
    with Dialogue(port, source=source, timeout=timeout) as session:
        mail = session.mail(sender, parameters)
        return [session.rcpt(one) if mail.code == 250 else mail for one in recipients]
