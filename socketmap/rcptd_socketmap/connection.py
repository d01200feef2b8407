"""One socketmap connection: requests in, replies out in order.

Theory of operation. What the wire brings becomes requests, and a `Respondent` is asked about each. What it
knows at once goes out on the spot, all replies of one turn in one write. The others are found out by a task
each, and every later reply waits its turn behind them, for replies go out in the order of the requests.

At most PIPELINE requests are taken in one turn of the loop, so that a client that pipelines thousands
does not hold up the others, and at most as many wait for their reply. The connection is not read while there
are more, nor while its client does not take its replies.

Time limits are kept by `sweep`, called now and then, so that no question starts a timer.

LIMITS: a client that pipelines far beyond PIPELINE has at most one read of the loop (256 KiB) kept for it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from rcptd.netstring import encode
from rcptd.verdict import OUR_FAULT
from rcptd_socketmap.protocol import OWN, Conversation, Dialect

_log = logging.getLogger(__name__)

PIPELINE = 32
"""How many requests of one connection are taken in one turn, and how many may wait for their reply."""

TROUBLE = encode(f"TEMP {OUR_FAULT.text}".encode("ascii"))
"""The reply where a respondent broke its promise."""

_monotonic = time.monotonic


class Respondent(Protocol):
    """Who knows the replies; on the loop, shared by connections."""

    def again(self, request: bytes, peer: str, /) -> bytes | None:
        """Give the reply to a request that came alone and whole, if no more than that is needed to know it.

        Whatever is no such request, or unknown, gets None, and then goes its usual way.
        """
        ...

    def begin(self, name: str, key: bytes, peer: str, /) -> bytes | Coroutine[Any, Any, bytes]:
        """Give the reply as it goes out, framed, or what finds it out; never waits, never raises.

        The coroutine is awaited once, within a deadline of the respondent's own, or cancelled.
        """
        ...

    def broken(self, complaint: bytes, peer: str, /) -> None:
        """Note that a client's request was none, what it is told, and that its connection is closed."""
        ...


class _Waiting:
    """A request whose reply cannot go out yet; the reply is empty until it is known."""

    __slots__ = ("reply",)

    def __init__(self, reply: bytes = b"") -> None:
        self.reply = reply


class Connection(asyncio.Protocol):
    """One connection, on the loop; `peer` names the client in logs, `on_lost` is told of the end."""

    def __init__(
        self,
        respondent: Respondent,
        *,
        peer: str,
        on_lost: Callable[["Connection"], None],
        dialect: Dialect = OWN,
    ) -> None:
        self.peer = peer
        self._respondent = respondent
        self._on_lost = on_lost
        self._conversation = Conversation(dialect)
        self._answers_stalled = dialect.answers_stalled
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
        if not self._closing and not self._answer_whole(data):
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
        """End: nobody waits for these replies any more."""
        self._closing = self._closing or _monotonic()
        self._transport = None
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        self._on_lost(self)

    def use(self, respondent: Respondent) -> None:
        """Ask another respondent from the next request on."""
        self._respondent = respondent

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
            pass  # it is we who are slow, and the respondent has a deadline
        elif self._begun:
            if now - self._begun > stall:
                _log.info("%s: no whole request in %.0f s; connection closed", self.peer, now - self._begun)
                if self._answers_stalled:
                    self._conversation.end()
                    self._go_on()
                else:
                    self._close()
        elif now - self._heard > idle:
            self._close()

    def _answer_whole(self, data: bytes) -> bool:
        """Answer what nearly every MTA sends, one question in one piece with no other before it, in a few steps."""
        if self._waiting or self._more or self._draining or self._begun or not self._transport:
            return False
        known = self._respondent.again(data, self.peer)
        if known is not None:
            self._transport.write(known)
            return True
        request = self._conversation.whole(data)
        if request is None:
            return False
        reply = self._respondent.begin(*request, self.peer)
        if isinstance(reply, bytes):
            self._transport.write(reply)
        else:
            self._find_out(reply)
            self._go_on()
        return True

    def _take(self, data: bytes) -> None:
        """Take input, ask about each request, and answer what can be answered."""
        waiting = self._waiting
        begin = self._respondent.begin
        peer = self.peer
        conversation = self._conversation
        most = max(1, PIPELINE - len(waiting))
        requests = conversation.receive(data, most)
        replies = []
        for name, key in requests:
            reply = begin(name, key, peer)
            if not isinstance(reply, bytes):
                self._find_out(reply)
            elif waiting:
                waiting.append(_Waiting(reply))
            else:
                replies.append(reply)
        self._write(replies)
        self._more = len(requests) == most
        if not conversation.partial:
            self._begun = 0.0
        elif requests or not self._begun:
            self._begun = self._heard
        self._go_on()

    def _find_out(self, reply: Coroutine[Any, Any, bytes]) -> None:
        entry = _Waiting()
        self._waiting.append(entry)
        task = asyncio.get_running_loop().create_task(self._finish(entry, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, entry: _Waiting, reply: Coroutine[Any, Any, bytes]) -> None:
        try:
            entry.reply = await reply or TROUBLE
        except Exception:
            _log.exception("%s: a reply could not be found out; deferred", self.peer)
            entry.reply = TROUBLE
        waiting = self._waiting
        replies = []
        while waiting and waiting[0].reply:
            replies.append(waiting.popleft().reply)
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
                self._respondent.broken(complaint, self.peer)
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
