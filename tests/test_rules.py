"""The rules one by one: what a store knows of a mailbox, against what is known of the mail."""

from ipaddress import ip_address
from typing import Any

import pytest

from rcptd.query import UNKNOWN, Query
from rcptd.question import EXISTS, NOT_FOUND, Answer, Disabled, Found, Mailbox, Posting, Quota
from rcptd.rules.disabled import disabled
from rcptd.rules.moved import moved
from rcptd.rules.posting import posting
from rcptd.rules.quota import quota
from rcptd.verdict import FULL, FULL_FOR_NOW, MOVED, TEXT_LENGTH, Cause, Verdict, safe_text
from tests.policies import OURS, milter, policy, reply, socketmap
from tests.test_engine import through

MEGABYTE = 1 << 20


def cause(verdict: Verdict | None) -> Cause | None:
    return verdict.cause if verdict else None


@pytest.mark.parametrize(
    ("state", "now", "said"),
    [
        (None, 0, None),
        (Disabled(), 0, Cause.DISABLED),
        (Disabled(temporary=True), 0, Cause.DISABLED_FOR_NOW),
        (Disabled(until=10), 9, Cause.DISABLED),
        (Disabled(until=10), 10, None),
        (Disabled(until=0), 0, None),
        (Disabled(temporary=True, until=10), 9, Cause.DISABLED_FOR_NOW),
    ],
)
def test_a_disabled_mailbox_is_one_until_its_time(state: Disabled | None, now: float, said: Cause | None) -> None:
    assert cause(disabled(Mailbox(disabled=state), now)) is said


def test_the_text_of_a_disabled_mailbox_is_made_safe() -> None:
    said = disabled(Mailbox(disabled=Disabled(text='On "leave"\r\n250 fine')), 0)
    assert said
    assert said.reply == "550 5.2.1 On 'leave' 250 fine"


@pytest.mark.parametrize(
    ("limits", "size", "said"),
    [
        (None, 10**12, None),
        (Quota(), 10**12, None),
        (Quota(bytes_limit=100, bytes_used=99), 0, None),
        (Quota(bytes_limit=100, bytes_used=99), 1, None),
        (Quota(bytes_limit=100, bytes_used=99), 2, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100, bytes_used=100), 0, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100, bytes_used=100), UNKNOWN, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100, bytes_used=99), UNKNOWN, None),
        (Quota(bytes_limit=100, bytes_used=500), 0, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100), 100, None),
        (Quota(bytes_limit=100), 101, Cause.TOO_LARGE),
        (Quota(bytes_limit=0), 0, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=1 << 62, bytes_used=(1 << 62) - 1), 1, None),
        (Quota(messages_limit=2, messages_used=1), 10**12, None),
        (Quota(messages_limit=2, messages_used=2), 0, Cause.FULL_FOR_NOW),
        (Quota(messages_limit=0), UNKNOWN, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100, messages_limit=2, messages_used=2), 101, Cause.FULL_FOR_NOW),
        (Quota(bytes_limit=100, messages_limit=2, messages_used=1), 101, Cause.TOO_LARGE),
    ],
)
def test_a_quota_counts_octets_and_messages(limits: Quota | None, size: Any, said: Cause | None) -> None:
    assert cause(quota(Mailbox(quota=limits), size, FULL_FOR_NOW)) is said


def test_a_store_may_know_that_full_is_final_and_count_a_message_of_unknown_size_as_nothing() -> None:
    brim = Mailbox(quota=Quota(bytes_limit=10, bytes_used=10, unsized=0, final=True))
    assert quota(brim, UNKNOWN, FULL_FOR_NOW) is None
    assert cause(quota(brim, 1, FULL_FOR_NOW)) is Cause.FULL
    for_now = Mailbox(quota=Quota(messages_limit=1, messages_used=1, final=False))
    assert cause(quota(for_now, UNKNOWN, FULL)) is Cause.FULL_FOR_NOW


def test_one_who_moved_is_named_where_the_reply_can_carry_it() -> None:
    assert moved(Mailbox()) is None
    said = moved(Mailbox(moved_to="new@example.net"))
    assert said
    assert said.reply == "551 5.1.6 Mailbox has moved, please try <new@example.net>"


