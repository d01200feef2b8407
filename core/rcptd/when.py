"""When a rule applies: the conditions of its `when`, three-valued.

A condition is a function of query and recipient that says True, False, or None where the front end
does not know the fact. None stays None under `not`, and a rule applies only where every condition is
True: what a socketmap cannot know neither opens nor closes a rule.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from rcptd import address, schema
from rcptd.query import UNKNOWN, Query

Holds = Callable[[Query, address.Recipient], bool | None]

ASKER_FACTS = ("client", "sender", "authenticated")
"""The facts that a socketmap never knows."""


@dataclass(frozen=True, slots=True)
class Domains:
    """A set of domains: exact ones, and all below others (`*.example.net`, not example.net itself)."""

    exact: frozenset[str]
    below: frozenset[str]

    def __contains__(self, domain: str) -> bool:
        if domain in self.exact:
            return True
        if self.below:
            _, dot, parent = domain.partition(".")
            while dot:
                if parent in self.below:
                    return True
                _, dot, parent = parent.partition(".")
        return False

    def __or__(self, other: "Domains") -> "Domains":
        return Domains(self.exact | other.exact, self.below | other.below)


NO_DOMAINS = Domains(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Addresses:
    """A set of addresses: whole ones, local parts in any domain, whole domains, the null sender."""

    keys: frozenset[str]
    locals: frozenset[str]
    domains: Domains

    def holds(self, key: str) -> bool:
        """Say whether a canonical address ("" is the null sender) is in the set."""
        if key in self.keys:
            return True
        local, at, domain = key.rpartition("@")
        return bool(at) and (local in self.locals or domain in self.domains)


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of a rule, with what the policy must know about them."""

    conditions: tuple[Holds, ...] = ()
    facts: tuple[str, ...] = ()
    """The names of the facts that are tested, in the order of `conditions`."""
    domains: Domains = NO_DOMAINS
    """The domains that a positive `domain` condition names."""

    def applies(self, query: Query, recipient: address.Recipient) -> bool:
        """Say whether every condition is known to hold."""
        for holds in self.conditions:  # noqa: SIM110 - all() with a generator costs the hot path 0.4 µs
            if not holds(query, recipient):
                return False
        return True

    def unmet(self, query: Query, recipient: address.Recipient) -> str:
        """Name the first condition that does not hold, for a trace; "" where all do."""
        for name, holds in zip(self.facts, self.conditions, strict=True):
            held = holds(query, recipient)
            if not held:
                return f"{name} is not known here" if held is None else f"{name} does not match"
        return ""


def read(value: object) -> When:
    """Read the `when` table of a rule; raises `ValueError` naming the condition."""
    if not isinstance(value, Mapping):
        raise ValueError('write a table, as in { domain = ["example.org"] }')  # noqa: TRY004 - one kind of fault
    conditions = []
    positive = NO_DOMAINS
    for name in sorted(value):
        if name not in _READERS:
            raise ValueError(f"there is no condition {name!r}; known: {', '.join(sorted(_READERS))}")
        wanted = value[name]
        negated = isinstance(wanted, Mapping)
        if negated:
            if set(wanted) != {"not"}:
                raise ValueError(f"{name}: write a value, a list, or {{ not = [...] }}")
            wanted = wanted["not"]
        try:
            holds = _READERS[name](wanted)
            if name == "domain" and not negated:
                positive = domains(wanted)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        conditions.append(_negate(holds) if negated else holds)
    return When(tuple(conditions), tuple(sorted(value)), positive)


def domains(value: object) -> Domains:
    """Read `example.org`, `*.example.net`, or a list of such."""
    exact: set[str] = set()
    below: set[str] = set()
    for pattern in schema.many(schema.text)(value):
        name = pattern.removeprefix("*.")
        try:
            (exact if name == pattern else below).add(address.domain(name))
        except address.NotAnAddress as error:
            raise ValueError(
                f'{pattern!r}: {error}; write "example.org", or "*.example.org" for all below it'
            ) from None
    return Domains(frozenset(exact), frozenset(below))


def addresses(value: object) -> Addresses:
    """Read addresses, `@domain`, `@*.domain`, `local@*`, `<>`, or a list of such."""
    keys, locals_, whole = set(), set(), []
    for pattern in schema.many(schema.text)(value):
        if pattern == "<>":
            keys.add("")
        elif pattern.startswith("@"):
            whole.append(pattern[1:])
        elif pattern.startswith("*@"):
            raise ValueError(f'{pattern!r} would be a local part of "*"; write "{pattern[1:]}" for everybody there')
        elif pattern.endswith("@*"):
            locals_.add(address.fold(pattern[:-2]))
        else:
            try:
                recipient = address.parse(pattern)
            except address.NotAnAddress as error:
                raise ValueError(f"{pattern!r} is no address: {error}") from None
            if not recipient.domain:
                raise ValueError(f'{pattern!r} has no domain; "{pattern}@*" means any')
            keys.add(recipient.key)
    return Addresses(frozenset(keys), frozenset(locals_), domains(whole) if whole else NO_DOMAINS)


def _domain(value: object) -> Holds:
    wanted = domains(value)
    if not wanted.below:
        exact = wanted.exact
        return lambda _query, recipient: recipient.domain in exact
    return lambda _query, recipient: recipient.domain in wanted


def _recipient(value: object) -> Holds:
    wanted = addresses(value)
    return lambda _query, recipient: wanted.holds(recipient.key)


def _sender(value: object) -> Holds:
    wanted = addresses(value)

    def holds(query: Query, _recipient: address.Recipient) -> bool | None:
        if query.sender is UNKNOWN:
            return None
        return wanted.holds(sender_key(query.sender))

    return holds


def sender_key(sender: str) -> str:
    """Give the canonical form of a sender; what is no address stands for itself."""
    if not sender:
        return ""
    try:
        return address.parse(sender).key
    except address.NotAnAddress:
        return sender


def _client(value: object) -> Holds:
    networks: Iterable[IPv4Network | IPv6Network] = schema.many(schema.network)(value)

    def holds(query: Query, _recipient: address.Recipient) -> bool | None:
        client = query.client
        if client is UNKNOWN:
            return None
        # A local client has no address, so it is in no network.
        return client is not None and any(client in network for network in networks)

    return holds


def _authenticated(value: object) -> Holds:
    if isinstance(value, bool):
        return lambda query, _: None if query.authenticated is UNKNOWN else bool(query.authenticated) is value
    names = frozenset(schema.many(schema.text)(value))
    return lambda query, _: None if query.authenticated is UNKNOWN else query.authenticated in names


def _front_end(value: object) -> Holds:
    names = frozenset(schema.many(schema.choice("milter", "socketmap"))(value))
    return lambda query, _: query.front_end in names


def _map(value: object) -> Holds:
    names = frozenset(schema.many(schema.text)(value))
    # A milter has no map name: there it is unknown, so that `not` does not let a milter in.
    return lambda query, _: query.map in names if query.front_end == "socketmap" else None


def _negate(holds: Holds) -> Holds:
    def negated(query: Query, recipient: address.Recipient) -> bool | None:
        held = holds(query, recipient)
        return None if held is None else not held

    return negated


_READERS: Mapping[str, Callable[[Any], Holds]] = {
    "authenticated": _authenticated,
    "client": _client,
    "domain": _domain,
    "front_end": _front_end,
    "map": _map,
    "recipient": _recipient,
    "sender": _sender,
}
