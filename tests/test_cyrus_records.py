"""Records of mailboxes: both grammars, every error with Cyrus' own words, and no input that is too much."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus import records
from rcptd.stores.cyrus.records import RECORD_OCTETS, MailboxRecord, Malformed, read_mailbox

GENERIC = b"%(T e I x P default V 1 C 1 F 1 M 1 A %(foo lrswipkxtecdan))"
EVERY = sorted(set(records.FLAGS.values()) - {"sieve"})  # an old number knows that one as a kind
FOO = ((b"foo", b"lrswipkxtecdan"),)


def record(
    kind: str = "email", *flags: str, server: bytes = b"", acl: tuple[tuple[bytes, bytes], ...] = ()
) -> MailboxRecord:
    return MailboxRecord(kind, frozenset(flags), server, acl)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (GENERIC, record(acl=FOO)),
        (b"%(T ed A %(foo p anyone lrs))", record("email", "deleted", acl=((b"foo", b"p"), (b"anyone", b"lrs")))),
        (b"%(T ez)", record("email", "reserve")),
        (b"%(T i)", record("email", "intermediate")),
        (b"%(T em A %())", record("email", "moving")),
        (b"%(T c)", record("calendar")),
        (b"%(T afl)", record("addressbook", "sieve", "legacy directories")),
        (b"%(T n)", record("news")),
        (b"%(T j)", record("notifications")),
        (b"%(T NIL)", record()),
        (b'%(T "")', record()),
        (b"%(T {2+}\r\ned)", record("email", "deleted")),
        (b"%(T {02}\r\ned)", record("email", "deleted")),
        (b"%(T {}\r\n A %(a b))", record(acl=((b"a", b"b"),))),
        (b"%(T e T ed)", record("email", "deleted")),  # the later one counts
        (b"%(T e\0x)", record()),
        (b"%(A %(foo p) T ei)", record("email", "intermediate", acl=((b"foo", b"p"),))),
        (b"%()", record()),
        (b"%(T e )", record()),  # a blank before the end
        (b"%(X %(T ed))", record("email", "deleted")),  # at any depth
        (b"%(X (T ed))", record()),  # no keys in a plain list
        (b"%(X (a %(T ed) b))", record("email", "deleted")),
        (b"%(H (%(T ed N x)) T ei)", record("email", "intermediate")),
        (b"%(H (x (y) %(T ed)))", record("email", "deleted")),  # any list that ends, ends the history
        (b"%(H %(T ed))", record("email", "deleted")),  # only a plain list begins one
        (b"%(S s T er)", record("email", "remote", server=b"s")),
        (b"%(S a S b T er)", record("email", "remote", server=b"b")),
        (b'%(T er S "")', record("email", "remote")),
        (b"%(T erd)", record("email", "remote", "deleted")),
        (b"%(H (%(S x)) T e)", record()),
        (b"%(A foo)", record()),
        (b"%(A (foo p))", record()),
        (b"%(A %(foo (p)))", record(acl=((b"", b"p"),))),
        (b"%(A %(foo %(x p) bar l))", record(acl=((b"x", b"p"),))),  # a list that ends, ends the access list
        (b"%(A %(a\tb p))", record(acl=((b"a", b"b"),))),  # a TAB moves all that follows
        (b"%(A %(a\tb p c d))", record(acl=((b"a", b"b"), (b"p", b"c")))),
        (b"%(A %(a p\0q b r))", record(acl=((b"a", b"p"), (b"b", b"r")))),
        (b"%(A %(a\0x p b r))", record()),
        (b'%(A %("a b" "p\\"l" c\\d r))', record(acl=((b"a b", b'p"l'), (b"c\\d", b"r")))),
        (b"%(T e A %(a\n\vb p))", record(acl=((b"a\n\vb", b"p"),))),  # a blank alone ends a word
        (b"%(T e A %())", record()),
        (b"%(  A %(a p))", record(acl=((b"a", b"p"),))),  # an empty name with an empty value
        (b"%(V x T e(d)", "an unknown letter '('"),
        (b"%(T x)", "an unknown letter 'x'"),
        (b"%(T e)I x)", "an unknown letter ')'"),  # a word ends at a blank
        (b"%(T E)", "an unknown letter 'E'"),
        (b"%(H (%(T x)))", "an unknown letter 'x'"),
        (b"%(A %(a NIL))", "NIL for rights"),
        (b"%(M NIL)", "NIL for a number"),
        (b"%(T er)", "a server that is not named"),
        (b"%(S NIL T er)", "a server that is not named"),
    ],
)
def test_lists(value: bytes, wanted: MailboxRecord | str) -> None:
    if isinstance(wanted, MailboxRecord):
        assert read_mailbox(value) == wanted
        return
    with pytest.raises(Malformed) as caught:
        read_mailbox(value)
    assert (caught.value.text, wanted in caught.value.why) == ("System I/O error", True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", "Mailbox has an invalid format"),
        (b"%", "Invalid identifier"),
        (b"%x", "Invalid identifier"),
        (b"%(", "Invalid identifier"),
        (b"%(T", "Invalid identifier"),
        (b"%(T ", "Invalid identifier"),
        (b"%(T e", "Invalid identifier"),
        (b"%(T e ", "Invalid identifier"),
        (b"%(T e  I x)", "Invalid identifier"),
        (b"%(T e)x", "System I/O error"),
        (b"%(T e) ", "System I/O error"),
        (b"%(T e))", "System I/O error"),
        (b"%(T e I x P default", "Invalid identifier"),
            (b'%(T "e)', "Invalid identifier"),
        (b'%(T "e\\', "Invalid identifier"),
        (b'%("T"e)', "Invalid identifier"),
        (b"%(T {2}\ned)", "Invalid identifier"),
        (b"%(T {2}\r\ned", "Invalid identifier"),
        (b"%(T {3}\r\ned)", "Invalid identifier"),
        (b"%(T {99999999999999999999999}\r\ned)", "Invalid identifier"),
        (b"%(T {x}\r\ned)", "Invalid identifier"),
        (b"%(T %x)", "Invalid identifier"),
        (b"%(T (", "Invalid identifier"),
        (b"%(T)", "Invalid identifier"),
        (b"%(NIL x)", "Zero-length message literal"),
        (b"%(X %(NIL x))", "Zero-length message literal"),
        (GENERIC + b" ", "System I/O error"),
        (b"0 default " + b"a\tb\t" * RECORD_OCTETS, "Mailbox has an invalid format"),
    ],
)
def test_what_cannot_be_read_is_told_in_the_words_of_cyrus(value: bytes, text: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_mailbox(value)
    assert caught.value.text == text
    assert str(caught.value).startswith(f"{text} (")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"0 default foo\tlrswip\t", record(acl=((b"foo", b"lrswip"),))),
        (b"0 default foo\tlrswip", record()),  # without the last TAB it is no entry
        (b"0 default a\tb\tc\td", record(acl=((b"a", b"b"),))),
        (b"0 default \tp\t", record(acl=((b"", b"p"),))),
        (b"32 default foo\tlrs\t", record("email", "reserve", acl=((b"foo", b"lrs"),))),
        (b"128 default", record("email", "deleted")),
        (b"256 default", record("email", "intermediate")),
        (b"64 default", record("email", "moving")),
        (b"512 default", record("email", "legacy directories")),
        (b"9 default", record("calendar")),
        (b"6 default", record("unknown")),
        (b"16 srv!part a\tp\t", record("email", "remote", server=b"srv", acl=((b"a", b"p"),))),
        (b"16 srv!part!y a\tp\t", record("email", "remote", server=b"srv", acl=((b"a", b"p"),))),
        (b"0 part a!b\tp\t", record(acl=((b"a!b", b"p"),))),
        (b" +128 default", record("email", "deleted")),
        (b"-1 !x", record("unknown", *EVERY)),
        (b"99999999999999999999 s!x", record("unknown", *EVERY, server=b"s")),
        (b"hello world", record()),
        (b"default", record()),
        (b"0 default foo\tp\t\0x\ty\t", record(acl=((b"foo", b"p"),))),
        (b"(uniqueid x) 128 default a\tp\t", record("email", "deleted", acl=((b"a", b"p"),))),
        (b"(uniqueid x specialuse y) 128 d a\tp\t", record("email", "deleted", acl=((b"a", b"p"),))),
        (b"(uniqueid x specialuse y z) 128 d a\tp\t", record(acl=((b"128 d a", b"p"),))),
        (b"(uniqueid x)128 d", record("email", "deleted")),
        (b"(uniqueid x", record()),
        (b"(uniqueid", record()),
        (b"(uniqueid x ", record()),
        (b"(uniqueid) 128 d", record()),
        (b"(T e)", record()),
        (b"(", record()),
    ],
)
def test_old_values(value: bytes, wanted: MailboxRecord) -> None:
    assert read_mailbox(value) == wanted


def test_no_depth_is_too_much() -> None:
    deep = 200_000
    assert read_mailbox(b"%(X " + b"(" * deep + b")" * deep + b" T ed)").flags == {"deleted"}
    nested = b"%(X " * deep + b"y" + b")" * deep
    assert read_mailbox(nested) == record()
    with pytest.raises(Malformed):
        read_mailbox(nested[:-1])


WORDS = st.one_of(
    st.sampled_from(
        [b"T", b"S", b"A", b"H", b"I", b"e", b"ed", b"er", b"NIL", b"anyone", b"p", b"lrs", b"", b"{2+}\r\nab"]
    ),
    st.binary(max_size=3),
)
NOISE = st.lists(
    st.one_of(st.sampled_from([b"%(", b"(", b")", b" ", b'"', b"\\", b"{", b"}", b"\t", b"%"]), WORDS), max_size=20
).map(b"".join)
TIDY = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"(" + b" ".join(items) + b")"),
        st.lists(st.tuples(WORDS, inner), max_size=3).map(
            lambda items: b"%(" + b" ".join(b"%b %b" % item for item in items) + b")"
        ),
    ),
)


@given(st.one_of(NOISE, NOISE.map(lambda noise: b"%(" + noise + b")"), TIDY))
def test_anything_is_a_record_or_malformed(value: bytes) -> None:
    try:
        found = read_mailbox(value)
    except Malformed:
        pass
    else:
        assert found.flags <= set(records.FLAGS.values())
        assert b"\0" not in found.server


NAMES = [b"foo", b"anyone", b"-anyone", b"a@b", b"NIL", b"NILx"]
ENTRY = st.tuples(st.sampled_from(NAMES), st.sampled_from([b"p", b"lrs"]))
FIELD = st.tuples(
    st.sampled_from([b"I", b"P", b"V", b"S", b"T", b"H", b"M"]),
    st.sampled_from([b"x", b"1", b"NIL", b"a)", b"(a)", b"%("]),
)
USUAL = st.builds(
    lambda kind, fields, acl, tail: b"%(T " + kind + b"".join(b" %b %b" % one for one in fields) + b" A %("
    + b" ".join(b"%b %b" % one for one in acl) + tail,
    st.sampled_from([b"e", b"ed", b"ez", b"c", b"x", b"er", b"NIL"]),
    st.lists(FIELD, max_size=3),
    st.lists(ENTRY, max_size=3),
    st.sampled_from([b"))", b" ))", b") )", b")", b")))"]),
)  # fmt: skip


@given(USUAL)
def test_the_quick_way_reads_as_the_long_one(value: bytes) -> None:
    def outcome() -> object:
        try:
            return read_mailbox(value)
        except Malformed as malformed:
            return malformed.text

    quick = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_PLAIN", re.compile(rb"(?!)"))
        assert outcome() == quick
