"""The engine without any I/O: a decision asks, is told, and says; here the test is the store."""

from typing import Any

import pytest

from rcptd import engine
from rcptd.policy import Policy
from rcptd.query import Query
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Absence,
    Answer,
    Disabled,
    Found,
    Lookup,
    Mailbox,
    NotFound,
    Unavailable,
)
from rcptd.trace import Note, Trace
from rcptd.verdict import Cause, Verdict
from tests.policies import OURS, milter, policy, reply, socketmap

ONE = policy("[[rules]]\n" + OURS + 'verify = ["local"]')
TWO = '[[rules]]\nname = "first"\n' + OURS + 'verify = ["local", "other"]\n'


class Fed:
    """A decision that a test feeds by hand."""

    def __init__(self, rules: Policy, query: Query, now: float = 0.0) -> None:
        self.case = engine.open_case(rules, query, Trace(verbose=True), now)
        self.steps = engine.decide(self.case)
        self.question: Lookup | None = None
        self.verdict: Verdict | None = None

    def start(self) -> str:
        """Give the first question as `store key`, or the verdict."""
        return self.tell(None)

    def tell(self, answer: Any) -> str:
        """Answer the last question; give the next as `store key`, or the verdict."""
        try:
            question = self.steps.send(answer)
        except StopIteration as end:
            self.verdict = end.value
            return reply(self.verdict)
        self.question = question
        return f"{question.store} {question.recipient.key}"


def through(rules: Policy, query: Query, *answers: Answer) -> list[str]:
    """Give all that a decision asks and says, being told these answers."""
    fed = Fed(rules, query)
    return [fed.start(), *(fed.tell(answer) for answer in answers)]


def test_a_decision_asks_and_is_told_and_says() -> None:
    fed = Fed(ONE, milter("User@example.org"))
    assert fed.start() == "local user@example.org"
    assert fed.tell(EXISTS) == "250 2.1.5"
    assert fed.verdict
    assert fed.verdict.rule == "rule 1"


@pytest.mark.parametrize(
    ("answer", "said"),
    [(EXISTS, "250 2.1.5"), (NOT_FOUND, "550 5.1.1"), (Unavailable("down"), "451 4.4.3")],
)
@pytest.mark.parametrize("ask", [milter, socketmap])
def test_the_three_answers_are_three_verdicts_to_both_front_ends(ask: Any, answer: Answer, said: str) -> None:
    assert through(ONE, ask(), answer) == ["local user@example.org", said]


def test_a_detail_is_asked_with_and_then_without() -> None:
    asked = ["local user+x@example.org", "local user@example.org"]
    whole = milter("user+x@example.org")
    assert through(ONE, whole, NOT_FOUND, EXISTS) == [*asked, "250 2.1.5"]
    assert through(ONE, whole, NOT_FOUND, Unavailable("down")) == [*asked, "451 4.4.3"]
    assert through(ONE, whole, Unavailable("down")) == [asked[0], "451 4.4.3"]
    assert through(ONE, whole, EXISTS) == [asked[0], "250 2.1.5"]


def test_stores_are_asked_in_order_until_one_knows() -> None:
    both = ["local user@example.org", "other user@example.org"]
    rules = policy(TWO)
    assert through(rules, milter(), NOT_FOUND, EXISTS) == [*both, "250 2.1.5"]
    assert through(rules, milter(), NOT_FOUND, NOT_FOUND) == [*both, "550 5.1.1"]
    assert through(rules, milter(), EXISTS) == [both[0], "250 2.1.5"]
    assert through(rules, milter(), Unavailable("down")) == [both[0], "451 4.4.3"]


