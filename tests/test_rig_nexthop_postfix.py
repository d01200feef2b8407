"""The real Postfix that tests ask as a next hop: what it says by hand, and what it does to one who asks on and on."""

import ssl
import time
from collections.abc import Iterator

import pytest

from tests.rig.dialogue import Closed, Dialogue
from tests.rig.lmtpd import codes
from tests.rig.nexthop_postfix import VERDICTS, NextHopPostfix
from tests.rig.place import sheltered
from tests.rig.require import require_postfix

pytestmark = pytest.mark.mta


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHopPostfix]:
    require_postfix()
    with sheltered("hop") as place, NextHopPostfix(place) as running:
        yield running


def test_what_it_says_of_each_recipient(hop: NextHopPostfix) -> None:
    assert not hop.postfix.warnings()
    replies = hop.ask(hop.port, *VERDICTS)
    assert dict(zip(VERDICTS, map(codes, replies), strict=True)) == dict(VERDICTS)


@pytest.mark.parametrize(
    ("port", "user", "nobody"),
    [
        ("accepting", "250 2.1.5", "250 2.1.5"),
        ("blocking", "554 5.7.1", "554 5.7.1"),
        ("choosy", "554 5.7.1", "554 5.7.1"),
        ("formal", "554 5.7.1", "554 5.7.1"),
        ("stressed", "250 2.1.5", "550 5.1.1"),
        ("crowded", "250 2.1.5", "550 5.1.1"),
    ],
)
def test_what_it_holds_against_us_it_says_at_rcpt(hop: NextHopPostfix, port: str, user: str, nobody: str) -> None:
    replies = hop.ask(hop.ports[port], "user@example.org", "nobody@example.org")
    assert [codes(one) for one in replies] == [user, nobody]


def test_without_tls_where_it_must_be_mail_is_refused(hop: NextHopPostfix) -> None:
    with Dialogue(hop.ports["encrypted"]) as session:
        assert codes(session.mail("")) == "530 5.7.0"
        assert codes(session.rcpt("user@example.org")) == "530 5.7.0"


def test_with_tls_it_says_the_same(hop: NextHopPostfix) -> None:
    with Dialogue(hop.ports["encrypted"]) as session:
        session.starttls(ssl.create_default_context(cafile=str(hop.certificate.file)), "mx.example.org")
        assert session.command("EHLO client.example.net").code == 250
        assert session.mail("").code == 250
        assert codes(session.rcpt("nobody@example.org")) == "550 5.1.1"


def test_one_connection_too_many_has_421_for_a_greeting(hop: NextHopPostfix) -> None:
    port = hop.ports["crowded"]
    with Dialogue(port), Dialogue(port), Dialogue(port) as third:
        assert codes(third.greeting) == "421 4.7.0"


@pytest.mark.parametrize(("recipient", "code"), [("nobody@example.org", 550), ("grey@example.org", 450)])
def test_ten_refusals_are_free_and_then_it_is_slow(hop: NextHopPostfix, recipient: str, code: int) -> None:
    with Dialogue(hop.port) as session:
        session.mail("")
        begun = time.monotonic()
        assert [session.rcpt(recipient).code for _ in range(10)] == [code] * 10
        assert time.monotonic() - begun < 1
        begun = time.monotonic()
        assert session.rset().code == 250
        assert time.monotonic() - begun > 0.9


def test_under_stress_a_session_ends_after_one_refusal(hop: NextHopPostfix) -> None:
    with Dialogue(hop.ports["stressed"]) as session:
        session.mail("")
        assert session.rcpt("nobody@example.org").code == 550
        assert session.rcpt("user@example.org").code == 421
        with pytest.raises((Closed, OSError)):
            session.rset()


def test_110_transactions_of_a_session_are_free(hop: NextHopPostfix) -> None:
    with Dialogue(hop.port) as session:
        assert 105 <= quick_transactions(session) <= 112


def test_a_hundred_transactions_with_a_good_recipient_are_free_in_all_of_postfix() -> None:
    require_postfix()
    with sheltered("flow") as place, NextHopPostfix(place, in_flow_delay="1s") as hop:
        with Dialogue(hop.port) as session:
            assert 95 <= quick_transactions(session) <= 100
        with Dialogue(hop.ports["accepting"]) as session:
            assert quick_transactions(session) == 0


def quick_transactions(session: Dialogue) -> int:
    """How many transactions with a good recipient there are before one takes a second."""
    for number in range(115):
        begun = time.monotonic()
        assert [session.mail("").code, session.rcpt("user@example.org").code, session.rset().code] == [250] * 3
        if time.monotonic() - begun > 0.9:
            return number
    return 115
