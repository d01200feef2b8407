"""Recipients: userid, internal name and key of each odd address, faithful and mended."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus.imapdconf import ImapdConf, read
from rcptd.stores.cyrus.names import ADDRESS_OCTETS, Resolved, key_of, resolve

BASE = "virtdomains: userid\ndefaultdomain: example.org\npostuser: bb\n"


def configured(options: str) -> ImapdConf:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "imapd.conf"
        path.write_text(f"configdirectory: /x\n{options}")
        return read(path)


CONFS = {
    "A": configured(BASE),
    "off": configured(BASE.replace("userid", "off")),
    "on": configured(BASE.replace("userid", "on")),
    "dot": configured(BASE + "unixhierarchysep: no\n"),
    "nodown": configured(BASE + "lmtp_downcase_rcpt: no\n"),
    "nobb": configured(BASE.replace("postuser: bb\n", "")),
    "dflt": configured(""),
    "BB": configured(BASE.replace("bb", "BB")),
    "bb@other": configured(BASE.replace("bb", "bb@other.test")),
    "Org": configured(BASE.replace("example.org", "Example.ORG")),
}


def parts(key: bytes | None) -> str | None:
    """A key as the tables write it: | between its parts, ! behind its domain."""
    if key is None:
        return None
    assert key[:1] == b"N"
    return key[1:].replace(b"\x1f", b"|").replace(b"\x1d", b"!!").decode("latin-1")


# Where: userid (None for a shared mailbox), internal name, key ("!!" behind a domain, None for none).
FAITHFUL: list[tuple[str, bytes, bytes | None, bytes, str | None]] = [
    ("A", b"foo", b"foo", b"user.foo", "user|foo"),
    ("A", b"foo@example.org", b"foo", b"user.foo", "user|foo"),
    ("A", b"Foo@example.org", b"foo", b"user.foo", "user|foo"),
    ("A", b"foo@EXAMPLE.ORG", b"foo@example.org", b"example.org!user.foo", "user|foo"),
    ("nodown", b"foo@EXAMPLE.ORG", b"foo@EXAMPLE.ORG", b"EXAMPLE.ORG!user.foo", "EXAMPLE.ORG!!user|foo"),
    ("nodown", b"FOO", b"FOO", b"user.FOO", "user|FOO"),
    ("on", b"carol@Other.test", b"carol@other.test", b"other.test!user.carol", "other.test!!user|carol"),
    ("off", b"carol@Other.test", b"carol", b"user.carol", "user|carol"),
    ("A", b"foo@", b"foo@", b"!user.foo", "!!user|foo"),
    ("off", b"foo@", b"foo", b"user.foo", "user|foo"),
    ("A", b"foo+x@y@example.org", b"foo", b"user.foo.x@y", "user|foo|x@y"),
    ("A", b"foo+", b"foo", b"user.foo", "user|foo"),
    ("A", b"foo+/", b"foo", b"user.foo", "user|foo"),
    ("A", b"foo+/Sub//Deep/", b"foo", b"user.foo.Sub.Deep", "user|foo|Sub|Deep"),
    ("A", b"foo+Sub.Deep", b"foo", b"user.foo.Sub^Deep", "user|foo|Sub.Deep"),
    ("dot", b"foo+Sub.Deep", b"foo", b"user.foo.Sub.Deep", "user|foo|Sub|Deep"),
    ("dot", b"foo+Sub/Deep", b"foo", b"user.foo.Sub/Deep", "user|foo|Sub/Deep"),
    ("A", b"foo+INBOX", b"foo", b"user.foo.INBOX", "user|foo|INBOX"),
    ("A", "foo+\u00e9t\u00e9".encode(), b"foo", b"user.foo.&AOk-t&AOk-", "user|foo|&AOk-t&AOk-"),
    ("A", b"foo+&AOk-t&AOk-", b"foo", b"user.foo.&AOk-t&AOk-", "user|foo|&AOk-t&AOk-"),
    ("A", b"foo+&x", b"foo", b"user.foo.&-x", "user|foo|&-x"),
    ("A", b"j.doe", b"j.doe", b"user.j^doe", "user|j.doe"),
    ("A", b"j^doe", b"j^doe", b"user.j^doe", "user|j.doe"),
    ("A", b"\xc4X", b"\xc4x", b"user.\xc4x", "user|\xc4x"),
    ("A", b'"foo"', b'"foo"', b'user."foo"', 'user|"foo"'),
    ("A", b"foo ", b"foo ", b"user.foo ", "user|foo "),
    ("A", b"foo%example.org", b"foo%example.org", b"user.foo%example^org", "user|foo%example.org"),
    ("A", b"foo\x1fsub", b"foo\x1fsub", b"user.foo\x1fsub", "user|foo|sub"),
    ("A", b"foo\0bar", b"foo", b"user.foo", "user|foo"),
    ("A", b"a!user.foo", b"a!user.foo", b"user.a!user^foo", "user.a!!user.foo"),
    ("A", b"", b"", b"user.", "user"),
    ("A", b"@", b"@", b"!user.", "!!user"),
    ("A", b"@other.test", b"@other.test", b"other.test!user.", "other.test!!user"),
    ("A", b"+x", b"", b"user..x", "user|x"),
    ("A", b"bb", None, b"", None),
    ("A", b"bb+", None, b"", None),
    ("A", b"bb+!", None, b"!", "!!"),
    ("A", b"bb+example.org!", None, b"example^org!", "example^org!!"),
    ("A", b"bb+sh", None, b"sh", "sh"),
    ("A", b"BB+sh@example.org", None, b"sh", "sh"),
    ("BB", b"BB+sh", b"bb", b"user.bb.sh", "user|bb|sh"),
    ("A", b"bb+sh@EXAMPLE.ORG", b"bb@example.org", b"example.org!user.bb.sh", "user|bb|sh"),
    ("A", b"bb+sh@other.test", b"bb@other.test", b"other.test!user.bb.sh", "other.test!!user|bb|sh"),
    ("bb@other", b"bb+sh@other.test", None, b"sh", "sh"),
    ("bb@other", b"bb+sh", b"bb", b"user.bb.sh", "user|bb|sh"),
    ("nobb", b"+sh", None, b"sh", "sh"),
    ("nobb", b"+sh@example.org", None, b"sh", "sh"),
    ("nobb", b"bb+sh", b"bb", b"user.bb.sh", "user|bb|sh"),
    ("nobb", b"", None, b"", None),
    ("dflt", b"foo@any.example", b"foo", b"user.foo", "user|foo"),
    ("dot", b"bb+other.test!sh", None, b"other.test!sh", "other.test!!sh"),
    ("dot", b"bb+example.org!sh", None, b"example.org!sh", "sh"),
    ("A", b"bb+user/foo", None, b"user.foo", "user|foo"),
    ("A", b"bb+DELETED/user/foo/5f000000", None, b"DELETED.user.foo.5f000000", "DELETED|user|foo|5F000000"),
    ("A", b"bb+DELETED/sh", None, b"DELETED.sh", "DELETED|sh"),
    ("A", b"bb+DELETED/sh/zz", None, b"DELETED.sh.zz", "sh"),
    ("A", b"bb+DELETED/sh/0", None, b"DELETED.sh.0", "sh"),
    ("A", b"bb+DELETED/sh/ -0x1Z", None, b"DELETED.sh. -0x1Z", "DELETED|sh|FFFFFFFF"),
    ("A", b"bb+DELETED/sh/0xg", None, b"DELETED.sh.0xg", "sh"),
    ("A", b"bb+DELETED/sh/100000000", None, b"DELETED.sh.100000000", "DELETED|sh|0"),
    ("A", b"bb+DELETED/sh/-FFFFFFFFFFFFFFFFFF", None, b"DELETED.sh.-FFFFFFFFFFFFFFFFFF", "DELETED|sh|FFFFFFFF"),
    ("Org", b"foo@Example.ORG", b"foo", b"user.foo", "user|foo"),
    ("Org", b"foo@example.org", b"foo@example.org", b"example.org!user.foo", "example.org!!user|foo"),
]


@pytest.mark.parametrize(("conf", "address", "userid", "internal", "key"), FAITHFUL)
def test_faithful(conf: str, address: bytes, userid: bytes | None, internal: bytes, key: str | None) -> None:
    resolved = resolve(CONFS[conf], address)
    assert (resolved.userid, resolved.internal) == (userid, internal)
    assert resolved.shared == (userid is None)
    assert parts(resolved.key) == key


def test_a_domain_typed_behind_the_dots_is_one() -> None:
    assert resolve(CONFS["dot"], b"bb+other.test!sh") == Resolved(
        None, True, None, (b"other", b"test!sh"), b"other.test!sh", b"Nother.test\x1dsh"
    )


# What strict makes of it, with the item of the comparison that asks for it.
STRICT: list[tuple[int, str, bytes, bytes | None, bytes, str | None]] = [
    (8, "A", b"full@EXAMPLE.ORG", b"full", b"user.full", "user|full"),
    (8, "A", b"bb+sh@EXAMPLE.ORG", None, b"sh", "sh"),
    (8, "Org", b"foo@EXAMPLE.ORG", b"foo@example.org", b"example.org!user.foo", "example.org!!user|foo"),
    (8, "nodown", b"foo@EXAMPLE.ORG", b"foo@EXAMPLE.ORG", b"EXAMPLE.ORG!user.foo", "EXAMPLE.ORG!!user|foo"),
    (10, "A", b"bb+sh@other.test", None, b"other.test!sh", "other.test!!sh"),
    (10, "A", b"bb@other.test", None, b"other.test!", None),
    (10, "nobb", b"+sh@other.test", None, b"other.test!sh", "other.test!!sh"),
    (10, "bb@other", b"bb+sh@other.test", None, b"sh", "sh"),
    (14, "A", b"foo\x1fsub", b"foo\x1fsub", b"user.foo\x1fsub", None),
    (14, "A", b"foo\0bar", b"foo\0bar", b"user.foo\0bar", None),
    (14, "A", b"j^doe", b"j^doe", b"user.j^doe", None),
    (14, "A", b"a!user.foo", b"a!user.foo", b"user.a!user^foo", None),
    (14, "A", b"foo@a!b", b"foo@a!b", b"a!b!user.foo", None),
    (14, "A", b"foo+a^b", b"foo", b"user.foo.a^b", None),
    (14, "A", b"+x", b"", b"user..x", None),
    (14, "A", b"@", b"@", b"!user.", None),
    (14, "dot", b"bb+other.test!sh", None, b"other.test!sh", None),
    (14, "A", b"bb+DELETED/sh/zz", None, b"DELETED.sh.zz", None),
    (0, "A", b"bb+DELETED/user/foo/5f000000", None, b"DELETED.user.foo.5f000000", "DELETED|user|foo|5F000000"),
    (0, "A", b"bb", None, b"", None),
    (0, "A", b"foo+Sub/Deep@other.test", b"foo@other.test", b"other.test!user.foo.Sub.Deep",
     "other.test!!user|foo|Sub|Deep"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "conf", "address", "userid", "internal", "key"), STRICT)
def test_strict(  # noqa: PLR0917 - a table's columns
    item: int, conf: str, address: bytes, userid: bytes | None, internal: bytes, key: str | None
) -> None:
    resolved = resolve(CONFS[conf], address, strict=True)
    assert (resolved.userid, resolved.internal) == (userid, internal)
    assert parts(resolved.key) == key
    assert bool(resolved.notes) == (key is None)
    faithful = resolve(CONFS[conf], address)
    assert not item or (faithful[:6] != resolved[:6]) or (conf, address) in SAME


SAME = {
    ("Org", b"foo@EXAMPLE.ORG"), ("nodown", b"foo@EXAMPLE.ORG"), ("bb@other", b"bb+sh@other.test"),
}  # fmt: skip


def test_dropping_the_folder() -> None:
    conf = CONFS["A"]
    for strict in (False, True):
        assert resolve(conf, b"foo+no/such", drop_folder=True, strict=strict) == resolve(conf, b"foo", strict=strict)
    assert resolve(conf, b"bb+sh", drop_folder=True) == resolve(conf, b"bb")
    # Item 9: strict drops the folder of users only.
    assert resolve(conf, b"bb+sh", drop_folder=True, strict=True) == resolve(conf, b"bb+sh")
    assert resolve(conf, b"bb+sh@other.test", drop_folder=True, strict=True).boxes == (b"sh",)


def test_an_encoded_detail_is_noted() -> None:
    assert "UTF-7" in resolve(CONFS["A"], b"foo+&AOk-").notes[0]


def test_a_length_is_bounded() -> None:
    assert resolve(CONFS["A"], b"x" * ADDRESS_OCTETS).key == b"Nuser\x1f" + b"x" * ADDRESS_OCTETS
    for strict in (False, True):
        assert resolve(CONFS["A"], b"x" * (ADDRESS_OCTETS + 1), strict=strict).key is None
        boxes = resolve(CONFS["A"], b"foo+" + b"a/" * 4998, strict=strict).boxes
        assert len(boxes) == 4998


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"foo", b"bb", b"BB", b"+", b"@", b".", b"/", b"!", b"^", b"&", b"-", b"\x1f", b"\x1d", b"\0", b"user",
             b"DELETED", b"5F", b"example.org", b"EXAMPLE.ORG", b"other.test", b"\xc3\xa9", b"\xff"]
        ),
        st.binary(max_size=3),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@given(st.sampled_from(sorted(CONFS)), PIECES, st.booleans())
def test_every_address_means_something_definite(name: str, address: bytes, drop: bool) -> None:
    conf = CONFS[name]
    faithful = resolve(conf, address, drop_folder=drop)
    assert key_of(conf, faithful.internal) == faithful.key
    assert not (faithful.shared and faithful.userid)
    assert b"\0" not in faithful.internal

    strict = resolve(conf, address, drop_folder=drop, strict=True)
    if strict.key is not None:
        # A name that strict looks up is read by Cyrus as the same name.
        assert key_of(conf, strict.internal) == strict.key
        assert not {0x00, 0x21, 0x5E} & set(strict.key)
        domain, _, rest = strict.key[1:].rpartition(b"\x1d")
        assert domain == (strict.domain or b"")
        found = rest.split(b"\x1f")
        named = [*strict.boxes] if strict.shared else [b"user", user_of(conf, address), *strict.boxes]
        assert len(found) == len(named)
        assert found[:-1] == named[:-1]


def user_of(conf: ImapdConf, address: bytes) -> bytes:
    local = address.rpartition(b"@")[0] if b"@" in address else address
    user = local.partition(b"+")[0]
    return user.lower() if conf.lmtp_downcase_rcpt else user
