"""Conditions: what is unknown is neither true nor false, under `not` too."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.address import parse
from rcptd.query import UNKNOWN, Query
from rcptd.when import NO_DOMAINS, addresses, domains, read, sender_key
from tests.policies import milter, socketmap

USER = parse("user@example.org")


def holds(when: dict[str, Any], query: Query | None = None, recipient: str = "user@example.org") -> bool | None:
    """Give the truth of the one condition of a `when`."""
    (condition,) = read(when).conditions
    return condition(query or milter(), parse(recipient))


@pytest.mark.parametrize(
    ("pattern", "domain", "held"),
    [
        ("example.org", "example.org", True),
        ("EXAMPLE.org.", "example.org", True),
        ("example.org", "sub.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "sub.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "badexample.org", False),
        (["a.example", "*.example.org", "example.org"], "example.org", True),
        (["a.example", "*.example.org"], "b.example", False),
        ("müller.example", "xn--mller-kva.example", True),
        ("xn--mller-kva.example", "müller.example", True),
        ("*.müller.example", "a.xn--mller-kva.example", True),
        ("[192.0.2.1]", "[192.0.2.1]", True),
        ("*.2.1]", "[192.0.2.1]", None),
    ],
)
def test_a_domain_pattern(pattern: Any, domain: str, held: bool | None) -> None:
    if held is None:
        with pytest.raises(ValueError, match="domain:"):
            read({"domain": pattern})
        return
    assert holds({"domain": pattern}, recipient=f"user@{domain}") is held
    assert holds({"domain": {"not": pattern}}, recipient=f"user@{domain}") is not held
    assert domains(pattern) == read({"domain": pattern}).domains
    assert read({"domain": {"not": pattern}}).domains == NO_DOMAINS


@pytest.mark.parametrize(
    ("pattern", "recipient", "held"),
    [
        ("user@example.org", "USER@Example.org", True),
        ("user@example.org", "user@example.net", False),
        ("user@example.org", '"user@example.org"', False),  # a bare local part with an @ in it
        ("@example.org", "anybody@example.org", True),
        ("@example.org", "anybody@sub.example.org", False),
        ("@*.example.org", "anybody@sub.example.org", True),
        ("abuse@*", "Abuse@elsewhere.example", True),
        ("abuse@*", "abuse", False),
        ("abuse@*", '"x@abuse"@a.example', False),
        ("straße@*", "STRASSE@a.example", True),
        (["a@b.example", "c@d.example"], "c@d.example", True),
    ],
)
def test_an_address_pattern(pattern: Any, recipient: str, held: bool) -> None:
    assert holds({"recipient": pattern}, recipient=recipient) is held
    assert holds({"recipient": {"not": pattern}}, recipient=recipient) is not held


@pytest.mark.parametrize(
    ("pattern", "sender", "held"),
    [
        ("<>", "", True),
        ("<>", "a@b.example", False),
        ("@b.example", "", False),
        ("@b.example", "Joe@B.Example", True),
        ("a@b.example", "\udcff", False),
        ("a@b.example", UNKNOWN, None),
    ],
)
def test_a_sender_pattern(pattern: str, sender: str, held: bool | None) -> None:
    query = milter(sender=sender)
    assert holds({"sender": pattern}, query) is held
    assert holds({"sender": {"not": pattern}}, query) is (None if held is None else not held)


def test_a_sender_that_is_no_address_stands_for_itself() -> None:
    assert sender_key("\udcff@x") == "\udcff@x"
    assert sender_key("") == ""
    assert sender_key("A@Ü.example") == "a@xn--tda.example"


@pytest.mark.parametrize(
    ("network", "client", "held"),
    [
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24", "192.0.3.7", False),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.0/24", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db8::/32", "192.0.2.7", False),
        ("fe80::/10", "fe80::1%eth0", True),
        (["192.0.2.1", "2001:db8::/32"], "2001:db8::1", True),
        ("192.0.2.0/24", None, False),
        ("192.0.2.0/24", UNKNOWN, None),
    ],
)
def test_a_client_is_in_a_network(network: Any, client: Any, held: bool | None) -> None:
    query = milter(client=ip_address(client) if isinstance(client, str) else client)
    assert holds({"client": network}, query) is held
    assert holds({"client": {"not": network}}, query) is (None if held is None else not held)


@pytest.mark.parametrize(
    ("wanted", "name", "held"),
    [
        (True, "joe", True), (True, "", False), (False, "", True), (False, "joe", False), (True, UNKNOWN, None),
        ("joe", "joe", True), ("joe", "Joe", False), (["a", "joe"], "joe", True), ("joe", "", False),
        ("joe", UNKNOWN, None),
    ],
)  # fmt: skip
def test_authenticated_is_whether_or_who(wanted: Any, name: Any, held: bool | None) -> None:
    query = milter(authenticated=name)
    assert holds({"authenticated": wanted}, query) is held
    assert holds({"authenticated": {"not": wanted}}, query) is (None if held is None else not held)


def test_a_front_end_is_always_known_and_a_map_only_to_a_socketmap() -> None:
    assert holds({"front_end": "milter"}, milter()) is True
    assert holds({"front_end": {"not": "milter"}}, socketmap()) is True
    assert holds({"map": ["a", "b"]}, socketmap(name="b")) is True
    assert holds({"map": {"not": "b"}}, socketmap(name="b")) is False
    assert holds({"map": "b"}, milter()) is None
    assert holds({"map": {"not": "b"}}, milter()) is None


FACTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sender": ("a@b.example", {"true": "a@b.example", "false": ""}),
    "client": ("192.0.2.1", {"true": ip_address("192.0.2.1"), "false": None}),
    "authenticated": (True, {"true": "joe", "false": ""}),
}


TRUTHS = st.sampled_from(["true", "false", "?"])


@given(st.dictionaries(st.sampled_from(sorted(FACTS)), st.tuples(st.booleans(), TRUTHS)))
def test_a_rule_applies_only_where_every_condition_is_known_to_hold(chosen: dict[str, tuple[bool, str]]) -> None:
    facts: dict[str, Any] = {}
    when: dict[str, Any] = {}
    met = True
    unknown = False
    for name, (negated, truth) in chosen.items():
        wanted, values = FACTS[name]
        when[name] = {"not": wanted} if negated else wanted
        facts[name] = values.get(truth, UNKNOWN)
        met = met and truth == ("false" if negated else "true")
        unknown = unknown or truth == "?"
    conditions = read(when)
    query = milter(**facts)
    assert conditions.applies(query, USER) is met
    assert (conditions.unmet(query, USER) == "") is met
    if unknown:
        assert not conditions.applies(query, USER)


def test_what_is_not_met_is_named() -> None:
    assert read({"authenticated": True}).unmet(socketmap(), USER) == "authenticated is not known here"
    assert read({"domain": "a.example"}).unmet(milter(), USER) == "domain does not match"
    assert read({}).unmet(milter(), USER) == ""
    assert "sender=UNKNOWN" in repr(socketmap())


@pytest.mark.parametrize(
    ("when", "fault"),
    [
        ("example.org", "write a table"),
        ({"host": "x"}, "there is no condition 'host'; known: authenticated, client, domain"),
        ({"domain": {"in": ["x"]}}, "domain: write a value, a list, or"),
        ({"domain": {"not": ["x"], "also": 1}}, "domain: write a value, a list, or"),
        ({"domain": []}, "domain: the list is empty"),
        ({"domain": ""}, "domain: write a text in quotes"),
        ({"domain": "a b"}, "domain: 'a b': the domain is not a host name; write \"example.org\""),
        ({"domain": "*"}, "domain: "),
        ({"recipient": "user@"}, "recipient: 'user@' is no address"),
        ({"recipient": "user"}, "recipient: 'user' has no domain; \"user@\\*\" means any"),
        ({"recipient": "*@example.org"}, 'recipient: .*write "@example.org"'),
        ({"recipient": "@"}, "recipient: "),
        ({"sender": 5}, "sender: write a text"),
        ({"client": "192.0.2.7/24"}, "client: .*did you mean 192.0.2.0/24"),
        ({"client": "host.example"}, "client: 'host.example' is no address or network"),
        ({"authenticated": {"not": {"not": True}}}, "authenticated: write a text"),
        ({"front_end": "smtp"}, "front_end: write one of 'milter', 'socketmap'"),
        ({"map": 1}, "map: write a text"),
    ],
)
def test_a_fault_names_the_condition_and_what_would_be_right(when: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(when)


def test_sets_of_domains_join() -> None:
    both = domains("a.example") | domains("*.b.example")
    assert "a.example" in both
    assert "x.b.example" in both
    assert "b.example" not in both
    assert not addresses("a@b.example").holds("")
