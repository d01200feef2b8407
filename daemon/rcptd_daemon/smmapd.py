"""The drop-in for Cyrus' `smmapd`: the same options, the same contract with master, the same words.

Theory of operation. It finds out who started it: Cyrus' master (CYRUS_SERVICE and CYRUS_ID, a status pipe and a
listener), a systemd socket unit (LISTEN_FDS), inetd or spawn(8) (a socket as standard input), or somebody by hand (-X,
-L). It reads imapd.conf, leaves root, and serves: see `cyrus.start`.

A cold start counts, for master starts a process while a client waits. So nothing is imported that is not needed, and
signals are heeded before most of it: until it serves, whoever tells it to end finds nothing to wait for.

Exit status, by sysexits(3): 0 done; 64 the command line; 70 started by nobody known; 75 cannot work now, or told to
stop; 78 imapd.conf, or no user to be. Master counts all but 0 and 75 as failures, and gives up a service after five.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from rcptd_daemon.cyrus.options import HAND, MASTER, STDIO, SYSTEMD, USAGE, Options, Usage, read

EX_OK, EX_USAGE, EX_SOFTWARE, EX_TEMPFAIL, EX_CONFIG = 0, 64, 70, 75, 78  # sysexits(3)

DEFAULT_SERVICE = "smmap"  # as everybody calls it in cyrus.conf


class CannotStart(Exception):
    """The end before the beginning: `status` is the exit status, `str` says why, in lines."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def main() -> NoReturn:
    """Be smmapd; leaves the process."""
    _heed_signals()
    try:
        status = run(sys.argv[1:], os.environ)
    except CannotStart as end:
        _complain(str(end))
        status = end.status
    except BaseException:  # a fault of ours must not disable the service
        import traceback  # noqa: PLC0415 - nearly never

        _complain(traceback.format_exc())
        status = EX_TEMPFAIL
    os._exit(status)


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Read what we are told, serve, and give the exit status; raises `CannotStart`."""
    try:
        options = read(words)
    except Usage as error:
        raise CannotStart(EX_USAGE, f"smmapd: {error}\n{USAGE}") from None
    by = started_by(options, environ)
    service = environ.get("CYRUS_SERVICE") or DEFAULT_SERVICE

    from rcptd_daemon.cyrus import start  # noqa: PLC0415 - not for a faulty command line

    try:
        return start.start(by, options, service)
    except start.FaultyImapdConf as faulty:
        raise CannotStart(EX_CONFIG, "\n".join(faulty.faults)) from None
    except start.WouldStayRoot as error:
        raise CannotStart(EX_CONFIG, f"smmapd: {error}") from None
    except start.FaultyAddress as error:
        raise CannotStart(EX_USAGE, f"smmapd: {error}") from None
    except OSError as error:
        raise CannotStart(EX_TEMPFAIL, f"smmapd: {error.strerror or error}") from None


def started_by(options: Options, environ: Mapping[str, str]) -> str:
    """Find out who started us; raises `CannotStart` where nobody did who wants to be served."""
    if options.listen:
        return HAND
    if options.stdio:
        return STDIO
    given = [name for name in ("CYRUS_SERVICE", "CYRUS_ID") if environ.get(name)]
    if len(given) == 2:
        return MASTER
    if given:
        missing = "CYRUS_ID" if given == ["CYRUS_SERVICE"] else "CYRUS_SERVICE"
        raise CannotStart(EX_SOFTWARE, f"smmapd: could not getenv({missing}); exiting")
    if environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS"):
        return SYSTEMD
    if _is_connected(0):
        return STDIO
    raise CannotStart(
        EX_SOFTWARE,
        "smmapd: could not getenv(CYRUS_SERVICE); exiting: neither Cyrus' master nor a socket unit nor inetd started "
        f"it; to start it by hand use -L or -X\n{USAGE}",
    )


def _complain(text: str) -> None:
    """Say why we end, in the system's log and on standard error, as far as they take it."""
    import contextlib  # noqa: PLC0415 - rarely
    import logging  # noqa: PLC0415

    from rcptd_daemon.cyrus import system_log  # noqa: PLC0415
    from rcptd_daemon.standard_error import spare_client  # noqa: PLC0415

    spare_client()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    service = os.environ.get("CYRUS_SERVICE") or DEFAULT_SERVICE
    log = system_log.SystemLog(system_log.ident(service, None, os.environ))
    for line in text.splitlines():
        log.emit(logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (line,), None))


def _heed_signals() -> None:
    """End as master wants it, while nobody is served yet."""
    for number in (signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, lambda *_: os._exit(EX_OK))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: os._exit(EX_TEMPFAIL))
    for number in (signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def _is_connected(descriptor: int) -> bool:
    """Say whether a descriptor is a connected socket."""
    import socket  # noqa: PLC0415 - not under master

    try:
        there = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return False
    with there:
        try:
            there.getpeername()
        except OSError:
            return False
    return True
