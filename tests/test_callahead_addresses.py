"""Where a host is, and how it is reached: the resolver's threads, and happy eyeballs."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import pytest
import uvloop

from rcptd.stores.callahead import addresses, dialling
from rcptd.stores.callahead.addresses import KEPT, Addresses, look_up
from rcptd.stores.callahead.dialling import connect, connect_unix, interleaved

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def run_on(main: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)

    return run_on


class Resolver:
    """Says what a test wrote down, and counts."""

    def __init__(self, **known: list[str] | Exception) -> None:
        self.known = known
        self.asked: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        self.free.wait(5)
        found = self.known.get(host, [])
        if isinstance(found, Exception):
            raise found
        return found


def test_the_system_knows_localhost() -> None:
    assert {"127.0.0.1", "::1"} & set(look_up("localhost"))


def test_addresses_count_for_a_minute() -> None:
    resolver, now = Resolver(a=["192.0.2.1", "192.0.2.1", "2001:db8::1"]), [100.0]

    async def main() -> None:
        known = Addresses(look_up=resolver, clock=lambda: now[0])
        assert await known.of("a") == ("192.0.2.1", "2001:db8::1")
        now[0] += KEPT - 1
        await known.of("a")
        assert len(resolver.asked) == 1
        now[0] += 1
        resolver.known["a"] = ["192.0.2.2"]
        assert await known.of("a") == ("192.0.2.2",)
        await known.aclose()

    asyncio.run(main())


def test_an_address_is_not_looked_up() -> None:
    resolver = Resolver()

    async def main() -> None:
        known = Addresses(look_up=resolver)
        assert await known.of("2001:db8::1") == ("2001:db8::1",)
        assert await known.of("2001:db8::1") == ("2001:db8::1",)

    asyncio.run(main())
    assert not resolver.asked


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([], "a has no address"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), "a: Temporary failure in name resolution"),
        (OSError("odd"), "a: odd"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_trouble_is_told(found: list[str] | Exception, fault: str) -> None:
    async def main() -> None:
        known = Addresses(look_up=Resolver(a=found))
        with pytest.raises(OSError, match=fault):
            await known.of("a")
        await known.aclose()

    asyncio.run(main())


def test_old_addresses_are_used_while_there_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.05)
    resolver, now = Resolver(a=["192.0.2.1"]), [100.0]

    async def main() -> None:
        known = Addresses(look_up=resolver, clock=lambda: now[0])
        await known.of("a")
        now[0] += 10 * KEPT
        resolver.known["a"] = socket.gaierror(-3, "down")
        assert await known.of("a") == ("192.0.2.1",)
        resolver.free.clear()
        resolver.known["a"] = ["192.0.2.2"]
        before = time.monotonic()
        assert await known.of("a") == ("192.0.2.1",), "and while the resolver hangs"
        assert time.monotonic() - before < 1
        resolver.free.set()
        await asyncio.sleep(0.05)
        assert await known.of("a") == ("192.0.2.2",)
        await known.aclose()

    asyncio.run(main())


def test_one_host_is_looked_up_once_at_a_time_and_outlives_who_gives_up() -> None:
    resolver = Resolver(a=["192.0.2.1"])
    resolver.free.clear()

    async def main() -> None:
        known = Addresses(look_up=resolver)
        first, second = (asyncio.create_task(known.of("a")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        resolver.free.set()
        assert await second == ("192.0.2.1",)
        await known.aclose()

    asyncio.run(main())
    assert resolver.asked == ["a"]


def test_closing_ends_what_waits() -> None:
    resolver = Resolver()
    resolver.free.clear()

    async def main() -> None:
        known = Addresses(look_up=resolver)
        waiting = asyncio.create_task(known.of("a"))
        await asyncio.sleep(0.01)
        await known.aclose()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        resolver.free.set()
        await asyncio.sleep(0.05)  # the late answer comes to nobody

    asyncio.run(main())


def test_lookups_are_bounded_and_so_are_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "WAITING", 6)
    monkeypatch.setattr(addresses, "MOST", 2)
    resolver = Resolver(**{f"h{number}": ["192.0.2.1"] for number in range(6)})
    resolver.free.clear()

    async def main() -> None:
        known = Addresses(look_up=resolver)
        waiting = [asyncio.create_task(known.of(f"h{number}")) for number in range(6)]
        await asyncio.sleep(0.01)
        with pytest.raises(OSError, match="6 lookups wait already"):
            await known.of("more")
        assert len(known._threads) == addresses.THREADS
        resolver.free.set()
        await asyncio.gather(*waiting)
        assert len(known._known) == 2
        await known.aclose()

    asyncio.run(main())


def test_without_a_thread_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)

    async def main() -> None:
        with pytest.raises(OSError, match="no thread for the resolver"):
            await Addresses(look_up=Resolver()).of("a")

    asyncio.run(main())


def test_a_thread_ends_with_its_loop() -> None:
    resolver = Resolver(a=["192.0.2.1"])
    resolver.free.clear()
    known = Addresses(look_up=resolver)

    async def main() -> None:
        task = asyncio.create_task(known.of("a"))
        await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(main())
    resolver.free.set()
    known._threads[0].join(5)
    assert not known._threads[0].is_alive()


# Dialling.


def listener(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def test_families_take_turns() -> None:
    found = interleaved(["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"])
    assert list(found) == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"]
    assert list(interleaved(["192.0.2.1", "2001:db8::1"])) == ["192.0.2.1", "2001:db8::1"]


def test_one_address_is_connected_to(run: Run) -> None:
    async def main() -> None:
        with listener() as server, await connect(["127.0.0.1"], server.getsockname()[1]) as connection:
            assert connection.getpeername() == server.getsockname()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_the_next_address_comes_when_one_refuses(run: Run) -> None:
    async def main() -> None:
        with listener("127.0.0.2") as server:
            port = server.getsockname()[1]
            with await connect(["127.0.0.1", "127.0.0.2", "127.0.0.3"], port) as connection:
                assert connection.getpeername()[0] == "127.0.0.2"

    run(main())


def test_the_first_address_says_why_where_all_refuse(run: Run) -> None:
    async def main() -> None:
        with listener() as server:
            port = server.getsockname()[1]
        for hosts in (["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]):
            with pytest.raises(OSError, match=r"127\.0\.0\.1: Connection refused"):
                await connect(hosts, port)

    run(main())


class Attempts:
    """Takes the place of an attempt: each address connects after its time, or never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times: float) -> None:
        self.times = times
        self.begun: list[tuple[str, float]] = []
        self.ended: list[str] = []
        self.sockets: list[socket.socket] = []
        self.connected = asyncio.Event()
        self.start = time.monotonic()
        monkeypatch.setattr(dialling, "_attempt", self)
        monkeypatch.setattr(dialling, "STAGGER", 0.1)

    async def __call__(self, address: str, port: int) -> socket.socket:
        assert port == 25
        self.begun.append((address, time.monotonic() - self.start))
        try:
            await asyncio.sleep(self.times[address])
        finally:
            self.ended.append(address)
        self.sockets.append(socket.socket())
        self.connected.set()
        return self.sockets[-1]


