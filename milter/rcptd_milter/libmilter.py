"""The milter listener: sessions run by libmilter, through pymilter; the only file that imports it.

libmilter owns its sockets and threads and calls us in them; asyncio keeps the main thread, because
Python's signal handlers never run while the main thread is inside libmilter (measured). pymilter keeps
its callbacks in globals: one process has one listener.

We register callbacks with the extension itself and not with `Milter.runmilter`, whose class decodes
and dispatches once more for each step, wants a reply to each of them from Python, and removes the
socket of another process. A step that has no callback of ours is answered in C without the
interpreter; that is what becomes of headers and bodies of an MTA that cannot leave them out.

Negotiation. We ask the MTA to leave out HELO, DATA, unknown commands, headers and body, and not to
wait for our answer to CONNECT and MAIL; of that, whatever it offers. Version 2 offers the first
kind only in part and the second not at all: libmilter makes up for the answers and we for the steps.
Macros are asked for by name where the MTA takes such a list (SETSYMLIST): a list replaces the MTA's
own for that stage, so it names all that `session` reads; without it the defaults of Sendmail and
Postfix have all but `{client_addr}`, and CONNECT has that address too. pymilter 1.0.5's own setsymlist
fails; the context's works.

Nothing escapes a callback: an exception is logged, counted, and answered by our own DEFER.
pymilter would print it and say so to the client, and on SystemExit end the process.
pymilter hands MAIL and RCPT over as bytes; macros it decodes strictly, and from the error we take
the bytes. A host name at CONNECT that is not UTF-8 fails before it reaches us: that session goes on
with the client's address from the macro.

The socket. libmilter makes it 0755, which the MTA's user cannot write to, and removes the path when
it ends, whoever's socket is there by then. So it is opened at PATH.new, given owner and mode, and moved
to PATH: the path never leads nowhere while a new process takes over from an old one.

Ending. A stopped libmilter takes 4.5 s to return and cuts sessions at their next command, so it is
never stopped. `stop` lets transactions under way run to their end and defers the recipients of
new ones (451, since a 421 would end the client's session); when `active_transactions` is 0, or patience
is over, the process calls `close` and leaves by `os._exit`. Until then the socket stays: an MTA told
to pass mail when its filter is gone shall find it gone as late as possible.

Callbacks that wait. Debian's libmilter has a pool of workers, which gives a burst of sessions too few of them
when decisions wait. `relief` makes it start more; whoever decides is to tell it when a callback waits (`waiting`).
"""

import contextlib
import ctypes
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import Milter

from rcptd import sockets
from rcptd.schema import Address
from rcptd_milter.relief import Relief
from rcptd_milter.replies import FAULT, Status
from rcptd_milter.session import Decide, Macros, Recall, Session
from rcptd_milter.settings import Settings

log = logging.getLogger(__name__)

NAME = "rcptd"  # libmilter keeps the pointer: this must be a constant

STEPS = (
    Milter.P_NOHELO
    | Milter.P_NODATA
    | Milter.P_NOUNKNOWN
    | Milter.P_NOHDRS
    | Milter.P_NOEOH
    | Milter.P_NOBODY
    | Milter.P_NR_CONN
    | Milter.P_NR_MAIL
)
# `i` is the queue id: Sendmail has it from MAIL on, Postfix after the first accepted recipient.
MACROS = (
    (Milter.M_CONNECT, "{client_addr}"),
    (Milter.M_ENVFROM, "i {auth_authen}"),
    (Milter.M_ENVRCPT, "i {rcpt_mailer} {rcpt_addr}"),
)


class Context(Protocol):
    """A connection as pymilter hands it to callbacks (its milterContext, which has no name in Python)."""

    def getpriv(self) -> "_Connection | None":
        """Give what `setpriv` left, None at first."""

    def setpriv(self, value: "_Connection | None", /) -> object:
        """Keep one object with the connection; drops the last."""

    def getsymval(self, name: str, /) -> str | None:
        """Give a macro's value; raises `UnicodeDecodeError` for one that is not UTF-8."""

    def setreply(self, rcode: str, xcode: str, text: str, /) -> None:
        """Set the reply to the step under way; raises `Milter.error` for one that libmilter refuses."""

    def setsymlist(self, stage: int, macros: str, /) -> None:
        """Ask for macros, divided by spaces; in the negotiation only."""


