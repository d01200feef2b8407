"""What inotify tells of files that others change: where nothing is told, nothing has changed.

Whoever knows something of a file keeps it for as long as this is quiet, and needs no system call of its own to see
that it is still so. All that one judge knows hangs on one descriptor, and a question asks once: is anything queued?

Why a quiet answer is true. The kernel queues what it tells before the call that changed something returns to who made
it (fsnotify, on the file systems of TRUSTED). A question comes in, and then `quiet` sees at the time T that nothing is
queued. So what was changed before the question came had been queued before T, and taken out of the queue before T, by
somebody who had set `_clean` to None before he took it and set it back only when he had told whom it concerns. We look
at `_clean` behind T. So by then all that was changed before T has been told, and who was told has forgotten what it
touches. What is still known, or is learnt anew later, is what was so at T or later, within the question: whoever asks
when a change has returned is told of it.

Learning is the other half. Who looks at a file for what he will keep has a watch on it first, takes the `epoch`,
looks, and then notes what he saw by `note`, which refuses where anything was told or another watch was set since the
epoch. So what is told after the look cannot be missed: either it is still queued, and the next question finds it, or it
has raised the epoch. A change that is told of twice, or that nobody needed to know of, costs a look, no more.

The way to a file. A path is walked part by part, and each directory and each symbolic link on it is watched for being
moved or removed itself, and the last directory for what happens to the name. The watch of a part is set before it is
looked at. What is mounted or unmounted in this process' view is told by /proc/self/mountinfo, and then everybody is
told `LOST`, as nothing tells whose way it was.

Trouble. Where the queue has overflown everybody is told `LOST`, as is who lost a watch. Where inotify is not to be had
(no such call, no descriptors, no more watches, another kind of file system), `quiet` is False, or a watch is refused,
and all goes on as it did without. A process that was forked begins anew: it shares its parent's queue, which it must
not empty.

LIMITS. What is written through a map is not told; Cyrus writes mailboxes.db by write(2). What another host changes on a
network file system is not told: such file systems are not trusted. A change through a second name (hard link) of a
file whose directory alone is watched is not told. Of a mount the first who asks is told; another thread that asks in
the microseconds until he has passed it on is answered as of before. Without /proc mounts are not told.

Threads: any.
"""

import logging
import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_ATTRIB, _DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x4, 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _MASK_ADD = 0x1000000, 0x2000000, 0x20000000
ISDIR = 0x40000000

NAMES = MOVED_FROM | MOVED_TO | CREATE | DELETE
"""What happens to the names in a directory."""

LOST = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _OVERFLOW | _IGNORED | _ATTRIB
"""After one of these nothing is known of what was watched, and the watch may be gone. (ATTRIB: of a link's own.)"""

# By the magic numbers of statfs(2): file systems of this host alone, whose every change goes through this kernel.
TRUSTED = {
    0xEF53: "ext", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs", 0x858458F6: "ramfs",
    0x2FC12FC1: "zfs", 0xF2F52010: "f2fs", 0xCA451A4E: "bcachefs", 0x3153464A: "jfs",
}  # fmt: skip

MOST = 2000  # watches of one descriptor; the kernel holds a kilobyte for each, of ours and of the inode
LINKS_MOST = 40  # symbolic links on one way, as the kernel has it

_EVENT = struct.Struct("iIII")  # which watch, what, a cookie, octets of the name
_ROOM = 1 << 16  # octets for what is told, read at once: an event has 272 at most
_TURNS = 100  # such reads: more than any queue holds
_QUEUES = 2  # what is asked at once: inotify's, and mountinfo
_MOUNTS = "/proc/self/mountinfo"

Told = Callable[[int, bytes, bytes], None]
"""Is told what happened, the tag of the watch, and the name in a directory; under a lock: it forgets, and no more."""

_life = object()  # of this process


