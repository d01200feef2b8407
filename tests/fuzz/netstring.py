"""Fuzz the netstring decoder and the socketmap conversation: `tools/fuzz SECONDS netstring`.

Invariants, for any input and any way to cut it:
- cut or whole, the same bodies or requests, and the same fault;
- no body is longer than the limit, and in the strict form bodies encoded again are the input that was taken;
- nothing but the declared faults comes out.
"""

import random
from collections.abc import Callable
from typing import TypeVar

from rcptd.netstring import Decoder, encode
from rcptd_socketmap.protocol import Conversation

T = TypeVar("T")

LIMIT = 120
PIECES = (
    b"0", b"1", b"9", b"12", b"120", b"121", b":", b",", b" ", b"*", b"map key", b"1:x,", b"7:map key,", b"0:,",
    b"007:map key,", b"\0", b"\xff", b"\r\n", b"-", b"3:a b,", b"2: b,", b"\xd9\xa3", b"10101:", b"10102:",
)  # fmt: skip


def noise(source: random.Random) -> bytes:
    """Make an input out of what netstrings are made of, now and then with bytes changed."""
    data = bytearray(b"".join(source.choices(PIECES, k=source.randrange(12))))
    if source.random() < 0.3:
        data += encode(source.randbytes(source.randrange(LIMIT + 2)))
    for _ in range(source.choice((0, 0, 1, 3))):
        if data:
            data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def cut(data: bytes, source: random.Random) -> list[bytes]:
    """Cut an input into pieces."""
    pieces = []
    while data:
        size = source.choice((1, 1, 2, 3, 10, 100))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def fed(feed: Callable[[bytes, int], list[T]], pieces: list[bytes], most: int) -> list[T]:
    """Feed pieces, and take all that comes."""
    taken: list[T] = []
    for piece in pieces:
        some = feed(piece, most)
        taken += some
        while len(some) == most:
            some = feed(b"", most)
            taken += some
    return taken


def one(source: random.Random) -> None:
    """Try one input."""
    data, most, zeros = noise(source), source.choice((1, 2, 5, 1000)), source.random() < 0.5
    pieces = cut(data, source)

    whole, in_pieces = (Decoder(LIMIT, leading_zeros=zeros) for _ in range(2))
    bodies = fed(whole.feed, [data], 1000)
    assert fed(in_pieces.feed, pieces, most) == bodies, data
    assert all(len(body) <= LIMIT for body in bodies), data
    assert zeros or data.startswith(b"".join(map(encode, bodies))), data
    for decoder in (whole, in_pieces):
        decoder.end()
    assert type(in_pieces.fault) is type(whole.fault), data

    conversation, same = Conversation(), Conversation()
    assert fed(conversation.receive, [data], 1000) == fed(same.receive, pieces, most), data
    for each in (conversation, same):
        each.end()
    assert same.complaint == conversation.complaint, data
    assert same.complaint is None or same.complaint.startswith(b"PERM Bad request: "), data