def test_a_black_hole_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, a=60, b=60, c=0.02, d=0)

    async def main() -> None:
        with await connect(["a", "b", "c", "d"], 25):
            await asyncio.sleep(0)
        assert [address for address, _ in attempts.begun] == ["a", "b", "c"]
        assert 0.08 < attempts.begun[1][1] < 0.2 < attempts.begun[2][1] < 0.4
        assert set(attempts.ended) == {"a", "b", "c"}, "the losers are let go"

    asyncio.run(main())


def test_whoever_connects_second_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, a=0.15, b=0.05)

    async def main() -> None:
        with await connect(["a", "b"], 25) as won:
            await asyncio.sleep(0.05)
            assert [one.fileno() >= 0 for one in attempts.sockets if one is not won] in ([], [False])

    asyncio.run(main())


def test_who_gives_up_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, a=60, b=0)

    async def main() -> None:
        task = asyncio.create_task(connect(["a", "b"], 25))
        await attempts.connected.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
        assert [one.fileno() for one in attempts.sockets] == [-1]

    asyncio.run(main())


async def overfill(port: int) -> None:
    """Connect until the backlog is full, and no SYN is answered."""
    with await connect(["127.0.0.1"], port):
        await overfill(port)


def test_a_cancelled_attempt_closes_its_socket(run: Run) -> None:
    async def main() -> None:
        with listener() as server:
            server.listen(0)
            port = server.getsockname()[1]
            with await connect(["127.0.0.1"], port), pytest.raises(TimeoutError):
                await asyncio.wait_for(overfill(port), 0.1)

    run(main())


def test_a_unix_socket_is_connected_to_when_its_backlog_has_room(tmp_path: Path, run: Run) -> None:
    path = str(tmp_path / "lmtp")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            with await connect_unix(path), socket.socket(socket.AF_UNIX) as accepted:
                waiting = asyncio.create_task(connect_unix(path))
                await asyncio.sleep(0.05)
                assert accepted
                assert not waiting.done(), "the backlog is full"
                taken = server.accept()[0]
                with taken, await asyncio.wait_for(waiting, 5) as second:
                    assert second.getpeername() == path
        with pytest.raises(FileNotFoundError):
            await connect_unix(path + "x")

    run(main())
