"""Recipients in a text file: our own list, or the source of a Postfix table.

The file is read whole into a snapshot, in a thread of its own, and the snapshot swapped in whole: the
question that notices a change is answered from the old one, and no question waits for a long file.
Twice a second a question looks at the file's inode, size and times. Until the first reading is done
the table is Busy, and the loop asks again.

A new state of the file is taken whole or not at all. The last good one stays in force, and the log says
so once for that state, when a line is faulty, the last line has no newline (a copy under way), the file
still changes over 100 ms, or it has lost more than half its entries and `allow_shrink` does not permit
that. A file that is gone, on the other hand, is Unavailable: there is nothing left that a "no" could be
based on.

LIMITS. Lines are bounded in `rcptd.stores.lines`, the file by `max_size`.
"""

import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rcptd import address, schema
from rcptd.address import NotAnAddress, Recipient
from rcptd.question import Answer, Busy, Unavailable
from rcptd.schema import option
from rcptd.stores.entries import Snapshot, no_domain
from rcptd.stores.lines import Entry, Fault, read_list, read_postfix

_log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between two looks at the file
STILL = 0.1  # seconds over which a file must not change
RETRY = 30.0  # seconds until a state of the file is read again that could not be read for a reason unknown
SETTLED = 2.0  # a file last written so many seconds ago is not watched for that
FAULTS = 20  # faults that are named; nobody mends more at a time

Signature = tuple[int, ...]


def _domain(value: object) -> str:
    try:
        return address.domain(schema.text(value))
    except NotAnAddress as error:
        raise ValueError(f"{value!r} is no domain: {error}") from None


@dataclass(frozen=True, slots=True)
class Settings:
    """A store of type `file`."""

    path: Path = option(schema.path, doc="The file.")
    format: str = option(
        schema.choice("list", "postfix"), default="list", doc='"list" or "postfix", see docs/stores.md.'
    )
    targets: bool = option(
        schema.boolean,
        default=False,
        doc='With "postfix": whether the values are addresses, as in virtual(5).',
    )
    domain: str = option(_domain, default=None, doc="The domain of addresses that are written without one.")
    allow_shrink: bool = option(
        schema.boolean, default=False, doc="Whether a change may take away more than half of the entries."
    )
    max_size: int = option(schema.octets, default="256M", doc="The largest file that is read.")
    allow_empty: bool = option(
        schema.boolean,
        default=False,
        doc="Whether a domain of which nobody is here has nobody (else: cannot tell).",
    )


class Refused(Exception):
    """A state of the file is not taken; says why."""


