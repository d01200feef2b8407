"""The records of mailboxes.db: what Cyrus says about a mailbox.

Since 2.5 a record is a list of keys and values:

    %(T er I <uniqueid> P default V 1 C 1 F 1 M 1 S backend.example.org A %(foo lrswipkxtecdan anyone p))

of which three count here: the type T (a letter for the kind of mailbox, then one for each flag), the server S of a
mailbox that is elsewhere, and the access list A. Before, it was `NUMBER [SERVER!]PARTITION ACL`, with the kind and the
flags in the number, and perhaps a list in parentheses in front; whatever is no list is read in that way.

Cyrus' reader goes through a list once, without regard for where in it something stands: only whether it is within an
access list, and whether behind the beginning of a history. What it takes for the type is whatever is called T. This
one does the same, without recursion, so that no depth of nesting is too much.
"""

import re
from functools import lru_cache
from typing import NamedTuple, NoReturn

from rcptd.stores.cyrus.malformed import BAD_FORMAT, BAD_IDENTIFIER, IO_ERROR, ZERO_LENGTH, Malformed

__all__ = ["MailboxRecord", "Malformed", "read_mailbox"]

RECORD_OCTETS = 1 << 20  # an access list of ten thousand people, and more than any other record has

KINDS = {
    "a": "addressbook", "b": "collection", "c": "calendar", "e": "email", "j": "notifications", "n": "news",
    "p": "push subscriptions", "s": "submissions",
}  # fmt: skip
FLAGS = {
    "d": "deleted", "f": "sieve", "i": "intermediate", "l": "legacy directories", "m": "moving", "r": "remote",
    "z": "reserve",
}  # fmt: skip
_OLD_KINDS = {
    0: "email", 1: "news", 2: "submissions", 3: "push subscriptions", 4: "notifications", 8: "collection",
    9: "calendar", 10: "addressbook",
}  # fmt: skip
_OLD_FLAGS = {
    16: "remote", 32: "reserve", 64: "moving", 128: "deleted", 256: "intermediate", 512: "legacy directories",
}  # fmt: skip
_NOT_THERE = frozenset({"reserve", "deleted", "intermediate"})

# The record that nearly every mailbox has, where the reader below finds the same in six times the time: the type, plain
# values that do not count, and an access list of plain words.
_WORD = rb'(?!NIL[ )])[^ ()"{%\t\0]++'
_PLAIN = re.compile(
    rb"%%\(T ([a-z]++)(?: [B-GI-RU-Z] %(word)b)*+ A %%\(((?:%(word)b %(word)b(?: (?!\)))?)*+)\)\)" % {b"word": _WORD}
)

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_LITERAL = re.compile(rb"\{([0-9]*)\+?\}\r\n")
_DIGITS = 10  # more than a record of ours has octets
_NUMBER = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)")
_WORD_END = re.compile(rb"[ )]")
_NUMERIC = frozenset({b"C", b"F", b"M", b"V"})


class MailboxRecord(NamedTuple):
    """A record: the kind of mailbox, its flags, its server ("" for this one) and its access list."""

    kind: str
    flags: frozenset[str]
    server: bytes
    acl: tuple[tuple[bytes, bytes], ...]


def read_mailbox(value: bytes, *, rights: bool = True) -> MailboxRecord:
    """Read a record; raises `Malformed`, also for what Cyrus itself crashes upon.

    Who does not look at the `rights` may go without the access list, where it is plain.
    """
    if not value:
        raise Malformed(BAD_FORMAT, "the record is empty")
    if len(value) > RECORD_OCTETS:
        raise Malformed(BAD_FORMAT, f"the record is longer than {RECORD_OCTETS} bytes")
    if plain := _PLAIN.fullmatch(value):
        kind, flags = _type(plain[1])
        if "remote" not in flags:
            words = plain[2].split(b" ") if rights and plain[2] else []
            return MailboxRecord(kind, flags, b"", tuple(zip(words[::2], words[1::2], strict=True)))
    if value.startswith(b"%"):
        reading = _Reading(value)
        reading.read()
        kind, flags = _type(reading.type)
        server, acl = reading.server, bytes(reading.acl)
    else:
        kind, flags, server, acl = _read_old(value.partition(b"\0")[0])
    if server is None and "remote" in flags and not flags & _NOT_THERE:
        raise Malformed(IO_ERROR, "the mailbox is on a server that is not named")
    return MailboxRecord(kind, flags, server or b"", _entries(acl.partition(b"\0")[0]))


is_plain = re.compile(_PLAIN.pattern.replace(b"([a-z]++)", b"e")).fullmatch
"""Says whether a part of some octets is a record of mail, here, in no odd state, and can be read: as nearly all are."""


