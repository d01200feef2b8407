"""What libmilter is told for each verdict, and that nothing else is ever said."""

import itertools
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd import verdict
from rcptd.verdict import Action, Cause, Verdict
from rcptd_milter.replies import FAULT, GO_ON, RESTARTING, Reply, Status, reply

TABLE = {
    verdict.ACCEPTED: GO_ON,
    verdict.NO_SUCH_MAILBOX: (Status.REJECT, "550", "5.1.1"),
    verdict.NO_SUCH_DOMAIN: (Status.REJECT, "550", "5.1.2"),
    verdict.MOVED: (Status.REJECT, "551", "5.1.6"),
    verdict.NULL_MX: (Status.REJECT, "556", "5.1.10"),
    verdict.NOT_ALLOWED: (Status.REJECT, "550", "5.7.1"),
    verdict.DISABLED: (Status.REJECT, "550", "5.2.1"),
    verdict.DISABLED_FOR_NOW: (Status.TEMPFAIL, "450", "4.2.1"),
    verdict.FULL_FOR_NOW: (Status.TEMPFAIL, "452", "4.2.2"),
    verdict.FULL: (Status.REJECT, "552", "5.2.2"),
    verdict.TOO_LARGE: (Status.REJECT, "552", "5.2.3"),
    verdict.BAD_SYNTAX: (Status.REJECT, "553", "5.1.3"),
    verdict.NEEDS_SMTPUTF8: (Status.REJECT, "553", "5.6.7"),
    verdict.UNKNOWN: (Status.TEMPFAIL, "451", "4.4.3"),
    verdict.OUR_FAULT: (Status.TEMPFAIL, "451", "4.3.0"),
}


def test_every_named_verdict_has_a_row() -> None:
    assert set(TABLE) == set(verdict.NAMED)


@pytest.mark.parametrize("named", verdict.NAMED, ids=lambda named: named.cause.value)
def test_a_named_verdict_is_told_as_the_table_says(named: Verdict) -> None:
    row = TABLE[named]
    assert reply(named) == (row if row is GO_ON else (*row, named.text))


def test_no_opinion_goes_on() -> None:
    assert reply(None) == GO_ON == (Status.CONTINUE, "", "", "")


def test_an_operators_own_words_are_told_as_written() -> None:
    own = verdict.from_reply("550 5.7.1 Not allowed (see <policy>), [ref 1]; ok: a@b")
    assert reply(own) == (Status.REJECT, "550", "5.7.1", "Not allowed (see <policy>), [ref 1]; ok: a@b")


def test_a_reference_behind_the_longest_text_is_kept() -> None:
    text = "x" * verdict.TEXT_LENGTH + " (ref 0123456789)"
    assert reply(Verdict(Cause.OPERATOR, Action.REJECT, 550, "5.7.1", text)).text == text


@pytest.mark.parametrize(
    "broken",
    [
        Verdict(Cause.OPERATOR, Action.REJECT, 452, "4.2.2", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 550, "4.2.2", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 452, "5.2.2", "x"),
        Verdict(Cause.OPERATOR, Action.DEFER, 550, "5.1.1", "x"),
        Verdict(Cause.OPERATOR, Action.DEFER, 421, "4.3.2", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 521, "5.3.2", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 5500, "5.1.1", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 55, "5.1.1", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 590, "5.1.1", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 250, "2.1.5", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 550, "5.1", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 550, "5.1.1 ", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 550, "5.\u0661.1", "x"),
        Verdict(Cause.OPERATOR, Action.REJECT, 550, "", "x"),
        Verdict(Cause.OPERATOR, Action.ACCEPT, 550, "5.1.1", "x"),
        Verdict(Cause.OPERATOR, Action.ACCEPT, 0, "", ""),
    ],
    ids=lambda broken: f"{broken.action.value} {broken.code} {broken.enhanced}",
)
def test_a_verdict_at_odds_with_itself_defers_and_is_logged(
    broken: Verdict, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert reply(broken) == FAULT
    assert "deferred instead" in caplog.text


def test_our_own_replies_are_temporary() -> None:
    assert (Status.TEMPFAIL, "451", "4.3.0", verdict.OUR_FAULT.text) == FAULT
    assert RESTARTING[:3] == (Status.TEMPFAIL, "451", "4.3.2")
    assert verdict.safe_text(RESTARTING.text) == RESTARTING.text


def fits_libmilter(answer: Reply) -> None:
    """Check what smfi_setreply and the MTAs want of a reply."""
    assert answer.status in (Status.REJECT, Status.TEMPFAIL)
    first = "5" if answer.status is Status.REJECT else "4"
    assert re.fullmatch(first + r"[0-5]\d", answer.rcode, re.ASCII)
    assert re.fullmatch(first + r"\.\d{1,3}\.\d{1,3}", answer.xcode, re.ASCII)
    assert re.fullmatch(r"[ -~]{1,250}", answer.text)
    assert not set(answer.text) & set('%"\\')
    assert answer.text == answer.text.strip()


WILD = st.text(max_size=300) | st.text(alphabet='%"\\\r\n é€ a', max_size=300)


@given(WILD, st.sampled_from([Action.REJECT, Action.DEFER]))
def test_any_text_at_all_leaves_safe(text: str, action: Action) -> None:
    code, enhanced = (550, "5.7.1") if action is Action.REJECT else (452, "4.2.2")
    answer = reply(Verdict(Cause.OPERATOR, action, code, enhanced, text))
    assert (answer.rcode, answer.xcode) == (str(code), enhanced)
    fits_libmilter(answer)


@given(st.sampled_from(list(Action)), st.integers(), WILD, WILD)
def test_reply_is_total(action: Action, code: int, enhanced: str, text: str) -> None:
    answer = reply(Verdict(Cause.OPERATOR, action, code, enhanced, text))
    if answer != GO_ON:
        fits_libmilter(answer)
    else:
        assert action is Action.ACCEPT


def test_codes_of_one_class_pass_and_others_never() -> None:
    for action, code, first in itertools.product(Action, (250, 354, 450, 451, 550, 553, 650), "2456"):
        answer = reply(Verdict(Cause.OPERATOR, action, code, f"{first}.1.1", "x"))
        if answer not in (GO_ON, FAULT):
            assert answer.rcode == str(code)
            assert answer.xcode[0] == answer.rcode[0] == first == {"reject": "5", "defer": "4"}[action.value]


def test_the_numbers_are_libmilters() -> None:
    milter = pytest.importorskip("Milter")
    assert [int(status) for status in Status] == [milter.CONTINUE, milter.REJECT, milter.TEMPFAIL]
