"""Locks that keep Cyrus' writers out while we read, and how we make way for them.

The locks are open-file-description locks (F_OFD_SETLK). They and the writers' POSIX locks exclude each
other, and they lack two traps of those: a POSIX lock of ours would be gone as soon as any part of this
process closed any descriptor of the file, and two threads would share it, so that the first to unlock
would unlock for both. They are asked for without waiting; one that is held is `Held` at once.

Making way. Readers that overlap could keep writers out for ever, since a shared lock is granted as long as there is
another one. A single thread leaves a gap after each question, which is enough; many threads leave none. So when there
was none for OVERLAP, new questions are `Held` until all readers have left, and for a GAP longer, in which a writer that
waits takes the lock.
"""

import errno
import fcntl
import os
import struct
import time

from rcptd.stores.cyrus.databases.errors import Held

OVERLAP = 0.05  # seconds for which readers may follow each other without a gap
GAP = 0.0005  # seconds that a writer who waits needs to wake up


_KIND = struct.Struct("h")
_NO_LOCK = _KIND.pack(fcntl.F_UNLCK)


def _flock(kind: int, start: int, length: int) -> bytes:
    # struct flock of Linux, with the padding that its alignment wants; the process id must be 0.
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, start, length, 0)


class Range:
    """A range of octets to be locked, shared and without waiting; a length of 0 reaches to the end."""

    __slots__ = ("_lock", "_unlock")

    def __init__(self, start: int, length: int) -> None:
        self._lock = _flock(fcntl.F_RDLCK, start, length)
        self._unlock = _flock(fcntl.F_UNLCK, start, length)

    def lock(self, descriptor: int) -> None:
        """Lock the range; raises `Held` when a writer has it, `OSError` where locks do not work."""
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, self._lock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Held("a writer holds the lock") from None
            raise

    def free(self, descriptor: int) -> bool:
        """Say whether no writer has the range locked, without locking it; raises `OSError` as `lock` does."""
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, self._lock)
        return found[:_KIND.size] == _NO_LOCK

    def unlock(self, descriptor: int) -> None:
        """Let go of the range."""
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, self._unlock)


WHOLE = Range(0, 0)


class Way:
    """Lets readers in, and keeps new ones out for a moment when there was no gap between them for long."""

    __slots__ = ("_closed", "_free", "_left", "_readers")

    def __init__(self) -> None:
        self._readers: set[int] = set()  # by their descriptors; adding and taking out are atomic
        self._free = self._left = 0.0
        self._closed = False

    def enter(self, descriptor: int) -> None:
        """Come in; raises `Held`."""
        now = time.monotonic()
        if self._closed:
            if self._readers or now - self._left < GAP:
                raise Held("makes way for writers")
            self._closed = False
        if not self._readers:
            self._free = now
        elif now - self._free > OVERLAP:
            self._closed = True
            raise Held("makes way for writers")
        self._readers.add(descriptor)

    def leave(self, descriptor: int) -> None:
        """Go."""
        self._readers.discard(descriptor)
        if self._closed:
            self._left = time.monotonic()