class _Reading:
    """One pass through a list, and what it has found."""

    def __init__(self, value: bytes) -> None:
        self.type: bytes | None = b""
        self.server: bytes | None = None
        self.acl = bytearray()
        self._value = value
        self._at = 0
        self._in_acl = False
        self._in_history = False

    def read(self) -> None:
        """Read the whole value."""
        value, end = self._value, len(self._value)
        keyed: list[bool] = []  # the lists that are open, each with whether it has keys
        while True:
            key = self._key() if keyed and keyed[-1] else b""
            octet = value[self._at]
            if octet == _OPEN:
                self._at += 1
                keyed.append(False)
                self._in_history = self._in_history or key == b"H"
            elif octet == _PERCENT:
                if not value.startswith(b"%(", self._at):
                    self._broken("a % that begins no list")
                self._at += 2
                keyed.append(True)
                self._in_acl = self._in_acl or key == b"A"
            else:
                self._take(key, self._item())
                if not self._next(keyed):
                    return
                continue
            if self._at >= end:
                self._broken("a list that does not end")
            if value[self._at] == _CLOSE and not self._next(keyed):
                return

    def _next(self, keyed: list[bool]) -> bool:
        """Go on to where the next value begins, and close the lists that end before; False at the end of all."""
        value, end = self._value, len(self._value)
        while keyed:
            if self._at < end and value[self._at] == _BLANK:
                self._at += 1
                if self._at < end and value[self._at] != _CLOSE:
                    return True
            if self._at >= end or value[self._at] != _CLOSE:
                self._broken("no blank, and no end of the list")
            self._at += 1
            if keyed.pop():
                self._in_acl = False
            else:
                self._in_history = False
        if self._at < end:
            raise Malformed(IO_ERROR, f"something follows the record at byte {self._at}")
        return False

    def _key(self) -> bytes:
        key = self._item()
        if key is None:
            raise Malformed(ZERO_LENGTH, f"NIL for a key before byte {self._at}")
        if not self._value.startswith(b" ", self._at):
            self._broken("no blank behind a key")
        self._at += 1
        if self._at >= len(self._value):
            self._broken("a key without a value")
        return key

    def _take(self, key: bytes, data: bytes | None) -> None:
        """Take what counts; strings end at a NUL, as in C, but the names in an access list are joined first."""
        text = data if data is None else data.partition(b"\0")[0]
        if self._in_acl:
            if text is None:
                raise Malformed(IO_ERROR, f"an access list with NIL for rights before byte {self._at}")
            self.acl += b"%b\t%b\t" % (key, text)
            return
        key = key.partition(b"\0")[0]
        if text is None and key in _NUMERIC:
            raise Malformed(IO_ERROR, f"NIL for a number before byte {self._at}")
        if key == b"T":
            if self._in_history:
                _type(text)
            else:
                self.type = text
                _type(text)
        elif key == b"S" and not self._in_history:
            self.server = text

    def _item(self) -> bytes | None:
        """Read an atom, a quoted string or a literal; None for NIL."""
        value, at = self._value, self._at
        if value.startswith(b'"', at):
            quoted = _QUOTED.match(value, at)
            if quoted is None:
                self._broken("a quote that does not end")
            self._at = quoted.end()
            text: bytes = quoted[1]
            return re.sub(rb"(?s)\\(.)", rb"\1", text) if b"\\" in text else text
        if value.startswith(b"{", at):
            literal = _LITERAL.match(value, at)
            size = int(literal[1].lstrip(b"0")[:_DIGITS] or b"0") if literal else 0
            if literal is None or literal.end() + size >= len(value):
                self._broken("a literal that does not end within the record")
            self._at = literal.end() + size
            return value[literal.end() : self._at]
        blank = value.find(b" ", at)
        atom = value[at : blank if blank >= 0 else len(value)].rstrip(b")")
        self._at += len(atom)
        return None if atom == b"NIL" else atom

    def _broken(self, what: str) -> NoReturn:
        raise Malformed(BAD_IDENTIFIER, f"{what}, at byte {self._at}")


_OPEN, _CLOSE, _PERCENT, _BLANK = b"()% "


@lru_cache(maxsize=64)
def _type(text: bytes | None) -> tuple[str, frozenset[str]]:
    """Read the kind and the flags of a mailbox; a kind that is missing is that of mail."""
    letters = "" if text is None else text.decode("latin-1")
    kind = "email"
    if letters and letters[0] in KINDS:
        kind = KINDS[letters[0]]
        letters = letters[1:]
    for letter in letters:
        if letter not in FLAGS:
            raise Malformed(IO_ERROR, f"an unknown letter {letter!r} in the type")
    return kind, frozenset(FLAGS[letter] for letter in letters)


def _entries(acl: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Give the entries of an access list; one whose rights lack the TAB behind them is none."""
    parts = acl.split(b"\t")
    return tuple((parts[at], parts[at + 1]) for at in range(0, len(parts) - 2, 2))


def _read_old(text: bytes) -> tuple[str, frozenset[str], bytes | None, bytes]:
    """Read an old record; anything is one."""
    if text.startswith(b"("):
        text = text[_after_list(text) :]
    number, text = _number(text)
    text = text.removeprefix(b" ")
    place, _, acl = text.partition(b" ")
    server, mark, _ = place.partition(b"!")
    flags = frozenset(name for bit, name in _OLD_FLAGS.items() if number & bit)
    return _OLD_KINDS.get(number & 15, "unknown"), flags, server if mark else None, acl


def _after_list(text: bytes) -> int:
    """Give the place behind the words in parentheses: pairs, until one does not end in a blank."""
    at = 1
    while True:
        word = _word_end(text, at)
        if text[word : word + 1] != b" ":
            break
        end = _word_end(text, word + 1)
        at = min(end + 1, len(text))
        if text[end : end + 1] != b" ":
            break
    return at + 1 if text[at : at + 1] == b" " else at


def _word_end(text: bytes, at: int) -> int:
    end = _WORD_END.search(text, at)
    return end.start() if end else len(text)


def _number(text: bytes) -> tuple[int, bytes]:
    """Read what strtol reads, of which 32 bits are kept; a number that is too large is the largest."""
    found = _NUMBER.match(text)
    if found is None:
        return 0, text
    digits = found[2].lstrip(b"0")[:40] or b"0"
    number = -int(digits) if found[1] == b"-" else int(digits)
    return max(-(1 << 63), min(number, (1 << 63) - 1)) & 0xFFFFFFFF, text[found.end() :]
