"""Fuzz the readers of Cyrus' values: records, quotas, deny records: `tools/fuzz 60 cyrus_records`.

Invariants, for any octets:
- a value or `Malformed` comes out, and nothing else;
- the quick way of reading and the long one come to the same;
- strict never reads a quota that faithful cannot read;
- what a deny message says holds no control character.
"""

import random
import re
from collections.abc import Callable
from unittest.mock import patch

from rcptd.stores.cyrus import quotas, records
from rcptd.stores.cyrus.malformed import Malformed
from rcptd.stores.cyrus.userdeny import denied

RECORDS = (
    b"%(T e I x P default V 1 C 1 F 1 M 1 A %(foo lrswipkxtecdan anyone p))", b"%(T ed)",
    b"%(A %(a b) H (%(T e)) T ez)", b"(uniqueid x specialuse y) 16 server!default foo\tlrs\t",
    b'%(T "e" S {2+}\r\nab A %(a NIL))', b"0 default a\tp\t",
)  # fmt: skip
QUOTAS = (
    b"%(S (10241 10) M (3) AS (0) NF (1) MODSEQ 7)", b"10241 10", b"0 -1 M 5 5 6", b"%(S (1 -1) M %(a {1+}\r\n5))",
    b'%(S ("5" NIL))', b"",
)  # fmt: skip
DENIALS = (b"2\tsmmap\tno mail", b"1\timap,!smmap,*", b"2\t[^a-r]m*\\p\ta\tb", b" +02\ts?map[]-x]\t", b"3\tx")
PIECES = (
    b"%(", b"(", b")", b" ", b"  ", b'"', b"\\", b"{1+}\r\n", b"{99999999999}\r\n", b"NIL", b"\t", b"\r\n", b"\0",
    b"%", b"T", b"A", b"H", b"S", b"M", b"-1", b"18446744073709551615", b"9" * 50, b",", b"!", b"*", b"[", b"]", b"-",
    b"\xff", b"\x80",
)  # fmt: skip
NEVER = re.compile(rb"(?!)")


def noise(source: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """Make a value out of a sound one, or of pieces."""
    value = bytearray(source.choice(seeds))
    for _ in range(source.choice((0, 1, 1, 2, 5))):
        at = source.randrange(len(value) + 1)
        match source.randrange(4):
            case 0:
                value[at:at] = source.choice(PIECES)
            case 1:
                del value[at : at + source.choice((1, 3, 1000))]
            case 2:
                value[at : at + 1] = source.randbytes(1)
            case _:
                value[at:at] = source.choice((b"(", b"%(x ")) * source.choice((1, 1000))
    return bytes(value)


def outcome(reader: Callable[[bytes], object], value: bytes) -> object:
    """What a reader gives, or the text of what is malformed."""
    try:
        return reader(value)
    except Malformed as malformed:
        return malformed.text


def one(source: random.Random) -> None:
    """Try one input for each reader."""
    value = noise(source, RECORDS)
    quick = outcome(records.read_mailbox, value)
    with patch.object(records, "_PLAIN", NEVER):
        assert outcome(records.read_mailbox, value) == quick, value

    value = noise(source, QUOTAS)
    quick = outcome(quotas.read_quota, value)
    with patch.object(quotas, "_PLAIN", NEVER):
        assert outcome(quotas.read_quota, value) == quick, value
    strict = outcome(lambda text: quotas.read_quota(text, strict=True), value)
    assert isinstance(quick, quotas.QuotaFigures) or strict == quick, value
    if isinstance(quick, quotas.QuotaFigures):
        quotas.over(quick, size=source.randrange(1 << 70))
        str(quick)

    value, service = noise(source, DENIALS), source.choice((b"smmap", b"", b"s", b"\xff"))
    denial = denied(value, service)
    assert denial is None or all(octet >= 0x20 for octet in denial.message), value
    again = outcome(lambda text: denied(text, service, strict=True), value)
    assert again == denial or denial is None, value
