"""msg/shutdown in the configuration directory: the text with which everything is deferred while it is there.

lmtpd and imapd heed it; the original smmapd does not, so ours does by an option only. It is looked for once a second
at most.
"""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from rcptd_daemon.cyrus.words import deferred

PERIOD = 1.0  # seconds
LINE_OCTETS = 1024


class ShutdownFile:
    """The file `shutdown`, or that of one service; on the loop."""

    def __init__(
        self, configdirectory: Path, service: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = (configdirectory / "msg" / f"shutdown.{service}", configdirectory / "msg" / "shutdown")
        self._monotonic = monotonic
        self._looked = -PERIOD
        self._reply: bytes | None = None

    def reply(self) -> bytes | None:
        """Give what every question is told, framed; None while there is no such file."""
        now = self._monotonic()
        if now - self._looked >= PERIOD:
            self._looked = now
            line = next((line for path in self._paths if (line := _first_line(path)) is not None), None)
            self._reply = None if line is None else deferred(line)
        return self._reply


def _first_line(path: Path) -> str | None:
    """Give the first line of a file; "" where it cannot be read, which is no reason to go on; None for no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        text = os.read(descriptor, LINE_OCTETS)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return text.replace(b"\r", b"\n").partition(b"\n")[0].decode("utf-8", "replace").lstrip("[")
