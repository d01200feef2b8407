"""The addresses of a next hop's host, by the system's resolver, so that /etc/hosts and nsswitch.conf count.

The resolver blocks and cannot be interrupted, so it is asked in a few threads of our own, daemons, since one that
is stuck in C must not hold up the end of the process. One host is looked up once at a time, however many want it.

What was found counts for 60 s. After that it is asked for again, and whoever wants it waits a moment for the new
answer; where that does not come, or is trouble, the old one is used, for as long as the trouble lasts: a next hop
seldom moves, and a name server that is down should not take a working next hop with it.
"""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

KEPT = 60.0  # seconds that addresses count
PATIENCE = 0.5  # seconds that one who has old addresses waits for new ones
THREADS = 4  # lookups at once; there are few hosts
WAITING = 1000  # lookups in the queue and in the threads together
MOST = 10_000  # hosts that are remembered
MOST_ADDRESSES = 16  # of one host; the dialling ends at the connect timeout, whatever their number

LookUp = Callable[[str], list[str]]
Job = tuple[str, asyncio.AbstractEventLoop, "asyncio.Future[tuple[str, ...]]"]


def look_up(host: str) -> list[str]:
    """Ask the system's resolver, in the order of its preference (RFC 6724); raises `OSError`. May block."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found if address[0] in (socket.AF_INET, socket.AF_INET6)]


class Addresses:
    """Looks hosts up and remembers them; only the loop may call."""

    def __init__(self, *, look_up: LookUp = look_up, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_up = look_up
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._under_way: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def of(self, host: str) -> tuple[str, ...]:
        """Give the addresses of a host, or of an IP address itself; raises `OSError`."""
        known = self._known.get(host)
        now = self._clock()
        if known and now < known[0]:
            return known[1]
        if _is_address(host):
            return self._keep(host, (host,), float("inf"))
        lookup = self._under_way.get(host) or self._begin(host)
        try:
            # Not the future itself: one asker who gives up must not cancel it under the others.
            waiting = asyncio.shield(lookup)
            return await (asyncio.wait_for(waiting, PATIENCE) if known else waiting)
        except (OSError, TimeoutError):
            if known is None:
                raise
            return known[1]

    async def aclose(self) -> None:
        """Let the threads go, and whoever still waits hear of it."""
        for _ in self._threads:
            self._jobs.put(None)
        for lookup in self._under_way.values():
            lookup.cancel()
        self._under_way.clear()

    def _begin(self, host: str) -> "asyncio.Future[tuple[str, ...]]":
        if len(self._under_way) >= WAITING:
            raise OSError(f"{WAITING} lookups wait already for the resolver")
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[tuple[str, ...]] = loop.create_future()
        # Trouble is no news to a loop whose askers have all given up.
        lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        if len(self._threads) < min(THREADS, len(self._under_way) + 1):
            thread = threading.Thread(target=self._work, name="rcptd-resolver", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(f"no thread for the resolver: {error}") from None
            self._threads.append(thread)
        self._under_way[host] = lookup
        self._jobs.put((host, loop, lookup))
        return lookup

    def _work(self) -> None:
        while job := self._jobs.get():
            host, loop, lookup = job
            found: tuple[str, ...] | OSError
            try:
                found = tuple(dict.fromkeys(self._look_up(host)))[:MOST_ADDRESSES]
                if not found:
                    found = OSError(f"{host} has no address")
            except OSError as error:
                found = OSError(f"{host}: {error.strerror or error}")
            except Exception as error:
                found = OSError(f"{host}: {error!r}")  # UnicodeError, of a name that is none
            try:
                loop.call_soon_threadsafe(self._deliver, host, lookup, found)
            except RuntimeError:
                return  # the loop is closed: the process ends

    def _deliver(self, host: str, lookup: "asyncio.Future[tuple[str, ...]]", found: tuple[str, ...] | OSError) -> None:
        if lookup.done():
            return  # closed meanwhile
        del self._under_way[host]
        if isinstance(found, OSError):
            lookup.set_exception(found)
        else:
            lookup.set_result(self._keep(host, found, self._clock() + KEPT))

    def _keep(self, host: str, found: tuple[str, ...], until: float) -> tuple[str, ...]:
        if len(self._known) >= MOST and host not in self._known:
            self._known.pop(next(iter(self._known)))
        self._known[host] = (until, found)
        return found


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
