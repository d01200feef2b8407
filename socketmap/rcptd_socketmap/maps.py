"""What each map name means: the shape of its replies, and every verdict in every shape.

`key`     OK <key> | NOTFOUND | TEMP: Postfix recipient maps, where PERM is 451 4.3.5 and a notice to the
          postmaster, so that only NOTFOUND refuses
`smmapd`  the same with PERM where Cyrus' smmapd says it
`access`  the actions of access(5), for Postfix check_recipient_access
`error`   OK OK, or values like error:5.1.1:"550 text", for Sendmail rulesets

A shape is bound to a map name because the same reply means different things: `OK 550 ...` refuses in an
access map and accepts in a recipient map (measured). Whatever is not in the table is told as our own
fault, which every MTA takes for "try again later", and logged.

An OK always carries a value: an empty one is a configuration error to Postfix, and without even the space
it ends Sendmail's process (measured).
"""

import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from types import MappingProxyType

from rcptd.verdict import OUR_FAULT, Action, Cause, Verdict, safe_text
from rcptd_socketmap.protocol import NAME_OCTETS

_log = logging.getLogger(__name__)


class Shape(Enum):
    """What the replies of a map look like."""

    KEY = "key"
    SMMAPD = "smmapd"
    ACCESS = "access"
    ERROR = "error"


EVERY_OTHER = "*"


class Maps:
    """The shapes of all maps by name; immutable. A name that is not there has the shape of `*`."""

    __slots__ = ("named", "other")

    def __init__(self, named: Mapping[str, Shape] = MappingProxyType({})) -> None:
        self.named = dict(named)
        self.other = self.named.get(EVERY_OTHER, Shape.KEY)

    def __repr__(self) -> str:
        return f"Maps({self.named!r})"

    def __eq__(self, other: object) -> bool:
        # A reload compares sections, to say which of them need a restart.
        return isinstance(other, Maps) and self.named == other.named

    def __hash__(self) -> int:
        return hash(frozenset(self.named.items()))

    def shape(self, name: str) -> Shape:
        """Say what the replies of a map look like."""
        return self.named.get(name, self.other)


_NAME = re.compile(rf"[!-~]{{1,{NAME_OCTETS}}}")


def maps(value: object) -> Maps:
    """Read the table of map names, as an option does; raises `ValueError` with all its faults."""
    if not isinstance(value, dict):
        raise ValueError('write a table of map names and shapes, as in "*" = "key"')  # noqa: TRY004
    words = [shape.value for shape in Shape]
    faults = []
    named = {}
    for name, word in value.items():
        if not _NAME.fullmatch(name):
            faults.append(
                f"{name!r} is no map name; write up to {NAME_OCTETS} printable ASCII characters, no space"
            )
        elif word in words:
            named[name] = Shape(word)
        else:
            near = get_close_matches(word, words, n=1) if isinstance(word, str) else []
            hint = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(map(repr, words))}"
            faults.append(f"{name!r} has no shape {word!r}; {hint}")
    if faults:
        raise ValueError("; ".join(faults))
    return Maps(named)


_NOT_FOUND = b"NOTFOUND"  # and nothing after it: none of ours, so there is nothing to tell
_BLANK = b" "  # a key that begins with this or a control character may be an empty value to its reader

# The word of each refusal: in `key`, in `smmapd`. A deferral is TEMP in both, whatever its cause. A cause
# that is missing here never refuses, or not in a map (where no size is known), or is new.
_REFUSED = {
    Cause.NO_SUCH_MAILBOX: ("NOTFOUND", "NOTFOUND"),
    Cause.NO_SUCH_DOMAIN: ("NOTFOUND", "NOTFOUND"),
    Cause.MOVED: ("NOTFOUND", "NOTFOUND"),
    Cause.NULL_MX: ("NOTFOUND", "NOTFOUND"),
    Cause.NOT_ALLOWED: ("NOTFOUND", "PERM"),
    Cause.DISABLED: ("NOTFOUND", "NOTFOUND"),
    Cause.FULL: ("TEMP", "PERM"),
    Cause.BAD_SYNTAX: ("NOTFOUND", "NOTFOUND"),
    Cause.NEEDS_SMTPUTF8: ("NOTFOUND", "NOTFOUND"),
    Cause.OPERATOR: ("NOTFOUND", "PERM"),
}
_DEFERRED = ("TEMP", "TEMP")

# What a verdict must be for its reply to keep its promise: all of one class, and no 421, which closes the
# connection under every other recipient.
_SOUND = {
    Action.REJECT: re.compile(r"5[0-5]\d 5\.\d{1,3}\.\d{1,3}"),
    Action.DEFER: re.compile(r"4[0-5]\d(?<!421) 4\.\d{1,3}\.\d{1,3}"),
}


def render(shape: Shape, verdict: Verdict | None, key: bytes) -> bytes:
    """Give the body of the reply; None is no opinion. Never raises, never waits."""
    if verdict is None:
        return _NOT_FOUND
    if verdict.action is not Action.ACCEPT:
        return _refusal(shape, verdict)
    if shape is Shape.ACCESS:
        return b"OK DUNNO"  # OK alone would permit what later restrictions refuse
    if shape is Shape.ERROR:
        return b"OK OK"
    if key[:1] > _BLANK:
        return b"OK " + key
    _log.error("map reply: %r was accepted, but as a value it is empty; deferred", key[:40])
    return _refusal(shape, OUR_FAULT)


# Few distinct verdicts are told again and again; a text with a reference in it is told once, hence the bound.
@lru_cache(maxsize=512)
def _refusal(shape: Shape, verdict: Verdict) -> bytes:
    words = _DEFERRED if verdict.action is Action.DEFER else _REFUSED.get(verdict.cause)
    sound = _SOUND[verdict.action].fullmatch(f"{verdict.code} {verdict.enhanced}")
    if not words or not sound:
        _log.error("map reply: no map can tell %s (%s); deferred", verdict.cause.value, verdict.reply)
        return _refusal(shape, OUR_FAULT)
    text = safe_text(verdict.text, "Recipient refused" if verdict.action is Action.REJECT else OUR_FAULT.text)
    match shape:
        case Shape.KEY:
            reply = f"{words[0]} {text}"
        case Shape.SMMAPD:
            reply = f"{words[1]} {text}"
        case Shape.ACCESS:
            reply = f"OK {verdict.code} {verdict.enhanced} {text}"
        case Shape.ERROR:
            # Quoted: Sendmail takes an unquoted text apart, and makes a 553 of an unbalanced bracket.
            reply = f'OK error:{verdict.enhanced}:"{verdict.code} {text}"'
    return reply.encode("ascii")