def test_behind_a_store_that_could_not_tell_a_no_is_no_no() -> None:
    both = ["local user@example.org", "other user@example.org"]
    rules = policy(TWO + 'unavailable = "next"')
    assert through(rules, milter(), Unavailable("down"), NOT_FOUND) == [*both, "451 4.4.3"]
    assert through(rules, milter(), NOT_FOUND, Unavailable("down")) == [*both, "451 4.4.3"]
    assert through(rules, milter(), Unavailable("down"), EXISTS) == [*both, "250 2.1.5"]
    rules = policy(TWO + 'unavailable = "next"\nnot_found = "next"\n[[rules]]\nreject = "550 5.7.1 No"')
    assert through(rules, milter(), Unavailable("down"), NOT_FOUND) == [*both, "451 4.4.3"]


def test_an_operator_may_accept_what_a_store_cannot_tell() -> None:
    rules = policy(TWO + 'unavailable = "accept"')
    assert through(rules, milter(), Unavailable("down"))[-1] == "250 2.1.5"


def test_not_found_may_go_on_to_the_next_rule() -> None:
    rules = policy(TWO + 'not_found = "next"\n[[rules]]\nname = "last"\n' + OURS + 'verify = ["other"]')
    fed = Fed(rules, milter())
    fed.start()
    fed.tell(NOT_FOUND)
    assert fed.tell(NOT_FOUND) == "other user@example.org"
    assert fed.tell(EXISTS) == "250 2.1.5"
    assert fed.verdict
    assert fed.verdict.rule == "last"
    rules = policy(TWO + 'not_found = "next"\n[[rules]]\nname = "last"\nwhen = { domain = "a.example" }\naccept = true')
    fed = Fed(rules, milter())
    fed.start()
    fed.tell(NOT_FOUND)
    assert fed.tell(NOT_FOUND) == "550 5.1.1"  # no rule decided: the last "not found" refuses


def test_a_rule_that_asks_nobody_says_at_once() -> None:
    rules = policy('[[rules]]\nreject = "550 5.7.1 No"')
    assert through(rules, milter()) == ["550 5.7.1"]


@pytest.mark.parametrize("recipient", ["", "<>", "a@b@example.org", "\udcff@example.org", "user@example.org\r\nRCPT"])
def test_what_is_no_address_is_refused_before_any_store_is_asked(recipient: str) -> None:
    fed = Fed(ONE, milter(recipient))
    assert fed.start() == "553 5.1.3"
    assert fed.case.trace.entries


def test_what_others_may_judge_of_an_address_is_judged_for_our_domains_alone() -> None:
    local = "x" * 65
    assert through(ONE, milter(f"{local}@example.org")) == ["553 5.1.3"]
    assert through(ONE, milter(f"{local}@elsewhere.example")) == ["not ours"]
    assert through(ONE, milter("é@example.org")) == ["553 5.6.7"]
    assert through(ONE, milter("é@elsewhere.example")) == ["not ours"]
    assert through(ONE, milter("é@example.org", smtputf8=True)) == ["local é@example.org"]
    assert through(ONE, socketmap("é@example.org")) == ["local é@example.org"]  # whether it was asked for is unknown


def test_a_bare_local_part_is_in_the_default_domain() -> None:
    rules = policy("[[rules]]\n" + OURS + 'verify = "local"', default_domain="example.org")
    assert through(rules, socketmap("User"), EXISTS) == ["local user@example.org", "250 2.1.5"]
    assert through(rules, socketmap('"a@b"')) == ["local a@b@example.org"]
    assert through(ONE, socketmap("user")) == ["not ours"]
    assert through(rules, socketmap("x" * 65)) == ["553 5.1.3"]


def test_the_postmaster_of_our_domains_is_accepted_unasked() -> None:
    for spelling in ("postmaster@example.org", "PostMaster@EXAMPLE.org", "postmaster", '"postmaster"@example.org'):
        fed = Fed(ONE, milter(spelling))
        assert fed.start() == "250 2.1.5"
        assert fed.verdict
        assert fed.verdict.rule == "postmaster"
    assert through(ONE, milter("postmaster@elsewhere.example")) == ["not ours"]
    off = policy("[[rules]]\n" + OURS + 'verify = "local"', postmaster=False)
    assert through(off, milter("postmaster@example.org")) == ["local postmaster@example.org"]
    assert through(off, milter("postmaster")) == ["not ours"]


