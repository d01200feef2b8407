"""Deny records: versions, patterns, messages; and the patterns against a reference that goes by recursion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus.malformed import Malformed
from rcptd.stores.cyrus.userdeny import DEFAULT_MESSAGE, RECORD_OCTETS, Denial, denied
from rcptd.stores.cyrus.wildmat import matches

BLOCKED = DEFAULT_MESSAGE


@pytest.mark.parametrize(
    ("value", "denial"),
    [
        (b"2\tsmmap\tno mail today", Denial(b"no mail today", b"smmap")),
        (b"1\tsmmap", Denial(BLOCKED, b"smmap")),
        (b"1\tsmmap\tx", None),  # all is pattern
        (b"1\ta\tb,smmap", Denial(BLOCKED, b"smmap")),
        (b"2\tsmmap", Denial(BLOCKED, b"smmap")),
        (b"2\tsmmap\t", Denial(b"", b"smmap")),
        (b"2\t*\tblocked", Denial(b"blocked", b"*")),
        (b"2\t!smmap,*\tx", None),
        (b"2\t*,!smmap\tx", Denial(b"x", b"*")),
        (b"2\timap,smmap\tlist msg", Denial(b"list msg", b"smmap")),
        (b"2\timap, smmap\tws", None),
        (b"2\tsm*p\twild", Denial(b"wild", b"sm*p")),
        (b"2\tSMMAP\tx", None),
        (b"2\t,,smmap,\tx", Denial(b"x", b"smmap")),
        (b"2\t!\tx", None),
        (b"2\t\tx", None),
        (b"2\tsmmap\ta\tb\nc", Denial(b"a b c", b"smmap")),
        (b"2\tsmmap\t\xc3\xa9\x1f\x7f", Denial(b"\xc3\xa9 \x7f", b"smmap")),
        (b"2\tsmmap\t" + b"x" * 5000, Denial(b"x" * 4096, b"smmap")),
        (b"2\tsmmap\0,x\tmsg", Denial(BLOCKED, b"smmap")),
        (b" \n+002\tsmmap\tx", Denial(b"x", b"smmap")),
    ],
)
def test_records(value: bytes, denial: Denial | None) -> None:
    assert denied(value, b"smmap") == denial
    assert denied(value, b"smmap", strict=True) == denial


@pytest.mark.parametrize(
    "value",
    [b"3\tsmmap\tx", b"0\tsmmap", b"-1\tsmmap", b"2 \tsmmap", b"2", b"2smmap", b"smmap", b"x\t*", b"\t*", b"0x2\t*",
     b"18446744073709551618\t*", b"2\t*" + b"," * RECORD_OCTETS],
)  # fmt: skip
def test_a_record_that_cannot_be_read_denies_nothing_in_faithful(value: bytes) -> None:
    assert denied(value, b"smmap") is None
    with pytest.raises(Malformed, match="no deny record"):
        denied(value, b"smmap", strict=True)


def test_no_record_denies_nothing() -> None:
    assert denied(b"", b"smmap", strict=True) is None


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"a", b"", False),
        (b"?", b"", False),
        (b"?", b"\xff", True),
        (b"a**b", b"ab", True),
        (b"*a*b*", b"xxaxxbxx", True),
        (b"*ab", b"aab", True),
        (b"*ab", b"aba", False),
        (b"a*?", b"a", False),
        (b"[a-c]x", b"bx", True),
        (b"[a-c]x", b"dx", False),
        (b"[^a-c]", b"d", True),
        (b"[^a-c]", b"a", False),
        (b"[^a-c]", b"", False),
        (b"[]]", b"]", True),
        (b"[^]a]", b"]", False),
        (b"[^]a]", b"b", True),
        (b"[-a]", b"-", True),
        (b"[a-]", b"-", True),
        (b"[--/]", b".", True),
        (b"[c-a]", b"b", False),
        (b"[a-c-e]", b"d", True),
        (b"[abc", b"b", True),
        (b"[a-", b"-", True),
        (b"[", b"x", False),
        (b"[^", b"x", True),
        (b"[\\a]", b"\\", True),
        (b"[\x80-a]", b"\xff", True),  # as C's signed char has it
        (b"[a-\x80]", b"\xff", False),
        (b"\\*", b"*", True),
        (b"\\*", b"x", False),
        (b"\\[", b"[", True),
        (b"a\\", b"a", False),
        (b"\\", b"x", False),
        (b"smmap?", b"smmap", False),
    ],
)
def test_patterns(pattern: bytes, text: bytes, matched: bool) -> None:
    assert matches(text, pattern) is matched


def test_many_stars_take_no_time() -> None:
    assert not matches(b"a" * 2000, b"*a" * 50 + b"b")


def reference(text: bytes, pattern: bytes) -> bool:
    """The same without classes, by trying everything."""
    if not pattern:
        return not text
    head, rest = pattern[:1], pattern[1:]
    if head == b"*":
        return any(reference(text[cut:], rest) for cut in range(len(text) + 1))
    if head == b"\\":
        return bool(rest) and text[:1] == rest[:1] and reference(text[1:], rest[1:])
    return bool(text) and (head in (b"?", text[:1])) and reference(text[1:], rest)


@given(st.text("ab", max_size=8).map(str.encode), st.text("ab*?\\", max_size=8).map(str.encode))
def test_patterns_match_as_the_reference_does(text: bytes, pattern: bytes) -> None:
    assert matches(text, pattern) == reference(text, pattern)


@given(st.binary(max_size=40), st.binary(max_size=10), st.booleans())
def test_no_record_is_trouble(value: bytes, service: bytes, strict: bool) -> None:
    try:
        denial = denied(value, service, strict=strict)
    except Malformed:
        assert strict
    else:
        assert denial is None or not any(octet < 0x20 for octet in denial.message)
