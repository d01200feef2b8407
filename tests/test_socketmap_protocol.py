"""Socketmap requests: in pieces, pipelined, at their limits, and what is none."""

import pytest

from rcptd.netstring import Fault, encode
from rcptd_socketmap.protocol import Conversation, Dialect, Request

MANY = 1000

# input, requests, complaint
CASES: list[tuple[bytes, list[Request], bytes | None]] = [
    (b"9:virt a@b.,", [Request("virt", b"a@b.")], None),
    (b"5:m a b,", [Request("m", b"a b")], None),
    (b"3:m  ,", [Request("m", b" ")], None),
    (b"2:m ,", [Request("m", b"")], None),
    (b"3:* a,3:* b,", [Request("*", b"a"), Request("*", b"b")], None),
    (b"4:m \0\xff,", [Request("m", b"\0\xff")], None),
    (b"3:\xff a,", [Request("\udcff", b"a")], None),
    (encode(b"m" * 100 + b" k"), [Request("m" * 100, b"k")], None),
    (encode(b"m " + b"k" * 10_000), [Request("m", b"k" * 10_000)], None),
    (encode(b"m" * 101 + b" k"), [], b"PERM Bad request: too long"),
    (encode(b"m " + b"k" * 10_001), [], b"PERM Bad request: too long"),
    (encode(b"m" * 100 + b" " + b"k" * 10_001), [], b"PERM Bad request: too long"),
    (b"10102", [], b"PERM Bad request: too long"),
    (b"0:,", [], b"PERM Bad request: missing key"),
    (b"5:cyrus,", [], b"PERM Bad request: missing key"),
    (b"2: a,", [], b"PERM Bad request: missing map name"),
    (b"1: ,", [], b"PERM Bad request: missing map name"),
    (b"03:m a,", [], b"PERM Bad request: leading zero in length"),
    (b"3:m a;", [], b"PERM Bad request: missing comma"),
    (b"3 m a,", [], b"PERM Bad request: missing colon"),
    (b"GET / HTTP/1.0\r\n", [], b"PERM Bad request: missing length"),
    (b"3:m a,5:cyrus,3:m b,", [Request("m", b"a")], b"PERM Bad request: missing key"),
]


def fed(pieces: list[bytes], most: int = MANY) -> tuple[list[Request], bytes | None]:
    conversation = Conversation()
    requests = []
    for piece in pieces:
        got = conversation.receive(piece, most)
        requests += got
        while len(got) == most:
            got = conversation.receive(b"", most)
            requests += got
    return requests, conversation.complaint


@pytest.mark.parametrize(("data", "requests", "complaint"), CASES)
def test_each_case_however_it_is_cut(data: bytes, requests: list[Request], complaint: bytes | None) -> None:
    assert fed([data]) == (requests, complaint)
    assert fed([data], most=1) == (requests, complaint)
    assert fed([data[at : at + 1] for at in range(len(data))]) == (requests, complaint)


@pytest.mark.parametrize(("data", "requests", "complaint"), CASES)
def test_each_case_with_trailing_bytes(data: bytes, requests: list[Request], complaint: bytes | None) -> None:
    got = fed([data + b"3:m z,x"])
    if complaint:
        assert got == (requests, complaint)
    else:
        assert got == ([*requests, Request("m", b"z")], b"PERM Bad request: missing length")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"3:m a,", None),
        (b"3", b"PERM Bad request: missing colon"),
        (b"3:m", b"PERM Bad request: shorter than its length"),
        (b"3:m a", b"PERM Bad request: missing comma"),
        (b"x", b"PERM Bad request: missing length"),
    ],
)
def test_input_that_ends(data: bytes, complaint: bytes | None) -> None:
    conversation = Conversation()
    conversation.receive(data, MANY)
    conversation.end()
    assert conversation.complaint == complaint


def test_a_dialect_takes_more_and_complains_in_its_own_words() -> None:
    def complaint(fault: Fault) -> bytes:
        return f"PERM Bad protocol ({fault})".encode()

    conversation = Conversation(Dialect(leading_zeros=True, nameless=True, complaint=complaint))
    assert conversation.receive(b"0009:cyrus foo,4: foo,", MANY) == [
        Request("cyrus", b"foo"),
        Request("", b"foo"),
    ]
    assert conversation.receive(b"5:cyrus,", MANY) == []
    assert conversation.complaint == b"PERM Bad protocol (missing key)"


def test_partial_tells_of_half_a_request() -> None:
    conversation = Conversation()
    conversation.receive(b"3:m", MANY)
    assert conversation.partial
    conversation.receive(b" a,", MANY)
    assert not conversation.partial
