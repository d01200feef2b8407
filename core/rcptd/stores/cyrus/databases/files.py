"""Opening, locking and following a database file that other processes write, append to and replace.

Cyrus' writers hold a POSIX lock on the whole file for as long as a transaction takes, and replace the
file by rename when they repack it. So a question is: lock, see that the path still names the file that
is open, read, unlock. The lock is asked for without waiting; one that is held is `Held` at once.

The locks are open-file-description locks (F_OFD_SETLK). They and the writers' POSIX locks exclude each
other, and they lack two traps of those: a POSIX lock of ours would be gone as soon as any part of this
process closed any descriptor of the file, and two threads would share it, so that the first to unlock
would unlock for both.

Making way. Readers that overlap could keep writers out for ever, since a shared lock is granted as long as there is
another one. A single thread leaves a gap after each question, which is enough; many threads leave none. So when there
was none for OVERLAP, new questions are `Held` until all readers have left, and for a GAP longer, in which a writer that
waits takes the lock.

Threads. A lock belongs to an open file description, so each reader has a descriptor of its own. They wait
in a stack, the warmest on top, and each is used by one thread at a time. What was learnt of a file (its
format, its cached nodes) belongs to the file, and all readers share it.

Files are read with pread(2), never through a map: whoever truncates a mapped file under its reader, or a
bad sector, ends the process with SIGBUS (docs/decisions has the numbers). Nothing here writes.
"""

import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from rcptd.stores.cyrus.databases.errors import Absent, Damaged, Held, OtherFormat, Trouble, Unreadable

T = TypeVar("T")
A = TypeVar("A")

IDLE = 64  # descriptors kept for one file
SETTLED = 0.1  # seconds after a change in which another one may leave the same time and size
OVERLAP = 0.05  # seconds for which readers may follow each other without a gap
GAP = 0.0005  # seconds that a writer who waits needs to wake up
TRIES = 5  # renames of the file during one question, before it is said to be held

# O_NONBLOCK: a fifo at the path must not stop us. A symbolic link is followed, as Cyrus does: a database on
# another disk is a common thing.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_CANNOT = {errno.EACCES, errno.EPERM}


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

    def unlock(self, descriptor: int) -> None:
        """Let go of the range."""
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, self._unlock)


WHOLE = Range(0, 0)


class Walk:
    """How far a walk through the records has come: `records` seen, the `last` key, `ended` at the end."""

    __slots__ = ("ended", "faults", "last", "records")

    def __init__(self) -> None:
        self.records = 0
        self.last: bytes | None = None
        self.ended = False
        self.faults: list[str] = []


