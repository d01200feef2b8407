"""Relief for libmilter's pool of workers: makes it start more of them while callbacks wait.

What is wrong with the pool (libmilter/worker.c of Sendmail 8.17, as Debian builds it). A session whose command has
come is given to a new worker if no worker is idle; else it is marked ready, and an idle worker is signalled. A worker
counts as idle until it has woken up, so a whole burst may be marked ready for one or two of them. A session that is
marked ready waits until some worker ends its callback: none is started for it. While callbacks take microseconds that
costs nothing. When they wait for a lookup, 300 sessions share two workers.

What helps. A new connection that meets no idle worker has one started, which, done with that connection, takes up
the sessions that are ready, one after the other, until it waits in a callback itself. So for each callback that turns
out to wait we open connections to our own listener and say QUIT on them. libmilter ends them without a call to us: no
session begins, and nothing is logged.

Why that is enough. Let a callback wait, and a connection be opened afterwards. Either no worker is idle, and a new one
comes; or one is, and wakes up. Both look for ready sessions before they rest. What they find does not wait, and they
look again; or it waits, and is itself followed by a connection. So they go on until nobody is ready. One connection
for each callback would do for that. Two double the workers at each step, so that a burst takes a few steps and not a
hundred.

Where several processes serve the listener each takes a part of the connections, so there are as many times more, and
again at growing intervals while callbacks wait: none of them might have been ours.

A thread of its own does it, since a callback that waits cannot, and only for callbacks older than `TICK` while there
are several: the pool has two workers at least, so that one callback holds up nobody. While callbacks are quick the
thread sleeps.

LIMITS. Workers are threads: one for each callback that waits, and some more while a burst is taken up. While
`MOST_WAITING` callbacks wait none is added, and sessions wait for one another again. While a process drains whose
path a successor has taken, its connections reach the successor, where they do neither harm nor good.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rcptd.schema import Address

log = logging.getLogger(__name__)

TICK = 0.005
"""How long, in seconds, a callback waits at least before workers are started for it."""

MOST_WAITING = 500
"""With how many callbacks under way no worker is added: libmilter loses a session whose thread cannot be had."""

_EACH = 2  # connections for a callback that waits
_MOST_OPEN = 64  # connections of ours at once; libmilter ends one as soon as a worker comes to it
_PATIENCE = 0.1  # seconds for the listener to have room for one
_QUIT = b"\0\0\0\x01Q"  # SMFIC_QUIT, without data
_FAMILIES = {"unix": socket.AF_UNIX, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class Relief:
    """Knows which callbacks wait, and has workers started when that takes long."""

    def __init__(self, where: Address) -> None:
        """Take the address that libmilter listens to."""
        self._where = where
        self._family = _FAMILIES[where.kind]
        self._address = where.host if where.kind == "unix" else (where.host, where.port)
        self._under_way: set[object] = set()  # one step on it is atomic under the interpreter's lock
        self._several = threading.Event()
        self._open: deque[socket.socket] = deque()
        self._stopped = False
        self._each = _EACH
        self._told = False
        self.connections = 0
        """How many connections were opened since the start."""

    def shared_by(self, processes: int) -> None:
        """Take into account that so many processes serve the listener: each takes its part of our connections."""
        self._each = _EACH * processes

    def start(self) -> None:
        """Begin to watch, in a thread of our own."""
        threading.Thread(target=self._run, name="relief", daemon=True).start()

    def stop(self) -> None:
        """Open no more connections."""
        self._stopped = True

    def begin(self) -> object:
        """Note that a callback begins to wait; gives what `end` wants. Any thread may call."""
        callback = object()
        self._under_way.add(callback)
        if len(self._under_way) > 1 and not self._several.is_set():  # to ask is cheaper than to set
            self._several.set()
        return callback

    def end(self, callback: object) -> None:
        """Note that it has ended; any thread may call."""
        self._under_way.discard(callback)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that a callback waits, for as long as this is entered."""
        callback = self.begin()
        try:
            yield
        finally:
            self.end(callback)

    def _run(self) -> None:
        while True:
            self._several.wait()
            self._several.clear()
            self._watch()

    def _watch(self) -> None:
        """Relieve the callbacks that wait until at most one is under way."""
        seen: set[object] = set()
        relieved: set[object] = set()
        pause = ticks = 1
        while len(self._under_way) > 1 and not self._stopped:
            now = self._under_way.copy()
            relieved &= now
            if len(now) < MOST_WAITING:
                if waiting := (now & seen) - relieved:
                    pause = ticks = 1
                elif self._each > _EACH and (ticks := ticks - 1) <= 0:
                    # Others may have had all of the last; each time that helps, a callback begins and is waiting soon.
                    waiting = set(tuple(relieved)[:1])
                    ticks = pause = 2 * pause
                for callback in waiting:
                    if not all(self._connect() for _ in range(self._each)):
                        break  # the listener is busy with connections; those start workers as well
                    relieved.add(callback)
            seen = now
            time.sleep(TICK)
            self._close_ended()
        while self._open:
            self._open.popleft().close()

    def _connect(self) -> bool:
        try:
            connection = socket.socket(self._family)
        except OSError as error:
            return self._failed(error)
        try:
            connection.settimeout(_PATIENCE)
            connection.connect(self._address)
            connection.send(_QUIT)
        except OSError as error:
            connection.close()
            return self._failed(error)
        connection.setblocking(False)
        self.connections += 1
        self._open.append(connection)
        if len(self._open) > _MOST_OPEN:
            self._open.popleft().close()
        return True

    def _failed(self, error: OSError) -> bool:
        # A listener without room is no trouble: each connection that it has not accepted yet is one more of these.
        if not (self._told or self._stopped or isinstance(error, BlockingIOError | TimeoutError)):
            self._told = True
            log.warning("slow answers may hold up other sessions: %s, to ourselves: %s", self._where, error)
        return False

    def _close_ended(self) -> None:
        """Close the connections that libmilter has closed.

        On TCP the side that closes first keeps the port for a minute (TIME-WAIT); an MTA may need ours.
        """
        for _ in range(len(self._open)):
            connection = self._open.popleft()
            with suppress(BlockingIOError):
                with suppress(ConnectionError):
                    connection.recv(1)
                connection.close()
                continue
            self._open.append(connection)
