"""The socketmap daemon over real sockets, on both event loops: order, limits, caps, draining, bad clients."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rcptd import drive, sockets, verdict
from rcptd.netstring import Decoder, encode
from rcptd.policy import Policy
from rcptd.query import Query
from rcptd.schema import Address
from rcptd.settled import Settling
from rcptd.verdict import Verdict
from rcptd.world import World
from rcptd_socketmap import server as server_module
from rcptd_socketmap.connection import PIPELINE
from rcptd_socketmap.maps import maps
from rcptd_socketmap.server import Server
from rcptd_socketmap.settings import Settings
from rcptd_socketmap.stdio import serve_stdio
from rcptd_socketmap.verdicts import Decides, Verdicts
from tests.rig.require import require_program

PATIENCE = 20.0
TROUBLE = "TEMP Temporary failure, please try again later"


class StubDecision:
    def __init__(self, query: Query, said: Verdict | None, *, done: bool) -> None:
        self.query = query
        self.verdict = said
        self.done = done
        self.released = asyncio.Event()


class StubDriver:
    """Knows `ok...` and nobody else, is slow about `slow...`, and breaks its promises about `fault...`."""

    def __init__(self) -> None:
        self.begun: list[StubDecision] = []
        self.cancelled: list[str] = []

    @property
    def asked(self) -> list[str]:
        return [decision.query.recipient for decision in self.begun]

    def begin(self, query: Query) -> StubDecision:
        key = query.recipient
        said = verdict.ACCEPTED if key.startswith(("ok", "slow")) else verdict.NO_SUCH_MAILBOX
        decision = StubDecision(query, said, done=not key.startswith(("slow", "fault", "lazy")))
        self.begun.append(decision)
        return decision

    async def finish(self, decision: StubDecision) -> None:
        if decision.query.recipient.startswith("fault"):
            raise RuntimeError("a driver that breaks its promise")
        if decision.query.recipient.startswith("lazy"):
            return
        try:
            await decision.released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(decision.query.recipient)
            raise
        decision.done = True

    def settling(self) -> Settling[bytes]:
        return Settling(drive.Driver(World(Policy(()), {})))

    def settle(self, *_: object) -> None:
        """Keep nothing, so that each request is asked about."""

    def give_again(self, *_: object) -> None:
        raise AssertionError("nothing was kept")

    def release(self, key: str) -> None:
        for decision in self.begun:
            if decision.query.recipient == key:
                decision.released.set()


def driver_types(driver: drive.Driver) -> Decides:
    """The real driver is what a server takes; mypy checks this."""
    return driver


def settings(
    *, max_connections: int = 100, idle: float = 60, stall: float = 60, shapes: dict[str, str] | None = None
) -> Settings:
    named = maps(shapes or {"*": "key", "access": "access"})
    return Settings((), named, 0o660, None, None, max_connections=max_connections, idle=idle, stall=stall)


def answering(driver: StubDriver) -> Verdicts:
    return Verdicts(driver, settings().maps)


class Client:
    """One connection that sends what it is told and reads netstrings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder(100_000)
        self._replies: list[str] = []

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, *keys: str, name: str = "m") -> None:
        self.send(b"".join(encode(f"{name} {key}".encode()) for key in keys))

    async def reply(self) -> str | None:
        """The next reply; None at the end."""
        while not self._replies:
            try:
                data = await asyncio.wait_for(self.reader.read(65536), PATIENCE)
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not data:
                assert not self._decoder.partial
                return None
            self._replies += [body.decode() for body in self._decoder.feed(data)]
            assert self._decoder.fault is None
        return self._replies.pop(0)

    async def replies(self, number: int) -> list[str | None]:
        return [await self.reply() for _ in range(number)]

    async def is_silent(self) -> bool:
        """Whether nothing comes for a moment."""
        try:
            data = await asyncio.wait_for(self.reader.read(1), 0.05)
        except TimeoutError:
            return True
        assert not data, f"{data!r} came"
        return False

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Site:
    """A server at a unix and an inet socket, with its stub driver."""

    def __init__(self, server: Server, driver: StubDriver, path: Path, port: int) -> None:
        self.server = server
        self.driver = driver
        self.path = path
        self.port = port
        self.clients: list[Client] = []

    async def connect(self, kind: str = "unix") -> Client:
        if kind == "unix":
            client = Client(*await asyncio.open_unix_connection(str(self.path)))
        else:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def answers(self) -> bool:
        """Whether a new client is served now."""
        client = await self.connect()
        client.ask("ok@example.org")
        return await client.reply() == "OK ok@example.org"


