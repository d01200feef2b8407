r"""Cyrus' patterns of service names: `*`, `?`, `[a-z]`, `[^a-z]`, and `\x` for x itself.

Its matcher is the old one of Usenet, and keeps its corners: in a class a `]` or `-` that comes first is a member, a
class may lack its end, a range counts from the member before it, and a `\` at the end of the pattern matches nothing.
Ours is written without recursion: it tries one `*` at a time, so its time is bounded by text times pattern.
"""

from typing import NamedTuple


class _Class(NamedTuple):
    """One place of a pattern: the octets that it takes."""

    members: frozenset[int]
    others: bool = False

    def takes(self, octet: int) -> bool:
        return (octet in self.members) != self.others


_ANY = _Class(frozenset(), others=True)
_NONE = _Class(frozenset())
_END = ord("]")
_RANGE = ord("-")


def matches(text: bytes, pattern: bytes) -> bool:
    """Say whether a pattern matches a whole text; both are strings of C, without a NUL."""
    if pattern == b"*":
        return True
    places = _places(pattern)
    at = place = 0
    star, resume = -1, 0
    while at < len(text):
        here = places[place] if place < len(places) else None
        if here is not None and here.takes(text[at]):
            at += 1
            place += 1
        elif place < len(places) and here is None:
            star, resume = place, at
            place += 1
        elif star >= 0:
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return all(rest is None for rest in places[place:])


def _places(pattern: bytes) -> list[_Class | None]:
    """Read a pattern; None stands for a `*`."""
    places: list[_Class | None] = []
    at = 0
    while at < len(pattern):
        octet = pattern[at : at + 1]
        at += 1
        if octet == b"*":
            if not places or places[-1] is not None:
                places.append(None)
        elif octet == b"?":
            places.append(_ANY)
        elif octet == b"[":
            found, at = _class(pattern, at)
            places.append(found)
        elif octet == b"\\":
            places.append(_Class(frozenset(pattern[at : at + 1])) if at < len(pattern) else _NONE)
            at += 1
        else:
            places.append(_Class(frozenset(octet)))
    return places


def _class(pattern: bytes, at: int) -> tuple[_Class, int]:
    """Read a class whose `[` is before `at`; gives it and where the pattern goes on."""
    others = pattern[at : at + 1] == b"^"
    members: set[int] = set()
    last = pattern[at] if others else ord("[")  # the original ranges from there, should a range have no beginning
    at += others
    if pattern[at : at + 1] in (b"]", b"-"):
        last = pattern[at]
        members.add(last)
        at += 1
    while at < len(pattern) and pattern[at] != _END:
        if pattern[at] == _RANGE and at + 1 < len(pattern) and pattern[at + 1] != _END:
            members.update(_range(last, pattern[at + 1]))
            at += 1
        else:
            members.add(pattern[at])
        last = pattern[at]
        at += 1
    return _Class(frozenset(members), others), at + 1


def _range(first: int, last: int) -> list[int]:
    """List the octets between two, both included, in the order of C's signed char."""
    return [octet % 256 for octet in range(_signed(first), _signed(last) + 1)]


def _signed(octet: int) -> int:
    return octet - 256 if octet > 127 else octet
