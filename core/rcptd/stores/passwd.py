"""System accounts through the C library's name service, so that LDAP and sssd accounts count.

The C library is asked by getpwnam_r(3) itself: Python's pwd module gives the same KeyError for "no such
account" and for "the directory is down". Tried on glibc 2.36, with a module of ours in nsswitch.conf
that fails: not found is the code 0 without a result, and nothing else is; every trouble of the last
service that was asked comes back as the error code that it set, ENOENT and ESRCH too, which the manual
lists as "maybe not found". So 0 alone is a no, and any other code is Unavailable.

BUGS. glibc goes on after a service that failed, and the answer of the last one counts: in
`passwd: ldap files` an LDAP that is down looks like a clean no. Cure it in nsswitch.conf, by naming the
remote service last or with `[UNAVAIL=return TRYAGAIN=return]` behind it; we warn when we see it. As a
second net a no is believed only while `canary`, an account that must be there, is found; make it one of
the remote service.

The name service may block for as long as it likes, and cannot be interrupted. So it is asked in a pool
of threads of this store's own, bounded like the queue before it; threads are daemons, since a thread
stuck in C must not hold up the end of the process.
"""

import asyncio
import ctypes
import errno
import logging
import os
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcptd import schema
from rcptd.address import Recipient
from rcptd.question import EXISTS, NOT_FOUND, Answer, Found, Mailbox, Unavailable
from rcptd.schema import option
from rcptd.stores.entries import local_part

_log = logging.getLogger(__name__)

# The name service has caches of its own (nscd, sssd), and a new account is to work at once.
MEMO = "off"

NAME_OCTETS = 256  # LOGIN_NAME_MAX of Linux, which is more than any account has
BUFFER = 1024  # sysconf(_SC_GETPW_R_SIZE_MAX) of glibc
BUFFER_MOST = 1 << 20  # an entry that is larger is a fault
WAITING = 1000  # questions in the queue and in the threads together
_NO_ACCOUNT = re.compile(r"[\x00-\x1f\x7f:/]")  # what passwd(5) cannot hold, and what would be a path
_UID_MOST = (1 << 32) - 2  # (uid_t)-1 is no account


_LIBC = ctypes.CDLL(None)


