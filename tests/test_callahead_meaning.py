"""What a next hop's reply to RCPT is taken for: a table for postmasters, and that trouble is never a "no"."""

import time

import pytest

from rcptd.question import Absence, Disabled, Found, NotFound, Posting, Quota, Unavailable
from rcptd.stores.callahead import nexthop
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import TRY_AGAIN, HopTrouble, Step, Trouble, counted_as, of_rcpt
from rcptd.stores.callahead.replies import Replies, Reply

SMTP = nexthop.read("smtp:hop.example:25")
LMTP = nexthop.read("lmtp:unix:/run/lmtp")
OPTIONS = Dialogue("filter.example.org")

# What an SMTP next hop says, and what it counts as.
TABLE = """
250 2.1.5 OK                                                          yes
250 OK                                                                yes
251 2.1.5 will forward                                                yes
252 2.1.5 cannot verify, but takes it                                 yes
220 hop.example ESMTP                                                 connection lost or nonsense
221 2.0.0 Bye                                                         connection lost or nonsense
354 go on                                                             connection lost or nonsense

550 5.1.1 <a@example.org>: user unknown                               no
550 5.1.1 no such user; your IP is fine                               no
554 5.1.1 no such user                                                no
501 5.1.3 Bad recipient address syntax                                no
553 5.1.3 bad syntax                                                  no
553 5.1.4 ambiguous                                                   no
551 5.1.6 moved, nobody knows where                                   no
550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found                  no
556 5.1.10 the domain takes no mail                                   no
556 no mail here                                                      no
550 #5.1.0 Address rejected.                                          no
550 5.1.0 <blocked@example.org>: Address rejected                     no
550 5.1.0 Sender denied                                               refuses us
550 5.1.2 no such domain                                              cannot tell
550 5.1.5 address is valid                                            cannot tell
550 5.1.7 bad sender address                                          refuses us
550 5.1.8 the sender's domain does not exist                          refuses us
550 5.1.90 the sender sends too much                                  cannot tell
553 5.6.7 no UTF-8 here                                               no

550 5.2.1 mailbox disabled                                            disabled
552 5.2.2 mailbox full                                                over quota
550 5.2.2 mailbox full                                                over quota
452 4.2.2 mailbox full                                                over quota
552 mailbox full                                                      over quota
550 The inbox is full                                                 over quota
554 5.0.0 quota exceeded                                              over quota
552 5.2.3 too large for this mailbox                                  cannot tell of the recipient
550 5.2.4 list expansion failed                                       cannot tell of the recipient
552 5.3.4 too large for us                                            cannot tell

550 5.7.1 Client host rejected                                        refuses us
550 5.7.1 Permission denied                                           refuses us
554 5.7.1 Relay access denied                                         refuses us
550 5.7.606 Access denied, banned sending IP [192.0.2.1]              refuses us
530 5.7.0 Must issue a STARTTLS command first                         refuses us
530 Authentication required                                           refuses us
535 5.7.8 credentials invalid                                         refuses us
521 no mail here                                                      refuses us
500 5.5.2 command not recognized                                      refuses us
501 syntax error                                                      refuses us
503 5.5.1 need MAIL first                                             refuses us
504 5.5.2 need a fully-qualified address                              refuses us
555 5.5.4 unknown parameter                                           refuses us
421 4.7.0 too many errors                                             refuses us
421 bye                                                               refuses us

550 5.3.0 system trouble                                              cannot tell
550 5.4.1 Recipient address rejected: Access denied                   cannot tell
550 5.4.4 no route                                                    cannot tell
550 5.5.0 protocol trouble                                            cannot tell
550 5.6.0 media                                                       cannot tell
571 delivery not wanted                                               cannot tell
550 5.9.9 what is this                                                cannot tell

550 Requested action not taken: mailbox unavailable                   no
550 No such user - please check your spelling                         no
550 5.0.0 <a@example.org>... User unknown                             no
550 5.2.0 no                                                          no
550 4.1.1 mixed up                                                    no
551 User not local                                                    no
553 mailbox name not allowed                                          no
554 no thanks                                                         no
550                                                                   no
550 <spamhaus@example.org> unknown                                    no
550 192.0.2.1 is listed at zen.spamhaus.org                           refuses us
550 Rejected because 192.0.2.1 is in a black list at zen.example      refuses us
554 Your IP is blocked                                                refuses us
554 Service unavailable; Client host [192.0.2.1] blocked              refuses us
550 Relaying denied                                                   refuses us
550 relay not permitted                                               refuses us
550 Authentication is required for relay                              refuses us
550 Administrative prohibition                                        refuses us
550 Access denied                                                     refuses us
550 denied by policy                                                  refuses us
554 Bad HELO name                                                     refuses us
550 Sender verify failed                                              refuses us
550 Try again later                                                   refuses us
550 Too many messages                                                 refuses us

450 4.7.1 Client host rejected: cannot find your reverse hostname     refuses us
450 4.1.8 Sender address rejected: Domain not found                   refuses us
430 Authentication required                                           refuses us
450 4.2.0 <a@example.org>: Greylisted, see elsewhere                  greylisted
451 4.7.1 Greylisting in action, please come back later               greylisted
451 Gray-listed for 5 minutes                                         greylisted
450 4.7.1 please try again later                                      cannot tell of the recipient
450 4.1.1 unverified address                                          cannot tell of the recipient
450 4.2.1 mailbox busy                                                cannot tell of the recipient
450 mailbox busy                                                      cannot tell of the recipient
451 4.3.0 Temporary lookup failure                                    cannot tell
452 4.3.1 Insufficient system storage                                 cannot tell
451 4.4.3 directory server is down                                    cannot tell
452 4.5.3 too many recipients                                         ask again
452 too many recipients                                               cannot tell of the recipient
450 4.5.3 odd                                                         cannot tell of the recipient
"""
ROWS = [tuple(line.split("  ", 1)) for line in TABLE.splitlines() if line]
NO = [text for text, name in ROWS if name.strip() == "no"]


