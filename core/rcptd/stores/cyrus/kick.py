"""In a Murder: the mailbox list is brought up to date before a mailbox is said not to be there.

The mailboxes.db of a frontend follows its Murder with a delay. Its mupdate process listens at a socket and answers a
connection when the list is as new as the connection: that is a kick. It waits, which a table must not do, so it has a
thread of its own; who asks meanwhile is told to ask again. One kick serves all who asked before it began.
"""

import logging
import socket
import threading
import time
from enum import Enum
from pathlib import Path

_log = logging.getLogger(__name__)

PATIENCE = 3.0
"""How long a kick may take, in seconds: less than the deadline of a question."""

MOST_WAITING = 10_000
"""How many keys may wait for a kick; beyond, nothing is known of further ones."""

FORGOTTEN = 30.0
"""After how many seconds a key is forgotten about which nobody asked again."""


class List(Enum):
    """How the mailbox list stands, for one key."""

    UP_TO_DATE = "up to date"
    UNDER_WAY = "under way"
    CANNOT_TELL = "cannot tell"


class Kicker:
    """Kicks mupdate at its socket; any thread may ask."""

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self._path = str(path)
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: dict[bytes, float] = {}  # since when, by key
        self._running = False
        self._done = {True: 0.0, False: 0.0}  # when the last kick began that succeeded, and that failed

    def state(self, key: bytes) -> List:
        """Say how the list stands for a key that is not in it; begins a kick where one is needed."""
        now = time.monotonic()
        with self._lock:
            since = self._waiting.get(key)
            if since is None:
                if len(self._waiting) >= MOST_WAITING:
                    self._forget(now)
                if len(self._waiting) >= MOST_WAITING:
                    return List.CANNOT_TELL
                since = self._waiting[key] = now
            for worked, state in ((True, List.UP_TO_DATE), (False, List.CANNOT_TELL)):
                if self._done[worked] >= since:
                    del self._waiting[key]
                    return state
            if not self._running:
                try:
                    threading.Thread(target=self._kick, name="mupdate kick", daemon=True).start()
                except RuntimeError as error:  # no thread is to be had just now
                    _log.warning("cannot kick mupdate: %s", error)
                    del self._waiting[key]
                    return List.CANNOT_TELL
                self._running = True
        return List.UNDER_WAY

    def _forget(self, now: float) -> None:
        self._waiting = {key: since for key, since in self._waiting.items() if now - since < FORGOTTEN}

    def _kick(self) -> None:
        began = time.monotonic()
        worked = False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._patience)
                connection.connect(self._path)
                connection.recv(1)
            worked = True
        except (OSError, ValueError) as error:
            _log.warning("cannot have mupdate bring the mailbox list up to date at %s: %s", self._path, error)
        finally:
            with self._lock:
                self._done[worked] = began
                self._running = False
