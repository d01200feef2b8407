"""A socketmap connection and what it asks of its transport, by a transport that records and a clock that is set."""

import asyncio

import pytest

from rcptd import verdict
from rcptd.query import Query
from rcptd_socketmap import connection as module
from rcptd_socketmap.connection import PIPELINE, Connection
from rcptd_socketmap.maps import Maps
from rcptd_socketmap.verdicts import Verdicts
from tests.test_socketmap_server import StubDecision, StubDriver


class Recorder(asyncio.Transport):
    """A transport whose client takes nothing, so that closing never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.written = b""
        self.closed = False
        self.aborted = False

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_monotonic", clock)
    return clock


def made() -> tuple[Connection, Recorder, StubDriver]:
    driver, transport = StubDriver(), Recorder()
    connection = Connection(Verdicts(driver, Maps()), peer="a client", on_lost=lambda _: None)
    connection.connection_made(transport)
    return connection, transport, driver


def sweep(connection: Connection, clock: Clock) -> None:
    connection.sweep(clock.now, idle=100, stall=10)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_nothing_is_read_while_requests_are_kept() -> None:
    async def main() -> None:
        connection, transport, driver = made()
        connection.data_received(b"4:m ok," * (2 * PIPELINE + 1))
        assert len(driver.begun) == PIPELINE  # one turn
        assert not transport.reading
        await turns()
        assert transport.written == b"5:OK ok," * (2 * PIPELINE + 1)
        assert transport.reading

    asyncio.run(main())


def test_nothing_is_read_after_a_fault_though_a_reply_is_due() -> None:
    async def main() -> None:
        connection, transport, driver = made()
        connection.data_received(b"6:m slow,")
        assert transport.reading
        connection.data_received(b"garbage")
        assert not transport.reading
        assert not transport.closed
        driver.release("slow")
        await turns()
        assert transport.written == b"7:OK slow,32:PERM Bad request: missing length,"
        assert transport.closed

    asyncio.run(main())


def test_nothing_is_read_while_the_client_takes_no_replies() -> None:
    connection, transport, _ = made()
    connection.pause_writing()
    assert not transport.reading
    connection.resume_writing()
    assert transport.reading


def test_a_client_that_takes_nothing_does_not_keep_us_from_closing(clock: Clock) -> None:
    connection, transport, _ = made()
    connection.data_received(b"garbage")
    assert transport.closed
    clock.now += 10
    sweep(connection, clock)
    assert not transport.aborted
    clock.now += 1
    sweep(connection, clock)
    assert transport.aborted


def test_half_a_request_has_its_time_from_its_first_byte(clock: Clock) -> None:
    connection, transport, _ = made()
    connection.data_received(b"4:m ok,4")
    clock.now += 6
    connection.data_received(b":m")
    clock.now += 6
    sweep(connection, clock)
    assert transport.closed


def test_each_request_has_a_time_of_its_own(clock: Clock) -> None:
    connection, transport, _ = made()
    connection.data_received(b"4:m")
    clock.now += 6
    connection.data_received(b" ok,4:m")
    clock.now += 6
    sweep(connection, clock)
    assert not transport.closed
    connection.data_received(b" ok,")
    clock.now += 99
    sweep(connection, clock)
    assert not transport.closed
    clock.now += 2
    sweep(connection, clock)
    assert transport.closed


def test_the_time_in_which_we_did_not_read_is_not_the_clients(clock: Clock) -> None:
    connection, transport, _ = made()
    connection.data_received(b"4:m ok,4:m")
    connection.pause_writing()
    clock.now += 9
    connection.resume_writing()
    clock.now += 9
    sweep(connection, clock)
    assert not transport.closed
    clock.now += 2
    sweep(connection, clock)
    assert transport.closed


def test_what_comes_after_closing_is_dropped() -> None:
    connection, transport, driver = made()
    connection.data_received(b"garbage")
    written = transport.written
    connection.data_received(b"4:m ok,")
    connection.eof_received()
    connection.resume_writing()
    assert transport.written == written
    assert driver.begun == []


def test_what_comes_while_we_close_in_peace_is_not_begun() -> None:
    connection, transport, driver = made()
    connection.drain()
    assert transport.closed
    connection.data_received(b"4:m ok,")
    assert driver.begun == []


def test_replies_to_a_client_that_is_gone_go_nowhere() -> None:
    class Stubborn(StubDriver):
        async def finish(self, decision: StubDecision) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                decision.done = True  # it was done just then

    async def main() -> None:
        transport = Recorder()
        connection = Connection(Verdicts(Stubborn(), Maps()), peer="a client", on_lost=lambda _: None)
        connection.connection_made(transport)
        connection.data_received(b"6:m slow,4:m ok,")
        await turns()
        connection.connection_lost(None)
        await turns()
        assert transport.written == b""

    asyncio.run(main())


def test_the_query_says_that_it_comes_from_a_map() -> None:
    connection, _, driver = made()
    connection.data_received(b"4:m ok,")
    assert driver.begun[0].query == Query("ok", "socketmap", "m", session="a client", wire="key")
    assert driver.begun[0].verdict is verdict.ACCEPTED
