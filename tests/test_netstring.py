"""The netstring codec: each wire case whole, byte by byte and with trailing bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd import netstring
from rcptd.netstring import Decoder, Fault, encode

LIMIT = 12

# input, bodies, fault (None: well so far), with leading zeros allowed
CASES: list[tuple[bytes, list[bytes], type[Fault] | None, bool]] = [
    (b"", [], None, False),
    (b"0:,", [b""], None, False),
    (b"5:hello,", [b"hello"], None, False),
    (b"5:a,5:b,", [b"a,5:b"], None, False),
    (b"3:\0\r\n,", [b"\0\r\n"], None, False),
    (b"5:hello,0:,1:x,", [b"hello", b"", b"x"], None, False),
    (b"12:" + b"x" * 12 + b",", [b"x" * 12], None, False),
    (b"5:hel", [], None, False),
    (b"5", [], None, False),
    (b"5:hello", [], None, False),
    (b"13:" + b"x" * 13 + b",", [], netstring.TooLong, False),
    (b"13:", [], netstring.TooLong, False),
    (b"13", [], netstring.TooLong, False),
    (b"99999999999999999999999999", [], netstring.TooLong, False),
    (b"5:hello,13:", [b"hello"], netstring.TooLong, False),
    (b":", [], netstring.MissingLength, False),
    (b" 5:hello,", [], netstring.MissingLength, False),
    (b"-1:x,", [], netstring.MissingLength, False),
    (b"+1:x,", [], netstring.MissingLength, False),
    (b"\r\n", [], netstring.MissingLength, False),
    ("٣:abc,".encode(), [], netstring.MissingLength, False),  # digits, but not ASCII's
    (b"1:x,\n", [b"x"], netstring.MissingLength, False),
    (b"5 :hello,", [], netstring.MissingColon, False),
    (b"5;hello,", [], netstring.MissingColon, False),
    (b"0x:,", [], netstring.MissingColon, False),
    (b"5:hello;", [], netstring.MissingComma, False),
    (b"0:x", [], netstring.MissingComma, False),
    (b"1:x,5:hellox5:hello,", [b"x"], netstring.MissingComma, False),
    (b"05:hello,", [], netstring.LeadingZero, False),
    (b"00:,", [], netstring.LeadingZero, False),
    (b"05:hello,", [b"hello"], None, True),
    (b"0000000000000005:hello,", [b"hello"], None, True),
    (b"00:,", [b""], None, True),
    (b"0" * 32, [], None, True),
    (b"0" * 33, [], netstring.TooLong, True),
    (b"0013:", [], netstring.TooLong, True),
]
TRAILING = b"1:z,:garbage"


def kind(fault: Fault | None) -> type[Fault] | None:
    return type(fault) if fault else None


def fed_whole(data: bytes, *, leading_zeros: bool) -> tuple[list[bytes], type[Fault] | None]:
    decoder = Decoder(LIMIT, leading_zeros=leading_zeros)
    bodies = decoder.feed(data)
    return bodies, kind(decoder.fault)


def fed_in_pieces(
    data: bytes, size: int, *, leading_zeros: bool, most: int = 1 << 30
) -> tuple[list[bytes], type[Fault] | None]:
    decoder = Decoder(LIMIT, leading_zeros=leading_zeros)
    bodies = []
    for at in range(0, len(data), size):
        got = decoder.feed(data[at : at + size], most)
        bodies += got
        while len(got) == most:
            got = decoder.feed(b"", most)
            bodies += got
    return bodies, kind(decoder.fault)


@pytest.mark.parametrize(("data", "bodies", "fault", "zeros"), CASES)
def test_each_case_whole(data: bytes, bodies: list[bytes], fault: type[Fault] | None, zeros: bool) -> None:
    assert fed_whole(data, leading_zeros=zeros) == (bodies, fault)


@pytest.mark.parametrize(("data", "bodies", "fault", "zeros"), CASES)
def test_each_case_byte_by_byte(
    data: bytes, bodies: list[bytes], fault: type[Fault] | None, zeros: bool
) -> None:
    assert fed_in_pieces(data, 1, leading_zeros=zeros) == (bodies, fault)


# An incomplete frame would take the trailing bytes for its own.
COMPLETE = [case for case in CASES if case[2] or not case[0] or case[0].endswith(b",")]


@pytest.mark.parametrize(("data", "bodies", "fault", "zeros"), COMPLETE)
def test_each_case_with_trailing_bytes(
    data: bytes, bodies: list[bytes], fault: type[Fault] | None, zeros: bool
) -> None:
    # Nothing behind a fault is ever read.
    expected = (bodies, fault) if fault else ([*bodies, b"z"], netstring.MissingLength)
    assert fed_whole(data + TRAILING, leading_zeros=zeros) == expected
    assert fed_in_pieces(data + TRAILING, 1, leading_zeros=zeros) == expected


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", None),
        (b"5:hello,", None),
        (b"5", netstring.MissingColon),
        (b"5:", netstring.ShortBody),
        (b"5:hell", netstring.ShortBody),
        (b"5:hello", netstring.MissingComma),
        (b"5:hello,0:", netstring.MissingComma),
        (b"x", netstring.MissingLength),
    ],
)
def test_end_of_input(data: bytes, fault: type[Fault] | None) -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(data)
    decoder.end()
    assert kind(decoder.fault) == fault
    assert not decoder.partial


def test_nothing_is_taken_after_a_fault() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.feed(b"1:x,y") == [b"x"]
    fault = decoder.fault
    assert decoder.feed(b"1:x,") == []
    assert decoder.feed(b"z") == []
    decoder.end()
    assert decoder.fault is fault
    assert str(fault) == "missing length"
    assert not decoder.partial


def test_the_length_is_bounded_before_a_byte_of_the_body() -> None:
    decoder = Decoder(10_000)
    assert decoder.feed(b"10001") == []
    assert isinstance(decoder.fault, netstring.TooLong)


def test_partial_tells_of_what_is_kept() -> None:
    decoder = Decoder(LIMIT)
    seen = []
    for byte in b"2:ab,":
        decoder.feed(bytes([byte]))
        seen.append(decoder.partial)
    assert seen == [True, True, True, True, False]


def test_no_more_than_asked_for_are_given() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.feed(b"1:a,1:b,1:c,1:", 2) == [b"a", b"b"]
    assert decoder.feed(b"", 1) == [b"c"]
    assert decoder.feed(b"d,1:e,", 2) == [b"d", b"e"]
    assert decoder.feed(b"", 2) == []
    assert not decoder.partial


def test_a_fault_waits_behind_the_frames_that_were_not_taken() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.feed(b"1:a,1:b,x", 2) == [b"a", b"b"]
    assert decoder.fault is None
    assert decoder.feed(b"", 2) == []
    assert isinstance(decoder.fault, netstring.MissingLength)


def test_encoding() -> None:
    assert encode(b"") == b"0:,"
    assert encode(b"OK a,b") == b"6:OK a,b,"


@given(st.lists(st.binary(max_size=LIMIT)), st.integers(1, 7), st.integers(1, 3))
def test_what_was_encoded_is_decoded_however_it_is_cut(bodies: list[bytes], size: int, most: int) -> None:
    data = b"".join(map(encode, bodies))
    assert fed_in_pieces(data, size, leading_zeros=False, most=most) == (bodies, None)


# Bytes of which netstrings are made, so that most inputs get past the first byte.
noise = st.lists(
    st.one_of(st.sampled_from([b"0", b"1", b"3", b":", b",", b"1:x,", b"3:abc,", b"\0"]), st.binary(max_size=2))
).map(b"".join)


@given(noise, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_pieces_and_the_whole_agree_on_any_input(data: bytes, size: int, most: int, zeros: bool) -> None:
    whole = fed_whole(data, leading_zeros=zeros)
    assert fed_in_pieces(data, size, leading_zeros=zeros, most=most) == whole
