"""The mail exchangers of a domain that the operator named, as the DNS has them.

RFC 5321 5.1 says who they are: the hosts of the MX records, the most preferred first and equals in random order; the
domain itself where it has no MX record but an address; nobody where its only MX record is `.` (RFC 7505); and none
that is as far away as we are, or further, where we are one of them.

Only two things are a "no": the null MX, and a domain that does not exist, which the MX and the address query must
agree on. Everything else that goes wrong is `DnsTrouble`, "do not know": SERVFAIL and REFUSED, silence, answers that
make no sense, a chain of CNAMEs without an end, a referral (what a server answers that does not serve the domain),
hosts without an address.

Addresses that a server in the internet cannot have are left out: loopback, private, link-local, multicast, reserved.
Such a one leads to whoever has it in our own network, and a stranger's "no" would be a wrong one. Where exchangers
really are in a private network the operator says so (`allowed`). Our own addresses are left out, or we would ask
ourselves; on loopback they are not looked for, since who allows 127.0.0.1 means another server on this host.

An answer is kept for the time that the DNS says, but from half a minute to an hour ("no such domain" for five minutes
at most: somebody may be about to register it). While the DNS fails, the exchangers that it named last are used for a
day. RFC 8767 has this for resolvers and proposes one to three days: a mail exchanger seldom moves, and who moved
would be asked at the old place, which has good reasons to keep saying the truth or nothing.

LIMITS. DNSSEC is the resolver's business. Our own address behind a NAT is not seen here, but in the greeting that we
get. An address of ours that only the kernel's table `local` has (AnyIP) is not seen either.

All of it runs on the loop, and nothing but this file imports dnspython: that costs 150 ms.
"""

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import chain, zip_longest
from typing import Any, cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.MX import MX

from rcptd.question import Absence

_log = logging.getLogger("rcptd.callahead.mx")

EXCHANGERS = 20  # of a domain, the most preferred; large providers have five or six
ADDRESSES = 16  # of an exchanger
DOMAINS = 1000  # that are remembered; each one was named by the operator
QUERIES = 64  # at once: each has a socket of its own
LEAST, MOST, MOST_ABSENT = 30.0, 3600.0, 300.0  # seconds for which an answer counts
STALE = 86400.0  # seconds, from when it no longer counts, for which it is used while the DNS fails
PATIENCE = 1.0  # seconds to wait for the DNS where there is an old answer: RFC 8767 5 has 1.8
UDP_OCTETS = 1232  # what no network fragments (DNS flag day 2020)
_REASON = 300  # characters of what went wrong: dnspython tells of every attempt

Network = IPv4Network | IPv6Network


class DnsTrouble(Exception):
    """The DNS does not tell who takes mail for the domain; says why, for the log."""


@dataclass(frozen=True, slots=True)
class Exchanger:
    """A mail exchanger: its name without final dot, and where it is, IPv6 and IPv4 in turn."""

    host: str
    addresses: tuple[str, ...]


Exchangers = tuple[Exchanger, ...] | Absence


@dataclass(slots=True)
class _Known:
    """A remembered answer, and until when it counts and may be used (by the clock of the resolver)."""

    value: Exchangers
    fresh: float
    usable: float


@dataclass(frozen=True, slots=True)
class _Records:
    """What a query gave: records of the type, for how many seconds, and whether the name exists at all."""

    values: tuple[object, ...]
    ttl: float
    exists: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    """A host of an MX record, its addresses, for how many seconds, and why it has none."""

    host: str
    preference: int
    addresses: tuple[str, ...]
    ttl: float
    why: str = ""


def is_own(address: str) -> bool:
    """Say whether an address is one of this host's own.

    No packet is sent. The kernel would send to its own address from that very address, and to no other one. Binding
    to it, the usual test, succeeds for every address where net.ipv4.ip_nonlocal_bind is set, as beside keepalived.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return bool(probe.getsockname()[0] == address)
    except OSError:
        return False  # no way leads there


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Say whether a server in the internet can have the address."""
    if isinstance(address, IPv6Address) and (address.is_site_local or address.ipv4_mapped):
        return False  # which `ipaddress` calls global, some versions
    return address.is_global and not address.is_multicast