def test_what_a_rule_does_not_cover_is_not_ours() -> None:
    assert through(Policy(()), milter()) == ["not ours"]


def test_until_when_a_mailbox_is_disabled_is_judged_by_the_time_of_the_case() -> None:
    mailbox = Found(Mailbox(disabled=Disabled(until=100.0)))
    for now, said in ((99.9, "550 5.2.1"), (100.0, "250 2.1.5")):
        fed = Fed(ONE, milter(), now)
        fed.start()
        assert fed.tell(mailbox) == said


SHADOWED = (
    '[[rules]]\nname = "quiet"\nshadow = true\n' + OURS + 'verify = "other"\n'
    '[[rules]]\nname = "fixed"\nshadow = true\nreject = "550 5.7.1 Trial"\n'
    '[[rules]]\nname = "loud"\n' + OURS + 'verify = "local"\n'
    '[[rules]]\nname = "never reached"\nshadow = true\naccept = true\n'
)


def test_a_rule_in_shadow_is_kept_for_later_and_asks_nobody_now() -> None:
    fed = Fed(policy(SHADOWED), milter())
    assert fed.start() == "local user@example.org"
    assert fed.tell(EXISTS) == "250 2.1.5"
    assert fed.case.shadows
    assert [walked.rule.name for walked, _ in fed.case.shadows] == ["quiet", "fixed"]


def test_a_rule_in_shadow_says_afterwards_what_it_would_have_said() -> None:
    rules = policy(SHADOWED)
    fed = Fed(rules, milter())
    fed.start()
    fed.tell(NOT_FOUND)
    assert fed.case.shadows
    said = []
    for walked, recipient in fed.case.shadows:
        later = Fed(rules, milter())
        later.steps = engine.shadow(later.case, walked, recipient)
        said.append(later.start())
    assert said == ["other user@example.org", "550 5.7.1"]


def test_shadows_at_the_ends_of_aliases_or_of_shadows_are_left_out() -> None:
    rules = policy(SHADOWED)
    aliased = Found(Mailbox(targets=("end@example.org",)))
    fed = Fed(rules, milter())
    fed.start()
    assert fed.tell(aliased) == "local end@example.org"
    assert fed.tell(EXISTS) == "250 2.1.5"
    assert fed.case.shadows
    assert len(fed.case.shadows) == 2
    later = Fed(rules, milter())
    later.steps = engine.shadow(later.case, *fed.case.shadows[0])
    later.start()
    assert later.tell(aliased) == "local end@example.org"
    assert later.tell(NOT_FOUND) == "550 5.1.1"
    assert later.case.shadows is None


def test_why_a_rule_did_not_apply_is_in_a_verbose_trace() -> None:
    rules = policy('[[rules]]\nname = "in"\nwhen = { authenticated = true }\naccept = true')
    fed = Fed(rules, socketmap())
    assert fed.start() == "not ours"
    assert fed.case.trace.entries == [Note("in", "authenticated is not known here")]
    quiet = engine.open_case(rules, socketmap(), Trace(), 0.0)
    with pytest.raises(StopIteration):
        next(engine.decide(quiet))
    assert quiet.trace.entries == []


def test_an_answer_that_is_none_of_the_three_is_a_fault_and_no_verdict() -> None:
    for answer in (None, True, "yes", Cause.ACCEPTED):
        fed = Fed(ONE, milter())
        fed.start()
        with pytest.raises(AssertionError):
            fed.tell(answer)


# What the next hop says, and a mailbox on another server.


