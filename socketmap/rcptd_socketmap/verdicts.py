"""The respondent of rcptd's own maps: decides about a key, and tells the verdict in the shape of its map.

What was decided and still stands is told again in the words in which it was told before: to find it, the request is
looked up as it came, octet by octet, and nothing of it is read.
"""

import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from rcptd.netstring import encode
from rcptd.query import Query
from rcptd.settled import Ground, Settled, Settling
from rcptd.verdict import OUR_FAULT, Verdict
from rcptd_socketmap.maps import Maps, Shape, render

_log = logging.getLogger(__name__)


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

    def settling(self) -> Settling[bytes]:
        """Make a place for replies whose verdict still stands."""
        ...

    def settle(self, ground: Ground[bytes], question: bytes, reply: bytes, decision: Any, /) -> None:
        """Keep the reply to a question, as far as the verdict of a decision that was done at once stands."""
        ...

    def give_again(self, settled: Settled[bytes], query: Query, /) -> None:
        """Take note that a reply was given again."""
        ...


class Verdicts:
    """Answers by verdicts; what its maps mean never changes, so that a reload brings another."""

    __slots__ = ("_driver", "_other", "_settling", "_shapes")

    def __init__(self, driver: Decides, maps: Maps) -> None:
        self._driver = driver
        self._shapes = maps.named
        self._other = maps.other
        self._settling: Settling[bytes] = driver.settling()

    def again(self, request: bytes, peer: str, /) -> bytes | None:
        """Give the reply to a request that was answered before and whose verdict still stands."""
        settled = self._settling.recall(request)
        if settled is None:
            return None
        if settled.logged:
            name, _, key = request[:-1].partition(b":")[2].partition(b" ")
            self._driver.give_again(settled, self._query(name.decode("utf-8", "surrogateescape"), key, peer))
        return settled.reply

    def begin(self, name: str, key: bytes, peer: str, /) -> bytes | Coroutine[Any, Any, bytes]:
        """Begin a decision; those on local stores are done where they began."""
        shape = self._shapes.get(name, self._other)
        ground = self._settling.ground()
        decision = self._driver.begin(self._query(name, key, peer))
        if not decision.done:
            return self._finish(shape, key, decision, peer)
        reply = encode(render(shape, decision.verdict, key))
        self._driver.settle(ground, encode(b"%b %b" % (name.encode("utf-8", "surrogateescape"), key)), reply, decision)
        return reply

    def _query(self, name: str, key: bytes, peer: str) -> Query:
        # Bytes that are no UTF-8 become surrogates, which the judge of addresses refuses.
        wire = self._shapes.get(name, self._other).value
        return Query(key.decode("utf-8", "surrogateescape"), "socketmap", name, session=peer, wire=wire)

    def broken(self, complaint: bytes, peer: str, /) -> None:
        """Log it."""
        _log.info("%s: %s; connection closed", peer, complaint.decode("ascii", "replace"))

    async def _finish(self, shape: Shape, key: bytes, decision: Decision, peer: str) -> bytes:
        try:
            await self._driver.finish(decision)
        except Exception:
            _log.exception("%s: a decision failed; deferred", peer)
        return encode(render(shape, decision.verdict if decision.done else OUR_FAULT, key))