class MxResolver:
    """Finds mail exchangers, and remembers them; for the loop only.

    `nameservers` are pairs of IP address and port, each address once; without them those of `resolv_conf` are asked,
    which is read anew each time. `limit` is seconds for all of one domain's queries.
    """

    def __init__(
        self,
        nameservers: Sequence[tuple[str, int]] = (),
        *,
        allowed: Iterable[Network] = (),
        limit: float = 4.0,
        resolv_conf: str = "/etc/resolv.conf",
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[str], bool] = is_own,
    ) -> None:
        if len(dict(nameservers)) != len(nameservers):
            raise ValueError("each nameserver has one port")  # all that dnspython can tell apart
        self._nameservers = tuple(nameservers)
        self._allowed = tuple(allowed)
        self._limit = limit
        self._resolv_conf = resolv_conf
        self._rng = rng or random.Random()  # noqa: S311 - spreads load
        self._clock = clock
        self._own = own
        self._known: dict[str, _Known] = {}
        self._flights: dict[str, asyncio.Task[Exchangers | DnsTrouble]] = {}
        self._gate = asyncio.Semaphore(QUERIES)

    async def resolve(self, domain: str) -> Exchangers:
        """Give the exchangers of a domain (in A-labels), at least one, or why there is none; raises `DnsTrouble`.

        Whoever asks while the DNS is being asked about the same domain waits for that answer.
        """
        known = self._known.get(domain)
        now = self._clock()
        if known and now < known.fresh:
            return known.value
        flight = self._flights.get(domain)
        if not flight:
            flight = asyncio.get_running_loop().create_task(self._fly(domain), name=f"mx of {domain}")
            self._flights[domain] = flight
        old = known if known and now < known.usable else None
        # The flight goes on where its asker is cancelled or out of patience: others may wait, or come.
        await asyncio.wait((flight,), timeout=PATIENCE if old else None)
        if flight.cancelled():
            raise DnsTrouble(f"{domain}: closing")
        outcome = flight.result() if flight.done() else DnsTrouble(f"{domain}: still waiting for the DNS")
        if not isinstance(outcome, DnsTrouble):
            return outcome
        if old:
            return old.value
        raise DnsTrouble(str(outcome))

    async def aclose(self) -> None:
        """Stop asking; whoever waits gets `DnsTrouble`."""
        for flight in self._flights.values():
            flight.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)

    async def _fly(self, domain: str) -> Exchangers | DnsTrouble:
        try:
            async with asyncio.timeout(self._limit):
                value, ttl = await self._look_up(domain)
        except DnsTrouble as trouble:
            return self._failed(domain, trouble)
        except TimeoutError:
            return self._failed(domain, DnsTrouble(f"{domain}: no answer of the DNS within {self._limit:g} s"))
        except Exception as error:
            # Whatever a name, a configuration or a packet makes dnspython raise.
            return self._failed(domain, DnsTrouble(f"{domain}: {error!r}"[:_REASON]))
        finally:
            del self._flights[domain]
        absent = isinstance(value, Absence)
        fresh = self._clock() + min(max(ttl, LEAST), MOST_ABSENT if absent else MOST)
        self._known.pop(domain, None)
        self._known[domain] = _Known(value, fresh, fresh if absent else fresh + STALE)
        if len(self._known) > DOMAINS:
            del self._known[next(iter(self._known))]
        return value

    def _failed(self, domain: str, trouble: DnsTrouble) -> DnsTrouble:
        known = self._known.get(domain)
        if known and (now := self._clock()) < known.usable:
            known.fresh = min(now + LEAST, known.usable)
            _log.warning("the mail exchangers of %s are those of before: %s", domain, trouble)
        return trouble

    async def _look_up(self, domain: str) -> tuple[Exchangers, float]:
        resolver = self._resolver()
        if not domain or domain.startswith("["):
            raise DnsTrouble(f"{domain!r} is no name of a domain")  # and the DNS would deny it
        name = dns.name.from_text(domain, dns.name.root)
        mx = await self._query(resolver, name, dns.rdatatype.MX)
        if not mx.exists:
            # There were servers that deny the name where they only lack the type. A "no" is worth a second query.
            address = await self._query(resolver, name, dns.rdatatype.A)
            if address.exists:
                raise DnsTrouble(f"{domain}: the DNS denies the domain, and then does not")
            return Absence.DOMAIN, min(mx.ttl, address.ttl)
        preferences: dict[dns.name.Name, int] = {}
        for record in cast("tuple[MX, ...]", mx.values):
            preferences[record.exchange] = min(record.preference, preferences.get(record.exchange, record.preference))
        if preferences.pop(dns.name.root, None) is not None and not preferences:
            return Absence.NULL_MX, mx.ttl
        ordered = list((preferences or {name: 0}).items())
        self._rng.shuffle(ordered)
        ordered.sort(key=lambda one: one[1])
        places = await asyncio.gather(*(self._place(resolver, *one) for one in ordered[:EXCHANGERS]))
        return self._choose(domain, places), min([mx.ttl, *(place.ttl for place in places)])

    def _choose(self, domain: str, places: Iterable[_Place]) -> tuple[Exchanger, ...]:
        ours = min((one.preference for one in places if any(map(self._is_ours, one.addresses))), default=1 << 16)
        found: list[Exchanger] = []
        reasons: list[str] = []
        for place in places:
            usable = tuple(filter(self._may_be_asked, place.addresses))
            if place.preference >= ours:
                reasons.append(f"{place.host} is this host, or no nearer than this host")
            elif usable:
                found.append(Exchanger(place.host, usable[:ADDRESSES]))
            elif place.addresses:
                reasons.append(f"{place.host} is at {place.addresses[0]}, which mx_networks does not allow")
            else:
                reasons.append(place.why)
        if not found:
            raise DnsTrouble(f"{domain}: no mail exchanger to ask: {'; '.join(reasons)}"[:_REASON])
        return tuple(found)

    def _is_ours(self, address: str) -> bool:
        return not ip_address(address).is_loopback and self._own(address)

    def _may_be_asked(self, address: str) -> bool:
        parsed = ip_address(address)
        return is_public(parsed) or any(parsed in network for network in self._allowed)

    async def _place(self, resolver: dns.asyncresolver.Resolver, name: dns.name.Name, preference: int) -> _Place:
        host = name.to_text(omit_final_dot=True).lower()
        kinds = (dns.rdatatype.AAAA, dns.rdatatype.A)
        answers = await asyncio.gather(*(self._query_or_trouble(resolver, name, kind) for kind in kinds))
        found: list[_Records] = []
        why = f"{host} has no address"
        ttl = MOST
        for answer in answers:
            if isinstance(answer, DnsTrouble):
                # One family is enough, as for every client, but ask again soon.
                why, ttl = str(answer), LEAST
            else:
                found.append(answer)
        in_turn = chain.from_iterable(zip_longest(*(one.values for one in found)))
        addresses = tuple(str(one) for one in in_turn if one is not None)
        return _Place(host, preference, addresses, min([ttl, *(one.ttl for one in found)]), why)

    async def _query_or_trouble(
        self, resolver: dns.asyncresolver.Resolver, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> _Records | DnsTrouble:
        try:
            return await self._query(resolver, name, kind)
        except DnsTrouble as trouble:
            return trouble

    async def _query(
        self, resolver: dns.asyncresolver.Resolver, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> _Records:
        exists = True
        async with self._gate:
            try:
                answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
                response = answer.response
            except dns.resolver.NXDOMAIN as error:
                exists = False
                response = cast(Any, error).response(name)  # untyped there
            except Exception as error:
                asked = f"{name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(kind)}"
                raise DnsTrouble(f"{asked}: {error}"[:_REASON]) from error
        found = response.resolve_chaining()
        if found.answer is None and _is_lame(response):
            raise DnsTrouble(f"{name.to_text(omit_final_dot=True)}: the nameserver does not serve it, nor asks others")
        if found.answer is None:
            return _Records((), found.minimum_ttl, exists)
        values = (one.address if kind != dns.rdatatype.MX else one for one in found.answer)
        return _Records(tuple(values), found.minimum_ttl)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Make a resolver for one domain: what it learns of a nameserver's health shall not last."""
        if self._nameservers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameserver_ports = dict(self._nameservers)
            resolver.nameservers = [host for host, _ in self._nameservers]
        else:
            resolver = dns.asyncresolver.Resolver(self._resolv_conf)
        resolver.timeout = self._limit / 3  # for each attempt, so that a lost packet is sent again
        resolver.lifetime = self._limit
        resolver.use_edns(0, 0, UDP_OCTETS)
        return resolver


def _is_lame(response: dns.message.Message) -> bool:
    """Say whether a "not there" is of a server that does not know: a referral, or neither authority nor recursion."""
    kinds = {one.rdtype for one in response.authority}
    refers = dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds
    return refers or not response.flags & (dns.flags.AA | dns.flags.RA)
