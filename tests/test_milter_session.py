"""A milter session without a milter: steps in, questions and answers out."""

import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.query import UNKNOWN, Query
from rcptd.settled import Settled
from rcptd.verdict import ACCEPTED, NO_SUCH_MAILBOX, Verdict
from rcptd_milter.replies import FAULT, GO_ON, RESTARTING, reply
from rcptd_milter.session import SIZE_LIMIT, Session


class Asked:
    """A decide that remembers its questions and refuses whom it does not know."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def __call__(self, query: Query) -> Verdict | None:
        self.queries.append(query)
        return None if query.recipient == "<ok@example.org>" else NO_SUCH_MAILBOX

    @property
    def last(self) -> Query:
        return self.queries[-1]


def macros(**values: str) -> Callable[[str], str | None]:
    by_name = {name if len(name) == 1 else f"{{{name}}}": value for name, value in values.items()}
    return by_name.get


NONE: Mapping[str, str] = {}
nothing = NONE.get


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def session(asked: Asked) -> Session:
    session = Session(asked)
    session.connect("client.example", socket.AF_INET, ("192.0.2.7", 4321), nothing)
    return session


def test_a_question_carries_all_that_the_wire_told(session: Session, asked: Asked) -> None:
    session.mail((b"<Joe@example.net>", b"SIZE=1000", b"SMTPUTF8"), macros(i="ABC", auth_authen="joe"))
    assert session.rcpt((b"<Gone@example.org>",), macros(i="ABC")) == reply(NO_SUCH_MAILBOX)
    assert asked.last == Query(
        "<Gone@example.org>",
        "milter",
        sender="Joe@example.net",
        client=ip_address("192.0.2.7"),
        authenticated="joe",
        size=1000,
        smtputf8=True,
        session="ABC",
    )


def test_a_bare_mail_names_no_size_and_nobody(session: Session, asked: Asked) -> None:
    session.mail((b"<>",), nothing)
    assert session.rcpt((b"<ok@example.org>",), nothing) == GO_ON
    assert asked.last == Query(
        "<ok@example.org>",
        "milter",
        sender="",
        client=ip_address("192.0.2.7"),
        authenticated="",
        size=0,
        smtputf8=False,
        session="client.example[192.0.2.7]",
    )


@pytest.mark.parametrize(
    ("family", "address", "macro", "told"),
    [
        (socket.AF_INET, ("192.0.2.7", 1), "", ("192.0.2.7", "h[192.0.2.7]")),
        (socket.AF_INET6, ("2001:db8::1", 1, 0, 0), "", ("2001:db8::1", "h[2001:db8::1]")),
        (socket.AF_INET6, ("::ffff:192.0.2.7", 1, 0, 0), "", ("192.0.2.7", "h[192.0.2.7]")),
        (socket.AF_INET, ("192.0.2.7", 1), "198.51.100.1", ("192.0.2.7", "h[192.0.2.7]")),
        (0, None, "198.51.100.1", ("198.51.100.1", "h[198.51.100.1]")),
        (0, None, "IPv6:2001:db8::1", ("2001:db8::1", "h[2001:db8::1]")),
        (socket.AF_INET6, ("inet6:unknown", 1, 0, 0), "2001:db8::1", ("2001:db8::1", "h[2001:db8::1]")),
        (socket.AF_UNIX, "/run/x", "", (None, "h[local]")),
        (0, None, "", (UNKNOWN, "h[unknown]")),
        (0, None, "unknown", (UNKNOWN, "h[unknown]")),
        (99, (), "junk\udcff", (UNKNOWN, "h[unknown]")),
    ],
)
def test_who_the_client_is(
    asked: Asked, family: int, address: object, macro: str, told: tuple[object, str]
) -> None:
    client, peer = told
    session = Session(asked)
    session.connect("h", family, address, macros(client_addr=macro))
    session.mail((b"<>",), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last.client == (ip_address(client) if isinstance(client, str) else client)
    assert asked.last.session == session.peer == peer


def test_a_session_without_connect_goes_by_the_macro(asked: Asked) -> None:
    session = Session(asked)
    session.mail((b"<>",), macros(client_addr="192.0.2.9"))
    session.rcpt((b"<a@example.org>",), nothing)
    assert (asked.last.client, asked.last.session) == (ip_address("192.0.2.9"), "[192.0.2.9]")


def test_a_session_without_connect_and_macro_has_an_unknown_client(asked: Asked) -> None:
    session = Session(asked)
    session.mail((b"<>",), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last.client is UNKNOWN


def test_a_forged_host_name_is_cut_and_printable(asked: Asked) -> None:
    session = Session(asked)
    session.connect("a\nb\x1b\udcff" + "x" * 5000, socket.AF_INET, ("192.0.2.7", 1), nothing)
    assert session.peer.startswith("a?b??xxx")
    assert session.peer.isprintable()
    assert len(session.peer) < 300


@pytest.mark.parametrize(
    ("argument", "sender"),
    [
        (b"<a@b.example>", "a@b.example"),
        (b"a@b.example", "a@b.example"),
        (b"<>", ""),
        (b"", ""),
        (b"<@relay.example,@r2.example:a@b.example>", "a@b.example"),
        (b'<"x@y:z"@b.example>', '"x@y:z"@b.example'),
        (b"<\xff@b.example>", "\udcff@b.example"),
        ("<ü@b.example>".encode(), "ü@b.example"),
        (b"<", "<"),
    ],
)
def test_the_sender_is_bare(session: Session, asked: Asked, argument: bytes, sender: str) -> None:
    session.mail((argument,), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last.sender == sender


@pytest.mark.parametrize(
    ("argument", "size"),
    [
        (b"SIZE=1", 1),
        (b"size=42", 42),
        (b"SIZE=0000000000000000000000000000042", 42),
        (b"SIZE=0", 0),
        (b"SIZE=999999999999999999", 999999999999999999),
        (b"SIZE=99999999999999999999", SIZE_LIMIT),
        (b"SIZE=" + b"9" * 60000, SIZE_LIMIT),
        (b"SIZE=", 0),
        (b"SIZE", 0),
        (b"SIZE=-1", 0),
        (b"SIZE=+1", 0),
        (b"SIZE= 1", 0),
        (b"SIZE=1_0", 0),
        (b"SIZE=\xd9\xa1", 0),
        (b"SIZE=1e9", 0),
        (b"XSIZE=7", 0),
    ],
)
def test_junk_for_a_size_is_no_size_and_too_much_is_the_most(
    session: Session, asked: Asked, argument: bytes, size: int
) -> None:
    session.mail((b"<>", b"BODY=8BITMIME", argument), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last.size == size


@pytest.mark.parametrize(
    ("argument", "told"), [(b"SMTPUTF8", True), (b"smtputf8", True), (b"SMTPUTF", False), (b"\xff", False)]
)
def test_smtputf8_is_a_keyword_in_any_case(
    session: Session, asked: Asked, argument: bytes, told: bool
) -> None:
    session.mail((b"<>", argument), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last.smtputf8 is told


def test_what_is_not_utf8_reaches_the_engine_as_surrogates(session: Session, asked: Asked) -> None:
    session.mail((b"<>",), nothing)
    assert session.rcpt((b"<\xe9t\xe9@example.org>",), nothing).rcode == "550"
    assert asked.last.recipient.encode(errors="surrogateescape") == b"<\xe9t\xe9@example.org>"


def test_facts_of_a_transaction_end_with_it(session: Session, asked: Asked) -> None:
    session.mail((b"<a@b.example>", b"SIZE=9", b"SMTPUTF8"), macros(auth_authen="joe"))
    assert session.in_transaction
    session.end()
    assert not session.in_transaction
    session.rcpt((b"<a@example.org>",), nothing)
    assert asked.last == Query(
        "<a@example.org>", "milter", client=ip_address("192.0.2.7"), session="client.example[192.0.2.7]"
    )


def test_a_new_mail_begins_anew_even_without_an_end(session: Session, asked: Asked) -> None:
    session.mail((b"<a@b.example>", b"SIZE=9", b"SMTPUTF8"), macros(auth_authen="joe"))
    session.mail((b"<c@d.example>",), nothing)
    session.rcpt((b"<a@example.org>",), nothing)
    query = asked.last
    assert (query.sender, query.size, query.smtputf8, query.authenticated) == ("c@d.example", 0, False, "")
    assert query.client == ip_address("192.0.2.7")


def test_many_recipients_get_their_own_answers(session: Session, asked: Asked) -> None:
    session.mail((b"<>",), nothing)
    wanted = [b"<ok@example.org>", b"<gone@example.org>"] * 500
    answers = [session.rcpt((recipient,), nothing) for recipient in wanted]
    assert answers == [GO_ON, reply(NO_SUCH_MAILBOX)] * 500
    assert len(asked.queries) == 1000


def test_parameters_of_rcpt_are_not_part_of_the_recipient(session: Session, asked: Asked) -> None:
    session.rcpt((b"<a@example.org>", b"NOTIFY=NEVER", b"ORCPT=rfc822;b@example.org"), nothing)
    assert asked.last.recipient == "<a@example.org>"


@pytest.mark.parametrize(
    ("routed", "macro", "recipient"),
    [
        (False, "Routed@inner.example", "<typed@example.org>"),
        (True, "Routed@inner.example", "Routed@inner.example"),
        (True, "root", "root"),
        (True, "", "<typed@example.org>"),
        (True, None, "<typed@example.org>"),
    ],
)
def test_a_recipient_is_as_typed_or_as_routed(
    asked: Asked, routed: bool, macro: str | None, recipient: str
) -> None:
    session = Session(asked, routed=routed)
    session.mail((b"<>",), nothing)
    session.rcpt((b"<typed@example.org>",), nothing if macro is None else macros(rcpt_addr=macro))
    assert asked.last.recipient == recipient


def test_whom_the_mta_has_refused_nobody_asks_about(session: Session, asked: Asked) -> None:
    session.mail((b"<>",), nothing)
    refused = macros(rcpt_mailer="error", rcpt_host="5.1.1", rcpt_addr="550 5.1.1 User unknown")
    assert session.rcpt((b"<gone@example.org>",), refused) == GO_ON
    assert not asked.queries


def test_recipients_of_a_transaction_begun_while_restarting_are_deferred(
    session: Session, asked: Asked
) -> None:
    session.mail((b"<>",), nothing, restarting=True)
    assert not session.in_transaction, "nobody waits for it: on a busy MTA there is always one"
    assert session.rcpt((b"<ok@example.org>",), nothing) == RESTARTING
    assert not asked.queries
    session.end()
    session.mail((b"<>",), nothing)
    assert session.rcpt((b"<ok@example.org>",), nothing) == GO_ON


def test_recipients_of_a_mail_that_failed_are_deferred(session: Session, asked: Asked) -> None:
    def broken(_name: str) -> str | None:
        raise RuntimeError("no macros today")

    session.mail((b"<first@example.net>",), nothing)
    with pytest.raises(RuntimeError):
        session.mail((b"<second@example.net>",), broken)
    assert session.rcpt((b"<ok@example.org>",), nothing) == FAULT
    assert not asked.queries


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("mail"), st.lists(st.binary(max_size=30), max_size=3)),
        st.tuples(st.just("rcpt"), st.lists(st.binary(max_size=30), max_size=2)),
        st.tuples(st.just("end"), st.just([])),
    ),
    max_size=12,
)


@given(STEPS)
def test_no_order_of_steps_and_no_bytes_raise_or_accept_unasked(
    steps: list[tuple[str, list[bytes]]],
) -> None:
    asked = Asked()
    session = Session(asked)
    for step, arguments in steps:
        before = len(asked.queries)
        match step:
            case "mail":
                session.mail(arguments, nothing)
            case "rcpt":
                assert session.rcpt(arguments, nothing) == reply(NO_SUCH_MAILBOX)
                assert len(asked.queries) == before + 1
            case "end":
                session.end()


class Recalled:
    """A recall that knows some recipients' verdicts, and counts its questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.known = {"<ok@example.org>": ACCEPTED, "<gone@example.org>": NO_SUCH_MAILBOX}

    def __call__(self, recipient: str) -> Settled[None] | None:
        self.asked.append(recipient)
        verdict = self.known.get(recipient)
        return Settled(None, verdict, float("inf"), None, logged=False) if verdict else None


