"""Listening sockets: opened with the right mode, owner and name, or inherited from whoever started us.

A unix socket is made at `PATH.new`, given its mode and owner, made to listen, and only then renamed to
`PATH`. So nobody connects before the rights are right, a restart overlaps with its predecessor
without a gap, and a file that is not a socket is never replaced. On closing, the name is removed only if it
still leads to our own socket. libmilter makes its socket itself; `publish` and `withdraw` do the rest of
the same for it.

Inherited descriptors follow sd_listen_fds(3): LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.

Everything here is called before there is a loop, or on it; nothing waits. Faults are `OSError`s whose
`strerror` says what is wrong and what to do.

BUGS: between the check that a name is a socket and the rename, its directory may change; whoever can do that
may write there anyway.
"""

import errno
import grp
import os
import pwd
import resource
import socket
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rcptd.schema import Address

BACKLOG = 1024
"""How many clients may wait to be accepted: Sendmail does not bound its connecting (measured)."""

FIRST_INHERITED = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START

Identity = tuple[int, int]
"""Which file a name leads to: device and inode."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A listening socket, not blocking; `identity` is the file of a unix socket of our own."""

    address: Address
    socket: socket.socket
    identity: Identity | None = None

    def close(self) -> None:
        """Stop listening, and take the name away if it is still ours."""
        if self.identity:
            # Before closing: an open socket keeps its inode from being given to another file.
            withdraw(Path(self.address.host), self.identity)
        self.socket.close()


class Inherited:
    """The listening sockets that we were started with, by name; several may have the same."""

    def __init__(self, named: Mapping[str, Sequence[socket.socket]] = MappingProxyType({})) -> None:
        self._named = dict(named)

    def take(self, name: str) -> Sequence[socket.socket]:
        """Give the sockets of a name, once."""
        if name not in self._named:
            there = f"there are {', '.join(sorted(self._named))}" if self._named else "there are none"
            raise OSError(
                errno.EBADF,
                f"fd:{name}: no such inherited descriptor; {there} (FileDescriptorName= in a socket unit)",
            )
        return self._named.pop(name)

    @property
    def left(self) -> list[str]:
        """The names that nobody took yet."""
        return sorted(self._named)


def inherited(environ: MutableMapping[str, str] = os.environ) -> Inherited:
    """Take over the descriptors that a service manager passed, and forget its variables."""
    pid, number, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    # Another PID means that they were meant for a parent of ours.
    if pid != str(os.getpid()) or not number.isdecimal():
        return Inherited()
    descriptors = range(FIRST_INHERITED, FIRST_INHERITED + int(number))
    # Without names each goes by its number; sd_listen_fds_with_names(3) calls all of them "unknown".
    known_as = names.split(":") if names else [str(descriptor) for descriptor in descriptors]
    if len(known_as) != len(descriptors):
        raise OSError(errno.EINVAL, f"LISTEN_FDS={number} and LISTEN_FDNAMES={names!r} do not agree")
    taken: dict[str, list[socket.socket]] = {}
    for descriptor, name in zip(descriptors, known_as, strict=True):
        taken.setdefault(name, []).append(_adopt(descriptor, name))
    return Inherited(taken)


def _adopt(descriptor: int, name: str) -> socket.socket:
    wrong = f"fd:{name}: inherited descriptor {descriptor} is no listening stream socket"
    try:
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(error.errno, wrong) from None
    if adopted.type != socket.SOCK_STREAM or not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        adopted.detach()
        raise OSError(errno.EINVAL, f"{wrong}; the socket unit needs ListenStream= and Accept=no")
    adopted.set_inheritable(False)
    adopted.setblocking(False)
    return adopted


def listen(
    addresses: Sequence[Address],
    *,
    mode: int = 0o660,
    owner: int | None = None,
    group: int | None = None,
    passed: Inherited | None = None,
) -> list[Listening]:
    """Open sockets at all of the addresses, or at none.

    Unix sockets come last: a port that is in use, perhaps by an rcptd that runs, is found before its names are taken.
    `mode`, `owner` and `group` (numbers; None leaves them) are for unix sockets. `passed` has the inherited
    descriptors; those keep what they have.
    """
    opened: list[Listening] = []
    try:
        for address in sorted(addresses, key=lambda address: address.kind == "unix"):
            if address.kind == "unix":
                opened.append(listen_unix(Path(address.host), mode=mode, owner=owner, group=group))
            elif address.kind == "fd":
                opened += [Listening(address, each) for each in (passed or Inherited()).take(address.host)]
            else:
                opened.append(_listen_inet(address))
    except OSError:
        for each in opened:
            each.close()
        raise
    return sorted(opened, key=lambda each: addresses.index(each.address))


