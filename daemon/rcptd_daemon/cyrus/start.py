"""From options and imapd.conf to a service that runs, for each way to be started.

Everything that will be needed is imported before root is left: the Cyrus user may not be able to read our code.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from rcptd import schema, sockets
from rcptd.schema import Address
from rcptd.sockets import Listening
from rcptd.stores.cyrus import imapdconf
from rcptd.stores.cyrus.imapdconf import FaultyImapdConf, ImapdConf
from rcptd.stores.cyrus.judge import Judge
from rcptd_daemon.cyrus import hosts_files, master, program, system_log
from rcptd_daemon.cyrus.answers import Answers
from rcptd_daemon.cyrus.identity import WouldStayRoot, leave_root
from rcptd_daemon.cyrus.murder import Murder
from rcptd_daemon.cyrus.options import HAND, IDLE, MASTER, STDIO, SYSTEMD, USES, Options
from rcptd_daemon.cyrus.service import Door, Keepalive, Service, serve_one
from rcptd_daemon.cyrus.shutdown import ShutdownFile
from rcptd_daemon.cyrus.telemetry import Telemetry
from rcptd_daemon.standard_error import spare_client

_log = logging.getLogger(__name__)

DEBUGGER_PATIENCE = 30.0
"""How long, in seconds, the debug_command may take."""

SOCKET_MODE = 0o777
"""The mode of a unix socket that -L names, which is master's: whoever may reach it may ask."""

__all__ = ["FaultyAddress", "FaultyImapdConf", "WouldStayRoot", "start"]


class FaultyAddress(Exception):
    """An address of -L that is none; `str` says why."""


def start(by: str, options: Options, service: str) -> int:
    """Serve, and give the exit status.

    Raises `FaultyImapdConf`, `FaultyAddress`, `WouldStayRoot`, and `OSError` where the service cannot run now.
    """
    conf = imapdconf.read(options.conf, service=service)
    os.umask(conf.umask)
    _log_to(by, conf, service, debug=options.debug or conf.debug or "CYRUS_VERBOSE" in os.environ)
    if options.debug and conf.debug_command:
        _attach_debugger(conf.debug_command, service)
    # Addresses that only root may take are opened while we are.
    listening = {MASTER: _from_master, SYSTEMD: _from_systemd, HAND: _by_hand, STDIO: _nowhere}[by](options)
    factory = _loop_factory()
    leave_root(os.environ)
    answers, door = _answers(options, conf, service), _door(conf, service)
    if by == STDIO:
        return _run(serve_one(answers, door), factory)
    if by != MASTER:
        serving = Service(answers, door, uses=options.uses, idle=options.idle)
        return _run(serving.run(listening), factory)
    serving = Service(
        answers,
        door,
        uses=USES if options.uses is None else options.uses,
        idle=IDLE if options.idle is None else options.idle,
        status=master.StatusPipe(master.STATUS),
        program=program.started(),
    )
    return _run(serving.run(listening), factory)


def _from_master(_options: Options) -> list[Listening]:
    wrong = f"descriptor {master.LISTENER} is not the listener that master gives"
    try:
        os.fstat(master.STATUS)
        listener = socket.socket(fileno=master.LISTENER)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OSError(error.errno, f"{wrong}: {error.strerror}") from None
    if not listens:
        raise OSError(errno.EINVAL, f"{wrong}: it does not listen")
    listener.set_inheritable(False)
    # All processes of the service share this; one whom another outran must not stand and wait.
    listener.setblocking(False)
    return [Listening(Address("fd", str(master.LISTENER)), listener)]


def _from_systemd(_options: Options) -> list[Listening]:
    passed = sockets.inherited()
    return [Listening(Address("fd", name), each) for name in passed.left for each in passed.take(name)]


def _by_hand(options: Options) -> list[Listening]:
    try:
        wanted = [schema.address(each) for each in options.listen]
    except ValueError as error:
        raise FaultyAddress(f"-L: {error}") from None
    return sockets.listen(wanted, mode=SOCKET_MODE)


def _nowhere(_options: Options) -> list[Listening]:
    return []


def _answers(options: Options, conf: ImapdConf, service: str) -> Answers:
    strict = conf.rcptd_mode == "strict"
    return Answers(
        Judge(conf, strict=strict, service=os.fsencode(service), drop_folder=options.drop_folder),
        strict=strict,
        audits=conf.auditlog,
        murder=Murder(conf.configdirectory / "socket" / "mupdate.target"),
        kicks=bool(conf.mupdate_server) and not (conf.mupdate_config == "standard" and conf.proxyservers),
        shutdown=ShutdownFile(conf.configdirectory, service) if conf.rcptd_shutdown else None,
    )


def _door(conf: ImapdConf, service: str) -> Door:
    keepalive = None
    if conf.tcp_keepalive:
        keepalive = Keepalive(conf.tcp_keepalive_cnt, conf.tcp_keepalive_idle, conf.tcp_keepalive_intvl)
    rules = None
    if hosts_files.have_rules():
        from rcptd_daemon.cyrus.wrappers import Wrappers  # noqa: PLC0415 - ctypes costs, and few have rules

        try:
            rules = Wrappers(service)
        except (OSError, ValueError):
            _log.exception("hosts.allow and hosts.deny are not heeded")
    return Door(keepalive=keepalive, rules=rules, telemetry=Telemetry(conf.configdirectory, service))


_LoopFactory = Callable[[], asyncio.AbstractEventLoop] | None


def _loop_factory() -> _LoopFactory:
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def _run(main: Coroutine[Any, Any, int], factory: _LoopFactory) -> int:
    # The runner is never closed: that waits for threads, and we leave by os._exit.
    return asyncio.Runner(loop_factory=factory).run(main)


def _log_to(by: str, conf: ImapdConf, service: str, *, debug: bool) -> None:
    spare_client()
    name = system_log.ident(service, conf.syslog_prefix, os.environ)
    handler: logging.Handler
    if by == HAND:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[{os.getpid()}]: %(message)s"))
    else:
        handler = system_log.SystemLog(name, conf.syslog_facility)
    system_log.set_up(handler, debug=debug)
    for warning in conf.warnings:
        _log.warning("%s", warning)


def _attach_debugger(command: str, service: str) -> None:
    """Run the debug_command, with our name, process id and service for its first %s, %d and %s."""
    import subprocess  # noqa: PLC0415 - nearly never

    texts = iter((sys.argv[0], service))

    def value(match: re.Match[str]) -> str:
        if match[0] == "%s":
            return next(texts, "")
        return str(os.getpid()) if match[0] == "%d" else "%"

    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(re.sub("%[sd%]", value, command), shell=True, timeout=DEBUGGER_PATIENCE, check=False)  # noqa: S602 - the administrator's own
