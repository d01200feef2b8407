"""Opening, locking and following a database file that other processes write, append to and replace.

Cyrus' writers hold a POSIX lock on the whole file for as long as a transaction takes, and replace the
file by rename when they repack it. So a question is: lock, see that the path still names the file that
is open, read, unlock (`locks`).

Without a lock. What a format remembers of a file is right for as long as a stamp in the file is the same, and what was
written once is never changed. So where that is enough for a question, it is: see that the path still names the file,
that no writer has the lock, and that the stamp is the same; then read the one record that it is about. No writer waits
for that.

Threads. A lock belongs to an open file description, so each reader has a descriptor of its own. They wait
in a stack, the warmest on top, and each is used by one thread at a time. What was learnt of a file (its
format, its cached nodes) belongs to the file, and all readers share it.

Files are read with pread(2), never through a map: whoever truncates a mapped file under its reader, or a
bad sector, ends the process with SIGBUS (docs/decisions has the numbers). Nothing here writes.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from rcptd.stores.cyrus.databases.errors import Absent, Damaged, Forgotten, Held, OtherFormat, Trouble, Unreadable
from rcptd.stores.cyrus.databases.locks import Way
from rcptd.stores.cyrus.databases.missing import Missing

T = TypeVar("T")
A = TypeVar("A")

IDLE = 64  # descriptors kept for one file
TRIES = 5  # renames of the file during one question, before it is said to be held

# O_NONBLOCK: a fifo at the path must not stop us. A symbolic link is followed, as Cyrus does: a database on
# another disk is a common thing.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_CANNOT = {errno.EACCES, errno.EPERM}


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
    remembers: bool  # whether `remembered` may ever tell

    def lock(self, descriptor: int) -> None:
        """Take the shared lock that writers of this format respect, without waiting; raises `Held`."""
        ...

    def unlock(self, descriptor: int) -> None:
        """Let go of the lock."""
        ...

    def fetch(self, descriptor: int, key: bytes) -> bytes | None:
        """Give the value of the key, None if the file proves that there is none."""
        ...

    def remembered(self, descriptor: int, key: bytes) -> bytes | None:
        """Do what `fetch` does, without a lock, where what is remembered is proof; raises `Forgotten` where not."""
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


def _fetch(form: Format, descriptor: int, key: bytes) -> bytes | None:
    return form.fetch(descriptor, key)


class _Moved(Exception):
    """The path names another file by now."""


class Following:
    """The file at a path, whichever it is just now; `choose` says how a file just opened is read."""

    def __init__(self, path: str, choose: Choose) -> None:
        self._path = path
        self._choose = choose
        self._file: _File | None = None
        self._way = Way()
        self._missing: Missing | None = None
        self._changing = threading.Lock()  # held for a handful of instructions and two small reads
        self._closed = False

    @property
    def format(self) -> Format | None:
        """How the file is read, None as long as it could not be opened."""
        file = self._file
        return file.format if file else None

    def missing(self) -> bool:
        """Say whether it is remembered that nothing is at the path, and still so."""
        missing = self._missing
        return self._file is None and missing is not None and missing.lasts()

    def fetch(self, key: bytes) -> bytes | None:
        """Give the value of a key, without a lock where that can be; raises `Trouble`. Any thread; never waits."""
        file = self._file
        if file is not None and file.format.remembers:
            try:
                return self._glance(file, key)
            except (IndexError, Forgotten, Trouble, OSError):
                pass  # the lock, or another look, will tell
        return self.ask(_fetch, key)

    def _glance(self, file: _File, key: bytes) -> bytes | None:
        descriptor = file.idle.pop()
        try:
            status = os.stat(self._path)  # noqa: PTH116 - a microsecond, not three
            if (status.st_dev, status.st_ino) != file.identity:
                raise Forgotten
            return file.format.remembered(descriptor, key)
        finally:
            file.idle.append(descriptor)
            if file is not self._file:
                file.close_idle()  # for the reason that `_put_back` has

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
        except Trouble as trouble:
            self._forget(self._file)
            self._missing = Missing.at(self._path) if isinstance(trouble, Absent) else None
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