def reply(text: str) -> Reply:
    (one,) = Replies().feed(text.encode() + b"\r\n")
    return one


@pytest.mark.parametrize(("text", "name"), [(text, name.strip()) for text, name in ROWS])
def test_what_an_smtp_next_hop_says_counts_as(text: str, name: str) -> None:
    outcome = of_rcpt(reply(text), SMTP, OPTIONS)
    assert counted_as(outcome) == name
    match outcome:
        case Found(_, source) | NotFound(_, source):
            assert source == f"smtp:hop.example:25: {reply(text)}"
        case Unavailable(why):
            assert why == f"smtp:hop.example:25: {reply(text)}"
            assert outcome.of_recipient == (name != "cannot tell")
        case HopTrouble():
            assert outcome.step == Step.RCPT
            assert outcome.code == reply(text).code
            assert str(outcome) == outcome.why
            assert outcome.why.startswith("smtp:hop.example:25: ")
            assert outcome.why.endswith(str(reply(text)))


@pytest.mark.parametrize(("text", "name"), [(text, name.strip()) for text, name in ROWS])
def test_over_lmtp_the_same_counts_but_for_the_right_to_post(text: str, name: str) -> None:
    expected = "nobody may post" if text == "550 5.7.1 Permission denied" else name
    assert counted_as(of_rcpt(reply(text), LMTP, OPTIONS)) == expected


def test_what_is_known_of_a_mailbox() -> None:
    for text, parts in {
        "250 ok": (None, None, None),
        "550 5.2.1 off": (Disabled(), None, None),
        "550 5.7.1 Permission denied": (None, Posting(), None),
        "550 5.2.2 full": (None, None, Quota(messages_limit=0, final=True)),
        "552 full": (None, None, Quota(messages_limit=0, final=True)),
        "450 4.2.2 full": (None, None, Quota(messages_limit=0)),
    }.items():
        outcome = of_rcpt(reply(text), LMTP, OPTIONS)
        assert isinstance(outcome, Found)
        assert (outcome.mailbox.disabled, outcome.mailbox.posting, outcome.mailbox.quota) == parts, text