class _Entry(ctypes.Structure):
    """struct passwd of Linux (bits/types, pwd.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("gecos", ctypes.c_char_p),
        ("folder", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    )


class Account:
    """What counts of a system account: its name as the service spells it, and its number."""

    __slots__ = ("name", "uid")

    def __init__(self, name: str, uid: int) -> None:
        self.name = name
        self.uid = uid


class Trouble(Exception):
    """The name service cannot tell; says why."""


Ask = Callable[[str], Account | None]


def getpwnam(name: str, *, call: Callable[..., int] | None = None) -> Account | None:
    """Ask the C library for an account, None if there is none; raises `Trouble`. May block for long."""
    ask = call or _LIBC.getpwnam_r
    size = BUFFER
    while size <= BUFFER_MOST:
        entry, buffer = _Entry(), ctypes.create_string_buffer(size)
        result = ctypes.POINTER(_Entry)()
        code = ask(os.fsencode(name), ctypes.byref(entry), buffer, ctypes.c_size_t(size), ctypes.byref(result))
        if code == errno.ERANGE:
            size *= 4
            continue
        if code:
            label = errno.errorcode.get(code, str(code))
            raise Trouble(f"the name service cannot tell: {os.strerror(code)} ({label})")
        return Account(os.fsdecode(entry.name or b""), entry.uid) if result else None
    raise Trouble(f"an entry is larger than {BUFFER_MOST} bytes")


@dataclass(frozen=True, slots=True)
class Settings:
    """A store of type `passwd`."""

    min_uid: int = option(
        schema.number(0, _UID_MOST),
        default=1000,
        doc="Accounts below it take no mail (UID_MIN of login.defs).",
    )
    max_uid: int = option(schema.number(0, _UID_MOST), default=_UID_MOST, doc="Accounts above it take no mail.")
    refuse: tuple[str, ...] = option(
        schema.many(schema.text), default=["nobody"], doc="Accounts that take no mail whatever their number."
    )
    accept: tuple[str, ...] = option(
        schema.many(schema.text),
        default=None,
        doc='Accounts that take mail whatever their number, as ["root"].',
    )
    canary: str = option(
        schema.text,
        default="root",
        doc="An account that must be found, or a no is not believed; make it a remote one.",
    )
    threads: int = option(schema.number(1, 64), default=8, doc="Questions asked of the name service at once.")


Job = tuple[Recipient, asyncio.AbstractEventLoop, "asyncio.Future[Answer]"]


class Accounts:
    """A service that asks the name service; the domain of a recipient does not matter to it."""

    next_hop = False

    def __init__(self, settings: Settings, *, ask: Ask = getpwnam) -> None:
        self._settings = settings
        self._refuse = frozenset(settings.refuse)
        self._accept = frozenset(settings.accept or ())
        self._ask = ask
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._closed = False

    async def ask(self, recipient: Recipient) -> Answer:
        """Say whether the local part is a system account that takes mail; may wait, and be cancelled."""
        folded = local_part(recipient)
        if _NO_ACCOUNT.search(folded) or len(folded.encode(errors="surrogateescape")) > NAME_OCTETS:
            return NOT_FOUND
        if self._closed:
            return Unavailable("passwd: closed")
        if self._waiting >= WAITING:
            return Unavailable(f"passwd: {WAITING} questions wait already for the name service")
        if len(self._threads) < min(self._settings.threads, self._waiting + 1):
            thread = threading.Thread(target=self._work, name="rcptd-passwd", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                return Unavailable(f"passwd: {error}")
            self._threads.append(thread)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting += 1
        self._jobs.put((recipient, loop, answer))
        return await answer

    async def aclose(self) -> None:
        """Let the threads go; one that is stuck in the C library ends with the process."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            recipient, loop, future = job
            # Nobody waits any more for a cancelled one, but it counts until it is out of the queue.
            answer = Unavailable("passwd: nobody waits") if future.cancelled() else self._answer(recipient)
            try:
                loop.call_soon_threadsafe(self._deliver, future, answer)
            except RuntimeError:
                return  # the loop is closed: the process ends

    def _deliver(self, future: "asyncio.Future[Answer]", answer: Answer) -> None:
        self._waiting -= 1
        if not future.done():
            future.set_result(answer)

    def _answer(self, recipient: Recipient) -> Answer:
        try:
            # Accounts are lower-case nearly everywhere; where one is not, its own spelling finds it.
            folded = local_part(recipient)
            account = self._ask(folded)
            if account is None and recipient.local != folded:
                account = self._ask(recipient.local)
            if account is None:
                canary = self._settings.canary
                if self._ask(canary) is None:
                    return Unavailable(f"passwd: {canary!r}, which must be there, is not found either")
                return NOT_FOUND
        except Trouble as trouble:
            return Unavailable(f"passwd: {trouble}")
        except Exception as error:
            # No exception may leave a thread of ours unheard: the asker would wait for its deadline.
            _log.exception("store: passwd")
            return Unavailable(f"passwd: {error!r}")
        if account.name in self._refuse or not self._takes(account):
            return NOT_FOUND
        return EXISTS if account.name == folded else Found(Mailbox(spelling=account.name))

    def _takes(self, account: Account) -> bool:
        return account.name in self._accept or self._settings.min_uid <= account.uid <= self._settings.max_uid


_LOCAL_SERVICES = {"files", "compat", "db", "systemd"}


def fragile(nsswitch: str) -> str:
    """Name the service in nsswitch.conf(5) whose outage glibc hides behind the next one; "" for none."""
    for line in nsswitch.splitlines():
        database, colon, rest = line.partition("#")[0].partition(":")
        if not colon or database.strip() != "passwd":
            continue
        items: list[str] = re.findall(r"\[[^\]]*\]|[^\s\[]+", rest)
        for at, service in enumerate(items):
            later = items[at + 1 :]
            if service.startswith("[") or service in _LOCAL_SERVICES:
                continue
            if later and re.match(r"\[.*(unavail|!success)\s*=\s*return", later[0], re.IGNORECASE):
                continue
            if any(not item.startswith("[") for item in later):
                return service
    return ""


def open_store(name: str, settings: Settings) -> Accounts:
    """Open the store of a configuration; warns of an order in nsswitch.conf that hides outages."""
    try:
        nsswitch = Path("/etc/nsswitch.conf").read_text(errors="replace")[:65536]
    except OSError:
        nsswitch = ""
    if service := fragile(nsswitch):
        _log.warning(
            "store: %s: in the passwd line of /etc/nsswitch.conf, an outage of %r looks like no such account; "
            "put it last, or write [UNAVAIL=return TRYAGAIN=return] behind it",
            name,
            service,
        )
    return Accounts(settings)