def _begin_life() -> None:
    global _life, _renewing  # noqa: PLW0603 - what a fork must change for all
    _life = object()
    _renewing = threading.Lock()


_renewing = threading.Lock()
os.register_at_fork(after_in_child=_begin_life)


class Watches:
    """The watches of one judge; opened when the first is wanted."""

    def __init__(self) -> None:
        self.epoch = 0  # how often anything was told, or a watch set
        self._descriptor = -1
        self._mounts = -1  # the descriptor that tells of mounts
        self._queues: select.epoll  # of both
        self._clean: object = None  # this process' life, while all that was taken from the queue has been told
        self._told: dict[int, dict[Told, tuple[int, bytes]]] = {}  # by watch: who wants to be told what, and the tag
        self._lock = threading.Lock()  # held for some dozens of microseconds
        self._life = _life
        self._libc: Any = None
        self._asked = False
        self._refused = False  # whether inotify was not to be had

    def quiet(self) -> bool:
        """Say whether what is known is known as of now: whoever is concerned has been told all that was queued.

        False where nothing can be watched, and the first time, since a process that has just started has an answer to
        give before it makes itself comfortable.
        """
        if self._clean is not _life:  # so a child asks none of its parent's queues
            return self._begin() if self._descriptor < 0 else self._take()
        try:
            told = self._queues.poll(0, _QUEUES)
        except (OSError, ValueError):
            return False  # just closed
        if not told and self._clean is _life:
            return True
        return self._take(mounted=any(descriptor == self._mounts for descriptor, _ in told))

    def note(self, epoch: int, what: Callable[[], None]) -> None:
        """Have something noted, unless anything was told since the epoch; `what` runs under a lock."""
        with self._lock:
            if self.epoch == epoch and self._clean is _life:
                what()

    def apart(self, what: Callable[[], None]) -> None:
        """Do something while nobody is told anything."""
        with self._lock:
            what()

    def directory(self, path: bytes, events: int, told: Told, tag: bytes) -> bool:
        """Watch a directory, which is no symbolic link; says whether that can be trusted."""
        return self._add(path, events | LOST & ~_ATTRIB | _ONLYDIR | _DONT_FOLLOW, told, tag, trusted=True)

    def follow(self, path: bytes, told: Told) -> bytes | None:
        """Watch each part of the way to an absolute path, without its end; gives where it leads, None where in vain.

        What happens to the names beside the end is told, too.
        """
        left = path.split(b"/")[::-1]
        here = b""
        links = 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = here.rpartition(b"/")[0]
                continue
            there = b"%b/%b" % (here, name)
            if left and not self._add(there, LOST & ~_ATTRIB | _DONT_FOLLOW, told):
                return None
            if _link(there) is None:
                here = there
                continue
            links += 1
            target = _link(there) if self._add(there, LOST | _DONT_FOLLOW, told) and links <= LINKS_MOST else None
            if target is None:
                return None
            left += target.split(b"/")[::-1]
            if target.startswith(b"/"):
                here = b""
        return here if self._add(here.rpartition(b"/")[0] or b"/", NAMES, told, trusted=True) else None

    def file(self, path: bytes, told: Told) -> bool:
        """Watch what is written to a file; says whether that can be trusted."""
        return self._add(path, MODIFY | LOST & ~_ATTRIB | _DONT_FOLLOW, told, trusted=True)

    def leave(self, told: Told) -> None:
        """Watch nothing for somebody any more."""
        with self._lock:
            for watch in [watch for watch, wanted in self._told.items() if wanted.pop(told, None) and not wanted]:
                del self._told[watch]
                self._libc.inotify_rm_watch(self._descriptor, watch)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._end()
            self._refused = True

    def _add(self, path: bytes, events: int, told: Told, tag: bytes = b"", *, trusted: bool = False) -> bool:
        with self._lock:
            if self._life is not _life or not self._open():
                return False
            if len(self._told) >= MOST or (trusted and not self._trusts(path)):
                return False
            watch = self._libc.inotify_add_watch(self._descriptor, path, events | _MASK_ADD)
            if watch < 0:
                return False
            self.epoch += 1  # whoever looked before may have seen what was before the watch
            wanted = self._told.setdefault(watch, {})
            wanted[told] = wanted.get(told, (0,))[0] | events, tag
            return True

    def _begin(self) -> bool:
        if self._refused or not self._asked:
            self._asked = True
            return False
        with self._lock:
            return self._open()

    def _open(self) -> bool:
        if self._descriptor >= 0 or self._refused:
            return not self._refused
        self._refused = True
        try:
            import ctypes  # noqa: PLC0415 - takes as long as a dozen questions, and the first must not wait

            self._libc = ctypes.CDLL(None)
            descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (ImportError, OSError, AttributeError) as error:
            _log.info("inotify is not to be had: %s", error)
            return False
        if descriptor < 0:
            _log.info("inotify is not to be had: no more descriptors, or instances for this user")
            return False
        try:
            self._queues = select.epoll(_QUEUES)
            self._queues.register(descriptor, select.EPOLLIN)
        except OSError as error:
            _log.info("inotify is not to be had: %s", error.strerror)
            os.close(descriptor)
            return False
        self._refused = False
        self._descriptor = descriptor
        self._watch_mounts()
        self._clean = _life
        return True

    def _watch_mounts(self) -> None:
        try:
            self._mounts = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._queues.register(self._mounts, select.EPOLLPRI)
        except OSError as error:
            _log.info("%s: %s; what is mounted from now on is not noticed", _MOUNTS, error.strerror)

    def _trusts(self, path: bytes) -> bool:
        import ctypes  # noqa: PLC0415 - it is there

        status = ctypes.create_string_buffer(256)  # struct statfs has 120 octets
        found = self._libc.statfs(path, status)
        return found == 0 and ctypes.c_ulong.from_buffer(status).value in TRUSTED

    def _take(self, *, mounted: bool = False) -> bool:
        """Take what is queued, and tell; says whether that was all."""
        if self._life is not _life:
            self._renew()
        with self._lock:
            if self._descriptor < 0:
                return False
            self._clean = None
            self.epoch += 1
            if mounted:
                self._tell_all()
            try:
                for _ in range(_TURNS):
                    data = os.read(self._descriptor, _ROOM)
                    self._tell(data)
                    if len(data) < _ROOM // 2:
                        break  # there was no more
                else:
                    self._tell_all()
            except BlockingIOError:
                pass
            except OSError as error:
                _log.warning("inotify fails: %s", error.strerror)
                self._end()
                return False
            self._clean = _life
            return True

    def _tell(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            watch, event, _, octets = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + octets].rstrip(b"\0")
            at += octets
            if event & _OVERFLOW:
                self._tell_all()
            wanted = self._told.get(watch, {})
            if event & _IGNORED:
                self._told.pop(watch, None)
            for told, (events, tag) in list(wanted.items()):
                # What is told of a name is not about the directory itself.
                if event & (events & ~LOST if name else events) or event & (_IGNORED | _UNMOUNT):
                    told(event, tag, name)

    def _tell_all(self) -> None:
        for told in {told for wanted in self._told.values() for told in wanted}:
            told(_OVERFLOW, b"", b"")

    def _end(self) -> None:
        self._clean = None
        self._tell_all()
        self._told.clear()
        if self._descriptor >= 0:
            self._queues.close()
            os.close(self._descriptor)
        if self._mounts >= 0:
            os.close(self._mounts)
        self._descriptor = self._mounts = -1

    def _renew(self) -> None:
        """Begin anew in a process that was forked."""
        with _renewing:
            if self._life is not _life:
                self._lock = threading.Lock()  # whoever held it is not here
                self._end()
                self._life = _life


def _link(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - octets
    except OSError:
        return None