class Listener:
    """The filter's listener; `open`, `start`, `stop` and `close` belong to the main thread."""

    _opened = False  # by any instance: libmilter takes one socket per process

    def __init__(
        self,
        settings: Settings,
        decide: Decide,
        *,
        recall: Recall = lambda _: None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Take what to listen to, who decides and who recalls, and whom to tell (in libmilter's thread) if it ends."""
        self._settings = settings
        self._decide = decide
        self._recall = recall
        self._ended = ended
        self._routed = settings.recipient == "routed"
        self._draining = False
        self._sessions: set[Session] = set()  # one step on it is atomic under the interpreter's lock
        self._identity: sockets.Identity | None = None
        self._relief = Relief(settings.listen)
        self._count = threading.Lock()
        self.faults = 0
        """Steps that failed by our own fault since the start."""

    @property
    def active_sessions(self) -> int:
        """How many connections of MTAs are open."""
        return len(self._sessions)

    @property
    def active_transactions(self) -> int:
        """How many of them are between MAIL and the end of the message, less those that a drain defers."""
        return sum(session.in_transaction for session in tuple(self._sessions))

    def open(self) -> None:
        """Open the socket; raises `OSError` saying what is in the way. Once per process."""
        if Listener._opened:
            raise RuntimeError("libmilter opens one socket per process")
        where = self._settings.listen
        _make_sure_it_is_free(where)
        path_new = Path(f"{where.host}.new")
        Milter.set_connect_callback(self._connect)
        Milter.set_envfrom_callback(self._mail)
        Milter.set_envrcpt_callback(self._rcpt)
        Milter.set_eom_callback(self._end)
        Milter.set_abort_callback(self._end)
        Milter.set_close_callback(self._close)
        Milter.settimeout(int(self._settings.timeout))
        Milter.setbacklog(self._settings.backlog)
        if where.kind == "unix":
            Milter.setconn(f"unix:{path_new}")
        else:
            Milter.setconn(f"{where.kind}:{where.port}@[{where.host}]")  # brackets: no name service
        Milter.register(NAME, negotiate=self._negotiate)
        try:
            Milter.opensocket(True)  # removes a socket that was left at PATH.new
        except Milter.error as error:
            raise OSError(
                errno.EADDRNOTAVAIL, f"{where}: libmilter: {error}; the system log has its reason"
            ) from None
        Listener._opened = True
        if where.kind == "unix":
            settings = self._settings
            path = Path(where.host)
            self._identity = sockets.publish(path_new, path, settings.mode, settings.owner, settings.group)

    def start(self) -> None:
        """Begin to serve, in a thread of libmilter's own; returns at once."""
        # Nobody waits for it: it ends with the process.
        threading.Thread(target=self._run, name="libmilter", daemon=True).start()
        if has_pool():
            self._relief.start()

    def _run(self) -> None:
        try:
            Milter.main()
        except Milter.error as error:
            log.critical("libmilter has ended: %s; the system log has its reason", error)
        if self._ended:
            self._ended()

    def stop(self) -> None:
        """Begin to drain: transactions under way go on, recipients of new ones are deferred."""
        self._draining = True

    def waiting(self) -> AbstractContextManager[object]:
        """Give what a callback is to be in while it waits, so that others need not wait for its thread."""
        return self._relief.waiting()

    def leave_name(self, sharers: int = 1) -> None:
        """Leave the socket's path to the process that we were forked from; as many as `sharers` serve its socket."""
        self._identity = None
        self._relief.shared_by(sharers)

    def close(self) -> None:
        """Remove the socket's path, unless a newer process has put its own there; then leave the process."""
        self._relief.stop()
        if self._identity:
            sockets.withdraw(Path(self._settings.listen.host), self._identity)

    # Callbacks. Each runs in a thread of libmilter's; what it returns goes to the MTA.

    def _negotiate(self, ctx: Context, offer: list[int]) -> int:
        try:
            actions, steps = offer[0], offer[1] & STEPS
            if actions & Milter.SETSYMLIST:
                for stage, macros in MACROS:
                    ctx.setsymlist(stage, macros)
            self._begin(ctx, steps)
            # We change no message: of all actions we want the one that lets us name macros.
            offer[:] = [actions & Milter.SETSYMLIST, steps, 0, 0]
        except BaseException as error:
            self._failed("negotiation", error)
            ctx.setpriv(None)
            return Milter.ALL_OPTS  # every step travels; those that we do not know are answered in C
        return Milter.CONTINUE

    def _begin(self, ctx: Context, steps: int) -> "_Connection":
        session = Session(self._decide, recall=self._recall, routed=self._routed)
        connection = _Connection(
            session,
            Milter.NOREPLY if steps & Milter.P_NR_CONN else Milter.CONTINUE,
            Milter.NOREPLY if steps & Milter.P_NR_MAIL else Milter.CONTINUE,
        )
        ctx.setpriv(connection)
        self._sessions.add(session)
        return connection

    # A context has no connection when the negotiation failed, or when the MTA begins another one on it (SMFIC_QUIT_NC).
    # Then we reply to all; libmilter drops a reply that is one too many.

    def _connect(self, ctx: Context, hostname: str, family: int, address: object) -> int:
        answer = Milter.CONTINUE
        try:
            connection = ctx.getpriv() or self._begin(ctx, 0)
            answer = connection.to_connect
            connection.session.connect(hostname, family, address, _macros(ctx))
        except BaseException as error:
            self._failed("CONNECT", error)  # the session goes on, with its client unknown
        return answer

    def _mail(self, ctx: Context, *arguments: bytes) -> int:
        answer = Milter.CONTINUE
        try:
            connection = ctx.getpriv() or self._begin(ctx, 0)
            answer = connection.to_mail
            connection.session.mail(arguments, _macros(ctx), restarting=self._draining)
        except BaseException as error:
            self._failed("MAIL", error)  # and so have all recipients of the transaction: see Session.mail
        return answer

    def _rcpt(self, ctx: Context, *arguments: bytes) -> int:
        try:
            session = (ctx.getpriv() or self._begin(ctx, 0)).session
            answer = session.again(arguments, ctx.getsymval) or session.rcpt(arguments, _macros(ctx))
            if answer.rcode:
                ctx.setreply(answer.rcode, answer.xcode, answer.text)
        except BaseException as error:
            self._failed("RCPT", error, ctx)
            return _defer(ctx)
        return answer.status

    def _end(self, ctx: Context) -> int:
        try:
            (ctx.getpriv() or self._begin(ctx, 0)).session.end()
        except BaseException as error:
            self._failed("the end of a transaction", error)
        return Milter.CONTINUE

    def _close(self, ctx: Context) -> int:
        try:
            connection = ctx.getpriv()
            if connection:
                connection.session.end()
                self._sessions.discard(connection.session)
            ctx.setpriv(None)
        except BaseException as error:
            self._failed("the end of a session", error)
        return Milter.CONTINUE

    def _failed(self, step: str, error: BaseException, ctx: Context | None = None) -> None:
        """Count and log an exception; must not raise one itself."""
        with contextlib.suppress(BaseException), self._count:
            self.faults += 1
        peer = "?"
        with contextlib.suppress(BaseException):
            connection = ctx.getpriv() if ctx else None
            if connection:
                peer = connection.session.peer
        with contextlib.suppress(BaseException):
            log.error("our fault at %s, session of %s", step, peer, exc_info=error)


def has_pool() -> bool:
    """Tell whether this libmilter has a pool of workers, instead of a thread for each session.

    A libmilter inside pymilter's own file shows no names: then it is taken to have one.
    """
    extension = find_spec("milter")
    if not extension or not extension.origin:
        return True
    try:
        names = ctypes.CDLL(extension.origin)  # and the libraries that it loads
    except OSError:
        return True
    return hasattr(names, "mi_pool_controller_init") or not hasattr(names, "mi_engine")


class _Connection(NamedTuple):
    """What pymilter keeps for us in a connection's context."""

    session: Session
    to_connect: int
    to_mail: int


def _macros(ctx: Context) -> Macros:
    def value(name: str) -> str | None:
        try:
            return ctx.getsymval(name)
        except UnicodeDecodeError as error:
            return error.object.decode("utf-8", "surrogateescape")

    return value


def _defer(ctx: Context) -> int:
    """Answer our own DEFER; where even that text is refused, libmilter has one for TEMPFAIL."""
    with contextlib.suppress(BaseException):
        ctx.setreply(FAULT.rcode, FAULT.xcode, FAULT.text)
    return Status.TEMPFAIL


def _make_sure_it_is_free(where: Address) -> None:
    """Raise `OSError` for what libmilter would tell the system log only."""
    if where.kind != "unix":
        for trial in sockets.listen([where]):
            trial.close()
        return
    directory = Path(where.host).parent
    if not directory.is_dir():
        raise OSError(errno.ENOENT, f"{where}: there is no directory {directory}")
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        raise OSError(errno.EACCES, f"{where}: no right to write to {directory}")
    for path in (Path(where.host), Path(f"{where.host}.new")):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise OSError(errno.EEXIST, f"{where}: {path} is there and is no socket")
