"""Asks the next hop by RCPT whether it takes a recipient: over LMTP or SMTP, on connections that are kept.

Theory of operation. `routes` says which next hops know the recipient's domain. They are asked in order; the next
one only when one cannot be reached, is left in peace by its breaker, or refuses us. Whatever a hop says of the
recipient ends the question, a "not now" as well: a second hop that knows less must not overrule it. Where no hop
is left, nothing is known.

What a hop says of us (a refusal in greeting, EHLO, MAIL, AUTH, or a 421) is never taken for a word on the
recipient; it is counted apart, and told in the log once when it begins and once when it is over.

Each hop has a pool of connections (`pool`) and a breaker of its own, so that none can slow another. Every question is
bounded by `timeout`, and cancelled whenever its asker likes. Texts of next hops go to log and trace only.

A hop's first answers about a domain come with a test whether it takes every local part (`acceptall`): whoever gets
a yes while the test is under way waits for its end, for a moment.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from random import random as chance

from rcptd.address import Recipient
from rcptd.question import EXISTS, Absence, Answer, Found, NotFound, Unavailable
from rcptd.stores.callahead import routes
from rcptd.stores.callahead.acceptall import AcceptAll, Key
from rcptd.stores.callahead.hops import Hops, Place
from rcptd.stores.callahead.meaning import HopTrouble, Outcome, TryAgain
from rcptd.stores.callahead.pool import Pool
from rcptd.stores.callahead.routes import Routes
from rcptd.stores.callahead.routesfile import RoutesFile
from rcptd.stores.callahead.settings import Settings

__all__ = ["MEMO", "CallAhead", "Settings", "open_store"]

MEMO = "on"  # asking costs the next hop, and it may be away
READING = 0.01  # seconds between two looks whether the routes file has been read for the first time
TEST = 2.0  # seconds that a yes waits for a test under way; what is not known then counts as proven


class CallAhead:
    """A service that asks next hops; for the loop only, but `condition` and `explain`."""

    next_hop = True

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = chance,
    ) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._file = RoutesFile(settings.routes_file) if settings.routes_file else None
        self._routes = Routes(
            settings.routes or {}, settings.next_hops or (), self._file.table if self._file else None
        )
        self._hops = Hops(settings, clock=clock, random=random)
        self._accept_all = AcceptAll(settings.accept_all_retest, random)
        self._tests: dict[Key, asyncio.Future[None]] = {}

    async def ask(self, recipient: Recipient) -> Answer:
        """Say what the next hops of the recipient's domain know; on the loop, and cancelled at will."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                while self._file and self._file.pending:
                    self._file.table()
                    await asyncio.sleep(READING)
                route = self._routes.of(recipient)
                return Unavailable(route) if isinstance(route, str) else await self._along(route, recipient)
        except TimeoutError:
            return Unavailable(f"no answer in {self._settings.timeout:g} s")

    async def ask_at(self, server: str, recipient: Recipient) -> Answer:
        """Ask the server that another store named, as the option `servers` says."""
        servers = self._settings.servers
        if not servers:
            return Unavailable(f'{server} is to be asked; say how, as in servers = "lmtp:*:2003"')
        try:
            hop = routes.server(servers, server)
        except ValueError as error:
            return Unavailable(str(error))
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._along((hop,), recipient)
        except TimeoutError:
            return Unavailable(f"no answer in {self._settings.timeout:g} s")

    async def aclose(self) -> None:
        """End all connections, with QUIT where that is quick."""
        await self._hops.aclose()

    def condition(self) -> str:
        """Say in a few words which next hops are not well."""
        unwell = self._hops.unwell()
        if self._file and isinstance(table := self._file.table(), str) and not self._file.pending:
            unwell.insert(0, table)
        return "; ".join(unwell)

    def explain(self, recipient: Recipient) -> list[str]:
        """Tell the route, and how each next hop on it is."""
        route = self._routes.of(recipient)
        if isinstance(route, str):
            return [route]
        lines = [f"route of {recipient}: {', '.join(map(str, route))}"]
        now = self._clock()
        for place in (place for hop in route for place in self._hops.last_known(hop, recipient.domain)):
            lines.append(f"next hop {place}: {self._hops.describe(place)}")
            takes_all = self._accept_all.known((str(place), recipient.domain), now)
            if takes_all is not None:
                word = "takes every local part" if takes_all else "does not take every local part"
                lines.append(f"next hop {place}: {word} of {recipient.domain}")
        return lines

    async def _along(self, hops: routes.Route, recipient: Recipient) -> Answer:
        """Ask one hop after the other, until one says something of the recipient."""
        reasons: list[str] = []
        for hop in hops:
            if isinstance(hop, str):
                outcome = await self._by_mx(recipient, reasons)
            else:
                outcome = await self._by_hop(Place(hop), recipient, reasons)
            if outcome:
                return outcome
        return Unavailable("; ".join(reasons))

    async def _by_mx(self, recipient: Recipient, reasons: list[str]) -> Answer | None:
        found = await self._hops.exchangers(recipient.domain)
        if isinstance(found, str):
            reasons.append(found)
            return None
        if isinstance(found, Absence):
            return NotFound(found, f"the DNS: {recipient.domain}: {found.value}")
        for place in found:
            if outcome := await self._by_hop(place, recipient, reasons):
                return outcome
        return None

    async def _by_hop(self, place: Place, recipient: Recipient, reasons: list[str]) -> Answer | None:
        """Ask one hop; None, with the reason, where it says nothing of the recipient."""
        pool = self._hops.pool(place)
        if self._settings.accept_all == "ignore":
            (outcome,) = await pool.ask((recipient,))
        else:
            outcome = await self._by_tested(pool, recipient)
        if isinstance(outcome, HopTrouble | TryAgain):
            reasons.append(str(outcome))
            return None
        return outcome

    async def _by_tested(self, pool: Pool, recipient: Recipient) -> Outcome:
        key = (pool.name, recipient.domain)
        if self._accept_all.is_due(key, self._clock()):
            outcome = await self._with_stranger(pool, key, recipient)
        else:
            (outcome,) = await pool.ask((recipient,))
        if not isinstance(outcome, Found):
            return outcome
        takes_all = self._accept_all.known(key, self._clock())
        if takes_all is None and (test := self._tests.get(key)):
            await asyncio.wait((test,), timeout=TEST)
            takes_all = self._accept_all.known(key, self._clock())
        return replace(outcome, mailbox=replace(outcome.mailbox, unproven=True)) if takes_all else outcome

    async def _with_stranger(self, pool: Pool, key: Key, recipient: Recipient) -> Outcome:
        """Ask about the recipient and, in the same transaction, one that nobody is."""
        test = self._tests[key] = asyncio.get_running_loop().create_future()
        outcome: Outcome | None = None
        try:
            outcome, of_stranger = await pool.ask((recipient, self._accept_all.stranger(recipient.domain)))
            # One that is full, disabled or closed was refused too, but says nothing clear.
            if isinstance(of_stranger, NotFound) or of_stranger == EXISTS:
                self._accept_all.learn(key, isinstance(of_stranger, Found), self._clock())
            return outcome
        finally:
            if outcome is None or isinstance(outcome, HopTrouble):
                # Given up, or the hop was not reached at all: nothing was tested.
                self._accept_all.withdrawn(key)
            del self._tests[key]
            test.set_result(None)


def open_store(name: str, settings: Settings) -> CallAhead:
    """Open the store of a configuration; nobody is asked yet."""
    return CallAhead(name, settings)
