"""How a section of the configuration says what it takes: options declared beside their owner.

A section is a frozen dataclass whose fields are made by `option`: how to read the TOML value, its
default as it would stand in the file, and one sentence for the operator. `read` checks a whole table
against it and reports every fault, not just the first. A reader raises `ValueError` saying what is
wrong and what would be right, and so does the section's `__post_init__` of options that do not go together.

    @dataclass(frozen=True, slots=True)
    class Settings:
        path: Path = option(schema.path, doc="The database file.")
        allow_empty: bool = option(schema.boolean, default=False, doc="…")
"""

import dataclasses
import grp
import os
import pwd
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Reader = Callable[[Any], Any]
Report = Callable[[str, str], None]
"""Takes the key of a faulty option, relative to its section ("" for the section), and the fault."""

REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Declared:
    """An option as its section declares it."""

    read: Reader
    default: Any
    doc: str


def option(read: Reader, *, default: Any = REQUIRED, doc: str) -> Any:
    """Declare an option; `default` is the TOML value that leaving it out means, None for "not set"."""
    return dataclasses.field(metadata={"option": Declared(read, default, doc)})


def declared(section: type) -> dict[str, Declared]:
    """List the options of a section by name, in the order of declaration."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(section)}


def read(
    section: type[T], table: Mapping[str, Any], report: Report, *, known: tuple[str, ...] = ()
) -> T | None:
    """Read a table; gives None when a fault was reported. `known` keys are somebody else's to read."""
    options = declared(section)
    sound = True

    def fault(key: str, what: str) -> None:
        nonlocal sound
        sound = False
        report(key, what)

    for key in table:
        if key not in options and key not in known:
            near = get_close_matches(key, [*options, *known], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join([*known, *options])}"
            fault(key, f"no such option; {hint}")
    values: dict[str, Any] = {}
    for name, declaration in options.items():
        value = table.get(name, declaration.default)
        if value is REQUIRED:
            fault("", f"{name!r} is missing: {declaration.doc}")
        elif value is None:
            values[name] = None
        else:
            try:
                values[name] = declaration.read(value)
            except ValueError as error:
                fault(name, str(error))
    if not sound:
        return None
    try:
        return section(**values)
    except ValueError as error:
        report("", str(error))
        return None


def shown(key: str) -> str:
    """Put a key into a line for the operator, whatever it is made of."""
    return key if key.isprintable() else repr(key)


# Readers. Each takes what tomllib gives and raises ValueError.


