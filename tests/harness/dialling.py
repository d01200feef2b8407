"""Connects to a scripted next hop, and asks it about recipients; one line in a test.

A module that imports the fixture `loop` runs each of its tests on asyncio's loop and on uvloop, by `run`.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from rcptd.address import parse
from rcptd.stores.callahead.connection import Connection, Dial, open_connection
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import Outcome, counted_as
from rcptd.stores.callahead.nexthop import NextHop, Protocol
from tests.harness.nexthop import ScriptedHop

HELLO = "filter.example.org"
T = TypeVar("T")

_factory: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"new": asyncio.new_event_loop}


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the loop; rcptd runs on either."""
    if request.param == "uvloop":
        monkeypatch.setitem(_factory, "new", pytest.importorskip("uvloop").new_event_loop)


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario on a loop of its own."""
    with asyncio.Runner(loop_factory=_factory["new"]) as runner:
        return runner.run(scenario)


def at(hop: ScriptedHop, protocol: Protocol = "smtp") -> NextHop:
    """Give a scripted hop's address."""
    if hop.path:
        return NextHop(protocol, path=str(hop.path))
    return NextHop(protocol, host="127.0.0.1", port=hop.port)


def dial(hop: NextHop) -> Dial:
    """Give a dial to it, without anything clever."""

    async def connect() -> socket.socket:
        connected = socket.socket(socket.AF_UNIX if hop.path else socket.AF_INET)
        connected.setblocking(False)
        try:
            where: Any = hop.path or (hop.host, hop.port)
            await asyncio.get_running_loop().sock_connect(connected, where)
        except BaseException:
            connected.close()
            raise
        return connected

    return connect


def later(seconds: float) -> float:
    """Give the loop's time in so many seconds."""
    return asyncio.get_running_loop().time() + seconds


async def come_true(fact: Callable[[], bool]) -> None:
    """Wait for a fact, however busy the machine is."""
    async with asyncio.timeout(5):
        while not fact():  # noqa: ASYNC110 - facts of code that knows of no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(
    hop: ScriptedHop, protocol: Protocol = "smtp", *, within: float = 5.0, **options: Any
) -> AsyncIterator[Connection]:
    """Open a connection to a hop that runs, and leave nothing open."""
    dialogue = Dialogue(**{"hello": HELLO, "reply_timeout": 2.0, **options})
    there = at(hop, protocol)
    connection = await open_connection(there, dial(there), dialogue, until=later(within))
    try:
        yield connection
    finally:
        connection.abort()
        await asyncio.sleep(0)


async def ask(connection: Connection, *addresses: str, within: float = 5.0) -> list[Outcome]:
    """Ask about addresses."""
    return await connection.ask([parse(address) for address in addresses], until=later(within))


async def counted(connection: Connection, *addresses: str, within: float = 5.0) -> list[str]:
    """Ask about addresses, give the kinds of the outcomes."""
    return [counted_as(outcome) for outcome in await ask(connection, *addresses, within=within)]
