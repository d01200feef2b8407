"""The reader of SMTP replies: each wire case whole, byte by byte and with trailing bytes."""

import pytest

from rcptd.stores.callahead.replies import LINE_OCTETS, LINES, SHOWN, Replies, Reply

FULL_LINE = b"250 " + b"x" * (LINE_OCTETS - 5) + b"\n"

# input, replies, a word of the fault ("": well so far)
CASES: list[tuple[bytes, list[Reply], str]] = [
    (b"", [], ""),
    (b"250 OK\r\n", [Reply(250, "", ("OK",))], ""),
    (b"250\r\n", [Reply(250, "", ("",))], ""),
    (b"250 \r\n", [Reply(250, "", ("",))], ""),
    (b"250 bare LF\n", [Reply(250, "", ("bare LF",))], ""),
    (b"250 two CR\r\r\n", [Reply(250, "", ("two CR",))], ""),
    (b"250 O", [], ""),
    (b"250-more\r\n", [], ""),
    (b"250 one\r\n550 two\r\n", [Reply(250, "", ("one",)), Reply(550, "", ("two",))], ""),
    (b"250-hop\r\n250-PIPELINING\r\n250 8BITMIME\r\n", [Reply(250, "", ("hop", "PIPELINING", "8BITMIME"))], ""),
    (b"550 5.1.1 no such user\r\n", [Reply(550, "5.1.1", ("no such user",))], ""),
    (b"550 5.1.1\r\n", [Reply(550, "5.1.1", ("",))], ""),
    (b"550 5.1.1: no\r\n", [Reply(550, "5.1.1", (": no",))], ""),
    (b"550 #5.1.0 Address rejected.\r\n", [Reply(550, "5.1.0", ("Address rejected.",))], ""),
    (b"550 5.7.133 not for you\r\n", [Reply(550, "5.7.133", ("not for you",))], ""),
    (b"550-5.1.1 no\r\n550 5.1.1 never\r\n", [Reply(550, "5.1.1", ("no", "never"))], ""),
    (b"550-It is not here\r\n550 5.1.1 no\r\n", [Reply(550, "5.1.1", ("It is not here", "no"))], ""),
    (b"550 5.1.1.1 no\r\n", [Reply(550, "", ("5.1.1.1 no",))], ""),
    (b"550 5.1234.1 no\r\n", [Reply(550, "", ("5.1234.1 no",))], ""),
    (b"550 4.2.1 mixed\r\n", [Reply(550, "", ("4.2.1 mixed",))], ""),
    (b"550-5.1.1 no\r\n550 5.2.2 full\r\n", [Reply(550, "", ("5.1.1 no", "5.2.2 full"))], ""),
    (b"550-4.1.1 now\r\n550 5.1.1 never\r\n", [Reply(550, "5.1.1", ("4.1.1 now", "never"))], ""),
    (b"553-no\r\n550 never\r\n", [Reply(550, "", ("no", "never"))], ""),
    ("550 kein Benutzer Müller\r\n".encode(), [Reply(550, "", ("kein Benutzer Müller",))], ""),
    (b"550 M\xfcller\r\n", [Reply(550, "", ("Müller",))], ""),
    (b"550 a\0b\x1b[2J\rc\td\r\n", [Reply(550, "", ("a?b?[2J?c d",))], ""),
    ("550 \u202egnp.exe\r\n".encode(), [Reply(550, "", ("?gnp.exe",))], ""),
    (FULL_LINE, [Reply(250, "", ("x" * (LINE_OCTETS - 5),))], ""),
    (b"250-x\r\n" * (LINES - 1) + b"250 x\r\n", [Reply(250, "", ("x",) * LINES)], ""),
    (b"250-x\r\n" * LINES + b"250 x\r\n", [], "more than 128 lines"),
    (b"250 x" + b"x" * LINE_OCTETS, [], "more than 4096 octets"),
    (b"250 OK\r\n" + b"y" * LINE_OCTETS, [Reply(250, "", ("OK",))], "more than 4096 octets"),
    (b"x" + FULL_LINE, [], "more than 4096 octets"),
    (b"250-yes\r\n550 no\r\n", [], "the codes 250, 550"),
    (b"\r\n", [], "no reply line"),
    (b"25\r\n", [], "no reply line"),
    (b"2500 OK\r\n", [], "no reply line"),
    (b"250OK\r\n", [], "no reply line"),
    (b"150 wait\r\n", [], "no reply line"),
    (b"650 what\r\n", [], "no reply line"),
    (b"-50 what\r\n", [], "no reply line"),
    ("٢٥٠ OK\r\n".encode(), [], "no reply line"),  # digits, but not ASCII's
    (b"SSH-2.0-OpenSSH_9.2\r\n", [], "no reply line"),
    (b"250 OK\r\nHTTP/1.1 400 Bad Request\r\n250 OK\r\n", [Reply(250, "", ("OK",))], "no reply line"),
]


def fed(data: bytes, size: int) -> tuple[list[Reply], str]:
    reader = Replies()
    replies = []
    for at in range(0, len(data), size):
        replies += reader.feed(data[at : at + size])
    return replies, str(reader.fault or "")


@pytest.mark.parametrize(("data", "replies", "fault"), CASES)
def test_each_case_whole_and_byte_by_byte(data: bytes, replies: list[Reply], fault: str) -> None:
    whole = fed(data, len(data) + 1)
    assert whole[0] == replies
    assert fault in whole[1]
    assert bool(fault) == bool(whole[1])
    assert fed(data, 1) == whole


@pytest.mark.parametrize(("data", "replies", "fault"), CASES)
def test_each_case_with_trailing_bytes(data: bytes, replies: list[Reply], fault: str) -> None:
    if fault:
        assert fed(data + b"250 late\r\n", 10_000)[0] == replies  # nothing behind a fault is ever read
    elif data.endswith(b"\n") and not data.endswith(b"250-more\r\n"):
        assert fed(data + b"421 bye\r\n", 10_000)[0] == [*replies, Reply(421, "", ("bye",))]


def test_partial_tells_of_what_is_kept() -> None:
    reader = Replies()
    seen = []
    for piece in (b"25", b"0-a\r\n", b"250 b\r", b"\n", b"junk\n"):
        reader.feed(piece)
        seen.append(reader.partial)
    assert seen == [True, True, True, False, False]
    assert reader.fault


def test_a_log_line_repeats_so_much_of_a_reply() -> None:
    assert str(Reply(550, "5.1.1", ("no", "", "never"))) == "550 5.1.1 no never"
    assert str(Reply(250, "", ("",))) == "250"
    long = str(Reply(550, "", ("x" * 1000,)))
    assert len(long) == SHOWN + len("...")
    assert long.endswith("x...")
