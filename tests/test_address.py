"""Addresses: every spelling of a recipient gives one key, no two recipients share one, and junk is named."""

import unicodedata
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rcptd import address
from rcptd.address import NotAnAddress, Recipient, domain, fold, parse

KEYS = [
    ("user@example.org", "user@example.org"),
    ("User@Example.ORG", "user@example.org"),
    ("<user@example.org>", "user@example.org"),
    (" \t<user@example.org> ", "user@example.org"),
    ("user@example.org.", "user@example.org"),
    ("<@relay.example:user@example.org>", "user@example.org"),
    ("<@a.example,@b.example:user@example.org>", "user@example.org"),
    ('"user"@example.org', "user@example.org"),
    ('"us\\er"@example.org', "user@example.org"),
    ('"a@b"@example.org', "a@b@example.org"),
    ('"a@b"', '"a@b"'),
    ("a@b", "a@b"),
    ('"a b"@example.org', "a b@example.org"),
    (r'"a\"b\\c"@example.org', r'a"b\c@example.org'),
    ('"a..b"@example.org', "a..b@example.org"),
    ("user+Detail@example.org", "user+detail@example.org"),
    ("user@sub_domain.example", "user@sub_domain.example"),
    ("user@localhost", "user@localhost"),
    ("!#$%&'*+-/=?^_`{|}~@example.org", "!#$%&'*+-/=?^_`{|}~@example.org"),
    ("bob", "bob"),
    ("BOB", "bob"),
    ("<postmaster>", "postmaster"),
    # Literals (RFC 5321 4.1.3)
    ("a@[192.0.2.7]", "a@[192.0.2.7]"),
    ("a@[IPv6:2001:DB8:0:0::1]", "a@[ipv6:2001:db8::1]"),
    ("a@[ipv6:2001:db8::1]", "a@[ipv6:2001:db8::1]"),
    # Domains in other scripts: U-label and A-label are one
    ("a@müller.example", "a@xn--mller-kva.example"),
    ("a@MÜLLER.Example", "a@xn--mller-kva.example"),
    ("a@mu\u0308ller.example", "a@xn--mller-kva.example"),
    ("a@XN--MLLER-kva.example", "a@xn--mller-kva.example"),
    ("a@xn--mller-kva.example.", "a@xn--mller-kva.example"),
    ("a@straße.example", "a@xn--strae-oqa.example"),  # not strasse.example: another domain since 2010
    ("a@例え。テスト", "a@xn--r8jz45g.xn--zckzah"),
    ("a@例え。テスト。", "a@xn--r8jz45g.xn--zckzah"),
    ("a@\uff45\uff58ample\uff0e\uff2frg", "a@example.org"),
    ("a@i❤.example", "a@xn--i-7iq.example"),
    ("a@I❤\ufe0f.example", "a@xn--i-7iq.example"),
    ("a@xn--i-7iq.example", "a@xn--i-7iq.example"),
    ("a@💩.müller.example", "a@xn--ls8h.xn--mller-kva.example"),
    ("a@_mail.müller.example", "a@_mail.xn--mller-kva.example"),
    ("a@xn--a.example", "a@xn--a.example"),  # a wrong A-label is still a host name
    # Local parts in other scripts: NFC of the case-folded form, a sharp s as ss (as Postfix folds)
    ("JÖRG@example.org", "jörg@example.org"),
    ("jo\u0308rg@example.org", "jörg@example.org"),
    ("Straße@example.org", "strasse@example.org"),
    ("ΌΣΟΣ@example.org", "όσοσ@example.org"),
    ("a\u037eb@example.org", "a;b@example.org"),  # NFC of the Greek question mark
]


@pytest.mark.parametrize(("text", "key"), KEYS, ids=[ascii(text) for text, _ in KEYS])
def test_every_spelling_gives_the_canonical_key(text: str, key: str) -> None:
    recipient = parse(text)
    assert recipient.key == key
    assert recipient.fault == ""
    assert parse(str(recipient)).key == key
    assert parse(f"<{recipient}>").key == key


