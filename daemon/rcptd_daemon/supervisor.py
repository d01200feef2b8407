"""Several processes for one configuration: a supervisor that opens the listeners, forks, and watches.

Theory of operation. The supervisor opens what is listened at and forks a worker for each share of the work: so many
that do all of it, or one for each front end. They share the listening sockets, and the kernel gives each connection
to one of them. The supervisor itself runs no loop, starts no thread and opens no store, so that it can fork a
worker anew at any time: one that dies costs its own connections and is replaced, since the sockets, and who waits at
them, stay.

To its workers it is the service manager: they tell it by sd_notify(3) that they are ready, how they are and that they
live, at a socket of its own, and the kernel vouches for who says so. A worker that is silent for too long is killed.
To the service manager above it is one service: ready when all are, alive as long as it looks after them.

SIGHUP is looked at here first, so that a faulty file is told once, and then by every worker. SIGTERM drains all; what
is left after the draining time and some more is killed. A worker whose supervisor is gone drains, too (prctl(2)).

LIMITS: a log line of the supervisor's own is dropped where it would have to wait for its reader.
"""

import ctypes
import logging
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import NoReturn

from rcptd import __version__
from rcptd.config import Configuration, FaultyConfiguration
from rcptd_daemon import logs, notify
from rcptd_daemon.listeners import Listeners, Share, listening_as
from rcptd_daemon.reading import log_settings, read_configuration, require_front_end

_log = logging.getLogger("rcptd")

EX_SOFTWARE, EX_OSERR, EX_CONFIG = 70, 71, 78  # sysexits(3)

FRONT_ENDS = ("socketmap", "milter")

SILENCE = 60.0
"""How long, in seconds, a worker may be silent before it is killed, unless the service manager says otherwise."""

EXTRA = 10.0
"""How long, in seconds, workers may take to end beyond the draining time."""

LIVED = 10.0
"""A worker that lived so long, in seconds, is replaced at once; one that did not, after a pause that grows."""

LONGEST_PAUSE = 10.0

_PR_SET_PDEATHSIG = 1  # prctl(2)
_CREDENTIALS = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid
_FOR_WORKERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS = (*_FOR_WORKERS, signal.SIGCHLD)

Serve = Callable[[Configuration, Listeners, Share], NoReturn]
"""What a worker does: it serves its share and leaves the process."""


class _Worker:
    """One worker; times are seconds on the monotonic clock."""

    def __init__(self, number: int, share: Share) -> None:
        self.number = number
        self.share = share
        self.pid = 0
        self.ready = False
        self.ever_ready = False
        self.status = ""
        self.began = 0.0
        self.heard = 0.0
        self.failures = 0
        self.due: float | None = 0.0
        """When it is to be started, None while it runs."""


def shares(configuration: Configuration) -> list[Share]:
    """Say which front ends each worker serves."""
    configured = frozenset(FRONT_ENDS) & set(configuration.sections)
    workers = configuration.daemon.workers
    if workers == "front_ends":
        return [frozenset({name}) for name in FRONT_ENDS if name in configured]
    return [configured] * int(workers)


