"""SMTP and LMTP replies (RFC 5321 4.2): an incremental reader without I/O.

Feed `Replies` whatever the wire brings; it gives the replies that are complete, however they were cut into pieces.
The first fault ends it: replies before the fault are still given, then `fault` says what was wrong, and all further
input is dropped.

Servers differ more than the grammar allows, so these are taken as well: lines that end in a bare LF, lines far longer
than the 512 octets of RFC 5321 4.5.3.1.5, text that is no ASCII, control characters in it (each becomes a question
mark: the text goes to logs), lines of one reply with different codes of one class. The last code counts then, as that
line is what every client looks for. A reply whose lines are of different classes says both yes and no, and is a fault.

The enhanced status code (RFC 2034, RFC 3463) is the one that the lines agree on, if its class is that of the reply;
"550 4.2.1" has none.

LIMITS: a line has 4,096 octets at most, its end included, a reply 128 lines. What is kept is one incomplete reply.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

LINE_OCTETS = 4096
LINES = 128
SHOWN = 400  # characters of a reply that a log line repeats

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
# Cisco writes "#5.1.0".
_ENHANCED = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})(?![\d.])[ ]?")


class ReplyFault(Exception):
    """The other side sent what is no reply; `str` of it says what."""


class Reply(NamedTuple):
    """One whole reply: its code, its enhanced code ("" for none) and the lines without either."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text, in one line."""
        return " ".join(filter(None, self.lines))

    def __str__(self) -> str:
        """The reply in one line, as long as a log can bear."""
        whole = " ".join(filter(None, (str(self.code), self.enhanced, self.text)))
        return whole if len(whole) <= SHOWN else whole[:SHOWN] + "..."


class Replies:
    """Reads replies; `fault` is None while all is well."""

    def __init__(self) -> None:
        self.fault: ReplyFault | None = None
        self._rest = bytearray()
        self._searched = 0
        self._codes: list[bytes] = []
        self._lines: list[str] = []

    @property
    def partial(self) -> bool:
        """Say whether part of a reply has come."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes, give the replies that are complete now."""
        replies: list[Reply] = []
        if self.fault:
            return replies
        self._rest += data
        try:
            for line in self._whole_lines():
                self._add(line, replies)
        except ReplyFault as fault:
            self.fault = fault
            self._rest.clear()
            self._lines.clear()
        return replies

    def _whole_lines(self) -> Iterator[bytes]:
        begin = 0
        while (end := self._rest.find(b"\n", max(begin, self._searched), begin + LINE_OCTETS)) >= 0:
            yield bytes(self._rest[begin:end]).rstrip(b"\r")
            begin = end + 1
        if len(self._rest) - begin >= LINE_OCTETS:
            raise ReplyFault(f"a line of more than {LINE_OCTETS} octets")
        del self._rest[:begin]
        self._searched = len(self._rest)

    def _add(self, line: bytes, replies: list[Reply]) -> None:
        parts = _LINE.fullmatch(line)
        if not parts:
            raise ReplyFault(f"no reply line: {line[:80]!r}")
        code, more, text = parts.groups(default=b"")
        if len(self._lines) == LINES:
            raise ReplyFault(f"a reply of more than {LINES} lines")
        self._codes.append(code)
        self._lines.append(_clean(text))
        if more == b"-":
            return
        if len({each[:1] for each in self._codes}) > 1:
            raise ReplyFault(f"a reply with the codes {b', '.join(self._codes)[:80].decode()}")
        replies.append(_reply(int(code), self._lines))
        self._codes, self._lines = [], []


def _clean(text: bytes) -> str:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        decoded = text.decode("latin-1")
    if not decoded.isprintable():
        decoded = "".join(each if each.isprintable() else " " if each == "\t" else "?" for each in decoded)
    return decoded.strip()


def _reply(code: int, lines: list[str]) -> Reply:
    found = [_ENHANCED.match(line) for line in lines]
    said = {each[1] for each in found if each and int(each[1][0]) == code // 100}
    if len(said) != 1:
        return Reply(code, "", tuple(lines))
    (enhanced,) = said
    cuts = (each.end() if each and each[1] == enhanced else 0 for each in found)
    return Reply(code, enhanced, tuple(line[cut:] for line, cut in zip(lines, cuts, strict=True)))
