"""Traces: what was asked, in words, without naming people where that is not wanted."""

from typing import Any

import pytest

from rcptd.address import parse
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Absence,
    Answer,
    Busy,
    Disabled,
    Found,
    Mailbox,
    NotFound,
    Posting,
    Quota,
    Unavailable,
)
from rcptd.trace import Asked, Trace, describe, facts_of

RICH = Mailbox(
    spelling="User@example.org",
    catch_all=True,
    disabled=Disabled(temporary=True, until=5.0),
    posting=Posting(True, ("192.0.2.1",), ("a@b.example",)),
    quota=Quota(10, 5, 3, 2),
    targets=("x@example.org",),
    moved_to="y@example.org",
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (EXISTS, "found"),
        (NOT_FOUND, "not found"),
        (Unavailable("down"), "unavailable: down"),
        (Busy("a writer"), "busy: a writer"),
        (Found(Mailbox(unproven=True), "lmtp:unix:/l: 250 ok"), "found (unproven True), as lmtp:unix:/l: 250 ok"),
        (Found(Mailbox(server="b1.example")), "found (on server b1.example)"),
        (NotFound(source="smtp:mx:25: 550 no"), "not found, as smtp:mx:25: 550 no"),
        (NotFound(Absence.NULL_MX), "not found (the domain takes no mail)"),
        (Found(Mailbox(disabled=Disabled())), "found (disabled for good)"),
        (Found(Mailbox(posting=Posting())), "found (posting [])"),
        (Found(Mailbox(quota=Quota())), "found"),
        (Found(Mailbox(quota=Quota(bytes_limit=9))), "found (bytes 0/9)"),
        (Found(Mailbox(quota=Quota(messages_limit=9))), "found (messages 0/9)"),
    ],
)
def test_an_answer_in_words(answer: Answer | Busy, words: str) -> None:
    assert describe(answer) == words


def test_nonsense_of_a_store_is_told_as_it_is() -> None:
    nonsense: Any = "yes"
    assert describe(nonsense) == "no answer: 'yes'"


def test_all_that_a_store_knows_is_listed_and_addresses_are_masked() -> None:
    assert facts_of(RICH, lambda address: f"<{len(address)}>") == {
        "spelling": "<16>",
        "catch-all": True,
        "targets": ["<13>"],
        "moved to": "<13>",
        "disabled": "for now",
        "until": 5.0,
        "posting": ["authenticated", "192.0.2.1", "<11>"],
        "bytes": "5/10",
        "messages": "2/3",
    }
    assert "example" not in describe(Found(RICH), lambda _: "-")


@pytest.mark.parametrize("answer", [Unavailable, Busy])
def test_the_reason_of_a_store_names_nobody_either(answer: type[Unavailable | Busy]) -> None:
    why = answer("/r.db: the row of anna@example.org: targets: 'bob@example.net': no")
    said = describe(why, lambda address: f"*@{address.partition('@')[2]}")
    assert said.endswith("/r.db: the row of *@example.org: targets: '*@example.net': no")


def test_remarks_are_kept_where_somebody_asked_and_answers_always() -> None:
    for verbose in (False, True):
        trace = Trace(verbose=verbose)
        assert trace.last_asked is None
        asked = Asked("local", parse("a@b"), EXISTS, 0.001)
        trace.entries.append(asked)
        trace.note("a rule", "does not match")
        assert trace.last_asked is asked
        assert len(trace.entries) == 1 + verbose