JUNK = [
    "", " ", "<>", "@", "@example.org", "<@example.org>", "user@", "<user@>", '""',
    '""@example.org', '"', '"a', '"a"b@c',
    '"a"@', '"a" @example.org', "a@b@c", "a b@example.org", "a@b c", "<a@b", "a@b>", "<<a@b>>", "a@b, c@d",
    "a@b;c@d", "(a)b@c", "a(b)@c", "a:b@c", "a\\b@c", 'a"b@c', "a[1]@c", "a,b@c", "a;b@c",
    "a@.", "a@..", "a@.example.org", "a@example..org", "a@example.org..", "a@-b.example", "a@b-.example",
    "a@" + "x" * 64 + ".example", "a@b/c", "a@b:25", "a@b!c", "a@ü%.example", "a@ü .example", 'a@ü".example',
    "a@[192.0.2]", "a@[192.0.2.256]", "a@[192.0.02.1]", "a@[]", "a@[", "a@[192.0.2.7", "a@192.0.2.7]",
    "a@[IPv6:192.0.2.7]", "a@[2001:db8::1]", "a@[IPv6:fe80::1%eth0]", 'a@[IPv6:fe80::1%a" b]', "a@[tag:x]",
    "a@[IPv6:" + "0" * 300 + "]",
    "a@xn--.example", "a@\u00ad.example", "a@\ue000.example", "a@℀.example", "a@ü\x00.example", "a@\udcff.example",
    "\udcffa@example.org", '"\udcff"@example.org', "a\x00b@example.org", '"a\x00b"@example.org', "a\r\nb@example.org",
    '"a\r\nb"@example.org', "a@example.org\n", "a@example.org\x00", "\ufeff\x7f@example.org", "a\x85b@example.org",
    '"a\\\x01"@example.org', "@a b:user@example.org", "@a\nb:user@example.org", "@a,b:user@example.org",
    "<@a.example:>", "@a@b:c@d", "@[IPv6:::1]:user@example.org",
]  # fmt: skip


@pytest.mark.parametrize("text", JUNK, ids=ascii)
def test_junk_is_not_an_address(text: str) -> None:
    with pytest.raises(NotAnAddress):
        parse(text)


