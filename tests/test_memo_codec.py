"""Answers as text: what is written is read again, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.memo.codec import LENGTH, decode, encode
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    PLAIN,
    Absence,
    Answer,
    Disabled,
    Found,
    Mailbox,
    NotFound,
    Posting,
    Quota,
    Unavailable,
)

KEPT = [
    EXISTS,
    NOT_FOUND,
    *map(NotFound, Absence),
    Found(Mailbox(spelling="User@example.org", catch_all=True, unproven=True, moved_to="a@b", server="b1")),
    Found(Mailbox(targets=("a@example.org", "b@example.org"))),
    Found(Mailbox(disabled=Disabled())),
    Found(Mailbox(disabled=Disabled(temporary=True, text="later", until=5.5))),
    Found(Mailbox(posting=Posting())),
    Found(Mailbox(posting=Posting(True, ("192.0.2.0/24",), ("a@b", "@c")))),
    Found(Mailbox(quota=Quota())),
    Found(Mailbox(quota=Quota(10, 5, 3, 2, 0, final=True))),
]


@pytest.mark.parametrize("answer", KEPT, ids=repr)
def test_an_answer_is_read_as_it_was_written(answer: Answer) -> None:
    text = encode(answer)
    assert decode(text) == answer


def test_who_said_it_is_kept_too_and_a_plain_yes_is_the_common_one() -> None:
    found = decode(encode(Found(Mailbox(), "smtp:mx:25: 250 ok")))
    assert isinstance(found, Found)
    assert found.source == "smtp:mx:25: 250 ok"
    assert found.mailbox is PLAIN
    absent = decode(encode(NotFound(source="no")))
    assert isinstance(absent, NotFound)
    assert absent.source == "no"


def test_what_cannot_be_told_is_not_kept() -> None:
    assert encode(Unavailable("down", of_recipient=True)) is None
    assert encode(Found(PLAIN, "x" * LENGTH)) is None


@pytest.mark.parametrize(
    "text",
    [
        None, 5, b"{}", "", "nonsense", "[]", "{}", "null", "[" * 5000, "x" * (LENGTH + 1),
        '{"found": {}}', '{"found": {}, "source": 1}', '{"source": ""}', '{"absent": "EVERYTHING", "source": ""}',
        '{"found": {"secret": true}, "source": ""}', '{"found": {"catch_all": 1}, "source": ""}',
        '{"found": {"spelling": 1}, "source": ""}', '{"found": {"targets": "a"}, "source": ""}',
        '{"found": {"targets": [1]}, "source": ""}', '{"found": {"disabled": {}}, "source": ""}',
        '{"found": {"disabled": 1}, "source": ""}', '{"found": {"quota": {"bytes_limit": true}}, "source": ""}',
        '{"found": {"posting": []}, "source": ""}', '{"found": [1], "source": ""}',
    ],
)  # fmt: skip
def test_what_is_not_ours_is_no_answer(text: object) -> None:
    assert decode(text) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["found", "source", "quota"]), inner),
    max_leaves=10,
)


@given(json_values)
def test_no_json_makes_it_fail(value: object) -> None:
    decode(json.dumps(value))
    decode(json.dumps({"found": value, "source": ""}))
    decode(json.dumps({"found": {"quota": value, "disabled": value}, "source": ""}))
