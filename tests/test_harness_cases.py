"""The case language: every file is sound, every fault is named with its line, every word means what it says."""

from datetime import UTC, datetime

import pytest

from rcptd.question import Disabled, Mailbox, Posting, Quota
from rcptd.verdict import NO_SUCH_MAILBOX, NOT_ALLOWED
from tests.harness import world
from tests.harness.case import Case, Wanted
from tests.harness.cases import CaseError, parse, query, read_all
from tests.harness.expect import MODES, NotExpressibleError, expected, expected_of

FILES = read_all()


def test_titles_are_told_apart_and_every_case_can_be_run_somewhere() -> None:
    assert len(FILES) > 15
    for file in FILES:
        assert file.cases, file.path
        titles = [case.title for case in file.cases]
        assert len(set(titles)) == len(titles), file.path
        assert all(case.front_ends and "harness" in case.mtas for case in file.cases), file.path


def test_every_expectation_can_be_derived() -> None:
    for file in FILES:
        for case in file.cases:
            for _, one in case.recipients():
                for mta, modes in MODES.items():
                    for mode in modes:
                        assert expected_of(case, one, file.world, mode, mta).code >= 250


@pytest.mark.parametrize(
    ("line", "mailbox"),
    [
        ("a@b.example", Mailbox()),
        ("a@b.example quota 10M used 5M", Mailbox(quota=Quota(10 << 20, 5 << 20))),
        ("a@b.example quota 1000", Mailbox(quota=Quota(1000, 0))),
        ("a@b.example messages 10 used 3", Mailbox(quota=Quota(None, 0, 10, 3))),
        ("a@b.example quota 1 used 2, messages 3 used 4", Mailbox(quota=Quota(1, 2, 3, 4))),
        ("a@b.example disabled", Mailbox(disabled=Disabled())),
        ("a@b.example  disabled temporary", Mailbox(disabled=Disabled(temporary=True))),
        ('a@b.example disabled "Gone, for good"', Mailbox(disabled=Disabled(text="Gone, for good"))),
        (
            'a@b.example disabled temporary until 2020-01-02 "x"',
            Mailbox(disabled=Disabled(True, "x", datetime(2020, 1, 2, tzinfo=UTC).timestamp())),
        ),
        ("a@b.example moved c@d.example", Mailbox(moved_to="c@d.example")),
        ('a@b.example alias c@d.example, "x, y"@d.example', Mailbox(targets=("c@d.example", '"x, y"@d.example'))),
        (
            "a@b.example alias c@d, e@f, post authenticated, network 127.0.0.0/8, sender @g, disabled",
            Mailbox(
                targets=("c@d", "e@f"),
                posting=Posting(True, ("127.0.0.0/8",), ("@g",)),
                disabled=Disabled(),
            ),
        ),
        ("A@b.example", Mailbox(spelling="A@b.example")),
        ('"a b"@b.example', Mailbox(spelling='"a b"@b.example')),
        ("@b.example", Mailbox(catch_all=True)),
        ("@b.example disabled", Mailbox(catch_all=True, disabled=Disabled())),
    ],
)
def test_a_line_of_a_store_is_read(line: str, mailbox: Mailbox) -> None:
    assert world.recipient(line)[1] == mailbox


