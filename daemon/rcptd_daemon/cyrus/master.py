"""The status pipe to Cyrus' master: what it wants to know of the processes that it started.

A message is 8 bytes in the order of this machine: a code and our process id. A process that serves one client after
the other says 2, 3 and 1 around each. One that serves many at once says 4 for each connection, and stays ready in
master's books all the time; when it takes no more, 2, so that master starts another.

A message is written whole or not at all, and never waited for: what the pipe does not take is said with the next.
"""

import logging
import os
import select
import struct
from collections import deque

_log = logging.getLogger(__name__)

STATUS, LISTENER = 3, 4
"""The descriptors with which master starts a process."""

UNAVAILABLE, CONNECTION = 2, 4
"""The codes that we say."""

_MESSAGE = struct.Struct("=ii")
_OWED = 100_000  # messages; master has long been dead then


class StatusPipe:
    """The writing end of the pipe, on the loop."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.broken = False
        self._pid = os.getpid()
        self._owed: deque[int] = deque(maxlen=_OWED)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        os.set_inheritable(descriptor, False)

    def connection(self) -> None:
        """Say that a connection was accepted, beside others."""
        self._say(CONNECTION)

    def unavailable(self) -> None:
        """Say that no more will be accepted."""
        self._say(UNAVAILABLE)

    def _say(self, code: int) -> None:
        self._owed.append(code)
        # The pipe is shared with the service's other processes, so it cannot be made not to block. When it takes
        # anything it takes PIPE_BUF bytes.
        while self._owed and not self.broken and self._poll.poll(0):
            try:
                os.write(self.descriptor, _MESSAGE.pack(self._owed[0], self._pid))
            except OSError as error:
                self.broken = True
                _log.error("unable to tell master: %s", error.strerror)
            else:
                self._owed.popleft()
