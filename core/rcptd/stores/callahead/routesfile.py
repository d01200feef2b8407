"""The routes file: one pattern to a line, and the next hops that are asked about it, in order.

    example.org          lmtp:backend1.example.org:24
    *.example.net        smtp:one.example.net:25 smtp:two.example.net:25
    boss@example.org     lmtp:unix:/run/boss
    customer.example     mx

Empty lines and those that begin with `#` do not count. The file is watched as the store `file` watches its own:
twice a second a question looks at it, a changed state is read in a thread while the old one answers, and it is
taken whole or not at all. A new state with a fault leaves the last good one in force, and the log says so once; a
file that is gone, or was never good, gives no routes, and then nobody is asked: to take another route in its place
could make a wrong "no".
"""

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rcptd.stores.callahead import routes
from rcptd.stores.callahead.routes import Route
from rcptd.stores.lines import Fault, bounded_lines

_log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks at the file
SETTLED = 2.0  # a file last written so many seconds ago is not watched for being still under way
STILL = 0.1  # seconds over which a file must not change
MOST_OCTETS = 16 << 20  # some 300,000 routes
FAULTS = 20  # faults that are named; nobody mends more at a time

Signature = tuple[int, ...]


class _Refused(Exception):
    """A state of the file is not taken; says why."""


class RoutesFile:
    """The routes in a file; any thread may call. `pending` until the first reading is done."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = str(path)
        self._clock = clock
        self.pending = True
        self._table: Mapping[str, Route] | str = f"{path}: is being read"
        self._seen: Signature | None = None
        self._said = ""
        self._look_at = clock()
        self._reading = threading.Lock()

    def table(self) -> Mapping[str, Route] | str:
        """Give the routes in force, or say why there are none."""
        if self._clock() >= self._look_at:
            self.look()
        return self._table

    def look(self) -> None:
        """See whether the file changed, and begin to read it then."""
        if not self._reading.acquire(blocking=False):
            return
        begun = False
        try:
            self._look_at = self._clock() + LOOK
            try:
                signature = _signature(os.stat(self._path))  # noqa: PTH116 - a microsecond, not three
            except OSError as error:
                self._seen = None
                self._table = f"{self._path}: {error.strerror}"
                self.pending = False
                self._say(self._table)
                return
            if signature != self._seen:
                reader = threading.Thread(target=self._read, args=(signature,), name="rcptd-routes", daemon=True)
                reader.start()
                begun = True
        except RuntimeError as error:
            # No thread to be had; the next look tries again.
            _log.error("store: %s: cannot start reading: %s", self._path, error)
        finally:
            # The thread holds the lock from here, and lets go of it.
            if not begun:
                self._reading.release()

    def _read(self, signature: Signature) -> None:
        try:
            table = self._taken(signature)
        except _Refused as why:
            self._refuse(str(why))
        except Exception as error:
            # No memory, perhaps. Whatever it was must not leave the lock held.
            _log.exception("store: %s: reading failed", self._path)
            self._refuse(f"{self._path}: reading failed: {error!r}")
        else:
            self._table, self._said = table, ""
            _log.info("store: %s: %d routes in force", self._path, len(table))
        finally:
            self.pending = False
            self._reading.release()

    def _taken(self, signature: Signature) -> Mapping[str, Route]:
        """Read the state of the file that has this signature; raises `_Refused`."""
        try:
            # A FIFO in its place must not hold us up.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _Refused(f"{self._path}: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Refused(f"{self._path}: is no regular file")
            if time.time() - status.st_mtime < SETTLED:
                time.sleep(STILL)
            if _signature(os.fstat(descriptor)) != signature:
                raise _Refused(f"{self._path}: is still changing")
            self._seen = signature
            if status.st_size > MOST_OCTETS:
                raise _Refused(f"{self._path}: has {status.st_size} bytes, {MOST_OCTETS} are the most")
            with os.fdopen(descriptor, "rb", buffering=1 << 18, closefd=False) as source:
                table, faults = read_lines(bounded_lines(source))
            if _signature(os.fstat(descriptor)) != signature:
                self._seen = None
                raise _Refused(f"{self._path}: changed while it was read")
        finally:
            os.close(descriptor)
        if faults:
            raise _Refused("\n".join(f"{self._path}:{fault.line}: {fault.what}" for fault in faults))
        return table

    def _refuse(self, why: str) -> None:
        """Keep the last good state in force, where there is one, and say so."""
        if isinstance(self._table, str):
            self._table = why
            self._say(why)
        else:
            self._say(f"{why}\n{self._path}: the last good state stays in force, {len(self._table)} routes")

    def _say(self, why: str) -> None:
        if why != self._said:
            self._said = why
            for line in why.splitlines():
                _log.error("store: %s", line)


def read_lines(lines: Iterable[tuple[int, str | Fault]]) -> tuple[Mapping[str, Route], list[Fault]]:
    """Read routes line by line, with their faults, `FAULTS` at most."""
    table: dict[str, Route] = {}
    known: dict[tuple[str, ...], Route] = {}  # a hundred thousand domains have few hops between them
    faults: list[Fault] = []
    for number, line in lines:
        if len(faults) == FAULTS:
            break
        if isinstance(line, Fault):
            faults.append(line)
            continue
        of, *hops = line.split() or ["#"]
        if of.startswith("#"):
            continue
        try:
            of = routes.pattern(of)
            found = routes.route(of, list(hops))
            if of in table:
                raise ValueError(f"{of!r} stands here a second time")  # noqa: TRY301 - one kind of fault
            table[of] = known.setdefault(tuple(hops), found)
        except ValueError as error:
            faults.append(Fault(number, str(error)))
    return table, faults


def _signature(status: os.stat_result) -> Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
