"""The two text formats of recipients, read line by line: our own list, and Postfix' tables.

LIST. One entry to a line: an address, `user@domain` or `@domain`, and how it is disposed:

    user@example.org                        exists; `ok` says the same
    user@example.org   disabled Gone away   disabled for good, with an optional text for the world
    user@example.org   defer Moving house   disabled for now
    user@example.org   moved new@example.net
    user@example.org   alias one@example.org two@example.net
    user@example.org   server imap1.example.org      kept there; the rule's next store asks that server

POSTFIX. A key and a value as in postmap(1)'s source files: a line that begins with white space goes on
with the one before, a line whose first character is `#` is a comment. The value is either an action of
access(5) or any word (`OK`, `x`, a path), which says that the recipient exists; with `targets` it is a
virtual(5) list of addresses. A key that is a domain of the same file only declares it, as virtual alias
domains are declared; any other key without an @ is a fault unless a domain is given to qualify it.

Both read bytes, since the file may hold anything. A fault is yielded in its place, not raised, so that
a reader can name them all.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rcptd import address
from rcptd.address import NotAnAddress
from rcptd.question import Disabled, Mailbox
from rcptd.stores import entries
from rcptd.stores.entries import Subject, public_text, subject, target, words

LINE_OCTETS = 32_768  # an alias of 50 targets of 254 octets is 13 kB


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, and what would be right."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipient of a file, and the line where it begins."""

    line: int
    of: Subject
    mailbox: Mailbox


PLAIN = Mailbox()


def read_list(source: BinaryIO, *, domain: str = "") -> Iterator[Entry | Fault]:
    """Read our own format; `domain` qualifies bare local parts."""
    for number, line in bounded_lines(source):
        if isinstance(line, Fault):
            yield line
            continue
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key, rest = _first_word(text)
            of = _subject(key, domain)
            yield Entry(number, of, _disposed(rest, of, domain))
        except ValueError as error:
            yield Fault(number, str(error))


def read_postfix(source: BinaryIO, *, domain: str = "", targets: bool = False) -> Iterator[Entry | Fault]:
    """Read a Postfix table; `domain` qualifies bare local parts, `targets` takes values as addresses."""
    bare: dict[str, int] = {}
    domains = set()
    for number, line in _logical_lines(source):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            key, value = _first_word(line)
            if not value:
                raise ValueError(f"{key!r} has no value; write `{key} OK`")  # noqa: TRY301 - one kind of fault
            if "@" not in key and not domain:
                bare.setdefault(key.lower(), number)
                continue
            of = _subject(key, domain)
            domains.add(of.domain)
            yield Entry(number, of, _aliased(value, of, domain) if targets else _acted(value, of))
        except ValueError as error:
            yield Fault(number, str(error))
    for key, number in bare.items():
        if _canonical(key) not in domains:
            yield Fault(number, f"{key!r} has no domain and is none of this file's; write user@domain")


def _canonical(key: str) -> str:
    try:
        return subject(f"@{key}").domain
    except NotAnAddress:
        return key


def _subject(key: str, domain: str) -> Subject:
    try:
        return subject(key, domain)
    except NotAnAddress as error:
        raise ValueError(f"{key[:80]!r} is neither user@domain nor @domain: {error}") from None


def _first_word(text: str) -> tuple[str, str]:
    """Cut the address from what follows; white space within quotes is the address's."""
    if not text.startswith('"'):
        key, _, rest = text.partition(" ") if "\t" not in text else _cut(text)
        return key, rest.strip()
    quoted = re.match(r'"(?:[^"\\]|\\.)*"\S*', text)
    if not quoted:
        raise ValueError("a quote is not closed")
    return quoted[0], text[quoted.end() :].strip()


def _cut(text: str) -> tuple[str, str, str]:
    key = text.split(None, 1)[0]
    return key, " ", text[len(key) :]


