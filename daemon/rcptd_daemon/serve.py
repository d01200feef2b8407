"""`rcptd serve`: one process with both front ends, asyncio in the main thread, libmilter in its own.

Theory of operation. Everything that can fail is opened before the process says that it is ready: stores,
then every listening socket. SIGHUP reads the file again and opens what is new, in a thread, for a large file, a large
memo or an account that is looked up in a directory takes its time; then it swaps policy and stores, or keeps the old
ones and says why. Listeners stay as they are. SIGTERM drains: questions under way are answered, for as long as
`[daemon] drain` allows. The process leaves by `os._exit`: a stopped libmilter takes 4.5 s to return and cuts its
sessions meanwhile (measured), and Python waits without a limit for a task that ignores its cancellation, for a thread
that hangs in a directory, and for a standard error that nobody reads.

Signals are handled on the loop, from before the first socket is opened. Were libmilter in the main thread,
Python would never see them (measured).
"""

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from rcptd import __version__
from rcptd.config import Configuration, FaultyConfiguration, open_world
from rcptd.decision import Told
from rcptd.drive import Driver
from rcptd.question import Reports
from rcptd.sockets import Listening
from rcptd.verdict import Verdict
from rcptd.world import World
from rcptd_daemon import control, logs, notify, remembered
from rcptd_daemon.check import Checker, Facts
from rcptd_daemon.decision_log import DecisionLog
from rcptd_daemon.listeners import SECTIONS as LISTENING
from rcptd_daemon.listeners import Listeners, Share, listening_as
from rcptd_daemon.reading import log_settings, read_configuration, remarks, require_front_end
from rcptd_socketmap.server import ACCEPTS, Server
from rcptd_socketmap.settings import Settings as SocketmapSettings
from rcptd_socketmap.stdio import serve_stdio
from rcptd_socketmap.verdicts import Verdicts

if TYPE_CHECKING:
    from rcptd.memo.file import MemoFile
    from rcptd_milter.libmilter import Listener

_log = logging.getLogger("rcptd")

EX_SOFTWARE, EX_OSERR = 70, 71  # sysexits(3)

FRONT_ENDS = frozenset({"socketmap", "milter"})

BESIDE, ALONE = 0.0001, 0.005
"""How long, in seconds, a thread may hold the interpreter where there are both front ends, and where there is one."""

STATUS_PERIOD = 30.0
"""How often, in seconds, the service manager is told how many are connected."""

SHADOW_PERIOD = 3600.0
"""How often, in seconds, the counts of rules in shadow are logged."""


def run(path: Path, *, stdio: bool = False) -> NoReturn:
    """Serve until told to stop, then leave the process. Raises `FaultyConfiguration` before it serves."""
    configuration = read_configuration(path)
    if stdio:
        _run_and_leave(_serve_stdio(configuration), FRONT_ENDS - {"milter"})
    require_front_end(configuration)
    if configuration.daemon.workers != 1:
        from rcptd_daemon.supervisor import Supervisor  # noqa: PLC0415

        sys.stdout.flush()
        os._exit(Supervisor(configuration, _serve_as_worker).run())
    _run_and_leave(Daemon(configuration).run(), FRONT_ENDS & set(configuration.sections))


def _serve_as_worker(configuration: Configuration, listeners: Listeners, share: Share) -> NoReturn:
    _run_and_leave(Daemon(configuration, listeners, share).run(), share)


