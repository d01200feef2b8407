"""Verdicts: one class throughout, and texts that every wire carries."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rcptd import verdict
from rcptd.verdict import NAMED, Action, Cause, Verdict, from_reply, safe_text

CLASS = {Action.ACCEPT: "2", Action.REJECT: "5", Action.DEFER: "4"}


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.cause.value)
def test_action_reply_code_and_enhanced_code_are_of_one_class(named: Verdict) -> None:
    assert str(named.code)[0] == named.enhanced[0] == CLASS[named.action]
    assert len(str(named.code)) == 3
    assert safe_text(named.text) == named.text
    assert named.code not in (421, 521)


def test_every_cause_has_its_verdict() -> None:
    assert {named.cause for named in NAMED} == set(Cause) - {Cause.OPERATOR}
    assert {named for named in vars(verdict).values() if isinstance(named, Verdict)} == set(NAMED)


def test_what_is_unknown_or_our_fault_is_deferred() -> None:
    assert verdict.UNKNOWN.action is verdict.OUR_FAULT.action is Action.DEFER


@given(st.text(max_size=400))
@example('a"b%c\\d')
@example(" \r\n\t\x00 ")
@example("x" * 199 + "  y")
def test_a_safe_text_is_printable_ascii_without_quote_percent_and_backslash(text: str) -> None:
    safe = safe_text(text)
    assert 0 < len(safe) <= 200
    assert all(" " <= character <= "~" and character not in '"%\\' for character in safe)
    assert safe == safe.strip()
    assert "  " not in safe
    assert safe_text(safe) == safe


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Gone fishing", "Gone fishing"),
        ('say "no"', "say 'no'"),
        ("100 % full", "100 ? full"),
        ("one\r\n250 2.0.0 two", "one 250 2.0.0 two"),
        ("für\u2028immer", "f?r immer"),
        ("a\x00\x07b", "a b"),
        ("", "Recipient refused"),
        ("\n", "Recipient refused"),
        ("x" * 201, "x" * 200),
    ],
)
def test_an_unsafe_text_is_made_plain(text: str, safe: str) -> None:
    assert safe_text(text) == safe


def test_an_operators_text_is_made_safe_and_an_empty_one_changes_nothing() -> None:
    assert verdict.DISABLED.with_text("100 %").text == "100 ?"
    assert verdict.DISABLED.with_text("") is verdict.DISABLED
    assert verdict.DISABLED.with_text("\n").text == verdict.DISABLED.text
    assert verdict.DISABLED.said_by("a rule").rule == "a rule"
    assert verdict.DISABLED.reply == "550 5.2.1 Mailbox disabled"


@given(st.integers(400, 599), st.integers(0, 999), st.integers(0, 999), st.text("ab c.", min_size=1, max_size=200))
def test_a_reply_is_taken_as_written(code: int, subject: int, detail: int, text: str) -> None:
    enhanced = f"{code // 100}.{subject}.{detail}"
    said = f"{code} {enhanced} {text}"
    if code in (421, 521) or safe_text(text) != text.rstrip():
        with pytest.raises(ValueError, match=r"closes the connection|would do|not a reply"):
            from_reply(said)
        return
    own = from_reply(said)
    assert own.reply == said.rstrip()
    assert own.cause is Cause.OPERATOR
    assert CLASS[own.action] == str(own.code)[0] == own.enhanced[0]


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "not a reply"),
        ("550", "not a reply"),
        ("550 5.7.1", "not a reply"),
        ("550 5.7.1 ", "not a reply"),
        ("550 text", "not a reply"),
        ("250 2.1.5 fine", "not a reply"),
        ("350 3.0.0 go on", "not a reply"),
        ("600 6.0.0 what", "not a reply"),
        ("5500 5.7.1 text", "not a reply"),
        ("550 5.7.1000 text", "not a reply"),
        ("5\N{ARABIC-INDIC DIGIT FIVE}0 5.7.1 text", "not a reply"),
        ("550 5.\N{ARABIC-INDIC DIGIT SEVEN}.1 text", "not a reply"),
        ("550 4.7.1 text", "different classes"),
        ("450 5.7.1 text", "different classes"),
        ("421 4.7.1 text", "closes the connection; use 450 or 451"),
        ("521 5.7.1 text", "closes the connection; use 550"),
        ("550 5.7.1 100 %", "'100 \\?' would do"),
        ('550 5.7.1 say "no"', "would do"),
        ("550 5.7.1 one\n250 two", "would do"),
        ("550 5.7.1 " + "x" * 201, "would do"),
    ],
)
def test_what_is_no_reply_is_a_fault_that_says_what_would_be_right(said: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        from_reply(said)
