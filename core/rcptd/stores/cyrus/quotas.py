"""Quotas: which root counts for a mailbox, what its value says, and whether that is too much.

The root that counts is the one with the longest name that the mailbox' internal name begins with, piece by piece; it
alone decides. A value is written in one of two ways. Since Cyrus 2.5:

    %(S (10241 10) M (3) AS (0) NF (4))      used and limit of storage (the limit in KiB), messages, ...

and before, in blanks: `10241 10 M 3 -1`. Either may lack a limit, or have a negative one, which is none.

Cyrus counts in C's signed 64 bits, and a limit of 2**53 KiB or more has wrapped around there. Faithful keeps that.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from rcptd.stores.cyrus.databases import Database, Learning, Watches, open_database
from rcptd.stores.cyrus.imapdconf import ImapdConf
from rcptd.stores.cyrus.malformed import BAD_FORMAT, Malformed
from rcptd.stores.cyrus.quotalist import NIL, Item, Unfinished, read_list
from rcptd.stores.cyrus.server import server

NAME_OCTETS = 510  # what the original searches by
VALUE_OCTETS = 128 << 10  # what the original takes for one string; a quota has a hundred

# The list that Cyrus writes, where the reader of lists finds the same in ten times the time.
_RESOURCE = rb"\(([0-9]{1,18}+)(?: ([0-9]{1,18}+))?\)"
_PLAIN = re.compile(
    rb"%%\(S %(resource)b M %(resource)b(?: (?:AS|NF) \([0-9]++(?: [0-9]++)?\))*+(?: MODSEQ [0-9]++)?\)"
    % {b"resource": _RESOURCE}
)

_KIB = 1024
_WRAP = 1 << 64
_SIGN = 1 << 63
_DIGITS = 40  # more than any number has that fits
_NUMBER = re.compile(rb"[\v\f]*([+-]?)([0-9]+)")
_UNSIGNED = re.compile(rb"[0-9]+")
_NEGATIVE = re.compile(rb"-[0-9]+")
_RESOURCES = (b"S", b"M", b"AS", b"NF")


class QuotaFigures(NamedTuple):
    """What is used and what is allowed: octets and messages, None for no limit."""

    storage_used: int
    storage_limit: int | None
    messages_used: int
    messages_limit: int | None

    def __str__(self) -> str:
        storage = "no limit" if self.storage_limit is None else f"{self.storage_limit}"
        messages = "no limit" if self.messages_limit is None else f"{self.messages_limit}"
        return f"{self.storage_used} bytes used of {storage}, {self.messages_used} messages of {messages}"


NO_QUOTA = QuotaFigures(0, None, 0, None)


def open_quotas(conf: ImapdConf, watches: Watches | None = None, learning: Learning | None = None) -> Database:
    """Open the database of quota roots, as `open_database` does; troubles come with the questions."""
    letter = hash_letter if conf.fulldirhash else first_letter
    domains = conf.virtdomains != "off"
    return open_database(
        conf.quota_db, conf.quota_db_path, what="quota_db", letter=letter, domains=domains, sql=server(conf),
        watches=watches, learning=learning,
    )  # fmt: skip


def roots(conf: ImapdConf, internal: bytes) -> Iterator[bytes]:
    """Give the names of the quota roots that may count for an internal name, the most specific first."""
    name = internal[:NAME_OCTETS]
    domain = b""
    if conf.virtdomains != "off" and b"!" in name:
        domain, mark, name = name.partition(b"!")
        domain += mark
    while True:
        yield domain + name
        name, dot, _ = name.rpartition(b".")
        if not dot:
            break
    if domain and domain != internal:
        yield domain


def first_letter(name: bytes) -> bytes:
    """Give the letter of the folder in which the quota of a name is kept.

    Only the part before the first dot counts; the caller drops what stands before the user.
    """
    letter = name[:1]
    return letter.lower() if letter.isalpha() else b"q"  # of ASCII, as bytes know no other


def hash_letter(name: bytes) -> bytes:
    """Give the same under the option fulldirhash."""
    number = 0
    for octet in name.partition(b".")[0].partition(b"\0")[0]:
        number = ((number << 3) ^ (number >> 5)) & 0xFFFFFFFF ^ octet
    return b"%c" % (ord("A") + number % 23)


def read_quota(value: bytes, *, strict: bool = False) -> QuotaFigures:
    """Read the value of a quota root; raises `Malformed`.

    In Cyrus a value that is empty or cut short is no quota. Item 13: strict raises `Malformed` for both, and for a
    number that is none, which Cyrus takes for 0.
    """
    if len(value) > VALUE_OCTETS:
        raise Malformed(BAD_FORMAT, f"the quota is longer than {VALUE_OCTETS} bytes")
    if not value or value.startswith(b"\0"):
        if strict:
            raise Malformed(BAD_FORMAT, "the quota is empty")
        return NO_QUOTA
    if plain := _PLAIN.fullmatch(value):
        used, limit, messages, most = plain.groups()
        return QuotaFigures(
            int(used), int(limit) * _KIB if limit else None, int(messages), int(most) if most else None
        )
    if value.startswith(b"%"):
        return _read_list(value, strict=strict)
    return _read_fields(value.partition(b"\0")[0])


def over(figures: QuotaFigures, *, strict: bool = False, size: int = 0) -> bool:
    """Say whether a message more, of `size` octets, is too much.

    The original asks for room for a message, but for no octet of it. Item 12: in strict the last message still fits at
    the limit, as lmtpd counts. Item 13: strict does not wrap.
    """
    counts = (
        (figures.storage_used, figures.storage_limit, size),
        (figures.messages_used, figures.messages_limit, 0 if strict else 1),
    )
    for used, limit, more in counts:
        if limit is None:
            continue
        if used + more > limit if strict else _signed(used + more) > _signed(limit):
            return True
    return False


def _read_list(value: bytes, *, strict: bool) -> QuotaFigures:
    try:
        items, end = read_list(value)
    except Unfinished as unfinished:
        if strict:
            raise Malformed(BAD_FORMAT, f"the quota ends before its list does: {unfinished}") from None
        return NO_QUOTA  # the original takes the end of the text for the end of the list
    if end != len(value):
        raise Malformed(BAD_FORMAT, f"something follows the quota at byte {end}")
    storage_used, storage_limit = _resource(items, b"S", strict=strict)
    messages_used, messages_limit = _resource(items, b"M", strict=strict)
    return QuotaFigures(
        storage_used, None if storage_limit is None else storage_limit * _KIB, messages_used, messages_limit
    )


def _resource(items: list[Item], name: bytes, *, strict: bool) -> tuple[int, int | None]:
    """Give used and limit of the first resource of a name; a name is spelt one way only."""
    numbers = next((item.items for item in items if item.name == name), [])
    used = _unsigned(numbers[0], strict=strict) if numbers else 0
    limit = _unsigned(numbers[1], strict=strict) if len(numbers) > 1 else -1
    return used, None if limit < 0 else limit


def _unsigned(item: Item, *, strict: bool) -> int:
    """Read a number of a list: decimal without a sign, of 64 bits, which are then taken for signed ones."""
    text = item.text if item.text is not NIL and item.text is not None else b""
    if _UNSIGNED.fullmatch(text) and len(text.lstrip(b"0")) < _DIGITS:
        number = int(text.lstrip(b"0") or b"0")
        if number < _WRAP:
            return _signed(number)
    if not strict:
        return 0
    if _NEGATIVE.fullmatch(text):
        return -1  # item 13: the original reads 0
    raise Malformed(BAD_FORMAT, f"no number: {text[:80]!r}")


def _read_fields(text: bytes) -> QuotaFigures:
    fields = re.split(rb"[ \t\r\n]+", text.strip(b" \t\r\n"))
    found: dict[bytes, tuple[int, int]] = {}
    at, name = 0, b"S"
    while True:
        found[name] = _field(fields, at), _field(fields, at + 1)
        at += 2
        if at < len(fields) and _NUMBER.match(fields[at]):
            at += 1  # left over by `quota -f` that failed
        if at == len(fields):
            break
        name = fields[at].upper()
        if name not in _RESOURCES:
            raise Malformed(BAD_FORMAT, f"no resource of a quota: {fields[at][:80]!r}")
        at += 1
    storage_used, storage_limit = found[b"S"]
    messages_used, messages_limit = found.get(b"M", (0, -1))
    return QuotaFigures(
        storage_used,
        None if storage_limit < 0 else storage_limit * _KIB,
        messages_used,
        None if messages_limit < 0 else messages_limit,
    )


def _field(fields: list[bytes], at: int) -> int:
    """Read a field as scanf does: what follows the digits does not count, and a number ends at 64 bits."""
    number = _NUMBER.match(fields[at]) if at < len(fields) else None
    if number is None:
        raise Malformed(BAD_FORMAT, "a number is missing in the quota")
    digits = number[2].lstrip(b"0")[:_DIGITS] or b"0"
    whole = -int(digits) if number[1] == b"-" else int(digits)
    return max(-_SIGN, min(whole, _SIGN - 1))


def _signed(number: int) -> int:
    """Give what a number is in C's signed 64 bits."""
    return (number + _SIGN) % _WRAP - _SIGN