class Supervisor:
    """Opens, forks and watches; the main thread's, and the only thing in its process."""

    def __init__(self, configuration: Configuration, serve: Serve) -> None:
        self._configuration = configuration
        self._serve = serve
        self._workers = [_Worker(at, share) for at, share in enumerate(shares(configuration), 1)]
        self._stopping_since: float | None = None
        self._status = 0
        self._told_ready = False
        self._watched_at = 0.0

    def run(self) -> int:
        """Supervise until told to stop; gives the exit status."""
        logs.set_up_direct(log_settings(self._configuration))
        self._selector = selectors.DefaultSelector()
        self._woken, waking = socket.socketpair()
        for end in (self._woken, waking):
            end.setblocking(False)
        signal.set_wakeup_fd(waking.fileno())
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)  # the number comes by the wakeup descriptor
        self._ear = _ear()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        try:
            self._listeners = Listeners(self._configuration, workers=len(self._workers))
        except OSError as error:
            _log.critical("cannot start: %s", error.strerror or error)
            return EX_OSERR
        while self._stopping_since is None or any(worker.pid for worker in self._workers):
            self._start_due()
            self._selector.select(self._until_next())
            self._take_signals()
            self._listen()
            self._watch()
        self._listeners.close()
        _log.info("stopped")
        return self._status

    # Workers.

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.due is not None and worker.due <= now and self._stopping_since is None:
                self._fork(worker)

    def _fork(self, worker: _Worker) -> None:
        # A signal that comes before the worker has its handlers waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_WORKERS)
        try:
            pid = os.fork()
        except OSError as error:
            # Too many processes, or no memory. Those that are there go on, and it is tried again.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_WORKERS)
            _log.error("worker %d cannot be started: %s", worker.number, error.strerror)
            worker.failures += 1
            worker.due = time.monotonic() + min(0.1 * 2**worker.failures, LONGEST_PAUSE)
            return
        if pid == 0:
            try:
                self._become(worker)
            except FaultyConfiguration as faulty:
                for fault in faulty.faults:
                    _log.error("%s", fault)
                os._exit(EX_CONFIG)
            except BaseException:
                _log.exception("worker %d failed", worker.number)
            finally:
                os._exit(EX_SOFTWARE)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_WORKERS)
        worker.pid, worker.due, worker.ready, worker.status = pid, None, False, ""
        worker.began = worker.heard = time.monotonic()

    def _become(self, worker: _Worker) -> None:
        """Be the worker; never returns. Everything of the supervisor's is let go of."""
        above = os.getppid()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.environ["NOTIFY_SOCKET"] = "@" + self._ear.getsockname()[1:].decode("ascii")
        os.environ["WATCHDOG_USEC"] = str(int(self._silence * 1_000_000))
        os.environ.pop("WATCHDOG_PID", None)
        for each in (self._woken, self._ear):
            each.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != above:
            return  # it was gone before we asked to be told
        self._listeners.become_of_worker(worker.number)
        self._serve(self._configuration, self._listeners, worker.share)

    def _bury(self) -> None:
        """Take note of workers that have ended."""
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = 0
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        if self._stopping_since is not None:
            self._status = self._status or max(code, 0)
            return
        now = time.monotonic()
        if not worker.ever_ready and not self._told_ready:
            _log.critical("worker %d could not start, and ended %s", worker.number, how)
            self._status = code if code > 0 else EX_OSERR
            self._stop()
            return
        worker.failures = 0 if now - worker.began >= LIVED else worker.failures + 1
        pause = min(0.1 * 2**worker.failures, LONGEST_PAUSE) if worker.failures else 0.0
        _log.error("worker %d ended %s; its connections are cut, and another takes its place", worker.number, how)
        worker.due = now + pause

    # What comes.

    def _take_signals(self) -> None:
        try:
            numbers = set(self._woken.recv(4096))
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            self._bury()
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        if signal.SIGHUP in numbers and self._stopping_since is None:
            self._reload()

    def _stop(self) -> None:
        if self._stopping_since is None:
            _log.info("stopping: %d workers", sum(bool(worker.pid) for worker in self._workers))
            notify.notify(STOPPING="1", STATUS="draining")
            self._stopping_since = time.monotonic()
        self._send(signal.SIGTERM)

    def _reload(self) -> None:
        notify.reloading()
        try:
            new = read_configuration(self._configuration.path)
            require_front_end(new)
        except FaultyConfiguration as faulty:
            for fault in faulty.faults:
                _log.error("%s", fault)
            _log.error("reload: the file is faulty; the configuration before it stays in force")
            notify.notify(READY="1", STATUS=f"the file is faulty, see the log; {self._state()}")
            return
        if shares(new) != [worker.share for worker in self._workers]:
            _log.warning("reload: the number of workers has changed, which needs a restart")
        self._configuration = listening_as(new, self._configuration)
        for worker in self._workers:
            worker.ready = False
        self._send(signal.SIGHUP)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)  # it is ours until we have waited for it

    def _listen(self) -> None:
        """Hear what workers tell."""
        by_pid = {worker.pid: worker for worker in self._workers if worker.pid}
        heard = False
        while True:
            try:
                message, ancillary, _, _ = self._ear.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            pid = _CREDENTIALS.unpack(ancillary[0][2])[0] if ancillary else 0
            if worker := by_pid.get(pid):
                self._hear(worker, message.decode("utf-8", "replace"))
                heard = True
        if heard:
            self._tell()

    def _hear(self, worker: _Worker, message: str) -> None:
        worker.heard = time.monotonic()
        told = dict(line.partition("=")[::2] for line in message.split("\n"))
        if "READY" in told:
            worker.ready = worker.ever_ready = True
        if "STATUS" in told:
            worker.status = told["STATUS"]

    def _tell(self) -> None:
        """Tell the service manager above."""
        if self._stopping_since is not None:
            return
        state = self._state()
        if all(worker.ready for worker in self._workers):
            if not self._told_ready:
                _log.info("ready: rcptd %s, %d workers", __version__, len(self._workers))
            self._told_ready = True
            notify.notify(READY="1", STATUS=state, MAINPID=str(os.getpid()))
        else:
            notify.notify(STATUS=state)

    def _state(self) -> str:
        return "; ".join(f"worker {worker.number}: {worker.status or 'starting'}" for worker in self._workers)

    # Time.

    @property
    def _silence(self) -> float:
        interval = notify.watchdog_interval()
        return interval * 2 if interval else SILENCE

    def _until_next(self) -> float:
        """Say how long nothing is to be done, in seconds."""
        now = time.monotonic()
        soonest = now + self._silence / 4
        for worker in self._workers:
            if worker.due is not None and self._stopping_since is None:
                soonest = min(soonest, worker.due)
        if self._stopping_since is not None:
            soonest = min(soonest, now + 0.5)
        return max(soonest - now, 0.0)

    def _watch(self) -> None:
        """Kill whoever is silent or does not end, and tell the service manager that we live."""
        now = time.monotonic()
        patience = self._configuration.daemon.drain + EXTRA
        late = self._stopping_since is not None and now - self._stopping_since > patience
        for worker in self._workers:
            if worker.pid and (late or now - worker.heard > 2 * self._silence):
                _log.error("worker %d %s; killed", worker.number, "does not end" if late else "is silent")
                os.kill(worker.pid, signal.SIGKILL)
                worker.heard = now
        interval = notify.watchdog_interval()
        if interval and now - self._watched_at >= interval / 2:
            self._watched_at = now
            notify.notify(WATCHDOG="1")


def _ear() -> socket.socket:
    """Open the socket at which workers tell how they are, with a name of the kernel's choosing."""
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ear.bind("")  # unix(7), autobind
    return ear