STORE = "store local\n  user@example.org\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "x.txt:1: a world needs a store"),
        ("stroe local\n", "x.txt:1: cannot read 'stroe local'"),
        ("  user@example.org\n", "x.txt:1: an indented line"),
        ("# comment\n\nstore local down\n", "x.txt:3: write `store NAME`"),
        ("store a unavailable\n  user@example.org\n", "x.txt:1: a store that is unavailable"),
        (STORE + STORE, "x.txt:3: there is a store 'local' already"),
        (STORE + "  user@example.org\n", "x.txt:3: user@example.org is there already"),
        (STORE + "  # comment\n  b@c full\n", "x.txt:4: 'full' is no fact"),
        (STORE + "  b@c quota\n", "x.txt:3: the limit is missing"),
        (STORE + "  b@c quota much\n", "x.txt:3: write a size"),
        (STORE + "  b@c disabled until tomorrow\n", "x.txt:3: 'tomorrow' is no date"),
        (STORE + "  b@c post everybody\n", "x.txt:3: after post write"),
        (STORE + "  b@c post network 127.0.0.1/8\n", "x.txt:3: 127.0.0.1/8 has host bits set"),
        (STORE + '  b@c disabled "x\n', "x.txt:3: cannot read"),
        (STORE + "  nobody\n", "x.txt:3: 'nobody' has no domain"),
        (STORE + "  a..\n", "x.txt:3: 'a..' has no domain"),
        (STORE + "rules\n  [[rules]]\n  name = \n", "x.txt:5: in TOML"),
        (STORE + "rules\n  x = 1\nrules\n  x = 1\n", "x.txt:5: there are rules already"),
        (STORE + "case no title\n", "x.txt:3: write `case"),
        (STORE + 'case "x"\n', "x.txt:3: a case needs a RCPT"),
        (STORE + 'case "x"\n  MAIL <a@b>\n', "x.txt:3: a case needs a RCPT"),
        (STORE + 'case "x"\n  RCPT <a@b> accept\n', "x.txt:4: write `RCPT"),
        (STORE + 'case "x"\n  RCPT <a@b>   acept\n', "x.txt:4: 'acept' is no verdict"),
        (STORE + 'case "x"\n  RCPT <a@b>   550 4.2.2\n', "x.txt:4: 550 and 4.2.2 are of different"),
        (STORE + 'case "x"\n  MAIL <a@b> SIZE=big\n', "x.txt:4: SIZE=big is no parameter"),
        (STORE + 'case "x"\n  MAIL a@b\n', "x.txt:4: write `MAIL"),
        (STORE + 'case "x"\n  EHLO a\n', "x.txt:4: cannot read 'EHLO a'"),
        (STORE + 'case "x"\n  client 192.0.2.1\n', "x.txt:4: 192.0.2.1 is not in 127.0.0.0/8"),
        (STORE + 'case "x"\n  MAIL <>\n  auth joe\n', "x.txt:5: auth comes before"),
        (STORE + 'case "x"  map only\n  auth joe\n  RCPT <a@b>  accept\n', "x.txt:3: a map does not know auth"),
        (STORE + 'case "x"  not on exim\n  RCPT <a@b>  accept\n', "x.txt:3: exim: an MTA is one of"),
        (STORE + 'case "x"  sometimes\n  RCPT <a@b>  accept\n', "x.txt:3: cannot read 'sometimes'"),
        (STORE + 'case "x"\n  RCPT <a@b>  accept\nstore two\n', "x.txt:5: the world must be complete"),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(CaseError) as caught:
        parse(text, "x.txt")
    assert str(caught.value).startswith(fault)


def only(text: str) -> Case:
    (case,) = parse(STORE + text, "x.txt").cases
    return case


def test_facts_beyond_the_recipient_make_a_case_one_for_the_milter() -> None:
    plain = only('case "x"\n  RCPT <a@b>  accept\n')
    assert (plain.facts, plain.front_ends, plain.client) == (frozenset(), ("milter", "socketmap"), "127.0.0.2")
    full = only('case "x"\n  client 127.0.0.9\n  auth joe\n  MAIL <> SIZE=5 SMTPUTF8\n  RCPT <a@b>  accept\n')
    assert full.facts == {"client", "auth", "sender", "size", "smtputf8"}
    assert full.front_ends == ("milter",)


def test_a_case_makes_the_question_that_each_front_end_would_ask() -> None:
    case = only('case "x"\n  client 127.0.0.9\n  MAIL <a@b> SIZE=5\n  RCPT <c@d>  accept\n  RCPT <e@f>  not ours\n')
    (transaction, first), (_, second) = case.recipients()
    asked = query(case, transaction, first, "milter")
    assert (asked.recipient, asked.sender, str(asked.client), asked.size) == ("<c@d>", "a@b", "127.0.0.9", 5)
    assert (asked.authenticated, asked.smtputf8) == ("", False)
    told = query(case, transaction, second, "socketmap", "access")
    assert (told.recipient, told.map, repr(told.sender), repr(told.size)) == ("<e@f>", "access", "UNKNOWN", "UNKNOWN")


