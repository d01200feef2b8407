"""The next hops that a store asks: the pool of each, how its connections are opened, and who they are by DNS.

A pool is made when its hop is first asked. Those of a routes file or of the DNS may come and go, so unused pools beyond
a number are forgotten, the one that has been unused longest first.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rcptd.question import Absence
from rcptd.stores.callahead import dialling
from rcptd.stores.callahead.addresses import Addresses
from rcptd.stores.callahead.breaker import Breaker
from rcptd.stores.callahead.connection import open_connection
from rcptd.stores.callahead.meaning import HopTrouble, Step, Trouble
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.pool import Limits, Pool
from rcptd.stores.callahead.settings import NO_DNSPYTHON, Settings
from rcptd.stores.callahead.waiting import Conversation, Open

if TYPE_CHECKING:
    from rcptd.stores.callahead.mx import MxResolver

MOST = 1000  # pools that are kept
OPENING = 10.0  # seconds from dialling to EHLO's reply: postscreen greets after 6, Sendmail's greet_pause is 5 at most
PASSWORD_OCTETS = 1024
TOLD = 5  # hops that a condition names


@dataclass(frozen=True, slots=True)
class Place:
    """A next hop, and its addresses where the DNS was asked for them already."""

    hop: NextHop
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.hop} by MX" if self.addresses else str(self.hop)


class Hops:
    """The pools of a store; only the loop may call, but for `unwell` and `describe`."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._settings = settings
        self._dialogue = settings.dialogue()
        self._limits = Limits(settings.connections, settings.idle, settings.age, settings.timeout)
        self._clock = clock
        self._random = random
        self._addresses = Addresses(clock=clock)
        self._pools: dict[str, Pool] = {}
        self._found: dict[str, tuple[str, ...]] = {}  # addresses of exchangers, as the DNS last had them
        self._exchangers: dict[str, tuple[Place, ...]] = {}  # of the domains, which the operator named
        self._resolver: MxResolver | None = None

    def pool(self, place: Place) -> Pool:
        """Give the pool of a hop, a new one where there is none."""
        name = str(place)
        if place.addresses:
            self._found[name] = place.addresses
        if pool := self._pools.get(name):
            return pool
        if len(self._pools) >= MOST:
            self._forget()
        pool = self._pools[name] = Pool(
            name,
            self._opener(place.hop, name),
            self._limits,
            Breaker(self._random),
            may_go_plain=self._settings.tls == "opportunistic",
            clock=self._clock,
        )
        return pool

    async def exchangers(self, domain: str) -> tuple[Place, ...] | Absence | str:
        """Give the mail exchangers of a domain in the order to be asked, or why there is none, or what is wrong."""
        try:
            from rcptd.stores.callahead.mx import DnsTrouble, MxResolver  # noqa: PLC0415 - dnspython takes 150 ms
        except ImportError:
            return NO_DNSPYTHON
        if self._resolver is None:
            settings = self._settings
            self._resolver = MxResolver(settings.nameservers or (), allowed=settings.mx_networks or ())
        try:
            found = await self._resolver.resolve(domain)
        except DnsTrouble as trouble:
            return str(trouble)
        if isinstance(found, Absence):
            return found
        port = self._settings.mx_port
        places = tuple(Place(NextHop("smtp", host=one.host, port=port), one.addresses) for one in found)
        self._exchangers[domain] = places
        return places

    def last_known(self, hop: NextHop | str, domain: str) -> tuple[Place, ...]:
        """Give the places that a next hop of a route stands for: for mx, what the DNS last said."""
        return self._exchangers.get(domain, ()) if isinstance(hop, str) else (Place(hop),)

    def describe(self, place: Place) -> str:
        """Tell how a hop is, and what was counted."""
        pool = self._pools.get(str(place))
        if pool is None:
            return "not asked yet"
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(pool.counts.items()))
        return f"{pool.describe()}; {counts or 'nothing asked yet'}"

    def unwell(self) -> list[str]:
        """Name the hops that are not well, in a few words each."""
        words = [f"{pool.name}: {word}" for pool in list(self._pools.values()) if (word := pool.condition())]
        return words if len(words) <= TOLD else [*words[:TOLD], f"and {len(words) - TOLD} more next hops"]

    async def aclose(self) -> None:
        """End all connections at once."""
        await asyncio.gather(*(pool.aclose() for pool in self._pools.values()))
        await self._addresses.aclose()
        if self._resolver:
            await self._resolver.aclose()

    def _forget(self) -> None:
        unused = [pool for pool in self._pools.values() if pool.is_unused]
        if unused:
            oldest = min(unused, key=lambda pool: pool.last_used)
            del self._pools[oldest.name]
            self._found.pop(oldest.name, None)

    def _opener(self, hop: NextHop, name: str) -> Open:
        async def dial() -> socket.socket:
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    if hop.path:
                        return await dialling.connect_unix(hop.path)
                    addresses = self._found.get(name) or await self._addresses.of(hop.host)
                    return await dialling.connect(addresses, hop.port)
            except TimeoutError:
                raise TimeoutError(f"not connected in {self._settings.connect_timeout:g} s") from None

        async def opened(plain: bool) -> Conversation:
            options = self._dialogue
            if options.auth_user:
                options = self._settings.dialogue(_password(self._settings.auth_password_file))
            if hop.protocol == "lmtp":
                # It delivers, and its clients are declared to it: none is known to count refusals.
                options = replace(options, refusals_per_connection=0)
            if plain:
                options = replace(options, tls="off")
            opening = max(OPENING, self._settings.connect_timeout)
            return await open_connection(hop, dial, options, until=asyncio.get_running_loop().time() + opening)

        return opened


def _password(path: Path) -> str:
    """Read the first line of a file, anew each time since passwords change; raises `HopTrouble`."""
    try:
        # A FIFO in its place must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            line = os.read(descriptor, PASSWORD_OCTETS).partition(b"\n")[0].removesuffix(b"\r").decode()
        finally:
            os.close(descriptor)
    except (OSError, UnicodeDecodeError) as error:
        raise HopTrouble(Trouble.AUTH, Step.AUTH, f"{path}: {error}") from None
    if not line or "\0" in line:
        raise HopTrouble(Trouble.AUTH, Step.AUTH, f"{path}: its first line is no password")
    return line
