"""One socketmap connection: requests in, decisions, replies out in order.

Theory of operation. What the wire brings becomes requests, and a decision is begun for each. Those on local
stores are done where they began and are answered on the spot, all replies of one turn in one write. The
others are finished by a task each, and every later reply waits its turn behind them, for replies go out in
the order of the requests.

At most PIPELINE requests are taken in one turn of the loop, so that a client that pipelines thousands
does not hold up the others, and at most as many wait for a decision. The connection is not read while there
are more, nor while its client does not take its replies.

Time limits are kept by `sweep`, called now and then, so that no question starts a timer.

LIMITS: a client that pipelines far beyond PIPELINE has at most one read of the loop (256 KiB) kept for it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from rcptd.netstring import encode
from rcptd.query import Query
from rcptd.verdict import OUR_FAULT, Verdict
from rcptd_socketmap.maps import Maps, Shape, render
from rcptd_socketmap.protocol import OWN, Conversation, Dialect

_log = logging.getLogger(__name__)

PIPELINE = 32
"""How many requests of one connection are taken in one turn, and how many may wait for their decision."""

_monotonic = time.monotonic


class Decision(Protocol):
    """A decision under way; `verdict` counts once `done`, and None is no opinion."""

    @property
    def done(self) -> bool:
        """Say whether the decision has ended."""
        ...

    @property
    def verdict(self) -> Verdict | None:
        """Give what was decided."""
        ...


class Decides(Protocol):
    """Who decides: what we need of `rcptd.drive.Driver`."""

    def begin(self, query: Query, /) -> Decision:
        """Begin a decision; on the loop, never waits, never raises."""
        ...

    async def finish(self, decision: Any, /) -> None:
        """Take a decision that this driver began to its verdict, within the deadline; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class _Failed:
    """What stands in for a decision whose driver broke its promise."""

    done: bool = True
    verdict: Verdict | None = OUR_FAULT


class _Waiting:
    """A request whose reply cannot go out yet."""

    __slots__ = ("decision", "key", "shape")

    def __init__(self, shape: Shape, key: bytes, decision: Decision) -> None:
        self.shape = shape
        self.key = key
        self.decision = decision


class Connection(asyncio.Protocol):
    """One connection, on the loop; `peer` names the client in logs, `on_lost` is told of the end."""

    def __init__(
        self,
        driver: Decides,
        maps: Maps,
        *,
        peer: str,
        on_lost: Callable[["Connection"], None],
        dialect: Dialect = OWN,
    ) -> None:
        self.peer = peer
        self._driver = driver
        self._shape = maps.shape
        self._on_lost = on_lost
        self._conversation = Conversation(dialect)
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._heard = _monotonic()  # when input last came
        self._begun = 0.0  # when the request that is incomplete now began, 0 for none
        self._stuck = 0.0  # since when the client does not take its replies, 0 for not
        self._closing = 0.0  # since when we close, 0 for not
        self._more = False  # whether input is kept that may hold complete requests
        self._scheduled = False  # whether the next turn for those is
        self._reading = True
        self._ended = False  # whether the client has said its last
        self._draining = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Take input."""
        self._heard = _monotonic()
        if not self._closing:
            self._take(data)

    def eof_received(self) -> bool:
        """Note that nothing more comes; what was asked is answered before we close."""
        self._ended = True
        self._go_on()
        return True

    def pause_writing(self) -> None:
        """Note that the client does not take its replies."""
        self._stuck = _monotonic()
        self._go_on()

    def resume_writing(self) -> None:
        """Note that the client has taken its replies."""
        self._stuck = 0.0
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """End: nobody waits for these decisions any more."""
        self._closing = self._closing or _monotonic()
        self._transport = None
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        self._on_lost(self)

    def use(self, maps: Maps) -> None:
        """Answer by other maps from the next request on."""
        self._shape = maps.shape

    def drain(self) -> None:
        """Close as soon as what was asked is answered."""
        self._draining = True
        self._go_on()

    def abort(self) -> None:
        """Close now, whatever is unanswered."""
        self._closing = self._closing or _monotonic()
        if self._transport:
            self._transport.abort()

    def sweep(self, now: float, *, idle: float, stall: float) -> None:
        """Close if a time limit has passed; `now` is on the monotonic clock, all in seconds."""
        if since := self._closing or self._stuck:
            if now - since > stall:
                _log.info("%s: took no replies for %.0f s; connection cut", self.peer, now - since)
                self.abort()
        elif self._waiting or self._more:
            pass  # it is we who are slow, and the driver has a deadline
        elif self._begun:
            if now - self._begun > stall:
                _log.info("%s: no whole request in %.0f s; connection closed", self.peer, now - self._begun)
                self._close()
        elif now - self._heard > idle:
            self._close()

    def _take(self, data: bytes) -> None:
        """Take input, begin a decision for each request, and answer what can be answered."""
        waiting = self._waiting
        conversation = self._conversation
        most = max(1, PIPELINE - len(waiting))
        requests = conversation.receive(data, most)
        replies = []
        for name, key in requests:
            recipient = key.decode("utf-8", "surrogateescape")
            decision = self._driver.begin(Query(recipient, "socketmap", name, session=self.peer))
            shape = self._shape(name)
            if waiting or not decision.done:
                self._wait(_Waiting(shape, key, decision))
            else:
                replies.append(encode(render(shape, decision.verdict, key)))
        self._write(replies)
        self._more = len(requests) == most
        if not conversation.partial:
            self._begun = 0.0
        elif requests or not self._begun:
            self._begun = self._heard
        self._go_on()

    def _wait(self, entry: _Waiting) -> None:
        self._waiting.append(entry)
        if not entry.decision.done:
            task = asyncio.get_running_loop().create_task(self._finish(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, entry: _Waiting) -> None:
        try:
            await self._driver.finish(entry.decision)
        except Exception:
            _log.exception("%s: a decision failed; deferred", self.peer)
        if not entry.decision.done:
            entry.decision = _Failed()
        waiting = self._waiting
        replies = []
        while waiting and waiting[0].decision.done:
            first = waiting.popleft()
            replies.append(encode(render(first.shape, first.decision.verdict, first.key)))
        self._write(replies)
        self._go_on()

    def _write(self, replies: list[bytes]) -> None:
        if replies and self._transport and not self._closing:
            self._transport.write(replies[0] if len(replies) == 1 else b"".join(replies))

    def _go_on(self) -> None:
        """Close if that is what comes next, and else read exactly while there is room for what comes."""
        if self._closing or not self._transport:
            return
        if self._ended and not self._more:
            self._conversation.end()
        complaint = self._conversation.complaint
        if not self._waiting and not self._more:
            if complaint is not None:
                _log.info("%s: %s; connection closed", self.peer, complaint.decode("ascii", "replace"))
                self._write([encode(complaint)])
                self._close()
                return
            if self._ended or (self._draining and not self._conversation.partial):
                self._close()
                return
        room = len(self._waiting) < PIPELINE and not self._stuck
        if self._more and room and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._take_more)
        self._read(room and not self._more and not self._ended and complaint is None)

    def _take_more(self) -> None:
        self._scheduled = False
        if self._more and not self._closing and not self._stuck and len(self._waiting) < PIPELINE:
            self._take(b"")

    def _read(self, wanted: bool) -> None:
        if self._reading is wanted or not self._transport:
            return
        self._reading = wanted
        if wanted:
            if self._begun:
                self._begun = _monotonic()  # the time in which we did not read was not the client's
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _close(self) -> None:
        self._closing = _monotonic()
        if self._transport:
            self._transport.close()