def of(octets: int) -> str:
    """Make a domain of so many octets, which may not be a multiple of 64."""
    return (("x" * 63 + ".") * (octets // 64 + 1))[:octets]


FAULTS = [
    ("x" * 64 + "@example.org", ""),
    ("x" * 65 + "@example.org", "the local part is longer than 64 octets"),
    ('"' + "x" * 63 + '\\""@example.org', ""),
    ("é" * 32 + "@example.org", ""),
    ("é" * 32 + "e@example.org", "the local part is longer than 64 octets"),
    ("x@" + of(252), ""),
    ("x@" + of(253), "the address is longer than 254 octets"),
    ("x@" + of(255), "the address is longer than 254 octets"),
    ("x" * 64 + "@" + of(189), ""),
    ("x" * 64 + "@" + of(190), "the address is longer than 254 octets"),
    ("x" * 63 + "@" + of(190), ""),
    ("a..b@example.org", "the local part has a dot too many"),
    (".a@example.org", "the local part has a dot too many"),
    ("a.@example.org", "the local part has a dot too many"),
    ("." + "x" * 70 + "@example.org", "the local part has a dot too many"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_a_limit_that_only_the_owner_may_judge_is_a_fault_and_no_refusal(text: str, fault: str) -> None:
    recipient = parse(text)
    assert recipient.fault == fault
    assert recipient.with_domain("example.net").fault == fault


def test_a_domain_of_255_octets_is_one_and_of_256_is_none() -> None:
    assert len(parse("x@" + of(255)).domain) == 255
    assert domain(of(255) + ".") == of(255)
    for name in ("a." + of(254), "a." + of(254) + ".", of(5000), "ü." * 60 + "example", "ü" * 300):
        with pytest.raises(NotAnAddress, match="longer than 255 octets"):
            domain(name)


@pytest.mark.parametrize("local", ["x", '"x"', "é"])
def test_nothing_longer_than_a_socketmap_key_is_looked_at(local: str) -> None:
    most = local + "x" * (address.KEY_OCTETS - len(local) - 2) + "@d"
    if local != '"x"':
        assert parse(most).fault
    with pytest.raises(NotAnAddress, match="far too long"):
        parse("x" + most)


def test_a_label_is_measured_before_it_is_encoded() -> None:
    with pytest.raises(NotAnAddress, match="no internationalised"):
        domain("\ufdfa" * 200)  # each maps to 18 characters


@pytest.mark.parametrize(
    ("text", "ascii_only"),
    [("a@xn--mller-kva.example", True), ("a@müller.example", False), ("é@example.org", False), ("a@b", True)],
)
def test_ascii_says_how_the_command_was_written(text: str, ascii_only: bool) -> None:
    assert parse(text).ascii is ascii_only


@pytest.mark.parametrize(
    ("text", "delimiters", "base"),
    [
        ("user+detail@example.org", "+", "user@example.org"),
        ("user+a+b@example.org", "+", "user@example.org"),
        ("user-a+b@example.org", "+-", "user@example.org"),
        ("user+a-b@example.org", "-+", "user@example.org"),
        ("user+@example.org", "+", "user@example.org"),
        ("user@example.org", "+", None),
        ("+detail@example.org", "+", None),
        ("+a+b@example.org", "+", None),
        ("-a+b@example.org", "+-", None),
        ("user+detail@example.org", "-", None),
        ("user+detail@example.org", "", None),
        ('"a b+c"@example.org', "+", "a b@example.org"),
        ("user+detail", "+", "user"),
    ],
)
def test_the_first_delimiter_cuts_and_one_that_opens_does_not(text: str, delimiters: str, base: str | None) -> None:
    found = parse(text).without_detail(delimiters)
    assert (found and found.key) == base


def test_a_recipient_shows_itself() -> None:
    assert repr(parse("User@Example.org")) == "Recipient('User', 'example.org')"
    assert str(parse('"a\\"b"')) == '"a\\"b"'
    assert str(Recipient("", "example.org")) == '""@example.org'


LOCALS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,8}){0,3}", fullmatch=True).filter(
    lambda name: "xn--" not in name
)
UNICODE_NAMES = st.text(st.characters(categories=["Ll", "Lo", "Nd", "So", "Mn"]), min_size=1, max_size=12)


def parsed(text: str) -> Recipient | None:
    try:
        return parse(text)
    except NotAnAddress:
        return None


@given(st.text(max_size=40) | st.text('ab.@"\\<>:,[]+é\u0301ß ', max_size=16))
@example('"a@b"')
@example("@x:a@b")
def test_any_text_is_an_address_or_not_and_an_address_stays_itself(text: str) -> None:
    recipient = parsed(text)
    if recipient:
        again = parse(str(recipient))
        assert again.key == recipient.key
        assert again.domain == recipient.domain
        assert str(again) == str(recipient)
        assert not any(character < " " or character == "\x7f" for character in str(recipient))


@given(LOCALS, NAMES)
def test_a_quoted_local_part_is_read_back(local: str, name: str) -> None:
    quoted = local.replace("\\", "\\\\").replace('"', '\\"')
    recipient = parse(f'"{quoted}"@{name}')
    assert recipient.local == unicodedata.normalize("NFC", local)
    assert recipient.domain == name
    assert recipient.key == f"{fold(local)}@{name}"
    assert parse(str(recipient)).key == recipient.key


@given(LOCALS, LOCALS, st.sampled_from(["", "b", "b.c"]), st.sampled_from(["", "b", "b.c"]))
@example("a@b", "a", "", "b")
@example('"a@b"', "a@b", "", "")
def test_two_recipients_share_a_key_only_when_they_are_one(one: str, two: str, here: str, there: str) -> None:
    same = (fold(one), here) == (fold(two), there)
    assert (Recipient(one, here).key == Recipient(two, there).key) is same


@given(LOCALS)
def test_folding_once_is_folding_for_good(local: str) -> None:
    assert fold(fold(local)) == fold(local)
    assert fold(local) == fold(unicodedata.normalize("NFC", local))


@given(UNICODE_NAMES)
@example("ß")
@example("❤")
def test_a_domain_in_canonical_form_stays(name: str) -> None:
    try:
        canonical = domain(name)
    except NotAnAddress:
        return
    assert canonical.isascii()
    assert domain(canonical) == canonical
    assert domain(canonical.upper()) == canonical
    assert domain(canonical + ".") == canonical


@given(st.binary(max_size=30))
def test_octets_that_are_no_utf_8_are_no_address(octets: bytes) -> None:
    recipient = parsed(octets.decode("utf-8", "surrogateescape") + "@example.org")
    if recipient:
        recipient.key.encode()


def test_domains_that_were_read_are_known_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, str] = {}
    monkeypatch.setattr(address, "_plain_domains", known)
    monkeypatch.setattr(address, "MOST_DOMAINS", 3)
    for number in range(10):
        for _ in range(2):
            recipient = parse(f"<User@D{number}.Example>")
            assert (recipient.key, recipient.local) == (f"user@d{number}.example", "User")
        assert len(known) <= 3
    for junk in ("<a@d9.example", "a@d9.example>", "a b@D9.Example", "a@b@D9.Example", "@D9.Example", ".a@D9.Example"):
        with suppress(NotAnAddress):
            assert parse(junk).fault
    assert parse(f"{'a' * 65}@D9.Example").fault == parse(f"{'a' * 65}@other.example").fault != ""
