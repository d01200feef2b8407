"""Policies: what an operator may write in [[rules]], and what is told where it is wrong."""

import pytest

from rcptd.address import parse
from rcptd.policy import Subaddress
from rcptd.verdict import Action, Cause
from tests.policies import faults_of, policy, rules

RULE = "[[rules]]\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (RULE, "0: rule 'rule 1' says nothing to do; give it exactly one of verify, accept, reject, defer"),
        (RULE + 'name = "x"\nverify = "local"\naccept = true', "0: rule 'x' has verify and accept; give it"),
        (RULE + "accept = false", "0.accept: write accept = true"),
        (RULE + 'reject = "451 4.7.1 Later"', "0.reject: code 451 does not go here; did you mean defer"),
        (RULE + 'defer = "550 5.7.1 No"', "0.defer: code 550 does not go here; did you mean reject"),
        (RULE + 'reject = "No"', "0.reject: not a reply"),
        (RULE + 'reject = ""', "0.reject: write a text in quotes"),
        (RULE + "verify = []", "0.verify: the list is empty"),
        (RULE + 'verify = ["local", "nowhere"]', "0.verify: there is no [stores.nowhere]; configured stores: 'local'"),
        (RULE + 'verfy = ["local"]', "0.verfy: no such option; did you mean 'verify'?"),
        (RULE + 'accept = true\nnot_found = "next"', "0.not_found: goes with verify only"),
        (RULE + "accept = true\nshadow_probes = true", "0.shadow_probes: goes with shadow = true only"),
        (RULE + 'verify = "local"\nnot_found = "maybe"', "0.not_found: write one of 'reject', 'defer', 'next'"),
        (RULE + 'verify = "local"\nunavailable = "reject"', "0.unavailable: write one of 'defer', 'next', 'accept'"),
        (RULE + 'verify = "local"\nover_quota = "accept"', "0.over_quota: write one of 'defer', 'reject'"),
        (RULE + 'verify = "local"\nwhen = { domain = 5 }', "0.when: domain: write a text in quotes"),
        (RULE + 'verify = "local"\nsubaddress = "on"', '0.subaddress: write "ignored", "must_exist", "off", or'),
        (
            RULE + 'verify = "local"\nsubaddress = { delimiters = "+@", case = 1, x = 1 }',
            (
                "0.subaddress: x: no such option; known here: delimiters, detail, case; "
                'delimiters: write the delimiting characters, as in "+" or "+-"; '
                "case: write one of 'ignored', 'kept'"
            ),
        ),
        (
            RULE + 'name = "x"\naccept = true\n' + RULE + 'name = "x"\naccept = true',
            "1.name: there is another rule 'x'; names must differ",
        ),
        (
            RULE + 'name = "rule 2"\naccept = true\n' + RULE + "accept = true",
            "1.name: there is another rule 'rule 2'; names must differ",
        ),
        (
            RULE + 'accept = true\nwhen = { client = "192.0.2.1", sender = "<>", authenticated = false }',
            "0.when: tests client, sender, authenticated, which a socketmap cannot know",
        ),
    ],
)
def test_a_fault_names_its_key_and_what_would_be_right(text: str, fault: str) -> None:
    (found,) = faults_of(text)
    assert found.startswith(fault)


def test_all_faults_are_told_at_once() -> None:
    text = RULE + 'accept = 1\nreject = "x"\n' + RULE + "nonsense = 1\n" + RULE + "shadow_probes = true"
    assert [fault.partition(":")[0] for fault in faults_of(text)] == [
        "0.accept", "0.reject", "1.nonsense", "2", "2.shadow_probes",
    ]  # fmt: skip


@pytest.mark.parametrize("more", ['front_end = "milter"', 'map = "a"', 'front_end = { not = "socketmap" }'])
def test_a_rule_that_no_map_reaches_may_test_who_is_posting(more: str) -> None:
    text = RULE + f"accept = true\nwhen = {{ authenticated = true, {more} }}"
    assert not faults_of(text)
    assert not faults_of(RULE + "accept = true\nwhen = { authenticated = true }", reached_from_map=False)


def test_a_rule_has_the_documented_defaults() -> None:
    (rule,) = rules(RULE + 'verify = "local"')
    assert (rule.name, rule.verify, rule.fixed) == ("rule 1", ("local",), None)
    assert (rule.not_found, rule.unavailable, rule.over_quota) == ("reject", "defer", "defer")
    assert rule.subaddress == Subaddress("+", "ignored", "ignored")
    assert rule.posting_unknown == "accept"
    assert (rule.verify_targets, rule.shadow, rule.shadow_probes) == (False, False, False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"off"', None),
        ('"must_exist"', Subaddress("+", "must_exist", "ignored")),
        ('{ delimiters = "+-", case = "kept" }', Subaddress("+-", "ignored", "kept")),
    ],
)
def test_a_subaddress_is_a_word_or_a_table(written: str, meant: Subaddress | None) -> None:
    (rule,) = rules(RULE + f'verify = "local"\nsubaddress = {written}')
    assert rule.subaddress == meant


def test_a_rule_that_asks_nobody_has_its_verdict_made_once() -> None:
    walk = policy(
        RULE + 'name = "yes"\naccept = true\n'
        + RULE + 'name = "no"\nreject = "550 5.7.1 No"\n'
        + RULE + 'name = "later"\ndefer = "451 4.7.1 Later"\n'
        + RULE + 'name = "ask"\nverify = "local"\nover_quota = "reject"'
    ).walk  # fmt: skip
    fixed = [(walked.fixed.rule, walked.fixed.action) for walked in walk if walked.fixed]
    assert fixed == [("yes", Action.ACCEPT), ("no", Action.REJECT), ("later", Action.DEFER)]
    assert walk[3].full.cause is Cause.FULL
    assert walk[0].full.cause is Cause.FULL_FOR_NOW


def test_domains_are_ours_where_a_verify_rule_in_force_names_them() -> None:
    own = policy(
        RULE + 'verify = "local"\nwhen = { domain = ["a.example", "*.b.example"] }\n'
        + RULE + 'accept = true\nwhen = { domain = "accepted.example" }\n'
        + RULE + 'verify = "local"\nwhen = { domain = "shadow.example" }\nshadow = true\n'
        + RULE + 'verify = "local"\nwhen = { domain = { not = "negated.example" } }\n'
        + RULE + 'verify = "other"\nwhen = { domain = "c.example" }'
    ).own  # fmt: skip
    named = ["a.example", "x.b.example", "accepted.example", "shadow.example", "negated.example", "c.example"]
    assert [name for name in named if name in own] == ["a.example", "x.b.example", "c.example"]


def test_a_recipient_without_a_detail_has_no_base() -> None:
    assert Subaddress("+", "ignored", "ignored").base(parse("user@example.org")) is None
