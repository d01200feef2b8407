"""Each snippet of contrib/sendmail, loaded by a real Sendmail that asks a scripted server."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.dialogue import FOREIGN, Closed, Dialogue, Reply, ask
from tests.rig.place import sheltered
from tests.rig.require import require_sendmail
from tests.rig.scripted import ANY_MAP, Fault, ScriptedSocketmap
from tests.rig.scripted_filter import ScriptedMilter
from tests.rig.sendmail import Sendmail
from tests.rig.snippets import snippet, uncommented

pytestmark = pytest.mark.mta

GOOD, GONE, SICK = "good@example.org", "gone@example.org", "sick@example.org"
ELSEWHERE = "someone@other.example"
UNVERIFIED = "451 4.4.3 Recipient cannot be verified now, please try again later"
VARIANTS = pytest.mark.parametrize("variant", [False, True], ids=["loopback", "unix"])


@pytest.fixture
def place() -> Iterator[Path]:
    require_sendmail()
    with sheltered() as directory:
        yield directory


def run_folder(place: Path) -> Path:
    """A folder as /run/rcptd is: another account's, and not writable for everybody."""
    folder = place / "rcptd"
    folder.mkdir(mode=0o755)
    shutil.chown(folder, "nobody", "nogroup")
    return folder


def codes(replies: list[Reply]) -> list[str]:
    return [f"{reply.code} {reply.enhanced}" for reply in replies]


def assert_relaying_is_refused(sendmail: Sendmail, asked: Callable[[], object], good: str = GOOD) -> None:
    """A foreign client gets no foreign domain past Sendmail, and nobody is asked about it."""
    before = asked()
    (reply,) = ask(sendmail.port, ELSEWHERE, source=FOREIGN)
    assert codes([reply]) == ["550 5.7.1"]
    assert "Relaying denied" in reply.text
    assert asked() == before
    (reply,) = ask(sendmail.port, good, source=FOREIGN)
    assert reply.code == 250


MILTER_REPLIES = {
    GOOD: "",
    GONE: "550 5.1.1 No such mailbox",
    "notallowed@example.org": "550 5.7.1 Not allowed to post here",
    "disabled@example.org": "550 5.2.1 Mailbox disabled",
    "moved@example.org": "551 5.1.6 Mailbox has moved",
    "fullnow@example.org": "452 4.2.2 Mailbox full",
    "full@example.org": "552 5.2.2 Mailbox full",
    SICK: UNVERIFIED,
}


def as_told(recipient: str, reply: str) -> str:
    """A reply as Sendmail passes it on: with the recipient in front of the text after some codes."""
    if not reply:
        return f"250 2.1.5 <{recipient}>... Recipient ok"
    code, enhanced, text = reply.split(" ", 2)
    return f"{code} {enhanced} <{recipient}>... {text}" if code in {"450", "550", "553"} else reply


@VARIANTS
def test_milter_gives_every_verdict_its_own_codes_and_text(place: Path, variant: bool) -> None:
    where = run_folder(place) / "milter.sock" if variant else None
    with ScriptedMilter(MILTER_REPLIES, where=where, mode=0o660) as milter:
        placeholder = "local:/run/rcptd/milter.sock" if variant else "inet:7851@127.0.0.1"
        text = snippet("sendmail/milter.mc", {placeholder: milter.sendmail}, variant=variant)
        with Sendmail(place, mc=text) as sendmail:
            replies = ask(sendmail.port, *MILTER_REPLIES)
            assert [str(one) for one in replies] == [as_told(*one) for one in MILTER_REPLIES.items()]
            assert_relaying_is_refused(sendmail, lambda: milter.asked.count(f"<{ELSEWHERE}>"))


def test_milter_in_trouble_defers_and_never_lasts_beyond_the_session(place: Path) -> None:
    with ScriptedMilter({GONE: "550 5.1.1 No such mailbox"}) as milter:
        replace = {"inet:7851@127.0.0.1": milter.sendmail, "R:20s": "R:2s"}
        with Sendmail(place, mc=snippet("sendmail/milter.mc", replace)) as sendmail:
            for fault in set(Fault) - {Fault.GARBLE}:
                milter.answers[SICK] = fault
                with Dialogue(sendmail.port) as session:
                    session.mail()
                    replies = [session.rcpt(one) for one in (GOOD, SICK, GOOD)]
                assert codes(replies) == ["250 2.1.5", "451 4.3.2", "451 4.3.2"], fault
            milter.answers[SICK] = Fault.GARBLE
            with pytest.raises(Closed):  # a packet of 4 GB ends Sendmail's process: no answer, and nothing taken
                ask(sendmail.port, SICK)
            assert codes(ask(sendmail.port, GOOD, GONE)) == ["250 2.1.5", "550 5.1.1"]
            milter.stop()
            assert codes(ask(sendmail.port, GOOD)) == ["451 4.3.2"]
            milter.start()
            assert codes(ask(sendmail.port, GOOD, GONE)) == ["250 2.1.5", "550 5.1.1"]


