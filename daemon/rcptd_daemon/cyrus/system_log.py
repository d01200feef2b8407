"""The system's log in Cyrus' form: `<priority>date ident[pid]: text` to /dev/log, without ever waiting.

A line that does not fit is dropped, and the next one that fits says how many were. A system log that is started
again is found again.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping

NOTICE = 25
"""The level of audit lines, which logging does not have."""

DEVICE = "/dev/log"
LINE_OCTETS = 8192  # a datagram that every system log takes

_FACILITIES = {
    "KERN": 0, "USER": 1, "MAIL": 2, "DAEMON": 3, "AUTH": 4, "SYSLOG": 5, "LPR": 6, "NEWS": 7, "UUCP": 8, "CRON": 9,
    "AUTHPRIV": 10, "FTP": 11, **{f"LOCAL{number}": 16 + number for number in range(8)},
}  # fmt: skip
DEFAULT_FACILITY = "MAIL"  # what Debian builds Cyrus with
_DEBUG = 7
_SEVERITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, NOTICE: 5, logging.INFO: 6}


def ident(service: str, prefix: str | None, environ: Mapping[str, str]) -> str:
    """Give the name under which we log: that of the service, behind a prefix if there is one."""
    prefix = environ.get("CYRUS_SYSLOG_PREFIX") or prefix
    return f"{prefix}/{service}" if prefix else service


class SystemLog(logging.Handler):
    """Sends records to the system's log; from any thread."""

    def __init__(self, name: str, facility: str | None = None, *, device: str = DEVICE) -> None:
        super().__init__()
        number = _FACILITIES.get((facility or DEFAULT_FACILITY).upper(), _FACILITIES[DEFAULT_FACILITY])
        self._facility = number << 3
        self._tag = f"{name}[{os.getpid()}]: "
        self._device = device
        self._socket: socket.socket | None = None
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or count it as dropped; never raises, never waits."""
        try:
            if self._dropped:
                self._send(logging.WARNING, f"{self._dropped} lines did not reach the log")
                self._dropped = 0
            self._send(record.levelno, self.format(record).replace("\n", " "))
        except Exception:
            self._dropped += 1

    def close(self) -> None:
        """Close the socket; a later record opens it again."""
        if self._socket:
            self._socket.close()
            self._socket = None
        super().close()

    def _send(self, level: int, text: str) -> None:
        stamp = time.strftime("%b %e %H:%M:%S")
        line = f"<{self._facility | _SEVERITIES.get(level, _DEBUG)}>{stamp} {self._tag}{text}"
        octets = line.encode("utf-8", "backslashreplace")[:LINE_OCTETS]
        for again in (True, False):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._socket.connect(self._device)
            try:
                self._socket.send(octets)
            except BlockingIOError:
                raise
            except OSError:
                self._socket.close()
                self._socket = None
                if not again:
                    raise
            else:
                return


def set_up(handler: logging.Handler, *, debug: bool) -> None:
    """Send all logging there; what only says that all is well is left out unless `debug`."""
    logging.addLevelName(NOTICE, "NOTICE")
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("rcptd_socketmap").setLevel(logging.DEBUG if debug else logging.WARNING)