def test_what_is_absent() -> None:
    for text, absence in {
        "550 5.1.1 no": Absence.MAILBOX,
        "550 no": Absence.MAILBOX,
        "550 5.1.10 no": Absence.MAILBOX,
        "556 5.1.10 no": Absence.NULL_MX,
        "556 no": Absence.NULL_MX,
        "553 5.6.7 no": Absence.UTF8,
    }.items():
        assert of_rcpt(reply(text), SMTP, OPTIONS) == NotFound(absence), text


@pytest.mark.parametrize("text", NO)
def test_a_refusal_without_a_clear_code_is_the_operators_to_judge(text: str) -> None:
    unclear = reply(text).enhanced in ("", "5.0.0", "5.2.0") and not text.startswith("556")
    outcome = of_rcpt(reply(text), SMTP, Dialogue("filter.example.org", bare_refusal="unknown"))
    assert counted_as(outcome) == ("cannot tell of the recipient" if unclear else "no")


def test_an_operator_may_know_more_codes_to_mean_no() -> None:
    options = Dialogue("filter.example.org", also_no=frozenset({"5.4.1", "5.1.2", "5.7.133"}))
    for text in ("550 5.4.1 Access denied", "550 5.1.2 unknown user", "550 5.7.133 not for you"):
        assert of_rcpt(reply(text), SMTP, options) == NotFound(), text
    for text in ("530 5.4.1 x", "421 5.4.1 x", "450 4.4.1 x", "550 5.4.2 x", "503 5.4.1 x"):
        assert not isinstance(of_rcpt(reply(text), SMTP, options), NotFound), text


def test_a_posting_refusal_of_several_lines_with_its_code_in_the_last() -> None:
    lines = b"550-You may not post here.\r\n550-Ask the owner to submit\r\n550-your message for you.\r\n"
    (one,) = Replies().feed(lines + b"550 5.7.1 Permission denied\r\n")
    assert counted_as(of_rcpt(one, LMTP, OPTIONS)) == "nobody may post"
    assert counted_as(of_rcpt(one, SMTP, OPTIONS)) == "refuses us"


@pytest.mark.parametrize("hop", [SMTP, LMTP], ids=str)
@pytest.mark.parametrize("bare", ["no", "unknown"])
def test_of_all_codes_only_these_can_be_a_no(hop: nexthop.NextHop, bare: str) -> None:
    options = Dialogue("filter.example.org", bare_refusal="no" if bare == "no" else "unknown")
    noes = set()
    for code in range(200, 600):
        for enhanced in ("", *(f"{code // 100}.{subject}.{n}" for subject in range(10) for n in range(12))):
            outcome = of_rcpt(Reply(code, enhanced, ("Said for some reason",)), hop, options)
            assert counted_as(outcome)
            if isinstance(outcome, NotFound):
                noes.add((code, enhanced))
    clear = {"5.1.0", "5.1.1", "5.1.3", "5.1.4", "5.1.6", "5.1.10", "5.6.7"}
    bare_codes = {550, 551, 553, 554}
    assert {code for code, _ in noes} == {501, *range(505, 521), *range(522, 530), *range(540, 555), *range(556, 600)}
    assert {enhanced for code, enhanced in noes if code == 501} == {"5.1.3"}
    for code, enhanced in noes - {(556, ""), (556, "5.0.0"), (556, "5.2.0")}:
        assert enhanced in clear or (bare == "no" and code in bare_codes and enhanced in ("", "5.0.0", "5.2.0"))


@pytest.mark.parametrize("word", ["a" * 4000, "<" * 4000, "deny-" * 800])
def test_a_long_reply_without_an_address_is_read_at_once(word: str) -> None:
    long = Reply(550, "", (word,) * 128)
    begun = time.process_time()
    of_rcpt(long, SMTP, OPTIONS)
    assert time.process_time() - begun < 1


def test_names_of_troubles() -> None:
    assert {counted_as(HopTrouble(kind, Step.HELLO, "x")) for kind in Trouble} == {kind.value for kind in Trouble}
    assert counted_as(TRY_AGAIN) == "ask again"
