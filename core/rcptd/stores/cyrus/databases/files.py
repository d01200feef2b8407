"""Opening, locking and following a database file that other processes write, append to and replace.

Cyrus' writers hold a POSIX lock on the whole file for as long as a transaction takes, and replace the
file by rename when they repack it. So a question is: lock, see that the path still names the file that
is open, read, unlock (`locks`).

Without a lock. What a format remembers of a file is right for as long as a stamp in the file is the same, and what was
written once is never changed. So where that is enough for a question, it is: see that the path still names the file,
that no writer has the lock, and that the stamp is the same; then read the one record that it is about. No writer waits
for that.

Nor a look. Where the kernel tells of every change (`watches`), and has told of none, what is remembered is asked and
nothing else: `quiet` says that the caller has seen that. After a change the first question looks, and notes that it
has found all as it is remembered.

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
from rcptd.stores.cyrus.databases.learning import Learning
from rcptd.stores.cyrus.databases.locks import Way
from rcptd.stores.cyrus.databases.missing import Missing
from rcptd.stores.cyrus.databases.watches import MODIFY, Watches

T = TypeVar("T")
A = TypeVar("A")

IDLE = 64  # descriptors kept for one file
REFUSED = 1000  # looks at a file until a watch is tried again
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


Plain = Callable[[bytes, int, int], object]
"""Says of a value, in some octets from here to there, whether it is what nearly all are, and need not be seen."""

PlaceOf = Callable[[bytes], int]
"""Finds where the record with a key is, 0 if there is none, -1 if that is not known; one more if its value is plain."""


class Format(Protocol):
    """How one file is read: made when the file is opened, used by all readers of it, any thread.

    All but `lock` and `unlock` are called with the lock held, raise `Damaged` with what is wrong and where,
    and `OtherFormat` when the file was overwritten in place by one of another format.
    """

    kind: str
    locking: bool  # whether writers wait for readers
    remembers: bool  # whether `remembered` may ever tell
    told: bool  # whether all that writers do is told by `watches`, and so `place_of` may ever tell

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

    def place_of(self) -> PlaceOf | None:
        """Give what finds places without a lock, true as long as the file is as it is now; None for nothing."""
        ...

    def value(self, descriptor: int, key: bytes, place: int) -> bytes | None:
        """Give the value of a key, without a lock, from its place."""
        ...

    def begins(self, descriptor: int, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix."""
        ...

    @property
    def learnt(self) -> bool:
        """Say whether `learn` has nothing to do."""
        ...

    def learn(self, descriptor: int) -> bool:
        """Learn some more of the file in advance, for some tenths of a millisecond; says whether there is more."""
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


def _learn(form: Format, descriptor: int, _: None) -> bool:
    return form.learn(descriptor)


class _Moved(Exception):
    """The path names another file by now."""