def loop_factory(served: Share) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give what makes the loop of a process that serves these: uvloop where it is installed and good for them.

    uvloop takes the interpreter and lets go of it for each piece of input, and whoever waits for it in a thread comes
    too late time and again: a milter beside a busy socketmap waited 8 ms (p99, measured), and 0.4 ms beside asyncio's
    own loop. So a process that serves both front ends has that.
    """
    if served == FRONT_ENDS:
        return None
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def switch_interval(wanted: float | None, served: Share) -> float:
    """Give how long a thread may hold the interpreter, in seconds, in a process that serves these."""
    return wanted or (BESIDE if served == FRONT_ENDS else ALONE)


def _run_and_leave(main: Coroutine[Any, Any, int], served: Share) -> NoReturn:
    """Run on the loop that is good for what is served, and leave with the status that comes of it."""
    factory = loop_factory(served)
    with asyncio.Runner(loop_factory=factory) as runner:
        os._exit(runner.run(main))


class Daemon:
    """The running daemon; lives on the loop."""

    def __init__(
        self, configuration: Configuration, listeners: Listeners | None = None, share: Share | None = None
    ) -> None:
        """Make ready to serve all front ends, or those of a worker's `share`, at `listeners` that are open already."""
        self._configuration = configuration
        self._listeners = listeners
        self._is_worker = listeners is not None
        self._share = share or FRONT_ENDS
        self._logs = logs.set_up(log_settings(configuration))
        self._decisions = DecisionLog(log_settings(configuration), self._logs)
        self._memo_file = _memo_file(configuration)
        world = open_world(configuration, memo_file=self._memo_file)
        self._driver = Driver(world, self._on_verdict, self._on_shadow, self._is_logged)
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._status = 0
        self._socketmap: Server | None = None
        self._milter: Listener | None = None
        self._controls: list[tuple[control.Server, Listening]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Open everything, serve, drain; gives the exit status."""
        loop = asyncio.get_running_loop()
        self._set_switch_interval()
        self._driver.attach(loop)
        for number, event in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._reload_wanted),
        ):
            loop.add_signal_handler(number, event.set)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])  # as a worker was forked
        try:
            await self._open()
        except OSError as error:
            _log.critical("cannot start: %s", error.strerror or error)
            self._logs.stop()
            return EX_OSERR
        reloads = self._keep(self._reload_when_wanted())
        self._keep(self._watch())
        self._keep(self._count_shadows())
        for remark in remarks(self._configuration):
            _log.info("note: %s", remark)
        shared = self._listeners is not None and self._listeners.shared
        _log.info("%s, %s", "a worker is ready" if shared else f"ready: rcptd {__version__}", self._state())
        notify.notify(READY="1", STATUS=self._state(), MAINPID=str(os.getpid()))
        await self._stop.wait()
        reloads.cancel()  # what is being drained is not changed any more
        await self._end()
        return self._status

    def _set_switch_interval(self) -> None:
        served = self._share & set(self._configuration.sections)
        wanted = self._configuration.daemon.switch_interval
        sys.setswitchinterval(wanted or (BESIDE if served == FRONT_ENDS else ALONE))

    async def _open(self) -> None:
        """Open every socket, then serve them all; raises `OSError` naming the one that cannot be had."""
        sections = self._configuration.sections
        listeners = self._listeners = self._listeners or Listeners(self._configuration)
        settings = cast(SocketmapSettings | None, sections.get("socketmap"))
        if settings and "socketmap" in self._share:
            accepts = 1 if listeners.shared else ACCEPTS
            self._socketmap = Server(Verdicts(self._driver, settings.maps), settings, accepts=accepts)
            self._socketmap.start(listeners.socketmap)
        own = {"check": self._check, "memo": self._memo}
        if listeners.own:
            await self._serve_control(listeners.own, own)
        if listeners.control:
            await self._serve_control(listeners.control, {**own, "memo": self._memo_of_all})
            _log.info("control at %s", listeners.control.address)
        if listeners.milter and "milter" in self._share:
            self._milter = listeners.milter
            self._driver.while_waiting = self._milter.waiting
            listeners.decided_by(self._driver.decide_from_thread, self._driver.recall, self._milter_ended)
            self._milter.start()
            _log.info("milter at %s", sections["milter"].listen)

    async def _serve_control(self, at: Listening, operations: Mapping[str, control.Operation]) -> None:
        server = control.Server(operations)
        await server.start(at.socket)
        self._controls.append((server, at))

    # Signals.

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            notify.reloading()
            try:
                new = await asyncio.to_thread(self._read_again)
                # In a thread, too, for a large memo takes seconds to read, and a disk that hangs takes for ever.
                world = await asyncio.to_thread(
                    open_world,
                    new,
                    kept=self._driver.world.stores,
                    before=self._configuration.stores,
                    memo_file=self._memo_file,
                )
            except FaultyConfiguration as faulty:
                for fault in faulty.faults:
                    _log.error("%s", fault)
                _log.error("reload: the file is faulty; the configuration before it stays in force")
                notify.notify(READY="1", STATUS=f"the file is faulty, see the log; {self._state()}")
            except Exception:
                _log.exception("reload: failed; the configuration before it stays in force")
                notify.notify(READY="1", STATUS=f"the reload failed, see the log; {self._state()}")
            else:
                self._put_in_force(new, world)
                notify.notify(READY="1", STATUS=self._state())

    def _read_again(self) -> Configuration:
        new = read_configuration(self._configuration.path)
        require_front_end(new)
        return new

    def _put_in_force(self, new: Configuration, world: World) -> None:
        old, wanted = self._configuration, new
        # What listens goes on as it began, and so do `check --live` and the next comparison.
        new = listening_as(wanted, old)
        if self._socketmap:
            settings = cast(SocketmapSettings, new.sections["socketmap"])
            self._socketmap.reconfigure(Verdicts(self._driver, settings.maps), settings)
        for name in LISTENING:
            if new.sections.get(name) != wanted.sections.get(name):
                _log.warning("reload: the listener of [%s] has changed, which needs a restart", name)
        if wanted.daemon.workers != 1 and not self._is_worker:
            _log.warning("reload: the number of workers has changed, which needs a restart")
        if new.memo != wanted.memo:
            _log.warning("reload: [memo] has changed, which needs a restart")
        self._configuration = new
        # Before the world, since what is settled under one knows whether it is logged.
        if log_settings(old) != log_settings(new):
            self._log_elsewhere(log_settings(new))
        self._driver.replace(world)
        self._set_switch_interval()
        for remark in remarks(new):
            _log.info("note: %s", remark)
        _log.info("reload: %s is in force", new.path)

    def _log_elsewhere(self, settings: logs.Settings) -> None:
        try:
            before, self._logs = self._logs, logs.set_up(settings)
        except OSError as error:
            _log.error("reload: the log goes where it went before: %s", error)
        else:
            before.stop(patience=0)  # it writes what it has; here nobody may wait
        self._decisions = DecisionLog(settings, self._logs)

    async def _end(self) -> None:
        """Answer what was asked, close what is open."""
        patience = self._configuration.daemon.drain
        notify.notify(STOPPING="1", STATUS="draining")
        _log.info("stopping: %s", self._state())
        if self._milter:
            self._milter.stop()
        for server, at in self._controls:
            await server.stop()
            at.close()
        waiting = [self._socketmap.drain(patience)] if self._socketmap else []
        await asyncio.gather(*waiting, self._milter_drained(patience))
        if self._milter:
            self._milter.close()
        for task in self._tasks:
            task.cancel()
        self._log_shadows()
        await self._driver.aclose()
        if self._memo_file:
            self._memo_file.close()
        _log.info("stopped")
        self._logs.stop()

    async def _milter_drained(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        # libmilter's threads set no event.
        while self._milter and self._milter.active_transactions and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _milter_ended(self) -> None:
        """Stop, as nobody can serve the milter any more; called in libmilter's thread."""
        self._status = EX_SOFTWARE
        if loop := self._driver.loop:
            loop.call_soon_threadsafe(self._stop.set)

    # What goes on beside.

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self) -> None:
        """Tell the service manager that the loop turns, and who is connected."""
        watchdog = notify.watchdog_interval()
        period = min(watchdog or STATUS_PERIOD, STATUS_PERIOD)
        while True:
            await asyncio.sleep(period)
            if watchdog:
                notify.notify(WATCHDOG="1", STATUS=self._state())
            else:
                notify.notify(STATUS=self._state())

    async def _count_shadows(self) -> None:
        while True:
            await asyncio.sleep(SHADOW_PERIOD)
            self._log_shadows()

    def _log_shadows(self) -> None:
        driver = self._driver
        for (rule, said), times in sorted(driver.shadow_counts.items()):
            _log.info("shadow count", extra={"fields": {"rule": rule, "would": said, "times": times}})
        if driver.shadows_dropped:
            _log.info("shadow count", extra={"fields": {"dropped": driver.shadows_dropped}})

    def _state(self) -> str:
        parts = []
        if self._socketmap:
            parts.append(f"{self._socketmap.connections} socketmap connections")
        if self._milter:
            parts.append(f"{self._milter.active_sessions} milter sessions")
        for name, store in self._driver.world.stores.items():
            if isinstance(store, Reports) and (condition := store.condition()):
                parts.append(f"{name}: {condition}")
        return ", ".join(parts)

    def _on_verdict(self, told: Told) -> None:
        self._decisions.on_verdict(told)

    def _is_logged(self, verdict: Verdict | None) -> bool:
        return self._decisions.is_logged(verdict)

    def _on_shadow(self, *said: Any) -> None:
        self._decisions.on_shadow(*said)

    async def _check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `rcptd check --live`."""
        address, name = request.get("address"), request.get("map", "")
        if not isinstance(address, str) or not isinstance(name, str):
            raise ValueError("address and map are texts")  # noqa: TRY004 - the asker's fault
        checker = Checker(self._configuration, self._driver, self._decisions.mask)
        return await checker.check(address, Facts.of(request), name, explain=request.get("explain") is True)


    async def _memo(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `rcptd memo`."""
        return await remembered.answer(self._driver.world, self._memo_file, request, self._decisions.mask)

    async def _memo_of_all(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `rcptd memo` for all workers."""
        others = self._listeners.others if self._listeners else ()
        return remembered.together([await self._memo(request), *await control.ask_all(others, request)])


def _memo_file(configuration: Configuration) -> "MemoFile | None":
    if configuration.memo.path is None:
        return None
    from rcptd.memo.file import MemoFile  # noqa: PLC0415 - it brings SQLite

    return MemoFile(configuration.memo.path)


async def _serve_stdio(configuration: Configuration) -> int:
    """Serve the one connection that inetd or spawn(8) started us for."""
    settings = configuration.sections.get("socketmap")
    if settings is None:
        raise FaultyConfiguration([f"{configuration.path}:1: socketmap: --stdio needs a [socketmap] section"])
    wanted = log_settings(configuration)
    if _same_file(0, 2) or _same_file(1, 2):
        # spawn(8) makes standard error the client's socket, too: a log line there would be a reply, and so
        # would what the interpreter has to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if wanted.to == "stderr":
            wanted = logs.to_syslog(wanted)
    writer = logs.set_up(wanted)
    decisions = DecisionLog(wanted, writer)
    driver = Driver(open_world(configuration), decisions.on_verdict, decisions.on_shadow, decisions.is_logged)
    driver.attach(asyncio.get_running_loop())
    try:
        await serve_stdio(Verdicts(driver, settings.maps), settings)
    except OSError as error:
        _log.critical("cannot serve: %s", error.strerror or error)
        return EX_OSERR
    finally:
        await driver.aclose()
        writer.stop()
    return 0


def _same_file(one: int, other: int) -> bool:
    try:
        here, there = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    pipe = stat.S_ISSOCK(there.st_mode) or stat.S_ISFIFO(there.st_mode)
    return pipe and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