@asynccontextmanager
async def site(**changes: Any) -> AsyncIterator[Site]:
    driver, chosen = StubDriver(), settings(**changes)
    with tempfile.TemporaryDirectory(prefix="rcptd-") as place:
        path = Path(place, "s")
        listening = sockets.listen([Address("unix", str(path)), Address("inet", "127.0.0.1", 0)])
        server = Server(Verdicts(driver, chosen.maps), chosen)
        server.start(listening)
        here = Site(server, driver, path, listening[1].socket.getsockname()[1])
        try:
            yield here
        finally:
            for client in here.clients:
                await client.close()
            await server.drain(0.0)
            assert server.connections == 0


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not fact():  # noqa: ASYNC110 - the facts are those of code that knows of no event
            await asyncio.sleep(0.005)


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_it(main: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            # Exceptions that a loop would only log are failures here.
            lost: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
            async with asyncio.timeout(60):
                await main
            await asyncio.sleep(0)
            assert lost == []

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return run_it


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_questions_are_answered_in_the_shape_of_their_map(run: Run, kind: str) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect(kind)
            client.ask("ok@example.org", "gone@example.org")
            assert await client.replies(2) == ["OK ok@example.org", "NOTFOUND No such mailbox"]
            client.ask("ok@example.org", "gone@example.org", name="access")
            assert await client.replies(2) == ["OK DUNNO", "OK 550 5.1.1 No such mailbox"]

    run(main())


def test_the_driver_is_told_what_the_wire_carries(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            unix, inet = await here.connect(), await here.connect("inet")
            unix.send(b"9:virt ok\0\xff,")
            assert await unix.reader.read(100) == b"7:OK ok\0\xff,"
            inet.ask("gone")
            await inet.reply()
            first, second = (decision.query for decision in here.driver.begun)
            assert (first.recipient, first.map, first.front_end) == ("ok\0\udcff", "virt", "socketmap")
            assert first.session == f"unix pid {os.getpid()}"
            host, port = inet.writer.get_extra_info("sockname")
            assert second.session == f"{host}:{port}"

    run(main())


def test_a_request_in_pieces_is_one_request(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            for byte in b"16:m ok@example.org,4:m ok,":
                client.send(bytes([byte]))
                await asyncio.sleep(0.001)
            assert await client.replies(2) == ["OK ok@example.org", "OK ok"]

    run(main())


def test_replies_keep_the_order_of_the_requests(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            client.ask("ok1", "slow1", "ok2", "slow2", "gone", "slow3")
            assert await client.reply() == "OK ok1"
            await until(lambda: len(here.driver.begun) == 6)
            here.driver.release("slow2")
            assert await client.is_silent()
            other = await here.connect()
            other.ask("ok")
            assert await other.reply() == "OK ok"
            here.driver.release("slow1")
            assert await client.replies(4) == ["OK slow1", "OK ok2", "OK slow2", "NOTFOUND No such mailbox"]
            here.driver.release("slow3")
            assert await client.reply() == "OK slow3"
            client.ask("ok3")
            assert await client.reply() == "OK ok3"

    run(main())


def test_only_so_many_decisions_wait_for_one_connection(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            client.ask(*(f"slow{number}" for number in range(3 * PIPELINE)))
            await until(lambda: len(here.driver.begun) == PIPELINE)
            assert await client.is_silent()
            assert len(here.driver.begun) == PIPELINE
            assert await here.answers()
            for number in range(3 * PIPELINE):
                await until(lambda: f"slow{number}" in here.driver.asked)  # noqa: B023 - called at once
                here.driver.release(f"slow{number}")
                assert await client.reply() == f"OK slow{number}"

    run(main())


def test_a_client_that_pipelines_thousands_takes_turns_with_others(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            crowd, single = await here.connect(), await here.connect()
            assert await here.answers()
            crowd.ask(*["ok"] * 10_000)
            await until(lambda: len(here.driver.begun) > 1)
            single.ask("ok@single")
            assert await crowd.replies(10_000) == ["OK ok"] * 10_000
            assert await single.reply() == "OK ok@single"
            assert here.driver.asked.index("ok@single") < 9_000

    run(main())


def test_the_key_may_have_ten_thousand_bytes_and_no_more(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            key = "ok" + "k" * 9_998
            client.ask(key)
            assert await client.reply() == f"OK {key}"
            client.ask(key + "k")
            assert await client.replies(2) == ["PERM Bad request: too long", None]

    run(main())


@pytest.mark.parametrize(
    ("garbage", "complaint"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "missing length"),
        (b"10102:", "too long"),
        (b"4:m ok;", "missing comma"),
        (b"05:m ok,", "leading zero in length"),
        (b"2:ok,", "missing key"),
        (b"3: ok,", "missing map name"),
    ],
)
def test_garbage_gets_one_complaint_after_the_replies_before_it(run: Run, garbage: bytes, complaint: str) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            client.ask("ok1", "slow1", "ok2")
            client.send(garbage)
            client.ask("ok3")
            assert await client.reply() == "OK ok1"
            assert await client.is_silent()
            here.driver.release("slow1")
            assert await client.replies(4) == ["OK slow1", "OK ok2", f"PERM Bad request: {complaint}", None]
            assert here.driver.asked == ["ok1", "slow1", "ok2"]
            assert await here.answers()

    run(main())


def test_a_flood_of_garbage_harms_nobody_else(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect("inet")
            client.send(b"\xff" * 3_000_000)
            assert await client.reply() in ("PERM Bad request: missing length", None)
            await until(lambda: here.server.connections == 0)
            assert await here.answers()

    run(main())


def test_a_client_that_has_said_its_last_is_answered_and_closed(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            client.ask("ok1", "slow1", *["ok"] * 100)
            client.writer.write_eof()
            assert await client.reply() == "OK ok1"
            assert await client.is_silent()
            here.driver.release("slow1")
            assert await client.replies(102) == ["OK slow1", *["OK ok"] * 100, None]
            half = await here.connect()
            half.send(b"4:m ok,4:m ")
            half.writer.write_eof()
            assert await half.replies(3) == ["OK ok", "PERM Bad request: shorter than its length", None]
            nothing = await here.connect()
            nothing.writer.write_eof()
            assert await nothing.reply() is None

    run(main())


def test_nobody_finishes_decisions_for_a_client_that_is_gone(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect("inet")
            client.ask("slow1", "ok1", "slow2")
            await until(lambda: len(here.driver.begun) == 3)
            await asyncio.sleep(0.01)
            linger = struct.pack("ii", 1, 0)  # a reset, which is no half-close
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await client.close()
            await until(lambda: len(here.driver.cancelled) == 2)
            assert here.server.connections == 0

    run(main())


def test_a_driver_that_breaks_its_promise_defers(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as here:
            client = await here.connect()
            client.ask("fault", "lazy", "ok")
            assert await client.replies(3) == [TROUBLE, TROUBLE, "OK ok"]

    run(main())
    assert "a decision failed; deferred" in caplog.text


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_the_cap_closes_the_excess_at_once_and_says_so_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site(max_connections=10) as here:
            ten = [await here.connect() for _ in range(10)]
            for client in ten:
                client.ask("ok")
                assert await client.reply() == "OK ok"
            for _ in range(3):
                assert await (await here.connect()).reply() is None
            assert lines(caplog) == [
                "10 connections are open, which is max_connections; further ones are closed at once"
            ]
            await ten[0].close()
            await until(lambda: here.server.connections == 9)
            assert lines(caplog)[1:] == [
                "9 connections are open, fewer than max_connections again; 3 were turned away"
            ]
            assert await here.answers()
            ten[1].ask("ok")
            assert await ten[1].reply() == "OK ok"

    run(main())
    assert len(lines(caplog)) == 2


def test_silent_clients_are_closed_when_their_time_is_over(run: Run) -> None:
    async def main() -> None:
        async with site(idle=0.2) as here:
            silent, waiting = await here.connect(), await here.connect()
            waiting.ask("slow1")
            assert await silent.reply() is None
            await asyncio.sleep(0.3)
            here.driver.release("slow1")
            assert await waiting.reply() == "OK slow1"  # it was we who were slow
            assert await waiting.reply() is None

    run(main())


def test_half_a_request_holds_its_place_for_a_time_and_nobody_else_up(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with site(stall=0.4) as here:
            slow = await here.connect()
            slow.ask("ok")
            slow.send(b"99:m ok")
            assert await slow.reply() == "OK ok"
            dripping = asyncio.create_task(drip(slow))
            assert await here.answers()
            assert await slow.reply() is None
            dripping.cancel()

    async def drip(client: Client) -> None:
        while True:
            client.send(b"k")
            await asyncio.sleep(0.1)

    with caplog.at_level(logging.INFO, "rcptd_socketmap.connection"):
        run(main())
    assert any("no whole request in" in line for line in lines(caplog, logging.INFO))


def test_a_client_that_takes_no_replies_is_read_no_more_and_cut(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with site(stall=0.4) as here:
            deaf = await here.connect()
            key = "ok" + "k" * 9_000
            deaf.ask(*[key] * 2_000)
            await until(lambda: len(here.driver.begun) > 10)
            await asyncio.sleep(0.1)
            assert len(here.driver.begun) < 500
            assert await here.answers()
            await until(lambda: here.server.connections == 1)

    with caplog.at_level(logging.INFO, "rcptd_socketmap.connection"):
        run(main())
    [line] = lines(caplog, logging.INFO)
    assert "took no replies for" in line


def test_a_client_that_takes_its_replies_late_gets_them_all(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            late = await here.connect()
            key = "ok" + "k" * 9_000
            late.ask(*[key] * 500)
            await until(lambda: len(here.driver.begun) > 10)
            await asyncio.sleep(0.1)
            assert len(here.driver.begun) < 500
            assert await late.replies(500) == ["OK " + key] * 500

    run(main())


def test_draining_closes_the_idle_and_answers_what_was_asked(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as here:
            idle, slow, half = [await here.connect() for _ in range(3)]
            slow.ask("slow1", "ok")
            half.send(b"4:m ")
            idle.ask("ok")
            assert await idle.reply() == "OK ok"
            await until(lambda: len(here.driver.begun) == 3 and here.server.connections == 3)
            draining = asyncio.create_task(here.server.drain(PATIENCE))
            assert await idle.reply() is None
            assert not here.path.exists()
            with pytest.raises(OSError, match=r"."):
                await here.connect("inet")
            assert here.server.connections == 2
            half.send(b"ok,")
            assert await half.replies(2) == ["OK ok", None]
            here.driver.release("slow1")
            assert await slow.replies(3) == ["OK slow1", "OK ok", None]
            assert await draining == 0

    run(main())
    assert lines(caplog) == []


def test_draining_tells_how_many_were_cut(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as here:
            slow, half = await here.connect(), await here.connect()
            slow.ask("slow1")
            half.send(b"4:m ")
            await until(lambda: len(here.driver.begun) == 1 and here.server.connections == 2)
            await asyncio.sleep(0.01)
            assert await here.server.drain(0.1) == 2
            assert await slow.reply() is None
            assert await half.reply() is None
            assert here.driver.cancelled == ["slow1"]

    run(main())
    assert lines(caplog) == ["2 connections were cut with something unanswered"]


def test_a_client_that_comes_as_we_drain_is_closed(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
            for client in clients:
                client.setblocking(False)
                client.connect(str(here.path))
            here.server._accept(here.server._listening[0])  # accepted, and not yet attached to the loop
            assert here.server.connections == 2
            assert await here.server.drain(PATIENCE) == 0
            for client in clients:
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
                client.close()

    run(main())


def test_a_client_that_comes_too_late_for_draining_is_cut(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(here.path))
            client.setblocking(False)
            here.server._accept(here.server._listening[0])
            assert await here.server.drain(0.0) == 1
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            client.close()

    run(main())


class Accepting(socket.socket):
    """A listener whose next accepts fail as they are told to."""

    faults: tuple[OSError, ...] = ()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.faults:
            fault, *rest = self.faults
            self.faults = tuple(rest)
            raise fault
        return super().accept()


def test_a_client_that_is_gone_before_it_is_accepted_costs_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        listener = Accepting(socket.AF_INET6)
        listener.bind(("::1", 0))
        listener.listen()
        listener.setblocking(False)
        listener.faults = (OSError(errno.ECONNABORTED, "aborted"), OSError(errno.EPROTO, "protocol"))
        driver = StubDriver()
        server = Server(answering(driver), settings())
        server.start([sockets.Listening(Address("inet6", "::1", 1), listener)])
        client = Client(*await asyncio.open_connection(*listener.getsockname()[:2]))
        client.ask("ok")
        assert await client.reply() == "OK ok"
        assert driver.begun[0].query.session.startswith("[::1]:")
        await client.close()
        assert await server.drain(PATIENCE) == 0

    run(main())
    assert lines(caplog) == []


def test_without_descriptors_the_server_rests_and_recovers(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REST", 0.02)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        async with site() as here:
            first = await here.connect()
            first.ask("ok")
            assert await first.reply() == "OK ok"
            second = socket.socket(socket.AF_UNIX)
            second.setblocking(False)
            accepts: list[sockets.Listening] = []
            accept = here.server._accept

            def counted(at: sockets.Listening) -> None:
                accepts.append(at)
                accept(at)

            monkeypatch.setattr(here.server, "_accept", counted)
            here.server._accept_at(here.server._listening[0])
            taken = [os.dup(0) for _ in range(3)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, limits[1]))
            try:
                while True:
                    try:
                        taken.append(os.dup(0))
                    except OSError:
                        break
                second.connect(str(here.path))
                second.send(b"4:m ok,")
                await asyncio.sleep(0.3)
                assert 2 < len(accepts) < 50  # it tried again, and did not spin
                first.ask("ok")
                assert await first.reply() == "OK ok"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for descriptor in taken:
                    os.close(descriptor)
            assert await asyncio.get_running_loop().sock_recv(second, 100) == b"5:OK ok,"
            second.close()

    run(main())
    [line] = lines(caplog)
    assert line.startswith("cannot accept at unix:")
    assert "Too many open files; trying again every 0.02 s with 1 connections open" in line


def test_too_few_descriptors_are_told_at_the_start(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "allow_descriptors", lambda _: 1024)

    async def main() -> None:
        async with site(max_connections=4000) as here:
            assert await here.answers()

    run(main())
    assert lines(caplog) == [
        "1024 open descriptors are allowed, too few for max_connections = 4000; raise LimitNOFILE= or ulimit -n"
    ]


# On standard input and output.


def test_one_connection_on_a_socket(run: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        driver = StubDriver()
        serving = asyncio.create_task(
            serve_stdio(answering(driver), settings(), stdin=theirs.fileno(), stdout=theirs.fileno())
        )
        client = Client(*await asyncio.open_connection(sock=ours))
        client.ask("ok1", "slow1")
        assert await client.reply() == "OK ok1"
        driver.release("slow1")
        assert await client.reply() == "OK slow1"
        client.send(b"garbage")
        # The end is seen although `theirs` is still open here, as 0 and 1 would be.
        assert await client.replies(2) == ["PERM Bad request: missing length", None]
        await serving
        await client.close()
        theirs.close()

    run(main())


def test_a_client_that_went_before_we_began(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as listener, socket.socket() as client:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            client.connect(listener.getsockname())
            theirs, _ = listener.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            with theirs:
                await serve_stdio(answering(StubDriver()), settings(), stdin=theirs.fileno(), stdout=theirs.fileno())

    run(main())


@asynccontextmanager
async def on_pipes(driver: StubDriver, chosen: Settings) -> AsyncIterator[tuple[int, int, asyncio.Task[None]]]:
    stdin, to_server = os.pipe()
    from_server, stdout = os.pipe()
    serving = asyncio.create_task(serve_stdio(Verdicts(driver, chosen.maps), chosen, stdin=stdin, stdout=stdout))
    await asyncio.sleep(0.05)
    os.close(stdin)
    os.close(stdout)
    try:
        yield to_server, from_server, serving
    finally:
        for descriptor in (to_server, from_server):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def read_all(descriptor: int) -> bytes:
    data = b""
    while piece := await asyncio.to_thread(os.read, descriptor, 65536):
        data += piece
    return data


def test_one_connection_on_two_pipes(run: Run) -> None:
    async def main() -> None:
        driver = StubDriver()
        async with on_pipes(driver, settings()) as (to_server, from_server, serving):
            os.write(to_server, b"5:m ok1,7:m slow1,")
            assert await asyncio.to_thread(os.read, from_server, 100) == b"6:OK ok1,"
            os.write(to_server, b"5:m ok2,4:m ")
            os.close(to_server)
            await asyncio.sleep(0.05)
            driver.release("slow1")
            assert await read_all(from_server) == (
                b"8:OK slow1,6:OK ok2,41:PERM Bad request: shorter than its length,"
            )
            await serving
            assert driver.begun[0].query.session == "standard input"

    run(main())


def test_pipes_that_nobody_reads_pause_the_questions(run: Run) -> None:
    async def main() -> None:
        driver = StubDriver()
        async with on_pipes(driver, settings()) as (to_server, from_server, serving):
            request = encode(b"m ok" + b"k" * 9_000)
            sending = asyncio.create_task(asyncio.to_thread(write_all, to_server, request * 200))
            await until(lambda: len(driver.begun) > 10)
            await asyncio.sleep(0.1)
            assert len(driver.begun) < 200
            assert len(await read_all(from_server)) == 200 * (len(request) + 1)
            await sending
            await serving

    run(main())


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
    os.close(descriptor)


def test_pipes_whose_reader_is_gone_end_the_service(run: Run) -> None:
    async def main() -> None:
        driver = StubDriver()
        async with on_pipes(driver, settings()) as (to_server, from_server, serving):
            os.write(to_server, b"7:m slow1,")
            await until(lambda: driver.begun)
            os.close(from_server)
            driver.release("slow1")
            async with asyncio.timeout(PATIENCE):
                await serving

    run(main())


def test_idle_and_stalled_pipes_are_closed(run: Run) -> None:
    async def main() -> None:
        async with on_pipes(StubDriver(), settings(idle=0.1)) as (_, from_server, serving):
            assert await read_all(from_server) == b""
            await serving

    run(main())


def test_cancelling_cuts_the_connection(run: Run) -> None:
    async def main() -> None:
        driver = StubDriver()
        async with on_pipes(driver, settings()) as (to_server, from_server, serving):
            os.write(to_server, b"7:m slow1,")
            await until(lambda: driver.begun)
            serving.cancel()
            assert await read_all(from_server) == b""
            assert driver.cancelled == ["slow1"]

    run(main())


def test_standard_input_from_a_file_is_a_fault(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with (
            (tmp_path / "file").open("w+") as file,
            pytest.raises(OSError, match="must be one socket, or two pipes"),
        ):
            await serve_stdio(answering(StubDriver()), settings(), stdin=file.fileno(), stdout=file.fileno())

    run(main())


# In a process of its own: real standard input, inherited descriptors.

CHILD = """
import asyncio, os, sys
from rcptd import sockets
from rcptd.schema import Address
from rcptd_socketmap.server import Server
from rcptd_socketmap.stdio import serve_stdio
from tests.test_socketmap_server import StubDriver, answering, settings

async def main():
    if sys.argv[1] == "stdio":
        await serve_stdio(answering(StubDriver()), settings())
    else:
        server = Server(answering(StubDriver()), settings())
        server.start(sockets.listen([Address("fd", "map")], passed=sockets.inherited()))
        await asyncio.to_thread(sys.stdin.read)
        print(await server.drain(5))
asyncio.run(main())
"""


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}


@contextlib.contextmanager
def child(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(arguments, env=environment(), text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def exchange(client: socket.socket, data: bytes) -> bytes:
    client.settimeout(PATIENCE)
    client.sendall(data)
    return client.recv(100)


def test_as_spawn_and_inetd_start_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, child(sys.executable, "-c", CHILD, "stdio", stdin=theirs, stdout=theirs) as process:
        theirs.close()
        assert exchange(ours, b"4:m ok,") == b"5:OK ok,"
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b""
        assert process.wait(PATIENCE) == 0


def test_as_systemd_starts_it() -> None:
    script = 'exec 3<&"$1"; shift; exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=map "$0" -c "$@"'
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())  # before there is a server: a restart is invisible
        start = ("bash", "-c", script, sys.executable, str(listener.fileno()), CHILD, "fd")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with child(*start, pass_fds=[listener.fileno()], cwd=Path.cwd(), **pipes) as process:
            assert exchange(client, b"4:m ok,") == b"5:OK ok,"
            out, _ = process.communicate("", timeout=PATIENCE)
            assert out == "0\n"
            assert client.recv(1) == b""


# An independent client: Postfix's own.


@pytest.mark.mta
@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_postmap_asks(run: Run, kind: str, tmp_path: Path) -> None:
    postmap = require_program("postmap")
    (tmp_path / "main.cf").write_text(f"compatibility_level = 3.6\nqueue_directory = {tmp_path}\n")

    async def ask(here: Site, name: str, key: str) -> tuple[int, str, str]:
        address = f"unix:{here.path}" if kind == "unix" else f"inet:127.0.0.1:{here.port}"
        process = await asyncio.create_subprocess_exec(
            postmap, "-c", str(tmp_path), "-q", key, f"socketmap:{address}:{name}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def main() -> None:
        shapes = {"*": "key", "access": "access", "sendmail": "error"}
        async with site(shapes=shapes) as here:
            here.path.parent.chmod(0o755)
            assert await ask(here, "m", "ok+tag@example.org") == (0, "ok+tag@example.org\n", "")
            assert await ask(here, "m", "gone@example.org") == (1, "", "")
            assert await ask(here, "access", "ok@example.org") == (0, "DUNNO\n", "")
            assert await ask(here, "access", "gone@example.org") == (0, "550 5.1.1 No such mailbox\n", "")
            assert await ask(here, "sendmail", "gone") == (0, 'error:5.1.1:"550 No such mailbox"\n', "")
            status, out, err = await ask(here, "m", "fault@example.org")
            assert (status, out) == (1, "")
            assert "Temporary failure, please try again later" in err
            long = "ok" + "k" * 9_998
            assert await ask(here, "m", long) == (0, f"{long}\n", "")

    run(main())
