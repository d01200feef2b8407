"""The values of imapd.conf: each kind read as Cyrus reads it.

A reader gives None for what Cyrus does not take; a bad value is fatal in Cyrus, and never becomes a default.
"""

import re

_INTEGER = re.compile(rb"[ \t-\r]*([+-]?)(?:0[xX]([0-9A-Fa-f]+)|(0[0-7]*)|([1-9][0-9]*))")
_DURATION = re.compile(rb"-?(?:[0-9]+[dhms])*")
_SIZE = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)[ \t-\r]*(?:([kKmMgG])[iI]?)?[bB]?")
_SECONDS = {b"d": 86400, b"h": 3600, b"m": 60, b"s": 1}
_OCTETS = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
_LARGEST_32 = (1 << 31) - 1
_LARGEST_64 = (1 << 63) - 1
_DIGITS = 40  # more than any number has that fits, less than int() refuses

YES = frozenset({b"1", b"yes", b"t", b"true"})
NO = frozenset({b"0", b"no", b"f", b"false"})


def switch(value: bytes) -> bool | None:
    """Read a switch: the first letter decides, or the first two, in lower case only; so `nope` is off."""
    if value.startswith((b"0", b"n", b"of", b"f")):
        return False
    if value.startswith((b"1", b"y", b"on", b"t")):
        return True
    return None


def enumeration(value: bytes) -> bytes:
    """Give the word that an enumeration is looked up for: four spellings each of on and off are taken, too."""
    if value in YES:
        return b"on"
    return b"off" if value in NO else value


def integer(value: bytes) -> int | None:
    """Read what strtol reads in base 0, if it reads all; a number of more than 32 bits loses the upper ones."""
    number = _INTEGER.fullmatch(value)
    if number is None:
        return None
    sign, hexadecimal, octal, decimal = number.groups()
    digits, base = next((text, base) for text, base in ((hexadecimal, 16), (octal, 8), (decimal, 10)) if text)
    digits = digits.lstrip(b"0") or b"0"
    size = int(digits[:_DIGITS], base)
    whole = max(-size, -_LARGEST_64 - 1) if sign == b"-" else min(size, _LARGEST_64)
    return (whole + _LARGEST_32 + 1) % (1 << 32) - _LARGEST_32 - 1


def duration(value: bytes, unit: str) -> int | None:
    """Read seconds written like 1h30m; a last number without a unit is in `unit`."""
    if value[-1:].isdigit():
        value += unit.encode("ascii")
    if not _DURATION.fullmatch(value) or value == b"-":
        return None
    total = 0
    for number, letter in re.findall(rb"([0-9]+)([dhms])", value):
        part = _number(number) * _SECONDS[letter]
        total += part
        if total > _LARGEST_32:
            return None
    return -total if value.startswith(b"-") else total


def size(value: bytes, unit: str) -> int | None:
    """Read octets written like 10M; a bare number is in `unit`."""
    if value[-1:].isdigit():
        value += unit.encode("ascii")
    number = _SIZE.fullmatch(value)
    if number is None:
        return None
    sign, digits, letter = number.groups()
    octets = _number(digits) * _OCTETS[(letter or b"").lower()]
    if octets > _LARGEST_64 + (sign == b"-"):
        return None
    return -octets if sign == b"-" else octets


def _number(digits: bytes) -> int:
    """Read decimal digits of any length; what cannot fit is only known to be too large."""
    digits = digits.lstrip(b"0") or b"0"
    return int(digits) if len(digits) <= _DIGITS else _LARGEST_64 * 2
