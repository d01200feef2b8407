"""Modified UTF-7: every vector that a real daemon was asked for, and its inverse over anything."""

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus import utf7


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        (b"", b""),
        (b"Trash", b"Trash"),
        ("été".encode(), b"&AOk-t&AOk-"),
        (b"\xff", b"&,,0-"),
        (b"\xe2\x82", b"&,,0-"),
        (b"\xe2\x82\xc3", b"&,,3,,Q-"),
        (b"\xed\xa0\x80", b"&,,3,,f,9-"),
        (b"a\tb", b"a&AAk-b"),
        ("\U0001f44a".encode(), b"&2D3cSg-"),
        (b"&AOk-", b"&-AOk-"),
        (b"R&D", b"R&-D"),
        (b"\x7f", b"&AH8-"),
        (b"\xef\xbb\xbfx", b"&,v8-x"),
        (b" ~", b" ~"),
    ],
)
def test_encode(text: bytes, encoded: bytes) -> None:
    assert utf7.encode(text) == encoded


@pytest.mark.parametrize(
    ("detail", "taken"),
    [
        (b"Trash", False),
        (b"", False),
        (b"&-", True),
        (b"&AOk-t&AOk-", True),
        (b"&-x", True),
        (b"&x", False),
        (b"&x/-", False),  # a / is no base64 here
        (b"a&A,+9-\xff\x01", True),  # the first & decides for all
        (b"&x&-", False),
        (b"&", False),
    ],
)
def test_is_encoded(detail: bytes, taken: bool) -> None:
    assert utf7.is_encoded(detail) is taken


def decode(encoded: bytes) -> str:
    text, rest = "", encoded.decode("ascii")
    while rest:
        plain, shift, rest = rest.partition("&")
        text += plain
        if shift:
            run, _, rest = rest.partition("-")
            octets = b64decode(run.replace(",", "/") + "=" * (-len(run) % 4)) if run else "&".encode("utf-16-be")
            text += octets.decode("utf-16-be")
    return text


@given(st.binary())
def test_what_is_encoded_is_ascii_and_stands_for_the_text(text: bytes) -> None:
    encoded = utf7.encode(text)
    assert all(0x20 <= octet <= 0x7E for octet in encoded)
    assert decode(encoded) == text.decode("utf-8", "replace")
    assert utf7.encode(encoded) == encoded.replace(b"&", b"&-")