ERROR_VALUES = {
    GOOD: "OK OK",
    GONE: 'OK error:5.1.1:"550 No such mailbox"',
    "notallowed@example.org": 'OK error:5.7.1:"550 Not allowed (see our policy), sorry; ask <us>"',
    "disabled@example.org": 'OK error:5.2.1:"550 Mailbox disabled"',
    "moved@example.org": 'OK error:5.1.6:"551 Mailbox has moved"',
    "fullnow@example.org": 'OK error:4.2.2:"452 Mailbox full, try again (later"',
    "full@example.org": 'OK error:5.2.2:"552 Mailbox full"',
    "badsyntax@example.org": 'OK error:5.1.3:"553 Not a valid address"',
    "nullmx@example.org": 'OK error:5.1.10:"556 Domain takes no mail"',
    "nowhere@example.org": "NOTFOUND ",
    SICK: f'OK error:4.4.3:"{UNVERIFIED.replace(" 4.4.3", "")}"',
}


def told_by_error(recipient: str, value: str) -> str:
    if value == "OK OK":
        return as_told(recipient, "")
    if value == "NOTFOUND ":
        return f"550 5.1.1 <{recipient}>... User unknown"
    enhanced, _, text = value.removeprefix("OK error:").partition(":")
    code, text = text.strip('"').split(" ", 1)
    return as_told(recipient, f"{code} {enhanced} {text}")


def asking(place: Path, name: str, at: str, *, variant: bool = False, patience: str = "-d15s") -> Sendmail:
    """A Sendmail that asks a socket map by one of the two snippets for it."""
    placeholder = "local:/run/rcptd/socketmap.sock" if variant else "inet:7850@127.0.0.1"
    text = snippet(f"sendmail/{name}", {placeholder: at}, variant=variant)
    edit = {"-d15s": patience}
    if name == "socketmap.mc":
        return Sendmail(place, mc=text, cf_edit=edit)
    return Sendmail(place, mc_local=text, cf_edit=edit)


SNIPPETS = pytest.mark.parametrize("name", ["socketmap.mc", "socketmap-plain.mc"], ids=["feature", "plain"])


@SNIPPETS
@VARIANTS
def test_socket_map_gives_every_verdict_its_own_codes_and_text(place: Path, name: str, variant: bool) -> None:
    answers = {("sendmail", key): value for key, value in ERROR_VALUES.items()}
    where = run_folder(place) / "socketmap.sock" if variant else None
    with ScriptedSocketmap(answers, where=where) as server:
        sendmail = asking(place, name, server.sendmail, variant=variant)
        with sendmail:
            replies = ask(sendmail.port, *ERROR_VALUES)
            assert [str(one) for one in replies] == [told_by_error(*one) for one in ERROR_VALUES.items()]
            assert codes(ask(sendmail.port, ELSEWHERE)) == ["250 2.1.5"]
            # As the README has it.
            assert "returns OK (0)" in sendmail.run("-bt", text=f"/map sendmail {GOOD}\n")
            assert "No such mailbox" in sendmail.run("-bt", text=f"Rcptd {GONE}\n")
            assert_relaying_is_refused(sendmail, lambda: server.asked.count(("sendmail", ELSEWHERE)))
            # Even a server that permits everything opens no relay.
            server.default = "OK OK"
            assert_relaying_is_refused(sendmail, lambda: server.asked.count(("sendmail", ELSEWHERE)))


TROUBLES: dict[str | Fault, str] = {
    "TEMP text": UNVERIFIED,
    "TIMEOUT text": UNVERIFIED,
    "OK an echoed key": UNVERIFIED,
    "OK 550 5.1.1 the words of another MTA": UNVERIFIED,
    Fault.DROP: UNVERIFIED,
    Fault.HALF: "451 4.3.0 socket_map_lookup(sendmail): received only 5 of 20 reply characters",
    Fault.GARBLE: "451 4.3.0 socket_map_lookup(sendmail): failed to read length parameter of reply 0",
    Fault.STALL: "451 4.3.0 socket_map_lookup(sendmail): read timeout: Resource temporarily unavailable",
}


