"""Slow answers through the real libmilter hold up nobody: its pool of workers gets relief when callbacks wait."""

import asyncio
import ctypes
import json
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import milter_pool
from benchmarks.milter_pool import Round, one_round, opened, serving, threads_of
from rcptd import schema
from rcptd_milter import relief
from rcptd_milter.relief import TICK, Relief

REQUIRED = os.environ.get("RCPTD_REQUIRE_REAL") == "1"
SESSIONS = 64


def listen_at(folder: Path, kind: str = "unix") -> str:
    if kind == "unix":
        return f"unix:{folder}/milter.sock"
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"inet:127.0.0.1:{free.getsockname()[1]}"


def counts(process: subprocess.Popen[str]) -> dict[str, int]:
    process.send_signal(signal.SIGUSR1)
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], 10)
    assert ready, "the listener says nothing"
    said: dict[str, int] = json.loads(process.stdout.readline())
    return said


def becomes(what: Callable[[], object], wanted: object, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while what() != wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def descriptors(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


# With the real libmilter. Each burst is told while the listener stands still, so that it finds it at once: without
# relief two workers took 3.3 s for the 64 lookups of 0.1 s in 5 of 5 rounds, and the local answer came last.


@pytest.fixture
def _libmilter() -> None:
    if not REQUIRED:
        pytest.importorskip("Milter")


def burst_at(listen: str, process: subprocess.Popen[str], lookup: float) -> Round:
    return asyncio.run(asyncio.wait_for(one_round(listen, process.pid, SESSIONS, lookup), 90))


@pytest.mark.parametrize("kind", ["unix", "inet"])
@pytest.mark.daemon
@pytest.mark.usefixtures("_libmilter")
def test_slow_lookups_hold_up_neither_each_other_nor_a_local_answer(tmp_path: Path, kind: str) -> None:
    listen = listen_at(tmp_path, kind)
    with serving(listen, 0.2, 6.0) as process:
        before = descriptors(process)
        for _ in range(2):
            burst = burst_at(listen, process, 0.2)
            assert burst.replies == {"550 5.1.1": SESSIONS}
            assert burst.local_reply == "550 5.1.1"
            # Two workers take 6.4 s. Relieved it was 0.25 s, and 0.06 s for the local answer.
            assert burst.slowest < 2500
            assert burst.local < 2500
            assert burst.threads < 4 * SESSIONS
        assert becomes(lambda: counts(process)["sessions"], 0)
        said = counts(process)
        assert said["faults"] == 0
        assert 0 < said["connections"] <= 2 * 2 * (SESSIONS + 1)
        assert becomes(lambda: descriptors(process), before), "a connection is left open"
        process.terminate()
        assert process.wait(5) == 0
    if kind == "unix":
        assert not (tmp_path / "milter.sock").exists()


@pytest.mark.daemon
@pytest.mark.usefixtures("_libmilter")
def test_lookups_that_never_end_are_all_deferred_by_the_deadline(tmp_path: Path) -> None:
    listen = listen_at(tmp_path)
    with serving(listen, 600, 1.0) as process:
        burst = burst_at(listen, process, 600)
    assert burst.replies == {"451 4.4.3": SESSIONS}
    assert burst.local_reply == "550 5.1.1"
    # Two workers take 32 s.
    assert burst.slowest < 4000
    assert burst.local < 3000


@pytest.mark.daemon
@pytest.mark.usefixtures("_libmilter")
def test_processes_that_share_a_socket_relieve_each_other(tmp_path: Path) -> None:
    listen = listen_at(tmp_path)
    with serving(listen, 0.4, 6.0, processes=2) as process:
        burst = burst_at(listen, process, 0.4)
    assert burst.replies == {"550 5.1.1": SESSIONS}
    # Two workers of each take 6.4 s. Relieved it was 0.5 s.
    assert burst.slowest < 3500
    assert burst.local < 3500


@pytest.mark.daemon
@pytest.mark.usefixtures("_libmilter")
def test_threads_that_were_added_end_when_the_burst_is_over(tmp_path: Path) -> None:
    listen = listen_at(tmp_path)
    with serving(listen, 0.3, 6.0) as process:
        assert burst_at(listen, process, 0.3).threads > SESSIONS / 2
        assert becomes(lambda: threads_of(process.pid) < 16, True), threads_of(process.pid)


@pytest.mark.daemon
@pytest.mark.usefixtures("_libmilter")
def test_an_answer_at_once_adds_no_worker(tmp_path: Path) -> None:
    listen = listen_at(tmp_path)

    async def conversation() -> None:
        mtas = [await opened(listen) for _ in range(4)]
        for _ in range(50):
            for mta in mtas:
                await mta.rcpt(milter_pool.LOCAL)
        await mtas[0].rcpt(milter_pool.SLOW)  # alone it holds up nobody
        for mta in mtas:
            await mta.quit()

    with serving(listen, 0.3, 6.0) as process:
        asyncio.run(asyncio.wait_for(conversation(), 60))
        assert counts(process)["connections"] == 0


# Without libmilter: what the relief does to a listener.


class Listening:
    """A listener that notes what it is told on each connection, and closes them as it is told."""

    def __init__(self, path: Path, *, ending: bool = True) -> None:
        self.said: list[bytes] = []
        self._kept: list[socket.socket] = []
        self._ending = ending
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(1024)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            said = connection.recv(64)
            if said == b"over":
                connection.close()
                return
            self.said.append(said)
            if self._ending:
                connection.close()
            else:
                self._kept.append(connection)

    def end(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._socket.getsockname())
            last.send(b"over")
        self._thread.join(5)
        for each in (self._socket, *self._kept):
            each.close()


@contextmanager
def listening(path: Path, **how: bool) -> Iterator[Listening]:
    listener = Listening(path, **how)
    try:
        yield listener
    finally:
        listener.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m"


@pytest.fixture
def pool(path: Path) -> Iterator[Relief]:
    started = Relief(schema.address(f"unix:{path}"))
    started.start()
    yield started
    started.stop()
    time.sleep(2 * TICK)


def test_each_callback_that_waits_has_two_connections_that_say_quit(pool: Relief, path: Path) -> None:
    with listening(path) as listener:
        first = [pool.begin() for _ in range(3)]
        assert becomes(lambda: len(listener.said), 6)
        more = pool.begin()
        assert becomes(lambda: len(listener.said), 8)
        time.sleep(10 * TICK)
        for callback in (*first, more):
            pool.end(callback)
        assert becomes(lambda: len(pool._open), 0)
        assert listener.said == [b"\0\0\0\x01Q"] * 8
        assert pool.connections == 8


def test_a_callback_alone_has_none(pool: Relief, path: Path) -> None:
    with listening(path) as listener:
        pool.begin()
        pool.end(pool.begin())
        time.sleep(10 * TICK)
        assert listener.said == []


def test_quick_callbacks_have_none_however_many(pool: Relief, path: Path) -> None:
    with listening(path) as listener:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            for callback in [pool.begin() for _ in range(3)]:
                pool.end(callback)
        # Two ticks without the processor, on a busy machine, make a quick callback one that waits.
        assert len(listener.said) <= 12


def test_with_very_many_waiting_there_is_no_more(pool: Relief, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "MOST_WAITING", 8)
    with listening(path) as listener:
        callbacks = [pool.begin() for _ in range(8)]
        time.sleep(10 * TICK)
        assert listener.said == []
        pool.end(callbacks.pop())
        assert becomes(lambda: len(listener.said), 14)
        for callback in callbacks:
            pool.end(callback)


def test_connections_that_nobody_ends_are_bounded(pool: Relief, path: Path) -> None:
    with listening(path, ending=False) as listener:
        callbacks = [pool.begin() for _ in range(100)]
        assert becomes(lambda: len(listener.said), 200)
        assert len(pool._open) <= 65  # one more for the moment of its opening
        for callback in callbacks:
            pool.end(callback)
        assert becomes(lambda: len(pool._open), 0)


def test_where_others_take_their_part_there_are_more_and_again_later(pool: Relief, path: Path) -> None:
    pool.shared_by(3)
    with listening(path) as listener:
        callbacks = [pool.begin() for _ in range(2)]
        assert becomes(lambda: len(listener.said) >= 12 + 6 + 6, True)
        time.sleep(0.5)
        assert len(listener.said) <= 12 + 6 * 8  # after 1, 2, 4 and so on ticks; 128 of them take longer
        for callback in callbacks:
            pool.end(callback)


def test_after_stop_there_is_none(pool: Relief, path: Path) -> None:
    with listening(path) as listener:
        pool.stop()
        callbacks = [pool.begin() for _ in range(3)]
        time.sleep(10 * TICK)
        assert listener.said == []
        for callback in callbacks:
            pool.end(callback)


def test_a_listener_that_cannot_be_reached_is_told_of_once(
    pool: Relief, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        callbacks = [pool.begin() for _ in range(3)]
        assert becomes(lambda: len(caplog.records), 1)
        time.sleep(10 * TICK)
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    # And it is tried again, for as long as they wait.
    with listening(path) as listener:
        assert becomes(lambda: len(listener.said), 6)
        for callback in callbacks:
            pool.end(callback)


def test_a_listener_without_room_is_tried_again(pool: Relief, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as full, caplog.at_level(logging.WARNING):
        full.bind(str(path))
        full.listen(0)
        callbacks = [pool.begin() for _ in range(3)]
        assert becomes(lambda: pool.connections, 1)
        time.sleep(10 * TICK)
        assert pool.connections == 1
        full.accept()[0].close()
        assert becomes(lambda: pool.connections, 2)
        for callback in callbacks:
            pool.end(callback)
    assert not caplog.records


def test_no_descriptor_for_a_connection_is_no_accident(
    pool: Relief, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with caplog.at_level(logging.WARNING):
        callbacks = [pool.begin() for _ in range(2)]
        assert becomes(lambda: "Too many open files" in caplog.text, True)
    for callback in callbacks:
        pool.end(callback)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        ({"mi_engine", "mi_pool_controller_init"}, True),
        ({"mi_engine"}, False),  # libmilter as its makefile builds it: a thread for each session
        (set(), True),  # linked into pymilter's own file, where no name can be seen
        (None, True),
    ],
)
def test_a_libmilter_without_a_pool_gets_no_relief(
    monkeypatch: pytest.MonkeyPatch, names: set[str] | None, there: bool
) -> None:
    if not REQUIRED:
        pytest.importorskip("Milter")
    from rcptd_milter import libmilter  # noqa: PLC0415 - pymilter is an extra

    def load(_: str) -> Any:
        if names is None:
            raise OSError("cannot be loaded")
        return SimpleNamespace(**dict.fromkeys(names))

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert libmilter.has_pool() is there
    spec = ModuleSpec("milter", None)
    monkeypatch.setattr(libmilter, "find_spec", lambda _: spec)
    assert libmilter.has_pool() is True