def _disposed(rest: str, of: Subject, domain: str) -> Mailbox:
    if not rest and not of.spelling:
        return PLAIN
    word, _, argument = rest.partition(" ")
    argument = argument.strip()
    match word.lower():
        case "" | "ok" if not argument:
            return Mailbox(spelling=of.spelling)
        case "disabled":
            return Mailbox(spelling=of.spelling, disabled=Disabled(text=public_text(argument)))
        case "defer":
            disabled = Disabled(temporary=True, text=public_text(argument))
            return Mailbox(spelling=of.spelling, disabled=disabled)
        case "moved" if argument:
            try:
                return Mailbox(spelling=of.spelling, moved_to=target(argument, domain))
            except NotAnAddress as error:
                raise ValueError(f"{argument[:80]!r} is no address to have moved to: {error}") from None
        case "alias" if argument:
            return _aliased(argument, of, domain)
        case "server" if argument:
            return Mailbox(spelling=of.spelling, server=_server(argument))
    raise ValueError(
        f"{rest[:80]!r} is no disposition; write nothing, ok, disabled TEXT, defer TEXT, moved ADDRESS, "
        f"alias ADDRESS... or server HOST"
    )


def _aliased(value: str, of: Subject, domain: str) -> Mailbox:
    found = words(value)
    if not found:
        raise ValueError("an alias without a target")
    return Mailbox(spelling=of.spelling, targets=entries.targets(found, of, domain))


def _server(name: str) -> str:
    try:
        return address.domain(name)
    except NotAnAddress as error:
        raise ValueError(f"{name[:80]!r} is no name of a server: {error}") from None


_ACTION = re.compile(
    r"(REJECT|DEFER(?:_IF_[A-Z]+)?|[45]\d\d)(?:\s+(?:[45]\.\d{1,3}\.\d{1,3}\s*)?(.*))?",
    re.DOTALL | re.IGNORECASE,
)


def _acted(value: str, of: Subject) -> Mailbox:
    """Take an access(5) action that refuses at its word: such an entry does not say that mail is welcome."""
    if value == "OK" and not of.spelling:
        return PLAIN
    action = _ACTION.fullmatch(value)
    if not action:
        return Mailbox(spelling=of.spelling)
    temporary = action[1][0] in "4dD"
    text = public_text((action[2] or "").strip())
    return Mailbox(spelling=of.spelling, disabled=Disabled(temporary=temporary, text=text))


def bounded_lines(source: BinaryIO) -> Iterator[tuple[int, str | Fault]]:
    """Give each line, bounded before it is read; a line of too great a length ends the file."""
    number = 0
    while octets := source.readline(LINE_OCTETS + 1):
        number += 1
        if len(octets) > LINE_OCTETS:
            yield (
                number,
                Fault(number, f"the line is longer than {LINE_OCTETS} bytes; nothing after it was read"),
            )
            return
        if not octets.endswith(b"\n"):
            yield (
                number,
                Fault(number, "no final newline: the file was cut off, or is not written to its end"),
            )
            return
        try:
            yield number, octets[:-1].decode()
        except UnicodeDecodeError:
            yield number, Fault(number, "not UTF-8")


def _logical_lines(source: BinaryIO) -> Iterator[tuple[int, str | Fault]]:
    """Give lines joined with those that go on with them (postmap(1), TABLE FORMAT)."""
    begun = 0
    pieces: list[str] = []
    size = 0
    for number, line in bounded_lines(source):
        if isinstance(line, Fault):
            yield number, line
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace():
            if pieces:
                yield begun, " ".join(pieces)
            begun, pieces, size = number, [line.strip()], len(line)
        elif not pieces:
            yield (
                number,
                Fault(number, "the line begins with white space, but there is none before to go on with"),
            )
        elif size + len(line) > LINE_OCTETS:
            yield number, Fault(number, f"with the lines before it is longer than {LINE_OCTETS} bytes")
        else:
            pieces.append(line.strip())
            size += len(line)
    if pieces:
        yield begun, " ".join(pieces)