@pytest.mark.parametrize("to", ["jörg@example.net", '"a b"@example.net', "a%b@example.net", "x" * 200 + "@example.net"])
def test_an_address_that_would_be_mangled_is_not_named(to: str) -> None:
    assert moved(Mailbox(moved_to=to)) == MOVED


def test_a_text_that_just_fits_names_the_address() -> None:
    to = "x" * (TEXT_LENGTH - len("Mailbox has moved, please try <@a.example>")) + "@a.example"
    said = moved(Mailbox(moved_to=to))
    assert said
    assert to in said.text
    assert safe_text(said.text) == said.text


NETWORKS = ("192.0.2.0/24", "2001:db8::/32")
CLOSED = Posting(authenticated=True, networks=NETWORKS, senders=("@a.example", "joe@b.example"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, Cause.NOT_ALLOWED),
        ({"authenticated": "joe"}, None),
        ({"client": ip_address("192.0.2.7")}, None),
        ({"client": ip_address("::ffff:192.0.2.7")}, None),
        ({"client": ip_address("2001:db8::1")}, None),
        ({"client": ip_address("192.0.3.7")}, Cause.NOT_ALLOWED),
        ({"sender": "Somebody@A.example"}, None),
        ({"sender": "joe@b.example"}, None),
        ({"sender": "jim@b.example"}, Cause.NOT_ALLOWED),
        ({"sender": "\udcff"}, Cause.NOT_ALLOWED),
    ],
)
def test_one_condition_for_posting_is_enough(facts: dict[str, Any], said: Cause | None) -> None:
    assert cause(posting(Mailbox(posting=CLOSED), milter(**facts), "accept")) is said


@pytest.mark.parametrize("networks", [("192.0.2.7/24",), ("::ffff:192.0.2.0/120",)])
def test_networks_of_a_store_are_read_generously(networks: tuple[str, ...]) -> None:
    wanted = Mailbox(posting=Posting(networks=networks))
    assert posting(wanted, milter(client=ip_address("192.0.2.9")), "accept") is None
    assert posting(wanted, milter(client=None), "accept")


def test_the_null_sender_may_be_named() -> None:
    wanted = Mailbox(posting=Posting(senders=("<>",)))
    assert posting(wanted, milter(), "accept") is None
    assert posting(wanted, milter(sender="a@b.example"), "accept")


@pytest.mark.parametrize("closed", [CLOSED, Posting(authenticated=True), Posting(networks=("192.0.2.1",)),
                                    Posting(senders=("a@b.example",))])  # fmt: skip
@pytest.mark.parametrize(("where", "said"), [("accept", None), ("defer", Cause.UNKNOWN), ("reject", Cause.NOT_ALLOWED)])
def test_who_may_post_is_not_judged_where_the_asker_is_unknown(closed: Posting, where: str, said: Cause | None) -> None:
    assert cause(posting(Mailbox(posting=closed), socketmap(), where)) is said


def test_a_known_yes_counts_although_another_fact_is_unknown() -> None:
    query = Query("user@example.org", "milter", sender="x@a.example")
    assert posting(Mailbox(posting=CLOSED), query, "reject") is None
    nobody = Mailbox(posting=Posting())
    assert cause(posting(nobody, socketmap(), "accept")) is Cause.NOT_ALLOWED  # nothing unknown could open it
    assert posting(Mailbox(), socketmap(), "reject") is None


def test_a_network_that_is_none_is_a_fault_and_no_refusal() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        posting(Mailbox(posting=Posting(networks=("host.example",))), milter(client=ip_address("192.0.2.1")), "accept")


# The mailbox rule, fed by hand: who is asked, and in which order what is known is judged.

VERIFY = "[[rules]]\n" + OURS + 'verify = "local"\n'


@pytest.mark.parametrize(
    ("mailbox", "said"),
    [
        (Mailbox(moved_to="a@b.example", disabled=Disabled()), "551 5.1.6"),
        (Mailbox(disabled=Disabled(), posting=Posting()), "550 5.2.1"),
        (Mailbox(posting=Posting(), quota=Quota(bytes_limit=0)), "550 5.7.1"),
        (Mailbox(quota=Quota(bytes_limit=0)), "452 4.2.2"),
        (Mailbox(catch_all=True), "250 2.1.5"),
    ],
)
def test_what_is_known_is_judged_in_this_order(mailbox: Mailbox, said: str) -> None:
    assert through(policy(VERIFY), milter(), Found(mailbox))[-1] == said


