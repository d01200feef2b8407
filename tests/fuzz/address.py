"""Fuzz the reading of addresses: `tools/fuzz SECONDS address`.

Invariants, for any text:
- it is an address or `NotAnAddress`, and nothing else comes out;
- an address that is written out and read again is the same: key, domain and spelling;
- its domain is "", a canonical literal, or lower-case ASCII of at most 255 octets, and canonical again;
- its key is UTF-8 without a control character below space, and so is what a log shows of it;
- the way in brackets and the way without lead to the same, faults included.
"""

import random
import string

from rcptd.address import DOMAIN_OCTETS, NotAnAddress, Recipient, domain, parse

PIECES = (
    "a", "B", "user", "postmaster", "+", "-", ".", "..", "@", "@", "@", '"', '""', '"a b"', "\\", '\\"', "<", ">", "<>",
    ",", ":", ";", "(", ")", "[", "]",
    "[192.0.2.7]", "[IPv6:2001:db8::1]", "[IPv6:::ffff:192.0.2.7]", "%", "%eth0", "!",
    "@relay.example:", "@a,@b:", "example.org", "EXAMPLE.org.", "xn--", "xn--mller-kva", "xn--a", "XN--LS8H", "müller",
    "ß", "ẞ", "\U000e0001",
    "İ", "\u0131", "ς", "\u0301", "\u0345", "\u037e", "\u00ad", "\u200d", "\u202e", "\u2028", "\u3002", "\uff0e",
    "\uff20", "❤", "\ufe0f", "💩", "א", "\u0627", "\x00", "\t", " ", "\r\n", "\x7f", "\x85", "\udcff", "\ufdfa",
    "x" * 63, "x" * 64, "é" * 32, "x." * 60, "-x", "x-", "_x", "1", "127.0.0.1",
)  # fmt: skip


def noise(source: random.Random) -> str:
    """Make a text out of what addresses are made of, now and then of anything."""
    pieces = source.choices(PIECES, k=source.randrange(1, 9))
    if source.random() < 0.3:
        pieces.insert(source.randrange(len(pieces)), chr(source.randrange(0x110000)))
    if source.random() < 0.2:
        pieces += source.choices(string.printable, k=4)
    return "".join(pieces)


def read(text: str) -> Recipient | None:
    """Read an address, or None."""
    try:
        return parse(text)
    except NotAnAddress:
        return None


def one(source: random.Random) -> None:
    """Try one input."""
    text = noise(source)
    recipient = read(text)
    if recipient is None:
        return
    shown = str(recipient)
    for again in (read(shown), read(f"<{shown}>")):
        assert again is not None, ascii(text)
        assert (again.key, again.domain, str(again)) == (recipient.key, recipient.domain, shown), ascii(text)
        assert again.fault == recipient.fault or shown.startswith('"'), ascii(text)
    name = recipient.domain
    assert name.isascii(), ascii(text)
    assert name == name.lower(), ascii(text)
    assert len(name) <= DOMAIN_OCTETS, ascii(text)
    assert not name or domain(name) == name, ascii(text)
    assert all(character >= " " and character != "\x7f" for character in shown + recipient.key), ascii(text)
    recipient.key.encode()