@SNIPPETS
@VARIANTS
def test_socket_map_in_trouble_defers(place: Path, name: str, variant: bool) -> None:
    where = run_folder(place) / "socketmap.sock" if variant else None
    with ScriptedSocketmap(default="OK OK", where=where, mode=0o660) as server:
        sendmail = asking(place, name, server.sendmail, variant=variant, patience="-d1s")
        with sendmail:
            for trouble, expected in TROUBLES.items():
                server.answers[ANY_MAP, SICK] = trouble
                assert [str(one) for one in ask(sendmail.port, SICK)] == [expected], trouble
            server.stop()
            replies = ask(sendmail.port, GOOD, '"a(b"@example.org', ELSEWHERE)
            assert [str(one) for one in replies] == [UNVERIFIED, UNVERIFIED, as_told(ELSEWHERE, "")]
            server.start()
            assert codes(ask(sendmail.port, GOOD)) == ["250 2.1.5"]
            if where:  # what Sendmail calls unsafe is trouble, too
                where.parent.chmod(0o777)
                assert [str(one) for one in ask(sendmail.port, GOOD)] == [UNVERIFIED]


@SNIPPETS
def test_socket_map_is_asked_with_the_address_as_it_was_typed(place: Path, name: str) -> None:
    typed = {
        "User+Detail@Example.ORG": "User+Detail@Example.ORG",
        "user@example.org.": "user@example.org",
        "@relay.example:user@example.org": "user@example.org",
        '"ok user"@example.org': '"ok user"@example.org',
        '"a(b"@example.org': '"a(b"@example.org',
        "user%example.org@mx.example.org": "user@example.org",
    }
    with ScriptedSocketmap(default="OK OK") as server, asking(place, name, server.sendmail) as sendmail:
        assert {one.code for one in ask(sendmail.port, *typed)} == {250}
        assert server.asked == [("sendmail", key) for key in typed.values()]


def test_feature_reads_domains_from_a_file_and_asks_about_no_subdomain(place: Path) -> None:
    domains = place / "rcptd-domains"
    domains.write_text("example.net\nexample.com\n")
    with ScriptedSocketmap() as server:
        text = snippet(
            "sendmail/socketmap.mc",
            {"inet:7850@127.0.0.1": server.sendmail, "/etc/mail/rcptd-domains": str(domains)},
        )
        with Sendmail(place, mc=uncommented(text, "RCPTD_DOMAIN_FILE(")) as sendmail:
            recipients = [f"user@{one}" for one in ("example.org", "example.net", "example.com", "sub.example.org")]
            assert [one.code for one in ask(sendmail.port, *recipients)] == [550, 550, 550, 250]
            assert [key for _, key in server.asked] == recipients[:3]
            # Of a subdomain nobody is asked, so no stranger may send there.
            assert codes(ask(sendmail.port, "user@sub.example.org", source=FOREIGN)) == ["550 5.7.1"]


def test_feature_asks_about_users_of_this_host_in_the_domain_of_its_second_argument(place: Path) -> None:
    with ScriptedSocketmap({(ANY_MAP, "root@example.org"): "OK OK"}) as server:
        text = snippet("sendmail/socketmap.mc", {"inet:7850@127.0.0.1')": f"{server.sendmail}', `example.org')"})
        with Sendmail(place, mc=text) as sendmail:
            names = ("root", "root@mx.example.org", "root@localhost", "root@[127.0.0.1]", "root@example.org")
            assert {one.code for one in ask(sendmail.port, *names)} == {250}
            assert server.asked == [("sendmail", "root@example.org")] * len(names)
            assert [one.code for one in ask(sendmail.port, "nobody", "nobody@localhost")] == [550, 550]


def test_feature_asks_about_everybody_by_its_third_argument(place: Path) -> None:
    with ScriptedSocketmap() as server:
        text = snippet("sendmail/socketmap.mc", {"inet:7850@127.0.0.1')": f"{server.sendmail}', `', `all')"})
        with Sendmail(place, mc=text) as sendmail:
            assert [one.code for one in ask(sendmail.port, ELSEWHERE, GONE)] == [250, 550]
            assert [key for _, key in server.asked] == [ELSEWHERE, GONE]
            server.default = "OK OK"
            assert codes(ask(sendmail.port, ELSEWHERE, source=FOREIGN)) == ["550 5.7.1"]
            server.stop()
            assert codes(ask(sendmail.port, ELSEWHERE)) == ["451 4.4.3"]


