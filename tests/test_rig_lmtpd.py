"""The real lmtpd of the tests: what it says by hand at each of its listeners, with which rcptd is compared."""

import ssl
import time
from collections.abc import Iterator

import pytest

from tests.rig.cyrus import service
from tests.rig.dialogue import Closed, Dialogue
from tests.rig.lmtpd import STRANGER, VERDICTS, Lmtpd, authenticate, codes
from tests.rig.place import sheltered
from tests.rig.ports import LOOPBACK, free_port, wait_until
from tests.rig.require import require_cyrus

pytestmark = pytest.mark.cyrus


@pytest.fixture(scope="module")
def lmtpd() -> Iterator[Lmtpd]:
    require_cyrus()
    with sheltered("lmtpd") as place, Lmtpd(place) as running:
        yield running
        assert not running.cyrus.complaints()


@pytest.mark.parametrize("which", ["unix", "trusting", "wanting", "single"])
def test_it_says_the_same_at_each_listener(lmtpd: Lmtpd, which: str) -> None:
    replies = lmtpd.ask(getattr(lmtpd, which), *VERDICTS)
    assert dict(zip(VERDICTS, map(codes, replies), strict=True)) == dict(VERDICTS)


def test_over_quota_is_for_good_where_the_site_says_so(lmtpd: Lmtpd) -> None:
    assert [codes(one) for one in lmtpd.ask(lmtpd.final, "full@example.org", "foo@example.org")] == [
        "552 5.2.2", "250 2.1.5",
    ]  # fmt: skip


def test_a_refusal_has_its_enhanced_code_in_the_last_line_only(lmtpd: Lmtpd) -> None:
    unknown, closed = lmtpd.ask(lmtpd.unix, "nobody@example.org", "bb+closed@example.org")
    assert not unknown.enhanced
    assert unknown.text.splitlines()[-1] == "5.1.1 User unknown"
    assert len(closed.text.splitlines()) == 5


def test_an_address_that_it_cannot_read_is_a_syntax_error(lmtpd: Lmtpd) -> None:
    replies = lmtpd.ask(lmtpd.unix, "x y@example.org", "föö@example.org", '"foo"@example.org')
    assert [codes(one) for one in replies] == ["501 5.5.4", "501 5.5.4", "550 5.1.1"]


@pytest.mark.parametrize(
    ("which", "offered"),
    [
        ("unix", ["AUTH EXTERNAL"]), ("trusting", ["AUTH EXTERNAL"]),
        ("wanting", ["STARTTLS", "AUTH PLAIN"]), ("secure", ["STARTTLS"]),
    ],
)  # fmt: skip
def test_what_it_offers(lmtpd: Lmtpd, which: str, offered: list[str]) -> None:
    with Dialogue(getattr(lmtpd, which), lmtp=True) as session:
        assert session.hello
        assert session.hello.text.splitlines()[1:-1] == [
            "8BITMIME", "ENHANCEDSTATUSCODES", "PIPELINING", "SIZE", *offered, "IGNOREQUOTA",
        ]  # fmt: skip
        assert session.greeting.text.startswith("mx.example.org Cyrus LMTP ")


def test_with_tls_the_password_may_come(lmtpd: Lmtpd) -> None:
    with Dialogue(lmtpd.secure, lmtp=True) as session:
        assert str(authenticate(session)) == "501 5.5.4 undefined error!"
        session.starttls(ssl.create_default_context(cafile=str(lmtpd.certificate.file)), "mx.example.org")
        hello = session.command("LHLO client.example.net").text
        assert "AUTH PLAIN" in hello
        assert "STARTTLS" not in hello
        assert str(authenticate(session)) == "235 Authenticated!"
        assert session.mail("").code == 250


def test_without_auth_mail_is_refused_and_the_wrong_ones_are_too(lmtpd: Lmtpd) -> None:
    with Dialogue(lmtpd.wanting, lmtp=True) as session:
        assert str(session.mail("")) == "430 Authentication required"
        assert str(session.rcpt("foo@example.org")) == "503 5.5.1 Need MAIL command"
        assert str(authenticate(session, password="wrong")) == "501 5.5.4 undefined error!"
        assert str(authenticate(session, STRANGER)) == "501 5.5.4 undefined error!"
        assert str(authenticate(session)) == "235 Authenticated!"
        assert session.mail("").code == 250


def test_one_session_bears_any_number_of_unknown_recipients(lmtpd: Lmtpd) -> None:
    with Dialogue(lmtpd.trusting, lmtp=True) as session:
        assert session.mail("").code == 250
        before = time.monotonic()
        assert {session.rcpt(f"nobody-{n}@example.org").code for n in range(60)} == {550}
        assert time.monotonic() - before < 5
        assert session.rcpt("foo@example.org").code == 250
        assert session.rset().code == 250
        assert session.mail("").code == 250
        assert session.rcpt("foo@example.org").code == 250


def test_smtp_is_not_spoken(lmtpd: Lmtpd) -> None:
    with Dialogue(lmtpd.unix) as session:
        assert str(session.hello) == "500 5.5.2 Syntax error"


def test_where_it_serves_one_client_the_next_one_waits_for_a_banner(lmtpd: Lmtpd) -> None:
    with Dialogue(lmtpd.single, lmtp=True), pytest.raises(TimeoutError):
        Dialogue(lmtpd.single, lmtp=True, timeout=0.5)


def test_this_version_knows_no_proxy_header() -> None:
    require_cyrus()
    with sheltered("lmtpd-H") as place:
        port = free_port()
        run = f"lmtpd -C {place / 'cyrus' / 'site' / 'imapd.conf'} -a -H"
        line = service("lmtpproxy", run, f"{LOOPBACK}:{port}", prefork=0)
        with Lmtpd(place, services=[line]) as lmtpd:
            with pytest.raises((Closed, ConnectionResetError)):
                Dialogue(port, lmtp=True)
            assert wait_until(lambda: "exited, status 64" in lmtpd.cyrus.log())
        assert "invalid option -- 'H'" in lmtpd.cyrus.log()