class Format(Protocol):
    """How one file is read: made when the file is opened, used by all readers of it, any thread.

    All but `lock` and `unlock` are called with the lock held, raise `Damaged` with what is wrong and where,
    and `OtherFormat` when the file was overwritten in place by one of another format.
    """

    kind: str
    locking: bool  # whether writers wait for readers

    def lock(self, descriptor: int) -> None:
        """Take the shared lock that writers of this format respect, without waiting; raises `Held`."""
        ...

    def unlock(self, descriptor: int) -> None:
        """Let go of the lock."""
        ...

    def fetch(self, descriptor: int, key: bytes) -> bytes | None:
        """Give the value of the key, None if the file proves that there is none."""
        ...

    def begins(self, descriptor: int, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix."""
        ...

    def walk(self, descriptor: int, walk: Walk, most: int) -> None:
        """Go on through at most so many records behind `walk.last`."""
        ...


class _File:
    """One file, by device and inode: its format, and the descriptors that no question uses just now."""

    __slots__ = ("format", "identity", "idle")

    def __init__(self, identity: tuple[int, int], form: Format) -> None:
        self.identity = identity
        self.format = form
        self.idle: list[int] = []

    def close_idle(self) -> None:
        while True:
            try:
                descriptor = self.idle.pop()
            except IndexError:
                return
            os.close(descriptor)


Choose = Callable[[int, str], Format]


def open_readable(path: str) -> int:
    """Open a regular file for reading; raises `Absent` or `Unreadable`."""
    try:
        descriptor = os.open(path, FLAGS)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        see_that_it_is_a_file(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def see_that_it_is_a_file(path: str, status: os.stat_result) -> None:
    """Raise `Unreadable` for what is no regular file, `Absent` for an empty one."""
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"{path}: is no regular file")
    if not status.st_size:
        raise Absent(f"{path}: is empty")


def unreadable(path: str, error: OSError) -> Absent | Unreadable | Damaged:
    """Say what an error of the system means for a database, and what would help."""
    text = f"{path}: {error.strerror}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return Absent(text)
        case errno.EIO:
            return Damaged(f"{text} while reading it")
        case number if number in _CANNOT:
            return Unreadable(f"{text}: must be readable for uid {os.geteuid()} gid {os.getegid()}")
    return Unreadable(text)


class _Moved(Exception):
    """The path names another file by now."""


class _Way:
    """Lets readers in, and keeps new ones out for a moment when there was no gap between them for long."""

    __slots__ = ("_closed", "_free", "_left", "_readers")

    def __init__(self) -> None:
        self._readers: set[int] = set()  # by their descriptors; adding and taking out are atomic
        self._free = self._left = 0.0
        self._closed = False

    def enter(self, descriptor: int) -> None:
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
        self._readers.discard(descriptor)
        if self._closed:
            self._left = time.monotonic()


class Following:
    """The file at a path, whichever it is just now; `choose` says how a file just opened is read."""

    def __init__(self, path: str, choose: Choose) -> None:
        self._path = path
        self._choose = choose
        self._file: _File | None = None
        self._way = _Way()
        self._changing = threading.Lock()  # held for a handful of instructions and two small reads
        self._closed = False

    @property
    def format(self) -> Format | None:
        """How the file is read, None as long as it could not be opened."""
        file = self._file
        return file.format if file else None

    def ask(self, question: Callable[[Format, int, A], T], about: A) -> T:
        """Put a question to the file, locked; raises `Trouble`. Any thread; never waits for a lock."""
        for _ in range(TRIES):
            file, descriptor = self._take()
            kept = False
            try:
                answer = self._locked(file, descriptor, question, about)
            except (OtherFormat, _Moved):
                continue
            except Held as held:
                kept = True
                raise Held(f"{self._path}: {held.why}") from None
            except Damaged:
                kept = True
                raise
            except OSError as error:
                raise unreadable(self._path, error) from None
            else:
                kept = True
                return answer
            finally:
                self._put_back(file, descriptor, kept=kept)
        raise Held(f"{self._path}: is replaced again and again")

    def _locked(self, file: _File, descriptor: int, question: Callable[[Format, int, A], T], about: A) -> T:
        form = file.format
        if form.locking:
            self._way.enter(descriptor)
        try:
            form.lock(descriptor)
            try:
                status = os.stat(self._path)  # noqa: PTH116 - a microsecond, not three
                if (status.st_dev, status.st_ino) != file.identity:
                    raise _Moved
                return question(form, descriptor, about)
            finally:
                form.unlock(descriptor)
        finally:
            self._way.leave(descriptor)

    def close(self) -> None:
        """Close the file; questions that are under way end well, later ones are refused."""
        self._closed = True
        self._forget(self._file)

    def _take(self) -> tuple[_File, int]:
        file = self._file
        if file is not None:
            try:
                return file, file.idle.pop()
            except IndexError:
                pass  # as many readers at once as never before
        return self._open()

    def _open(self) -> tuple[_File, int]:
        """Open what is at the path now; another reader of the same file, or the first of a new one."""
        if self._closed:
            raise Unreadable(f"{self._path}: closed")
        try:
            descriptor = open_readable(self._path)
        except Trouble:
            self._forget(self._file)
            raise
        try:
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino)
            with self._changing:
                old = self._file
                if old is not None and old.identity == identity:
                    return old, descriptor
                new = self._file = _File(identity, self._choose(descriptor, self._path))
        except OSError as error:
            os.close(descriptor)
            raise unreadable(self._path, error) from None
        except BaseException:
            os.close(descriptor)
            raise
        if old is not None:
            old.close_idle()
        return new, descriptor

    def _put_back(self, file: _File, descriptor: int, *, kept: bool) -> None:
        if not kept:
            os.close(descriptor)
            self._forget(file)
        elif len(file.idle) >= IDLE:
            os.close(descriptor)
        else:
            file.idle.append(descriptor)
            # Looked at after the descriptor is in the stack: whoever forgets the file does it before it empties
            # the stack, so that one of us sees the other.
            if file is not self._file:
                file.close_idle()

    def _forget(self, file: _File | None) -> None:
        """Let go of a file that is not the one at the path any more."""
        with self._changing:
            if file is None:
                return
            if self._file is file:
                self._file = None
        file.close_idle()