class File:
    """A table in a text file; see the module for how it is kept up to date."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._path = str(settings.path)
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._trouble: Unavailable | None = None
        self._seen: Signature | None = None
        self._count = 0  # entries of the last good state, remembered while the file is gone
        self._said = ""
        self._look_at = clock()
        self._reading = threading.Lock()
        self._closed = False

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Say what the file knows of the recipient; any thread may call."""
        if self._clock() >= self._look_at:
            self.look()
        if trouble := self._trouble:
            return trouble
        snapshot = self._snapshot
        if snapshot is None:
            return Busy(f"{self._path}: is being read")
        if not snapshot.has_domain(recipient.domain) and not self._settings.allow_empty:
            return Unavailable(f"{self._path}: {no_domain(recipient.domain)}")
        return snapshot.lookup(recipient, allow_empty=True)

    def standing(self) -> object:
        """Give the snapshot in force; any thread may call. A look at the file is taken as often as by `lookup`."""
        if self._clock() >= self._look_at:
            self.look()
        return None if self._trouble else self._snapshot

    def stands_until(self, recipient: Recipient) -> float:  # noqa: ARG002 - all of a snapshot stands alike
        """Say that time alone changes no answer."""
        return math.inf

    def close(self) -> None:
        """Answer no more, and let a reading under way come to its end unheard."""
        self._closed = True
        self._trouble = Unavailable(f"{self._path}: closed")

    def look(self) -> threading.Thread | None:
        """See whether the file changed; gives the thread that reads it then."""
        if not self._reading.acquire(blocking=False):
            return None
        reader = None
        try:
            self._look_at = self._clock() + LOOK
            if self._closed:
                return None
            try:
                signature = _signature(os.stat(self._path))  # noqa: PTH116 - a microsecond, not three
            except OSError as error:
                self._seen = None
                self._snapshot = None
                self._fail(f"{self._path}: {error.strerror}")
                return None
            if signature == self._seen:
                return None
            reader = threading.Thread(target=self._read, args=(signature,), name="rcptd-file", daemon=True)
            try:
                reader.start()
            except RuntimeError as error:  # no thread to be had; the next look tries again
                reader = None
                _log.error("store: %s: cannot start reading: %s", self._path, error)
            return reader
        finally:
            # The thread holds the lock from here, and lets go of it.
            if reader is None:
                self._reading.release()

    def _read(self, signature: Signature) -> None:
        try:
            snapshot = self._taken(signature)
        except Refused as why:
            self._refuse(str(why))
        except Exception:
            # Whatever went wrong here must not leave the lock held, nor the table silent about it.
            # No memory, perhaps: tried again, but not at once, for it may be a large file.
            _log.exception("store: %s: reading failed", self._path)
            self._refuse(f"{self._path}: reading failed, see the log")
            self._seen = None
            self._look_at = self._clock() + RETRY
        else:
            if not self._closed:
                self._snapshot, self._trouble = snapshot, None
                self._count, self._said = snapshot.count, ""
                _log.info("store: %s: %d entries in force", self._path, snapshot.count)
        finally:
            self._reading.release()

    def _taken(self, signature: Signature) -> Snapshot:
        """Read the state of the file that has this signature; raises `Refused`."""
        try:
            # A FIFO in its place must not hold us up.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            # Perhaps there was no descriptor left: this state of the file is tried again at the next look.
            raise Refused(f"{self._path}: {error.strerror}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)  # before fdopen, which raises for a folder and leaves it open
            self._seen = signature
            raise Refused(f"{self._path}: is no regular file")
        with os.fdopen(descriptor, "rb", buffering=1 << 18) as source:
            if time.time() - status.st_mtime < SETTLED:
                time.sleep(STILL)
            if _signature(os.fstat(descriptor)) != signature or not self._is_still(signature):
                raise Refused(f"{self._path}: is still changing")
            self._seen = signature
            if status.st_size > self._settings.max_size:
                raise Refused(f"{self._path}: has {status.st_size} bytes, max_size is {self._settings.max_size}")
            try:
                snapshot = self._parsed(source)
            except OSError as error:
                self._seen = None
                raise Refused(f"{self._path}: {error.strerror}") from None
            if not self._is_still(signature):
                self._seen = None
                raise Refused(f"{self._path}: changed while it was read")
        if snapshot.count * 2 < self._count and not self._settings.allow_shrink:
            raise Refused(
                f"{self._path}: has {snapshot.count} entries where there were {self._count}; "
                f"allow_shrink = true would permit that"
            )
        return snapshot

    def _is_still(self, signature: Signature) -> bool:
        try:
            return _signature(os.stat(self._path)) == signature  # noqa: PTH116
        except OSError:
            return False

    def _parsed(self, source: BinaryIO) -> Snapshot:
        snapshot = Snapshot()
        faults: list[Fault] = []
        for one in self._entries(source):
            if isinstance(one, Entry):
                if snapshot.add(one.of, one.mailbox):
                    continue
                one = Fault(one.line, f"{one.of} stands here a second time, with something else")  # noqa: PLW2901
            faults.append(one)
            if len(faults) == FAULTS:
                break
        if faults:
            raise Refused("\n".join(f"{self._path}:{fault.line}: {fault.what}" for fault in faults))
        return snapshot

    def _entries(self, source: BinaryIO) -> Iterator[Entry | Fault]:
        settings = self._settings
        if settings.format == "list":
            return read_list(source, domain=settings.domain or "")
        return read_postfix(source, domain=settings.domain or "", targets=settings.targets)

    def _refuse(self, why: str) -> None:
        """Keep the last good state in force, where there is one, and say so."""
        if self._snapshot is None:
            self._fail(why)
            return
        self._say(f"{why}\n{self._path}: the last good state stays in force, {self._count} entries")

    def _fail(self, why: str) -> None:
        if not self._closed:
            self._trouble = Unavailable(why)
            self._say(why)

    def _say(self, why: str) -> None:
        if why != self._said:
            self._said = why
            for line in why.splitlines():
                _log.error("store: %s", line)


def _signature(status: os.stat_result) -> Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_store(name: str, settings: Settings) -> File:  # noqa: ARG001 - one shape for all stores
    """Open the store of a configuration and begin to read the file."""
    store = File(settings)
    store.look()
    return store
