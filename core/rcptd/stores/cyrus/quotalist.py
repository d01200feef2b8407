"""The nested lists in which Cyrus keeps quotas: names and values, with any white space between them.

    %(S (10241 10) M (3) SCAN %(MBOX user.foo S 5))

The records of mailboxes look alike, but Cyrus reads them with another reader that takes one space and no more; ours is
in records.py. This one goes by Cyrus' parser of IMAP commands, whose atoms end at white space, a parenthesis or a
quote. It is written without recursion, so that no depth of nesting is too much.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from rcptd.stores.cyrus.malformed import BAD_FORMAT, Malformed

_SPACE = re.compile(rb"[ \t-\r]*")
_ATOM = re.compile(rb"[^ \t-\r()\"]+")
_QUOTED = re.compile(rb'"((?:[^"\\\r\n]|\\.)*+)"', re.DOTALL)
_LITERAL = re.compile(rb"\{([0-9]+)\+\}\r\n")
_DIGITS = 10  # more than a text of ours has octets

NIL: Final = b"\0NIL"
"""The text of an item that is null; no atom reads like it."""


class Unfinished(Exception):
    """The text ends before the list, or cannot be read further: to Cyrus that is the same."""


@dataclass(slots=True)
class Item:
    """A value and its name, "" in a plain list; a list has no text."""

    name: bytes
    text: bytes | None = None
    items: "list[Item]" = field(default_factory=list)


def read_list(text: bytes) -> tuple[list[Item], int]:
    """Read a list at the beginning of a text; gives its items and where it ends. Raises `Unfinished`, `Malformed`."""
    if not text.startswith(b"%("):
        raise Unfinished("there is no list")
    outer = Item(b"")
    open_lists: list[tuple[Item, bool]] = [(outer, True)]  # each with whether it has names
    at = 2
    while open_lists:
        at = _after_space(text, at)
        here, named = open_lists[-1]
        if text[at : at + 1] == b")":
            open_lists.pop()
            at += 1
            continue
        name = b""
        if named:
            name, at = _string(text, at)
            at = _after_space(text, at)
        item = Item(name)
        here.items.append(item)
        if text.startswith(b"%(", at):
            open_lists.append((item, True))
            at += 2
        elif text.startswith(b"(", at):
            open_lists.append((item, False))
            at += 1
        else:
            item.text, at = _value(text, at)
    return outer.items, at


def _after_space(text: bytes, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None  # it matches nothing, too
    at = space.end()
    # The original keeps what follows the space in a signed octet: 0xFF is its mark of the end, and at any other that
    # is not ASCII it aborts.
    if text.startswith(b"\xff", at):
        raise Unfinished(f"0xFF, which stands for the end, at byte {at}")
    if text[at : at + 1] >= b"\x80":
        raise Malformed(BAD_FORMAT, f"the quota has what Cyrus aborts at, at byte {at}")
    return at


def _value(text: bytes, at: int) -> tuple[bytes, int]:
    if text.startswith(b"%", at):
        raise Unfinished(f"a file or nothing known at byte {at}")
    if text.startswith(b"NIL", at):
        atom = _ATOM.match(text, at)
        if atom and atom[0].partition(b"\0")[0] == b"NIL":
            return NIL, atom.end()
    return _string(text, at)


def _string(text: bytes, at: int) -> tuple[bytes, int]:
    """Read an atom, a quoted string or a literal; each ends at a NUL, as C's strings do."""
    if quoted := _QUOTED.match(text, at):
        return re.sub(rb"(?s)\\(.)", rb"\1", quoted[1]).partition(b"\0")[0], quoted.end()
    if text.startswith(b"{", at):
        literal = _LITERAL.match(text, at)
        size = int(literal[1].lstrip(b"0")[:_DIGITS] or b"0") if literal else 0
        end = literal.end() + size if literal else 0
        if literal is None or end > len(text):
            raise Unfinished(f"a literal at byte {at} that does not end")
        return text[literal.end() : end], end
    if atom := _ATOM.match(text, at):
        return atom[0].partition(b"\0")[0], atom.end()
    raise Unfinished(f"nothing to read at byte {at}")
