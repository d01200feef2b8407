"""Quotas: both forms of a value, the original's arithmetic and ours, the roots, and the letter of a folder."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus import quotas
from rcptd.stores.cyrus.imapdconf import ImapdConf, read
from rcptd.stores.cyrus.malformed import Malformed
from rcptd.stores.cyrus.quotas import (
    NO_QUOTA,
    QuotaFigures,
    first_letter,
    hash_letter,
    open_quotas,
    over,
    read_quota,
    roots,
)

BAD = "Mailbox has an invalid format"
LARGEST = (1 << 63) - 1


def figures(used: int = 0, limit: int | None = None, messages: int = 0, most: int | None = None) -> QuotaFigures:
    """Figures with the storage limit in KiB, as values have it."""
    return QuotaFigures(used, None if limit is None else limit * 1024, messages, most)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"10241 10", figures(10241, 10)),
        (b"10241\n10", figures(10241, 10)),
        (b" \t10241\r\n10 ", figures(10241, 10)),
        (b"0 -1 M 5 5", figures(0, None, 5, 5)),
        (b"0 -9 m 5 -5", figures(0, None, 5)),
        (b"1 2 3", figures(1, 2)),  # a number that `quota -f` left
        (b"1 2 3 M 4 5 6", figures(1, 2, 4, 5)),
        (b"1 2 AS 5 6 NF 7 8", figures(1, 2)),
        (b"1 2 S 3 4", figures(3, 4)),  # the later one counts
        (b"10241x 10y", figures(10241, 10)),
        (b"+5 +6", figures(5, 6)),
        (b"-5 6", figures(-5, 6)),
        (b"1 99999999999999999999999", figures(1, LARGEST)),
        (b"-99999999999999999999999 1", figures(-LARGEST - 1, 1)),
        (b"1 " + b"0" * 100 + b"7", figures(1, 7)),
        (b"1 2\0junk", figures(1, 2)),
        (b"1 2 3 4", BAD),
        (b"1 2 junk", BAD),
        (b"1 2 M", BAD),
        (b"1 2 M 5", BAD),
        (b"1 2 M 5 x", BAD),
        (b"1", BAD),
        (b"x 2", BAD),
        (b"1 x", BAD),
        (b"- 1", BAD),
        (b" ", BAD),
        (b"hello", BAD),
        (b"1 " * 70000, BAD),
    ],
)
@pytest.mark.parametrize("strict", [False, True], ids=["faithful", "strict"])
def test_values_in_blanks(value: bytes, wanted: QuotaFigures | str, strict: bool) -> None:
    if isinstance(wanted, str):
        with pytest.raises(Malformed, match=wanted):
            read_quota(value, strict=strict)
    else:
        assert read_quota(value, strict=strict) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"%(S (10241 10) M (3) AS (0) NF (1) MODSEQ 7)", figures(10241, 10, 3)),
        (b"%(S (10240 10) M (4 5))", figures(10240, 10, 4, 5)),
        (b"%(S (1) M (2))", figures(1, None, 2)),
        (b"%()", figures()),
        (b"%(S ())", figures()),
        (b"%(S 5)", figures()),
        (b"%(M (1 2) S (3 4))", figures(3, 4, 1, 2)),
        (b"%(S (1 2) S (3 4))", figures(1, 2)),  # the first one counts
        (b"%(s (1 2) M (3))", figures(messages=3)),
        (b"%( S\t(\n1\v2 )\fM(3 4) \r\n)", figures(1, 2, 3, 4)),
        (b'%("S" ("1" "2"))', figures(1, 2)),
        (b'%(S (1"2"))', figures(1, 2)),
        (b"%({1+}\r\nS ({1+}\r\n1 {02+}\r\n12))", figures(1, 12)),
        (b"%(S %(a 1 b 2))", figures(1, 2)),
        (b"%(S (1 2) SCAN %(MBOX user.foo S 5) MODSEQ 7)", figures(1, 2)),
        (b"%(S (1 2 3 4))", figures(1, 2)),
        (b"%(S (18446744073709551615 18446744073709551615))", figures(-1)),
        (b"%(S (0 9223372036854775807))", figures(0, LARGEST)),
        (b"%(S (0 9223372036854775808))", figures(0, None)),
        (b"%(S (00000000000000000000000000000000000000000000000005 6))", figures(5, 6)),
        (b"%(S (1\0x 2\0))", figures(1, 2)),
    ],
)
@pytest.mark.parametrize("strict", [False, True], ids=["faithful", "strict"])
def test_lists(value: bytes, wanted: QuotaFigures, strict: bool) -> None:
    assert read_quota(value, strict=strict) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"%(S (1 -1))", figures(1, 0)),
        (b"%(S (1 +5))", figures(1, 0)),
        (b"%(S (1 5x))", figures(1, 0)),
        (b"%(S (1 NIL))", figures(1, 0)),
        (b"%(S (NILx 5))", figures(0, 5)),
        (b'%(S (1 ""))', figures(1, 0)),
        (b"%(S (1 (5)))", figures(1, 0)),
        (b"%(S (1 {3+}\r\n5\x006))", figures(1, 0)),
        (b"%(S (18446744073709551616 5))", figures(0, 5)),
        (b"%(S (1" + b"9" * 100 + b" 5))", figures(0, 5)),
        (b"", NO_QUOTA),
        (b"\0junk", NO_QUOTA),
        (b"%", NO_QUOTA),
        (b"%x", NO_QUOTA),
        (b"%(", NO_QUOTA),
        (b"%(S (10241 10)", NO_QUOTA),
        (b"%(S (10241 10) M", NO_QUOTA),
        (b"%(S (10241 10) M (5 5", NO_QUOTA),
        (b"%(S (10241 10) M )", NO_QUOTA),
        (b'%(S ("10241 10))', NO_QUOTA),
        (b"%(S (10241 %x))", NO_QUOTA),
        (b"%(S (1 2) X %{part 0 1}\r\nx)", NO_QUOTA),
        (b"%(S (10241 {5+}\r\n10)) ", NO_QUOTA),
        (b"%(S (10241 {2}\r\n10))", NO_QUOTA),
        (b"%(((1 2))", NO_QUOTA),
        (b"%(S (10241 \xff10))", NO_QUOTA),
        (b"%(S \xff(10241 10))", NO_QUOTA),
    ],
)
def test_what_cyrus_takes_for_nought_is_malformed_in_strict(value: bytes, wanted: QuotaFigures) -> None:
    assert read_quota(value) == wanted
    if value == b"%(S (1 -1))":
        assert read_quota(value, strict=True) == figures(1)  # item 13: a limit of -1 is none
        return
    with pytest.raises(Malformed) as caught:
        read_quota(value, strict=True)
    assert caught.value.text == BAD


@pytest.mark.parametrize("strict", [False, True], ids=["faithful", "strict"])
@pytest.mark.parametrize("value", [b"%(S (1 2))x", b"%(S (1 2)) ", b"%())", b"%(S (1 \x802))", b"%(S \xfe(1 2))"])
def test_what_follows_a_list_or_is_not_ascii_is_malformed(value: bytes, strict: bool) -> None:
    with pytest.raises(Malformed, match=BAD):
        read_quota(value, strict=strict)


@pytest.mark.parametrize(
    ("what", "faithful", "strict"),
    [
        (figures(), False, False),
        (figures(10240, 10), False, False),
        (figures(10241, 10), True, True),
        (figures(0, 0), False, False),
        (figures(1, 0), True, True),
        (figures(0, None, 4, 5), False, False),
        (figures(0, None, 5, 5), True, False),  # item 12
        (figures(0, None, 0, 0), True, False),
        (figures(0, None, 6, 5), True, True),
        (figures(10241, 10, 0, 5), True, True),
        (figures(0, (1 << 53) - 1), False, False),
        (figures(0, 1 << 53), True, False),  # item 13: the limit has wrapped around
        (figures(0, 1 << 54), False, False),
        (figures(1, 1 << 54), True, False),
        (figures(0, None, LARGEST, LARGEST), False, False),  # so has one message more
        (figures(-5, 0), False, False),
    ],
)
def test_over(what: QuotaFigures, faithful: bool, strict: bool) -> None:
    assert over(what) is faithful
    assert over(what, strict=True) is strict


def test_a_size_counts_against_storage() -> None:
    for strict in (False, True):
        assert not over(figures(10000, 10), size=240, strict=strict)
        assert over(figures(10000, 10), size=241, strict=strict)
        assert not over(figures(10000), size=1 << 40, strict=strict)


def test_figures_are_told_in_words() -> None:
    assert str(figures(5, 1, 2)) == "5 bytes used of 1024, 2 messages of no limit"
    assert str(figures(5, None, 2, 3)) == "5 bytes used of no limit, 2 messages of 3"


@pytest.fixture(name="conf")
def _conf(tmp_path: Path) -> ImapdConf:
    return configured(tmp_path, "virtdomains: userid\n")


def configured(place: Path, options: str) -> ImapdConf:
    path = place / "imapd.conf"
    path.write_text(f"configdirectory: {place}\n{options}")
    return read(path)


@pytest.mark.parametrize(
    ("internal", "found"),
    [
        (b"user.foo.bar", [b"user.foo.bar", b"user.foo", b"user"]),
        (b"sh", [b"sh"]),
        (b"d.e!user.foo", [b"d.e!user.foo", b"d.e!user", b"d.e!"]),
        (b"d!", [b"d!"]),
        (b"!user.foo", [b"!user.foo", b"!user", b"!"]),
        (b"user.a..b", [b"user.a..b", b"user.a.", b"user.a", b"user"]),
        (b"d!user.a!b", [b"d!user.a!b", b"d!user", b"d!"]),
        (b"x" * 600, [b"x" * 510]),
    ],
)
def test_roots(conf: ImapdConf, internal: bytes, found: list[bytes]) -> None:
    assert list(roots(conf, internal)) == found


def test_without_virtual_domains_nothing_ends_a_domain(tmp_path: Path) -> None:
    conf = configured(tmp_path, "virtdomains: off\n")
    assert list(roots(conf, b"d.e!user.foo")) == [b"d.e!user.foo", b"d.e!user", b"d"]


@given(st.binary(max_size=700).map(lambda noise: noise.replace(b"x", b".")))
def test_roots_get_ever_shorter(internal: bytes) -> None:
    conf = read_once()
    found = list(roots(conf, internal))
    assert all(internal.startswith(root) for root in found)
    assert all(len(one) > len(other) for one, other in pairwise(found))
    assert len(found) <= 512


_READ: list[ImapdConf] = []


def read_once() -> ImapdConf:
    if not _READ:
        from tempfile import TemporaryDirectory  # noqa: PLC0415

        with TemporaryDirectory() as folder:
            _READ.append(configured(Path(folder), "virtdomains: on\n"))
    return _READ[0]


@pytest.mark.parametrize(
    ("name", "plain", "full"),
    [
        (b"foo", "f", "U"),
        (b"Foo", "f", "T"),
        (b"j^doe", "j", "J"),
        (b"other.test", "o", "M"),
        (b"carol", "c", "B"),
        (b"sh", "s", "W"),
        (b"1num", "q", "F"),
        (b"\xc3\xa9", "q", "R"),
        (b"", "q", "A"),
        (b"a" * 96, "a", "N"),
    ],
)
def test_the_letter_of_a_folder(name: bytes, plain: str, full: str) -> None:
    assert first_letter(name) == plain.encode()
    assert hash_letter(name) == full.encode()


def test_only_what_stands_before_a_dot_or_nul_is_hashed() -> None:
    assert {hash_letter(name) for name in (b"foo", b"foo.bar", b"foo\0bar")} == {b"U"}


def test_open_quotas_finds_the_file_of_a_root(tmp_path: Path) -> None:
    for options, path, root in (
        ("virtdomains: userid\n", "domain/o/other.test/quota/c/user.carol", b"other.test!user.carol"),
        ("virtdomains: userid\nfulldirhash: yes\n", "domain/M/other.test/quota/B/user.carol", b"other.test!user.carol"),
        ("fulldirhash: yes\n", "quota/U/user.foo", b"user.foo"),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1\n2\n")
        database = open_quotas(configured(tmp_path, options))
        assert database.fetch(root) == b"1 2"
        file.unlink()
        assert database.fetch(root) is None
        database.close()


def test_no_depth_is_too_much() -> None:
    deep = 60_000
    assert read_quota(b"%(X " + b"(" * deep + b")" * deep + b" S (1 2))") == figures(1, 2)


PIECES = st.sampled_from(
    [b"%(", b"(", b")", b" ", b"S", b"M", b"1", b"10", b"-1", b"NIL", b'"', b"{1+}\r\n", b"\\", b"\n", b"\0", b"%"]
)


@given(st.lists(PIECES, max_size=20).map(b"".join), st.sampled_from([b"", b"%(", b"1 2 ", b"%(S (1 "]))
def test_anything_is_a_quota_or_malformed(value: bytes, before: bytes) -> None:
    try:
        faithful = read_quota(before + value)
    except Malformed:
        with pytest.raises(Malformed):
            read_quota(before + value, strict=True)
        return
    over(faithful)
    try:
        strict = read_quota(before + value, strict=True)
    except Malformed:
        return
    # Strict raises, or reads the same, but for limits that are negative.
    assert strict.storage_used in (faithful.storage_used, -1)
    assert strict.storage_limit in (faithful.storage_limit, None)


@given(
    st.lists(st.integers(0, 1 << 65), min_size=1, max_size=2),
    st.lists(st.integers(0, 1 << 65), min_size=1, max_size=2),
    st.sampled_from([b"", b" AS (0) NF (1 2)", b" MODSEQ 7", b" X y"]),
)
def test_the_quick_way_reads_as_the_long_one(storage: list[int], messages: list[int], rest: bytes) -> None:
    first, second = (b" ".join(b"%d" % number for number in numbers) for numbers in (storage, messages))
    value = b"%%(S (%b) M (%b)%b)" % (first, second, rest)
    quick = read_quota(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quotas, "_PLAIN", quotas._NEGATIVE)
        assert read_quota(value) == quick