def listen_unix(path: Path, *, mode: int, owner: int | None = None, group: int | None = None) -> Listening:
    """Open a unix socket at a path, ready before its name appears."""
    new = path.with_name(path.name + ".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(new, path)
        try:
            listener.bind(str(new))
        except OSError as error:
            raise OSError(error.errno, f"unix:{path}: {_why_no_file(error, path)}") from None
        try:
            _grant(new, path, mode, owner, group)
            listener.listen(BACKLOG)  # only now: a socket that is not listened at takes nobody in
            identity = _rename(new, path)
        except OSError:
            with suppress(FileNotFoundError):
                new.unlink()
            raise
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return Listening(Address("unix", str(path)), listener, identity)


def publish(new: Path, path: Path, mode: int, owner: int | None = None, group: int | None = None) -> Identity:
    """Give the socket at `new` its mode and owner and rename it to `path`; gives what `withdraw` needs."""
    _grant(new, path, mode, owner, group)
    return _rename(new, path)


def withdraw(path: Path, identity: Identity) -> bool:
    """Remove a published name if it still leads to our socket, which must be open; says whether it did."""
    try:
        there = path.lstat()
        if (there.st_dev, there.st_ino) != identity:
            return False  # a successor has put its own there
        path.unlink()
    except OSError:
        return False  # gone already, or not ours to remove any more: a stale name harms nobody
    return True


def allow_descriptors(number: int) -> int:
    """Raise the soft limit of open descriptors to `number`, or as near as it goes; gives the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if soft == infinite or soft >= number:
        return number if soft == infinite else soft
    limit = number if hard == infinite else min(number, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _listen_inet(address: Address) -> Listening:
    family = socket.AF_INET6 if address.kind == "inet6" else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(error.errno, f"{address}: this system has no such protocol: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # inet6:[::]:PORT beside inet:0.0.0.0:PORT must not depend on a sysctl.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{address}: {_why_no_port(error, address)}") from None
    listener.setblocking(False)
    return Listening(address, listener)


def _grant(new: Path, path: Path, mode: int, owner: int | None, group: int | None) -> None:
    try:
        if owner is not None or group is not None:
            unchanged = -1  # chown(2)
            os.chown(new, unchanged if owner is None else owner, unchanged if group is None else group)
        new.chmod(mode)
    except OSError as error:
        what = f"cannot set the mode and owner of the socket: {error.strerror}"
        if error.errno == errno.EPERM:
            names = [] if owner is None else [f"user {_user(owner)}"]
            names += [] if group is None else [f"group {_group(group)}"]
            what = (
                f"user {_user(os.geteuid())} may not give the socket to {' and '.join(names)}: "
                "root may, and a member of a group may give it to the group"
            )
        raise OSError(error.errno, f"unix:{path}: {what}") from None


def _rename(new: Path, path: Path) -> Identity:
    _refuse_other_file(path)
    try:
        there = new.lstat()
        new.rename(path)
    except OSError as error:
        raise OSError(error.errno, f"unix:{path}: {_why_no_file(error, path)}") from None
    return there.st_dev, there.st_ino


def _remove_stale(new: Path, path: Path) -> None:
    """Remove what an earlier start left behind in the middle of `listen_unix`."""
    _refuse_other_file(new)
    try:
        new.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"unix:{path}: {_why_no_file(error, path)}") from None


def _refuse_other_file(path: Path) -> None:
    try:
        there = path.lstat()
    except OSError:
        return  # not there, or not to be seen: whoever writes there will be told why
    if not stat.S_ISSOCK(there.st_mode):
        what = "there is something that is no socket; move it away, or listen elsewhere"
        raise OSError(errno.EEXIST, f"unix:{path}: {what}")


def _why_no_file(error: OSError, path: Path) -> str:
    directory = path.parent
    match error.errno:
        case errno.ENOENT:
            return f"there is no directory {directory}; make it (RuntimeDirectory= in a service unit does)"
        case errno.ENOTDIR:
            return f"{directory} is no directory"
        case errno.EACCES | errno.EPERM:
            return f"user {_user(os.geteuid())} may not write to {directory}"
        case errno.EROFS:
            return f"{directory} is mounted read-only (ReadWritePaths= in a service unit opens it)"
        case _:
            return error.strerror or str(error)


def _why_no_port(error: OSError, address: Address) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"the port is in use, perhaps by another rcptd; see ss -ltnp sport = {address.port}"
        case errno.EADDRNOTAVAIL:
            return "no interface of this host has that address"
        case errno.EACCES:
            return "ports below 1024 are for root or CAP_NET_BIND_SERVICE; take a higher one"
        case _:
            return error.strerror or str(error)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
