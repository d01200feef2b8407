"""Cyrus' user_deny.db: who may not use which service, and what he is told.

A record is `VERSION TAB PATTERNS [TAB MESSAGE]`, its key the userid. The patterns stand between commas, spaces are part
of them, and the first that matches the service's name decides: the user is denied, or with a `!` in front allowed.
Version 1 has no message: a TAB in it belongs to a pattern.
"""

import re
from typing import NamedTuple

from rcptd.stores.cyrus.malformed import BAD_FORMAT, Malformed
from rcptd.stores.cyrus.wildmat import matches

DEFAULT_MESSAGE = b"Access to this service has been blocked"
MESSAGE_OCTETS = 4096
RECORD_OCTETS = 1 << 20  # far above any list that people wrote

# What strtoul takes for 1 and 2, with a TAB right behind it; not the two negative numbers that wrap around to them.
_VERSION = re.compile(rb"[ \t-\r]*\+?0*([12])\t")
_CONTROLS = bytes(range(0x20))
_SPACES = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))


class Denial(NamedTuple):
    """A user who may not: the message for the client, without control characters, and the pattern that matched."""

    message: bytes
    pattern: bytes


def denied(value: bytes, service: bytes, *, strict: bool = False) -> Denial | None:
    """Say whether a record denies a service; None allows it.

    A record that cannot be read denies nothing in Cyrus; in strict it raises `Malformed`, since whoever wrote it meant
    to deny something.
    """
    version = _VERSION.match(value) if len(value) <= RECORD_OCTETS else None
    if version is None:
        if strict and value:
            raise Malformed(BAD_FORMAT, f"no deny record: {value[:80]!r}")
        return None
    rest = value[version.end() :].partition(b"\0")[0]  # a string ends there in C
    message = DEFAULT_MESSAGE
    if version[1] == b"2" and b"\t" in rest:
        rest, _, message = rest.partition(b"\t")
    for pattern in filter(None, rest.split(b",")):
        allows = pattern.startswith(b"!")
        if matches(service, pattern[1:] if allows else pattern):
            return None if allows else Denial(message[:MESSAGE_OCTETS].translate(_SPACES), pattern)
    return None