def test_a_full_mailbox_is_what_the_rule_says() -> None:
    full = Found(Mailbox(quota=Quota(bytes_limit=1, bytes_used=1)))
    assert through(policy(VERIFY + 'over_quota = "reject"'), milter(), full)[-1] == "552 5.2.2"


def test_a_catch_all_comes_behind_the_mailbox_without_its_detail() -> None:
    caught, user = Found(Mailbox(catch_all=True)), Found(Mailbox(disabled=Disabled()))
    query = milter("user+x@example.org")
    asked = ["local user+x@example.org", "local user@example.org"]
    assert through(policy(VERIFY), query, caught, user) == [*asked, "550 5.2.1"]
    assert through(policy(VERIFY), query, caught, NOT_FOUND) == [*asked, "250 2.1.5"]


def test_a_catch_all_leads_on_with_the_detail() -> None:
    elsewhere = [Found(Mailbox(catch_all=True, targets=(f"{local}@example.net",))) for local in ("user+x", "user")]
    said = through(policy(VERIFY), milter("user+x@example.org"), *elsewhere)
    assert said == ["local user+x@example.org", "local user@example.org", "250 2.1.5"]
    ends = policy(VERIFY + '[[rules]]\nwhen = { domain = "example.net" }\nverify = ["other"]\nsubaddress = "off"')
    said = through(ends, milter("user+x@example.org"), *elsewhere, EXISTS)
    assert said[2:] == ["other user+x@example.net", "250 2.1.5"]


def test_a_spelling_that_is_no_address_is_a_fault_of_the_store() -> None:
    kept = policy(VERIFY + 'subaddress = { detail = "must_exist", case = "kept" }')
    assert through(kept, milter("user+x@example.org"), Found(Mailbox(spelling="@@")))[-1] == "451 4.4.3"


@pytest.mark.parametrize(
    ("recipient", "answer", "said"),
    [
        ("user+News@example.org", Found(Mailbox(spelling="user+News@example.org")), "250 2.1.5"),
        ("USER+News@example.org", Found(Mailbox(spelling="user+News@example.org")), "250 2.1.5"),
        ("user+news@example.org", Found(Mailbox(spelling="user+News@example.org")), "550 5.1.1"),
        ("user+news@example.org", Found(Mailbox()), "250 2.1.5"),  # spelled like its key, in small letters
        ("user+News@example.org", Found(Mailbox()), "550 5.1.1"),
        ("straße+News@example.org", Found(Mailbox(spelling="strasse+News@example.org")), "250 2.1.5"),
        ("strasse+News@example.org", Found(Mailbox(spelling="straße+News@example.org")), "250 2.1.5"),
        ("user+News@example.org", Found(Mailbox(catch_all=True)), "250 2.1.5"),
        ("user+News@example.org", NOT_FOUND, "550 5.1.1"),
        ("user@example.org", Found(Mailbox()), "250 2.1.5"),
    ],
)
def test_a_detail_that_must_exist_may_have_to_in_its_case(recipient: str, answer: Answer, said: str) -> None:
    rules = policy(VERIFY + 'subaddress = { detail = "must_exist", case = "kept" }')
    assert through(rules, milter(recipient, smtputf8=True), answer)[-1] == said


def test_a_detail_that_must_exist_is_not_asked_without() -> None:
    rules = policy(VERIFY + 'subaddress = "must_exist"')
    assert through(rules, milter("user+X@example.org"), NOT_FOUND) == ["local user+x@example.org", "550 5.1.1"]
    assert through(rules, milter("user+X@example.org"), Found(Mailbox()))[-1] == "250 2.1.5"
    off = policy(VERIFY + 'subaddress = "off"')
    assert through(off, milter("user+X@example.org"), NOT_FOUND) == ["local user+x@example.org", "550 5.1.1"]


def test_only_a_rule_that_defers_the_unknown_defers_it() -> None:
    assert through(policy(VERIFY + 'not_found = "defer"'), milter(), NOT_FOUND)[-1] == "451 4.4.3"
    assert reply(None) == "not ours"