def test_feature_leaves_an_operators_own_ruleset_its_say(place: Path) -> None:
    own = '\nLOCAL_RULESETS\nSLocal_check_rcpt\nR$*own@$*\t$#error $@ 5.7.1 $: "550 by our own rule"\n'
    with ScriptedSocketmap(default="OK OK") as server:
        text = snippet("sendmail/socketmap.mc", {"inet:7850@127.0.0.1": server.sendmail})
        with Sendmail(place, mc=text, mc_local=own) as sendmail:
            own_reply, good = ask(sendmail.port, "own@example.org", GOOD)
            assert str(own_reply) == "550 5.7.1 <own@example.org>... by our own rule"
            assert good.code == 250


CYRUS = {
    "joe": "OK joe",
    "joe+mNp": "OK joe+mNp",
    "gone": "NOTFOUND ",
    "sick": "TEMP over quota",
    "ann@virtual.example": "OK ann@virtual.example",
    "ann+mNp@virtual.example": "OK ann+mNp@virtual.example",
    "gone@virtual.example": "NOTFOUND ",
    "denied@virtual.example": "PERM no",
    "sick@virtual.example": "TEMP over quota",
}
THROUGH_CYRUS = {
    "joe": "250 2.1.5",
    "joe+mNp@mx.example.org": "250 2.1.5",
    "gone@mx.example.org": "550 5.1.1",
    "sick": "451 4.4.3",
    "Staff@mx.example.org": "250 2.1.5",
    "ann@virtual.example": "250 2.1.5",
    "ann+mNp@virtual.example": "250 2.1.5",
    "led@virtual.example": "250 2.1.5",
    "away@virtual.example": "250 2.1.5",
    "gone@virtual.example": "550 5.1.1",
    "denied@virtual.example": "550 5.1.1",
    "sick@virtual.example": "451 4.4.3",
    ELSEWHERE: "250 2.1.5",
}


@pytest.fixture(params=[False, True], ids=["unix", "loopback"])
def behind_sendmail(place: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Sendmail, ScriptedSocketmap]]:
    """A Sendmail with cyrus.mc in front of a scripted smmapd; here loopback is the variant."""
    variant = bool(request.param)
    table = place / "virtusertable"
    table.write_text("led@virtual.example ann@virtual.example\naway@virtual.example x@other.example\n")
    line_above = "MODIFY_MAILER_FLAGS(`LOCAL', `+u')dnl"
    top = (
        f"FEATURE(`virtusertable', `text -k0 -v1 {table}')dnl\n"
        f"VIRTUSER_DOMAIN(`virtual.example')dnl\n{line_above}\n"
    )
    answers = {("cyrus", key): value for key, value in CYRUS.items()}
    with ScriptedSocketmap(answers, where=None if variant else run_folder(place) / "smmap") as server:
        placeholder = "inet:7850@127.0.0.1" if variant else "local:/run/cyrus/socket/smmap"
        text = snippet("sendmail/cyrus.mc", {placeholder: server.sendmail, "-d15s": "-d2s"}, variant=variant)
        assert line_above in text
        with Sendmail(place, mc=top, mc_local=text, aliases="staff: joe\n", relay_domains=()) as sendmail:
            yield sendmail, server


def test_cyrus_is_asked_after_aliases_and_virtusertable(
    behind_sendmail: tuple[Sendmail, ScriptedSocketmap],
) -> None:
    sendmail, server = behind_sendmail
    replies = ask(sendmail.port, *THROUGH_CYRUS)
    assert dict(zip(THROUGH_CYRUS, codes(replies), strict=True)) == THROUGH_CYRUS
    asked = {key for _, key in server.asked}
    assert asked == set(CYRUS)
    assert_relaying_is_refused(sendmail, lambda: server.asked.count(("cyrus", ELSEWHERE)), "joe")
    # The guide's set-up refuses senders that Cyrus does not know.
    with Dialogue(sendmail.port) as session:
        assert session.mail("gone@virtual.example").code == 250


def test_cyrus_in_trouble_defers_local_and_virtual_recipients(
    behind_sendmail: tuple[Sendmail, ScriptedSocketmap],
) -> None:
    sendmail, server = behind_sendmail
    for fault in Fault:
        server.fault = fault
        for recipient in ("joe", "ann@virtual.example"):
            assert [one.code for one in ask(sendmail.port, recipient)] == [451], (fault, recipient)
    server.fault = None
    if server.where:  # what Sendmail calls unsafe is trouble, too
        server.where.parent.chmod(0o777)
        assert codes(ask(sendmail.port, "joe", "ann@virtual.example")) == ["451 4.4.3"] * 2
        server.where.parent.chmod(0o755)
    assert [one.code for one in ask(sendmail.port, "joe", "ann@virtual.example")] == [250, 250]
    server.stop()
    assert codes(ask(sendmail.port, "joe", "ann@virtual.example")) == ["451 4.4.3"] * 2
