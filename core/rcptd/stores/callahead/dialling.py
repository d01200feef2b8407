"""Connects to a next hop: over a unix socket, or to the first of a host's addresses that takes us (RFC 8305).

Addresses are tried in the order of the resolver, with the families taking turns; the next one is tried when the one
before has failed, or has said nothing for 250 ms. The first that connects wins, the others are let go. So a host whose
IPv6 is a black hole costs a quarter of a second, not the whole connect timeout.

The socket is connected by `loop.sock_connect`, which asyncio and uvloop both have, and handed on unwrapped.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, zip_longest

STAGGER = 0.25  # seconds, the Connection Attempt Delay of RFC 8305 5
FULL = 0.02  # seconds until a unix socket is tried again whose backlog is full


async def connect(addresses: Sequence[str], port: int) -> socket.socket:
    """Connect to the first address that takes us; raises the first address's `OSError`. The caller sets the time."""
    waiting = interleaved(addresses)
    first = next(waiting)
    if len(addresses) == 1:
        return await _attempt(first, port)  # the common case needs no task
    attempts = [asyncio.create_task(_attempt(first, port))]
    won: socket.socket | None = None
    try:
        while won is None:
            following = next(waiting, None)
            running = [one for one in attempts if not one.done()]
            stagger = STAGGER if following else None
            await asyncio.wait(running, timeout=stagger, return_when=asyncio.FIRST_COMPLETED)
            won = next((one.result() for one in attempts if one.done() and not one.exception()), None)
            if won is None and following:
                attempts.append(asyncio.create_task(_attempt(following, port)))
            elif won is None and (trouble := _trouble(attempts)):
                raise trouble
        return won
    finally:
        for one in attempts:
            _let_go(one, won)


def _trouble(attempts: "list[asyncio.Task[socket.socket]]") -> BaseException | None:
    """Give the trouble of the first, which is the address that the resolver likes best, once all have failed."""
    return attempts[0].exception() if all(one.done() for one in attempts) else None


def _let_go(attempt: "asyncio.Task[socket.socket]", won: socket.socket | None) -> None:
    """End an attempt, and close what it brings after all."""

    def close(done: "asyncio.Task[socket.socket]") -> None:
        if not done.cancelled() and not done.exception() and done.result() is not won:
            done.result().close()

    attempt.cancel()
    attempt.add_done_callback(close)


async def connect_unix(path: str) -> socket.socket:
    """Connect to a unix socket; raises `OSError`. The caller sets the time."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            # Not loop.sock_connect: a unix socket whose backlog is full says EAGAIN, which the loop takes for
            # a connection on its way (connect(2)), and then hands out one that is not connected.
            with suppress(BlockingIOError):
                connection.connect(path)
                return connection
            await asyncio.sleep(FULL)
    except BaseException:
        connection.close()
        raise


async def _attempt(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        # RCPT and its reply are small, and each waits for the other.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except OSError as error:
        connection.close()
        # asyncio puts the address into its words, uvloop does not.
        raise OSError(error.errno, f"{address}: {os.strerror(error.errno or errno.EIO)}") from None
    except BaseException:
        connection.close()
        raise
    return connection


def interleaved(addresses: Sequence[str]) -> Iterator[str]:
    """Give addresses with the families taking turns, the family of the first one first (RFC 8305 4)."""
    first = ":" in addresses[0]
    same = [one for one in addresses if (":" in one) == first]
    other = [one for one in addresses if (":" in one) != first]
    return (one for one in chain.from_iterable(zip_longest(same, other)) if one is not None)