@pytest.fixture
def recalled() -> Recalled:
    return Recalled()


def not_utf8(_: str) -> str | None:
    return b"\xe9".decode()


def recalling(asked: Asked, recalled: Recalled, *, routed: bool = False) -> Session:
    session = Session(asked, recall=recalled, routed=routed)
    session.mail((b"<>",), nothing)
    return session


def test_what_still_stands_is_answered_without_a_decision(asked: Asked, recalled: Recalled) -> None:
    session = recalling(asked, recalled)
    assert session.again((b"<ok@example.org>",), nothing) == GO_ON
    assert session.again((b"<gone@example.org>", b"NOTIFY=NEVER"), nothing) == reply(NO_SUCH_MAILBOX)
    assert session.again((b"<new@example.org>",), nothing) is None
    assert asked.queries == []


def test_what_still_stands_is_no_answer_for_a_session_that_restarts(asked: Asked, recalled: Recalled) -> None:
    session = recalling(asked, recalled)
    session.mail((b"<>",), nothing, restarting=True)
    assert session.again((b"<ok@example.org>",), nothing) is None
    assert session.rcpt((b"<ok@example.org>",), nothing) == RESTARTING


def test_what_the_mta_has_refused_is_left_to_it_though_a_refusal_stands(asked: Asked, recalled: Recalled) -> None:
    session = recalling(asked, recalled)
    assert session.again((b"<gone@example.org>",), macros(rcpt_mailer="error")) is None
    assert session.again((b"<gone@example.org>",), not_utf8) is None  # `rcpt` is given macros that read it
    assert session.rcpt((b"<gone@example.org>",), macros(rcpt_mailer="error")) == GO_ON


def test_nothing_is_recalled_of_no_recipient_or_of_one_that_the_mta_routes(asked: Asked, recalled: Recalled) -> None:
    assert recalling(asked, recalled).again((), nothing) is None
    assert recalling(asked, recalled, routed=True).again((b"<ok@example.org>",), macros(rcpt_addr="x@y")) is None
    assert recalled.asked == []