class Following:
    """The file at a path, whichever it is just now; `choose` says how a file just opened is read."""

    def __init__(
        self, path: str, choose: Choose, watches: Watches | None = None, learning: Learning | None = None
    ) -> None:
        self._path = path
        self._choose = choose
        self._watches = watches
        self._learning = learning
        self._file: _File | None = None
        self._way = Way()
        self._missing: Missing | None = None
        self._changing = threading.Lock()  # held for a handful of instructions and two small reads
        self._closed = False
        self._watched: _File | None = None  # the file that is watched, and the way to it
        self._known: tuple[_File, PlaceOf] | None = None  # while it is known that the file is as it is remembered
        self._awaited = False  # whether the way to the path is watched for a file that is not there
        self._absent = False  # whether it is known that there is none
        self._name = b""  # that of the end of the way, once that is known
        self._lost = False  # whether what was watched is not what is at the path any more
        self._refused = 0  # for how many looks no watch is tried, as one was refused
        self._setting = threading.Lock()  # held while watches are set

    @property
    def format(self) -> Format | None:
        """How the file is read, None as long as it could not be opened."""
        file = self._file
        return file.format if file else None

    def missing(self, quiet: bool = False) -> bool:
        """Say whether it is remembered that nothing is at the path, and still so."""
        if quiet and self._absent:
            return True
        missing = self._missing
        if self._file is not None or missing is None:
            return False
        watches = self._watches
        epoch = watches.epoch if watches else 0
        if not missing.lasts():
            return False
        if watches and quiet:
            if self._awaited:
                watches.note(epoch, self._note_absent)
            else:
                self._watch(watches, None)
        return True

    def fetch(self, key: bytes, quiet: bool = False) -> bytes | None:
        """Give the value of a key, without a lock where that can be; raises `Trouble`. Any thread; never waits.

        `quiet` is what `Watches.quiet` has said since the question came.
        """
        if quiet and key and (known := self._known) is not None:
            known_file, place_of = known
            place = place_of(key)
            if not place:
                return None
            if place > 0:
                try:
                    return self._read(known_file, key, place & ~1)
                except (IndexError, Trouble, OSError):
                    pass  # the lock, or another look, will tell
        file = self._file
        if file is not None and file.format.remembers:
            try:
                return self._glance(file, key, quiet)
            except (IndexError, Forgotten, Trouble, OSError):
                pass
        return self.ask(_fetch, key)

    def known(self, key: bytes) -> int:
        """Find what is known of a key without a look, as `PlaceOf` tells it; the watches have been found quiet."""
        known = self._known
        return known[1](key) if known and key else -1

    def _read(self, file: _File, key: bytes, place: int) -> bytes | None:
        descriptor = file.idle.pop()
        try:
            return file.format.value(descriptor, key, place)
        finally:
            file.idle.append(descriptor)
            if file is not self._file:
                file.close_idle()  # for the reason that `_put_back` has

    def _glance(self, file: _File, key: bytes, quiet: bool) -> bytes | None:
        watches = self._watches
        epoch = watches.epoch if watches else 0
        descriptor = file.idle.pop()
        try:
            status = os.stat(self._path)  # noqa: PTH116 - a microsecond, not three
            if (status.st_dev, status.st_ino) != file.identity:
                raise Forgotten
            value = file.format.remembered(descriptor, key)
        finally:
            file.idle.append(descriptor)
            if file is not self._file:
                file.close_idle()
        if watches and quiet and file.format.told and not self._known:
            if self._watched is file:
                watches.note(epoch, lambda: self._note(file))
            else:
                self._watch(watches, file)
        return value

    # ---- what is known without a look ---------------------------------------------------------------------------

    def _watch(self, watches: Watches, file: _File | None) -> None:
        """Watch the way to the path, and a file that is there; the next look will count."""
        if self._refused:
            self._refused -= 1
            return
        if not self._setting.acquire(blocking=False):
            return  # another thread does
        try:
            if self._watched is file if file else self._awaited:
                return  # another thread has
            # In this order: nothing may be known that is not watched.
            watches.apart(self._note_unwatched)
            watches.leave(self._tell)
            place = watches.follow(os.fsencode(os.path.abspath(self._path)), self._tell)  # noqa: PTH100 - as octets
            if place is None or (file is not None and not watches.file(place, self._tell)):
                self._refused = REFUSED
                watches.leave(self._tell)
                return
            self._name = place.rpartition(b"/")[2]
            watches.apart(lambda: self._note_watched(file))
        finally:
            self._setting.release()

    def _note_unwatched(self) -> None:
        self._known = self._watched = None
        self._absent = self._awaited = False
        self._lost = False
        self._name = b""

    def _note_watched(self, file: _File | None) -> None:
        if not self._lost:
            self._watched = file
            self._awaited = file is None

    def _note(self, file: _File) -> None:
        if self._watched is file and self._file is file:
            place_of = file.format.place_of()
            self._known = (file, place_of) if place_of else None

    def _note_absent(self) -> None:
        if self._awaited and self._file is None:
            self._absent = True

    def _tell(self, event: int, _tag: bytes, name: bytes) -> None:
        """Forget what an event touches: all but a write touches what the path names."""
        if not name and not event & ~MODIFY:
            self._known = None
        elif not name or not self._name or name == self._name:
            self._known = self._watched = None
            self._absent = self._awaited = False
            self._lost = True

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
                if self._learning and not file.format.learnt:
                    self._learning.want(self._learn)
                return answer
            finally:
                self._put_back(file, descriptor, kept=kept)
        raise Held(f"{self._path}: is replaced again and again")

    def _learn(self) -> bool:
        try:
            return self.ask(_learn, None)
        except Held:
            return True
        except Trouble:
            return False  # the next question tells

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
        self._known = None
        if self._watches:
            self._watches.leave(self._tell)
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
                self._known = None
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
                self._file = self._known = None
        file.close_idle()
