"""Fuzz the reader of SMTP replies: `tools/fuzz 60 smtp_replies`.

Invariants, for any octets and any way to cut them:
- cut or whole, the same replies and the same fault;
- a reply has a code from 200 to 599, an enhanced code of the same class or none, 1 to LINES lines, none of them longer
  than a line may be, and no control character in any;
- no more is kept than one line, and nothing after a fault;
- replies that are written again in the plainest form are read as they were.
"""

import random

from rcptd.stores.callahead.replies import LINE_OCTETS, LINES, Replies, Reply

PIECES = (
    b"250", b"550", b"421", b"354", b"220", b"650", b"1", b"-", b" ", b" ", b"5.1.1", b"4.2.2 ", b"#5.1.0 ", b"2.1.5",
    b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b"\xe9", b"\xc3\xa9", b"\x1b[2J", b"\x80", b"\xe2\x80\xae",
    b"no such user", b"250 OK\r\n", b"550 5.1.1 no\r\n", b"550-5.1.1 no\r\n550 5.1.1 never\r\n", b"250-x\r\n" * 60,
    b"x" * 2000, b"\t",
)  # fmt: skip


def fed(pieces: list[bytes]) -> tuple[list[Reply], str]:
    """Feed pieces; give the replies and the words of the fault."""
    reader = Replies()
    replies = []
    for piece in pieces:
        replies += reader.feed(piece)
        assert len(reader._rest) < LINE_OCTETS
        assert not (reader.fault and reader.partial)
    return replies, str(reader.fault or "")


def one(source: random.Random) -> None:
    """Try one input."""
    data = bytearray(b"".join(source.choices(PIECES, k=source.randrange(16))))
    for _ in range(source.choice((0, 0, 1, 4))):
        if data:
            data[source.randrange(len(data))] = source.randrange(256)
    size = source.choice((1, 2, 3, 50, 3000))
    pieces = [bytes(data[at : at + size]) for at in range(0, len(data), size)]

    replies, fault = fed([bytes(data)])
    assert fed(pieces) == (replies, fault), bytes(data)
    for reply in replies:
        assert 200 <= reply.code <= 599, reply
        assert not reply.enhanced or int(reply.enhanced[0]) == reply.code // 100, reply
        assert 1 <= len(reply.lines) <= LINES, reply
        assert all(line.isprintable() and len(line) < LINE_OCTETS for line in reply.lines), reply
        assert str(reply).isprintable(), reply
        mark = f"{reply.enhanced} " if reply.enhanced else ""
        last = len(reply.lines) - 1
        again = [f"{reply.code}{'-' if n < last else ' '}{mark}{line}\r\n" for n, line in enumerate(reply.lines)]
        if all(len(line.encode()) <= LINE_OCTETS for line in again):
            (copy,), nothing = fed(["".join(again).encode()])
            assert (copy.code, copy.enhanced) == (reply.code, reply.enhanced), reply
            assert not nothing, reply