def boolean(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError("write true or false, without quotes")  # noqa: TRY004 - one kind of fault
    return value


def text(value: object) -> str:
    """Read a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("write a text in quotes")
    return value


def number(low: int, high: int) -> Callable[[object], int]:
    """Read a whole number within bounds."""

    def read_number(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return read_number


def choice(*words: str) -> Callable[[object], str]:
    """Read one of some words."""

    def read_choice(value: object) -> str:
        if value not in words:
            raise ValueError(f"write one of {', '.join(map(repr, words))}")
        return str(value)

    return read_choice


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(low: float, high: float) -> Callable[[object], float]:
    """Read a length of time, as in "6s" or "1.5m", into seconds within bounds."""

    def read_duration(value: object) -> float:
        parts = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if not parts:
            raise ValueError('write a time with its unit, as in "500ms", "6s", "5m", "2h" or "1d"')
        seconds = float(parts[1]) * _SECONDS[parts[2]]
        if not low <= seconds <= high:
            raise ValueError(f"must be from {low:g}s to {high:g}s")
        return seconds

    return read_duration


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def octets(value: object) -> int:
    """Read a size in bytes: a number, or "500M", "2G" (powers of 1024)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    parts = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not parts:
        raise ValueError('write a size, as in 1048576, "500M" or "2G"')
    return int(float(parts[1]) * _FACTOR[parts[2].upper()])


def path(value: object) -> Path:
    """Read an absolute path."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("write an absolute path")
    return Path(value)


def many(one: Callable[[Any], T]) -> Callable[[object], tuple[T, ...]]:
    """Read one value or a list of them."""

    def read_many(value: object) -> tuple[T, ...]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("the list is empty")
        return tuple(map(one, values))

    return read_many


def network(value: object) -> IPv4Network | IPv6Network:
    """Read an address or a CIDR network."""
    try:
        if not isinstance(value, str):
            raise ValueError  # noqa: TRY004, TRY301 - one kind of fault
        return unmapped(ip_network(value))
    except ValueError:
        hint = ""
        if isinstance(value, str) and "/" in value:
            with suppress(ValueError):
                hint = f"; did you mean {ip_network(value, strict=False)}?"
        wanted = '"192.0.2.7" or "2001:db8::/32"'
        raise ValueError(f"{value!r} is no address or network, as in {wanted}{hint}") from None


_MAPPED = IPv6Network("::ffff:0:0/96")


def unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Give the IPv4 network that an IPv4-mapped IPv6 network stands for, as `rcptd.query` does for clients."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        first = int(network.network_address) & 0xFFFFFFFF
        return IPv4Network((first, network.prefixlen - _MAPPED.prefixlen))
    return network


def octal_mode(value: object) -> int:
    """Read a file mode, as in "0660"."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('write a mode in quotes, as in "0660"')
    return int(value, 8)


def user(value: object) -> int:
    """Read the name of a system user, or its number, into the number."""
    return _account(value, lambda name: pwd.getpwnam(name).pw_uid, "user")


def group(value: object) -> int:
    """Read the name of a system group, or its number, into the number."""
    return _account(value, lambda name: grp.getgrnam(name).gr_gid, "group")


# chown(2) takes (uid_t) -1 for "leave as it is".
_MOST_ACCOUNT = 0xFFFFFFFE


def _account(value: object, number_of: Callable[[str], int], kind: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ACCOUNT:
        return value
    try:
        return number_of(text(value))
    except KeyError:
        raise ValueError(f"there is no {kind} {value!r} on this system") from None


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: a unix path, an inet host and port, or an inherited descriptor."""

    kind: str
    """unix, inet, inet6 or fd"""
    host: str
    """the path of a unix socket, the name of an inherited descriptor, or an IP address"""
    port: int = 0

    def __str__(self) -> str:
        if self.kind in ("unix", "fd"):
            return f"{self.kind}:{self.host}"
        host = f"[{self.host}]" if self.kind == "inet6" else self.host
        return f"{self.kind}:{host}:{self.port}"


_INET = re.compile(r"(inet6?):(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})")
UNIX_PATH_OCTETS = 107  # struct sockaddr_un, less its final NUL (unix(7))


def address(value: object) -> Address:
    """Read a socket address: unix:/path, inet:127.0.0.1:7850, inet6:[::1]:7850 or fd:name."""
    wrong = 'write "unix:/path", "inet:127.0.0.1:7850", "inet6:[::1]:7850" or "fd:name"'
    if not isinstance(value, str):
        raise ValueError(wrong)  # noqa: TRY004 - one kind of fault
    kind, _, rest = value.partition(":")
    if kind == "fd" and re.fullmatch(r"[A-Za-z0-9._-]+", rest):
        return Address("fd", rest)
    if kind == "unix" and rest.startswith("/") and "\0" not in rest:
        if len(os.fsencode(rest)) > UNIX_PATH_OCTETS - len(".new"):
            raise ValueError("the path is too long for a unix socket")
        return Address("unix", rest)
    parts = _INET.fullmatch(value)
    if not parts:
        raise ValueError(wrong)
    family, bracketed, plain, port = parts.groups()
    try:
        host = ip_address(bracketed or plain)
    except ValueError:
        if plain == "localhost":
            host = ip_address("127.0.0.1" if family == "inet" else "::1")
        else:
            raise ValueError(f"{bracketed or plain!r} is no IP address") from None
    if host.version != (4 if family == "inet" else 6):
        raise ValueError(f"{host} does not go with {family}:")
    if not 0 < int(port) < 65536:
        raise ValueError("the port must be from 1 to 65535")
    return Address(family, str(host), int(port))
