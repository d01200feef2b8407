"""The respondent of rcptd's own maps: decides about a key, and tells the verdict in the shape of its map."""

import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from rcptd.netstring import encode
from rcptd.query import Query
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


class Verdicts:
    """Answers by verdicts; immutable, so that a reload brings another."""

    __slots__ = ("_driver", "_other", "_shapes")

    def __init__(self, driver: Decides, maps: Maps) -> None:
        self._driver = driver
        self._shapes = maps.named
        self._other = maps.other

    def begin(self, name: str, key: bytes, peer: str, /) -> bytes | Coroutine[Any, Any, bytes]:
        """Begin a decision; those on local stores are done where they began."""
        # Bytes that are no UTF-8 become surrogates, which the judge of addresses refuses.
        recipient = key.decode("utf-8", "surrogateescape")
        shape = self._shapes.get(name, self._other)
        decision = self._driver.begin(Query(recipient, "socketmap", name, session=peer, wire=shape.value))
        if decision.done:
            return encode(render(shape, decision.verdict, key))
        return self._finish(shape, key, decision, peer)

    def broken(self, complaint: bytes, peer: str, /) -> None:
        """Log it."""
        _log.info("%s: %s; connection closed", peer, complaint.decode("ascii", "replace"))

    async def _finish(self, shape: Shape, key: bytes, decision: Decision, peer: str) -> bytes:
        try:
            await self._driver.finish(decision)
        except Exception:
            _log.exception("%s: a decision failed; deferred", peer)
        return encode(render(shape, decision.verdict if decision.done else OUR_FAULT, key))