def test_octets_and_repetitions_are_written_out() -> None:
    case = only('case "x"\n  RCPT <{ab*3}\\xff\\xc3\\xbc@b>   553 5.1.3\n')
    (_, one), = case.recipients()
    assert one.path == "<ababab\udcffü@b>"


def test_an_mta_knows_a_domain_in_both_spellings() -> None:
    file = parse('store local\n  user@Bücher.example\ncase "x"\n  RCPT <user@bücher.example>  accept\n', "x.txt")
    assert file.world.domains == ("bücher.example", "xn--bcher-kva.example")
    assert file.world.owns("<x@XN--BCHER-KVA.example>")
    assert not file.world.owns("<x@b.example>")
    assert "verify = ['local']" in file.world.rules


def test_a_verdict_of_the_engine_is_held_against_the_wanted_one() -> None:
    assert Wanted(550, "5.1.1").matches(NO_SUCH_MAILBOX)
    assert not Wanted(550, "5.1.1").matches(NOT_ALLOWED)
    assert not Wanted(550, "5.1.1").matches(None)
    assert not Wanted(250, "2.1.5").matches(None)
    assert Wanted(250, "2.1.5", ours=False).matches(None)


@pytest.mark.parametrize(
    ("wanted", "mode", "mta", "code", "enhanced"),
    [
        # Cell by cell as measured, where an MTA does not simply say what it is told.
        (Wanted(550, "5.1.1"), "key", "postfix", 550, "5.1.1"),
        (Wanted(550, "5.7.1"), "key", "postfix", 550, "5.1.1"),
        (Wanted(452, "4.2.2"), "key", "postfix", 451, "4.3.0"),
        (Wanted(552, "5.2.2"), "key", "postfix", 451, "4.3.0"),
        (Wanted(552, "5.2.2"), "smmapd", "postfix", 451, "4.3.5"),
        (Wanted(550, "5.7.1", as_written=True), "key", "postfix", 550, "5.1.1"),
        (Wanted(451, "4.7.1", as_written=True), "key", "postfix", 451, "4.3.0"),
        (Wanted(556, "5.1.10"), "access", "postfix", 556, "5.1.0"),
        (Wanted(250, "2.1.5", ours=False), "access", "postfix", 250, "2.1.5"),
        (Wanted(250, "2.1.5", ours=False), "key", "postfix", 550, "5.1.1"),
        (Wanted(250, "2.1.5", ours=False), "milter", "postfix", 250, "2.1.5"),
        (Wanted(250, "2.1.5", ours=False), "error", "sendmail", 550, "5.1.1"),
        (Wanted(552, "5.2.2"), "error", "sendmail", 552, "5.2.2"),
        (Wanted(552, "5.2.2"), "smmapd", "sendmail", 550, "5.1.1"),
        (Wanted(552, "5.2.2"), "key", "sendmail", 451, "4.4.3"),
        (Wanted(451, "4.3.0"), "key", "sendmail", 451, "4.4.3"),
        (Wanted(551, "5.1.6"), "milter", "sendmail", 551, "5.1.6"),
    ],
)
def test_what_each_mta_makes_of_a_verdict(wanted: Wanted, mode: str, mta: str, code: int, enhanced: str) -> None:
    meant = expected(wanted, mode, mta)  # type: ignore[arg-type]
    assert (meant.code, meant.enhanced) == (code, enhanced)


def test_relaying_is_the_mtas_own_no_whatever_the_verdict() -> None:
    accept = Wanted(250, "2.1.5")
    assert expected(accept, "milter", "sendmail", own_domain=False).meets(550, "5.7.1")
    assert expected(accept, "milter", "postfix", own_domain=False).meets(554, "5.7.1")
    assert not expected(accept, "access", "postfix", own_domain=False).meets(250, "2.1.5")
    assert expected(accept, "key", "postfix", own_domain=False, relaying=True).meets(250, "2.1.5")


def test_no_mta_is_asked_in_a_manner_that_it_does_not_have() -> None:
    with pytest.raises(NotExpressibleError):
        expected(Wanted(250, "2.1.5"), "error", "postfix")
    with pytest.raises(NotExpressibleError):
        expected(Wanted(250, "2.1.5"), "access", "sendmail")