@pytest.mark.parametrize(
    ("absence", "said"),
    [
        (Absence.MAILBOX, "550 5.1.1"),
        (Absence.DOMAIN, "550 5.1.2"),
        (Absence.NULL_MX, "556 5.1.10"),
        (Absence.UTF8, "553 5.6.7"),
    ],
)
def test_what_is_absent_is_said(absence: Absence, said: str) -> None:
    assert set(Absence) == {Absence.MAILBOX, Absence.DOMAIN, Absence.NULL_MX, Absence.UTF8}
    fed = Fed(ONE, milter())
    fed.start()
    assert fed.tell(NotFound(absence)) == said
    assert fed.verdict
    assert fed.verdict.rule == "rule 1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "250 2.1.5"),
        ('unproven = "accept"', "250 2.1.5"),
        ('unproven = "unavailable"', "451 4.4.3"),
        ('unproven = "unavailable"\nunavailable = "accept"', "250 2.1.5"),
    ],
)
def test_the_yes_of_who_takes_everybody_is_worth_what_the_operator_says(options: str, said: str) -> None:
    fed = Fed(policy(f'[[rules]]\n{OURS}verify = ["local"]\n{options}'), milter())
    fed.start()
    assert fed.tell(Found(Mailbox(unproven=True))) == said


def test_a_yes_that_proves_nothing_may_leave_it_to_the_next_store() -> None:
    fed = Fed(policy(TWO + 'unproven = "unavailable"\nunavailable = "next"'), milter())
    fed.start()
    assert fed.tell(Found(Mailbox(unproven=True))) == "other user@example.org"
    assert fed.tell(NOT_FOUND) == "451 4.4.3"


def test_a_mailbox_on_another_server_is_asked_of_that_server() -> None:
    for answer, said in (
        (EXISTS, "250 2.1.5"),
        (Found(Mailbox(disabled=Disabled())), "550 5.2.1"),
        (Unavailable("down"), "451 4.4.3"),
        (NOT_FOUND, "451 4.4.3"),  # the two disagree
    ):
        fed = Fed(policy(TWO), milter())
        assert fed.start() == "local user@example.org"
        assert fed.question
        assert fed.question.server == ""
        assert fed.tell(Found(Mailbox(server="b1.example"))) == "other user@example.org"
        assert fed.question.server == "b1.example"
        assert fed.tell(answer) == said


def test_a_mailbox_on_a_server_that_nobody_asks_is_not_known() -> None:
    fed = Fed(ONE, milter())
    fed.start()
    assert fed.tell(Found(Mailbox(server="b1.example"))) == "451 4.4.3"


def test_a_detail_is_asked_of_the_server_too() -> None:
    fed = Fed(policy(TWO), milter("user+box@example.org"))
    assert fed.start() == "local user+box@example.org"
    assert fed.tell(NOT_FOUND) == "local user@example.org"
    assert fed.tell(Found(Mailbox(server="b1.example"))) == "other user+box@example.org"
    assert fed.tell(NOT_FOUND) == "other user@example.org"
    assert fed.question
    assert fed.question.server == "b1.example"
    assert fed.tell(EXISTS) == "250 2.1.5"


def test_the_end_of_an_alias_on_another_server_is_taken_as_it_stands() -> None:
    fed = Fed(policy(TWO, slow=frozenset({"other"})), milter("alias@example.org"))
    fed.start()
    assert fed.tell(Found(Mailbox(targets=("end@example.org",)))) == "local end@example.org"
    assert fed.tell(Found(Mailbox(server="b1.example"))) == "250 2.1.5"


def test_a_server_that_was_named_for_a_whole_domain_may_refuse_its_recipients() -> None:
    domain = Found(Mailbox(server="b1.example", catch_all=True))
    for slow, answer, said in (
        ({"other"}, NOT_FOUND, "550 5.1.1"),
        ({"other"}, EXISTS, "250 2.1.5"),
        ({"other"}, Unavailable("down"), "451 4.4.3"),
        (set(), NOT_FOUND, "451 4.4.3"),  # a table has asked no server
    ):
        fed = Fed(policy(TWO, slow=frozenset(slow)), milter())
        fed.start()
        assert fed.tell(domain) == "other user@example.org"
        assert fed.tell(answer) == said
    alone = Fed(ONE, milter())
    alone.start()
    assert alone.tell(domain) == "451 4.4.3"
