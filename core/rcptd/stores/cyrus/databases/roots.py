"""Which quota roots there are: the names in the directories of the backend quotalegacy, kept by watches.

Nearly every mailbox has no quota root of its own, nor has the one above it: to know that costs an open(2) that fails
for each. So the names of all files in all the directories are read once, each directory being watched before it is
read. From then on a name that is not among them is no root. What is told of a name adds it or takes it out, in the
order in which it happened. A name too many does no harm: the file is looked for, as without this. So what is read while
names come and go is added to what is told; and what happens to a directory makes all of it unknown, until it was read
again.

What a root says is remembered until anything is told of its name. Cyrus replaces these files by rename.

Bounds: NAMES_MOST names, VALUES_MOST values, and as many watches as `watches` has; beyond, the directories are not read
and all goes on as without this. A directory that is a symbolic link is one too many, too.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from rcptd.stores.cyrus.databases.learning import Learning
from rcptd.stores.cyrus.databases.watches import DELETE, MODIFY, MOVED_FROM, NAMES, Watches

NAMES_MOST = 200_000  # some twenty megabytes
VALUES_MOST = 20_000
SLICE = 200  # names read at once: some tenths of a millisecond
AGAIN = 1.0  # seconds from one reading of all to the next
LATER = 60.0  # the same where it was in vain

# Tags of watches; that of the way to the directory is empty.
_FOLDER, _DOMAIN, _QUOTA, _ROOTS = b"f", b"d", b"q", b"r"

PathOf = Callable[[bytes], bytes | None]


class Roots:
    """The quota roots below a directory; `path_of` gives the file of a root. Any thread."""

    def __init__(self, top: bytes, path_of: PathOf, watches: Watches, learning: Learning, *, domains: bool) -> None:
        self.known: set[bytes] | None = None
        """The names of all roots, and perhaps some more; None as long as they are not known."""
        self.values: dict[bytes, bytes] = {}
        """What roots say that were read."""
        self._top = top
        self._path_of = path_of
        self._watches = watches
        self._learning = learning
        self._domains = domains
        self._names: set[bytes] = set()
        self._reading: Iterator[None] | None = None
        self._lost = False
        self._tops: tuple[bytes, ...] = ()
        self._next = 0.0  # when they may be read again, on the monotonic clock

    def want(self) -> None:
        """Have the names read, unless that was done just now."""
        if time.monotonic() >= self._next:
            self._learning.want(self._read)

    def keep(self, epoch: int, root: bytes, value: bytes) -> None:
        """Remember what a root says, which was read after the epoch."""
        self._watches.note(epoch, partial(self._keep, root, value))

    def close(self) -> None:
        """Watch nothing any more."""
        self._watches.leave(self._tell)

    def _keep(self, root: bytes, value: bytes) -> None:
        if self.known is not None:
            if len(self.values) >= VALUES_MOST:
                self.values.clear()
            self.values[root] = value

    # ---- reading, in the thread that learns ---------------------------------------------------------------------

    def _read(self) -> bool:
        """Read a slice."""
        if self._reading is None:
            self._reading = self._read_all()
        try:
            next(self._reading)
        except StopIteration:
            self._next = time.monotonic() + AGAIN
        except OSError:
            self._next = time.monotonic() + LATER
        else:
            return True
        self._reading = None
        return False

    def _read_all(self) -> Iterator[None]:
        """Read all names; raises `OSError` where that is in vain."""
        self._watches.apart(self._lose)  # nothing may be known that is not watched
        self._watches.leave(self._tell)
        self._names = set()
        self._lost = False
        top = os.path.abspath(self._top)  # noqa: PTH100 - octets
        self._tops = ()
        quota = self._watches.follow(top + b"/quota", self._tell)
        if quota is None:
            raise OSError
        self._tops = (b"quota", b"domain", quota.rpartition(b"/")[2])
        yield from self._read_quotas(quota, b"")
        if self._domains:
            for letter in self._single(top + b"/domain", _FOLDER):
                for domain in self._listed(letter, _FOLDER):
                    yield from self._read_domain(letter, domain)
        self._watches.apart(self._note)

    def _read_domain(self, letter: bytes, domain: bytes) -> Iterator[None]:
        folder = b"%b/%b" % (letter, domain)
        path = self._path_of(domain + b"!")
        if path and path.endswith(b"/domain/%b/%b/quota/root" % (letter[-1:], domain)):
            if b"quota" in self._listed(folder, _DOMAIN):
                yield from self._read_quotas(folder + b"/quota", domain + b"!")
            yield

    def _read_quotas(self, quota: bytes, domain: bytes) -> Iterator[None]:
        """Read the names of the roots below a directory, of a domain or of none."""
        for folder in self._single(quota, _QUOTA + domain):
            self._watch(folder, NAMES | MODIFY, _ROOTS + folder[-1:] + domain)
            with os.scandir(folder) as entries:
                while names := [domain + entry.name for entry in islice(entries, SLICE)]:
                    self._names.update(names)
                    if len(self._names) > NAMES_MOST:
                        raise OSError
                    yield

    def _single(self, folder: bytes, tag: bytes) -> list[bytes]:
        """Give the folders for letters in a directory."""
        if not os.path.lexists(folder):  # the directory above is watched
            return []
        found = self._listed(folder, tag)
        if b"root" in found and len(tag) > 1:
            self._names.add(tag[1:])
        return [b"%b/%b" % (folder, name) for name in found if len(name) == 1]

    def _listed(self, folder: bytes, tag: bytes) -> list[bytes]:
        self._watch(folder, NAMES | MODIFY, tag)
        return os.listdir(folder)  # noqa: PTH208 - octets

    def _watch(self, folder: bytes, events: int, tag: bytes) -> None:
        if not self._watches.directory(folder, events, self._tell, tag):
            raise OSError

    def _note(self) -> None:
        if not self._lost:
            self.known = self._names

    # ---- what is told -------------------------------------------------------------------------------------------

    def _tell(self, event: int, tag: bytes, name: bytes) -> None:
        kind, rest = tag[:1], tag[1:]
        if not name:
            self._lose()
        elif kind == _ROOTS:
            letter, domain = rest[:1], rest[1:]
            path = self._path_of(domain + name)
            if path and path.endswith(b"/quota/%b/%b" % (letter, name)):
                self._tell_root(event, domain + name)
        elif kind == _QUOTA:
            if name == b"root" and rest:
                self._tell_root(event, rest)
            elif len(name) == 1:
                self._lose()
        elif kind == _FOLDER or name == b"quota" or (not kind and (not self._tops or name in self._tops)):
            self._lose()

    def _tell_root(self, event: int, root: bytes) -> None:
        self.values.pop(root, None)
        if event & (MOVED_FROM | DELETE):
            self._names.discard(root)
        else:
            self._names.add(root)
            if len(self._names) > NAMES_MOST:
                self._lose()

    def _lose(self) -> None:
        self.known = None
        self._lost = True
        self.values.clear()
