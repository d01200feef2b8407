"""Quotas in one small file for each quota root, below the configuration directory: the oldest backend, and the default.

The name of the root gives the path: `quota/<letter>/<root>`, and in a domain `domain/<letter>/<domain>/quota/...`. The
letter depends on an option and is asked of whoever opens the database. Files are replaced by rename, so a reader takes
no lock: what it opened is whole.

A value is the file's text without its last LF, and with a space for the first of the others where it is not in the new
form, as Cyrus has it. A file that cannot be read, that is empty or that does not end in LF is trouble here; Cyrus takes
it for no quota.

Where the directories can be watched, it is known which roots there are (`roots`), and a root that is none costs no
system call.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from rcptd.stores.cyrus.databases import Description
from rcptd.stores.cyrus.databases.errors import Absent, Damaged, Trouble
from rcptd.stores.cyrus.databases.files import FLAGS, see_that_it_is_a_file, unreadable
from rcptd.stores.cyrus.databases.learning import Learning
from rcptd.stores.cyrus.databases.missing import Missing
from rcptd.stores.cyrus.databases.roots import Roots
from rcptd.stores.cyrus.databases.watches import Watches

OCTETS_MOST = 1 << 16  # a quota file has some dozens
MISSING_MOST = 1000  # roots of whole domains, or of all users, that are remembered not to be

Letter = Callable[[bytes], bytes]
"""Gives the letter of the folder for a domain, or for what stands behind the first dot of a name."""

# A name that no directory can hold is the name of no quota root.
_NOBODY = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


class Quotalegacy:
    """The quota roots below a directory; `domains` says that a `!` ends a domain. Any thread; never waits."""

    kind = "quotalegacy"

    def __init__(
        self,
        directory: Path,
        *,
        letter: Letter,
        domains: bool,
        watches: Watches | None = None,
        learning: Learning | None = None,
    ) -> None:
        self._path = directory
        self._directory = os.fsencode(directory)
        self._letter = letter
        self._domains = domains
        self._missing: dict[bytes, Missing] = {}
        self._watches = watches
        self._there: Roots | None = None
        if watches and learning:
            self._there = Roots(self._directory, self.path_of, watches, learning, domains=domains)

    def path_of(self, root: bytes) -> bytes | None:
        """Give the path of a root's file, None for a name that can have none."""
        top = self._directory
        name = root
        if self._domains and b"!" in root:
            domain, _, name = root.partition(b"!")
            if not _is_name(domain):
                return None
            top = b"%b/domain/%b/%b" % (top, self._letter(domain), domain)
            if not name:
                return top + b"/quota/root"
        if not _is_name(name):
            return None
        _, dot, rest = name.partition(b".")
        return b"%b/quota/%b/%b" % (top, self._letter(rest if dot else name), name)

    def missing(self, quiet: bool = False) -> bool:  # noqa: ARG002 - a database's signature
        """Say that it is not."""
        return False

    def known(self, key: bytes) -> int:
        """Say 0 where it is known that there is no such root, else -1."""
        known = self._there.known if self._there else None
        return -1 if known is None or key in known else 0

    def fetch(self, key: bytes, quiet: bool = False) -> bytes | None:
        """Give the text of a quota root, None if there surely is none; raises `Trouble`."""
        if quiet and (roots := self._there):
            known = roots.known
            if known is None:
                roots.want()
            elif key not in known:
                return None
            elif value := roots.values.get(key):
                return value
        missing = self._missing.get(key)
        if missing is not None and missing.lasts():
            return None
        return self._read(key, quiet)

    def _read(self, key: bytes, quiet: bool) -> bytes | None:
        path = self.path_of(key)
        if path is None:
            return None
        watches, roots = self._watches, self._there
        epoch = watches.epoch if watches else 0
        try:
            descriptor = os.open(path, FLAGS)
        except OSError as error:
            if error.errno in _NOBODY:
                if b"." not in key and len(self._missing) < MISSING_MOST and (missing := Missing.at(path)):
                    self._missing[key] = missing
                return None
            raise unreadable(os.fsdecode(path), error) from None
        shown = os.fsdecode(path)
        try:
            status = os.fstat(descriptor)
            see_that_it_is_a_file(shown, status)
            data = os.pread(descriptor, OCTETS_MOST + 1, 0)
        except Absent as absent:
            raise Damaged(absent.why) from None
        except OSError as error:
            raise unreadable(shown, error) from None
        finally:
            os.close(descriptor)
        value = _text(shown, data)
        # What a link leads to, or what has another name, may be changed where nobody watches.
        if quiet and roots and roots.known is not None and status.st_nlink == 1 and not os.path.islink(path):  # noqa: PTH114
            roots.keep(epoch, key, value)
        return value

    def exists(self, key: bytes) -> bool:
        """Say whether there is a quota root of this name; raises `Trouble`."""
        path = self.path_of(key)
        if path is None:
            return False
        try:
            os.stat(path)  # noqa: PTH116 - a microsecond, not three
        except OSError as error:
            if error.errno in _NOBODY:
                return False
            raise unreadable(os.fsdecode(path), error) from None
        return True

    def begins(self, prefix: bytes) -> bool:
        """Say whether any root begins with the prefix: goes through the folders; may take long."""
        return any(root.startswith(prefix) for root, _ in self._roots([]))

    def describe(self) -> Description:
        """Read all quota roots, and say which cannot be read."""
        faults: list[str] = []
        records = octets = 0
        for root, size in self._roots(faults):
            records += 1
            octets += size
            try:
                self.fetch(root)
            except Trouble as trouble:
                faults.append(trouble.why)
        return Description(self._path, self.kind, octets, records, faults)

    def close(self) -> None:
        """Watch nothing any more; no file stays open."""
        if self._there:
            self._there.close()

    def _roots(self, faults: list[str]) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        tops = [(b"", os.path.join(self._directory, b"quota"))]  # noqa: PTH118 - octets
        if self._domains:
            domains = os.path.join(self._directory, b"domain")  # noqa: PTH118
            for letter in _folders(domains, faults):
                tops += [(name + b"!", path + b"/quota") for name, path in _entries(letter, faults)]
        for domain, top in tops:
            if domain:
                found += [(domain, _size(path)) for name, path in _entries(top, faults) if name == b"root"]
            for folder in _folders(top, faults):
                found += [(domain + name, _size(path)) for name, path in _entries(folder, faults)]
        return found


def _text(shown: str, data: bytes) -> bytes:
    if len(data) > OCTETS_MOST:
        raise Damaged(f"{shown}: more than {OCTETS_MOST} octets")
    if not data.endswith(b"\n"):
        raise Damaged(f"{shown}: is cut off: it does not end in LF")
    value = data[:-1]
    return value if value.startswith(b"%") else value.replace(b"\n", b" ", 1)


def _is_name(name: bytes) -> bool:
    return bool(name) and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def _entries(folder: bytes, faults: list[str]) -> list[tuple[bytes, bytes]]:
    try:
        # While quota(8) or imapd writes, a file NAME.NEW stands beside the one that it will replace.
        return sorted((entry.name, entry.path) for entry in os.scandir(folder) if not entry.name.endswith(b".NEW"))
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(f"{os.fsdecode(folder)}: {error.strerror}")
        return []


def _folders(folder: bytes, faults: list[str]) -> list[bytes]:
    return [path for name, path in _entries(folder, faults) if len(name) == 1]


def _size(path: bytes) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116 - octets
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
