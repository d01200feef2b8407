"""What a reply of the next hop means: to RCPT, of the recipient; anywhere else, of us.

The one thing that must not happen is a "no" for a recipient that exists: it refuses mail for good. So a reply is a "no"
only where it cannot well be about something else, and whatever is about us (our address, our name, our sender, our
rights) never is: a hop that has us on a block list refuses a thousand recipients in an hour, all of them real.

The enhanced status code (RFC 3463, the registry of RFC 5248) says what a refusal is about. The reply code alone
(RFC 5321 4.2.3) does not, as 550 is anything from "no such user" to "your address is on a list".

First the reply codes that say all by themselves, and never "no":

    421                    refuses us: it closes the connection (RFC 5321 3.8)
    250 to 259             yes; 251 and 252 are kinds of it
    other 2yz, 3yz         out of step: an answer to something that we did not say
    500 to 504, 555        it does not take the command: a fault of the dialogue, or of the hop's parser.
                           But 501 5.1.3, as Postfix says, is about the address
    521, 530 to 539        it takes no mail, or none from us (RFC 7504, RFC 4954)

Then the enhanced codes of class 5:

    what the operator says in `also_no`     no
    5.1.1, 5.1.3, 5.1.4, 5.1.6              no: unknown, syntax, ambiguous, moved away
    5.1.10                                  no; with 556 (RFC 7505) the domain takes no mail. Exchange Online says
                                            550 5.1.10 of an unknown recipient
    5.1.0                                   no, if the text does not speak of us: Cisco says so of unknown recipients,
                                            others of a sender that they reject
    5.1.2                                   cannot tell, see below
    5.1.7, 5.1.8, 5.7.*                     refuses us: sender (5.1), policy, authentication (5.7)
    5.1.others                              cannot tell: 5.1.5 says that the address is right, 5.1.90 (Exchange Online)
                                            that the sender sends too much
    5.2.1                                   exists, disabled
    5.2.2                                   exists, over quota for good
    5.2.others                              cannot tell of this recipient
    5.6.7                                   no: it takes no address in UTF-8 (RFC 6531 3.5)
    5.3.*, 5.4.*, 5.5.*, 5.6.others         cannot tell: its system, its routes, the protocol, the content. Exchange
                                            Online says 550 5.4.1 of an unknown recipient: for `also_no`

5.1.2 says that the hop does not know the domain. It is asked because an operator wrote that it does, so one of the two
configurations is wrong, or the hop has lost its own for a moment, and all of a domain's recipients would be refused for
good. Stalwart says 5.1.2 of an unknown user of a domain that it knows: for `also_no`.

5.7.1 over LMTP is the exception among the refusals of us. An LMTP server is the final delivery agent and its client is
declared to it, so what it denies is to post to that mailbox: Cyrus' lmtpd says so of a shared folder without the
right p for anyone. The null sender may not post there, so nobody may; not so where the text speaks of us.

Where the enhanced code is missing, or says nothing (5.0.0, 5.2.0):

    552                                     exists, over quota for good (RFC 5321 4.2.3: storage allocation)
    556                                     no, the domain takes no mail (RFC 7504)
    550, 551, 553, 554                      by the text: over quota, or refuses us; else what the operator says in
                                            `bare_refusal`
    others                                  cannot tell

And class 4, which is never a "no":

    4.2.2                                   exists, over quota
    452 4.5.3                               too many recipients (RFC 5321 4.5.3.1.10): ask in another transaction
    4.1.7, 4.1.8                            refuses us, as 5.1.7 and 5.1.8
    4.3.*, 4.4.*                            cannot tell: its system or its routes, so not of this recipient only
    4.7.*, 4.0.0, 4.2.0, none               by the text: greylisted, or refuses us; else as the others
    others                                  cannot tell of this recipient

BUGS. The text is searched for English words. One that speaks of us in words that are not known here is taken for a "no"
where `bare_refusal` says so; behind such a hop it has to be "unknown".
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from rcptd.question import PLAIN, Absence, Answer, Disabled, Found, Mailbox, NotFound, Posting, Quota, Unavailable
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.replies import Reply


class Step(Enum):
    """Where in the dialogue something was said, or went wrong."""

    CONNECT = "connecting"
    PROXY = "PROXY header"
    BANNER = "banner"
    HELLO = "EHLO"
    TLS = "STARTTLS"
    AUTH = "AUTH"
    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    QUIT = "QUIT"


class Trouble(Enum):
    """Why a next hop says nothing of a recipient, by the words that counters use."""

    CONNECT = "cannot be reached"
    BROKEN = "connection lost or nonsense"
    TIMEOUT = "too slow"
    REFUSED = "refuses us"
    TLS = "TLS failed"
    AUTH = "AUTH failed"
    LOOP = "is ourselves"


class HopTrouble(Exception):
    """The next hop cannot or does not want to be asked; `str` of it is `why`, for the log and the trace.

    `code` is the reply code where a reply said so, else 0. A 421, or `BROKEN`, to the first command on a connection
    that had been idle says little: the hop was about to close it.
    """

    def __init__(self, kind: Trouble, step: Step, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.kind = kind
        self.step = step
        self.why = why
        self.code = code


class TryAgain(Enum):
    """Nothing was said of the recipient, for lack of room: ask again in another transaction."""

    TRY_AGAIN = "ask again"


TRY_AGAIN = TryAgain.TRY_AGAIN

Outcome = Answer | HopTrouble | TryAgain


@dataclass(frozen=True, slots=True)
class Greylisted(Unavailable):
    """The hop wants to see us again later before it says more; it is `of_recipient`."""


# Addresses are cut out first: <blocked@example.org> speaks of nobody. Begun at words only, and without going back: a
# long reply without an @ would take seconds.
_ADDRESS = re.compile(r"<[^<>]*>|(?<!\S)\S[^\s@]*+@\S+")
_OF_US = re.compile(
    r"\b(?:(?:block|black|deny)[ -]?list\w*|block(?:ed|ing)|dnsbl|rbl|reputation|spam\w*|barracuda\w*|sorbs|unsolicited"
    r"|client|hosts?|ips?|your (?:address|domain|server|system|network)|helo|ehlo|r?dns|ptr|reverse"
    r"|connections?|sender|mail from|spf|dkim|dmarc|relay\w*|(?:un)?auth\w*|log ?in|(?:start)?tls|encrypt\w*"
    r"|access denied|polic(?:y|ies)|prohibit\w*|administrative\w*|abuse)\b",
    re.IGNORECASE,
)
# What a 4yz says, in the words of a 5yz.
_OF_NOW = re.compile(r"\b(?:rate|limit\w*|throttl\w*|too many|later|temporar\w*)\b", re.IGNORECASE)
_OF_ROOM = re.compile(r"\b(?:quota|(?:mailbox|inbox) (?:is )?full|out of (?:space|storage))\b", re.IGNORECASE)
_OF_GREYLISTING = re.compile(r"\b(?:gr[ea]y[ -]?list\w*|postgrey)\b", re.IGNORECASE)

_UNCLEAR = ("", "5.0.0", "5.2.0")
_FULL = Mailbox(quota=Quota(messages_limit=0))
_FULL_FOR_GOOD = Mailbox(quota=Quota(messages_limit=0, final=True))
_NOBODY_MAY_POST = Mailbox(posting=Posting())
_CLEAR: dict[str, Absence | Mailbox] = {
    "5.1.1": Absence.MAILBOX,
    "5.1.3": Absence.MAILBOX,
    "5.1.4": Absence.MAILBOX,
    "5.1.6": Absence.MAILBOX,
    "5.1.10": Absence.MAILBOX,
    "5.2.1": Mailbox(disabled=Disabled()),
    "5.2.2": _FULL_FOR_GOOD,
    "5.6.7": Absence.UTF8,
}


def of_rcpt(reply: Reply, hop: NextHop, options: Dialogue) -> Outcome:
    """Say what a reply to RCPT means."""
    said = f"{hop}: {reply}"
    kind = reply.code // 100
    if reply.code == 421:
        return _refusal(reply, said)
    if kind in (2, 3):
        if 250 <= reply.code < 260:
            return Found(PLAIN, said)
        return HopTrouble(Trouble.BROKEN, Step.RCPT, f"{hop}: out of step: {reply}", reply.code)
    if kind == 4:
        return _of_class_4(reply, said)
    of_dialogue = reply.code <= 504 and (reply.code, reply.enhanced) != (501, "5.1.3")
    if of_dialogue or reply.code in (521, 555) or 530 <= reply.code < 540:
        return _refusal(reply, said)
    if reply.enhanced in options.also_no:
        return NotFound(source=said)
    if reply.enhanced in _UNCLEAR:
        return _unclear(reply, said, options)
    return _of_class_5(reply, hop, said)


def _of_class_4(reply: Reply, said: str) -> Outcome:
    if (reply.code, reply.enhanced) == (452, "4.5.3"):
        return TRY_AGAIN
    match reply.enhanced.split(".")[1:]:
        case ["2", "2"]:
            return Found(_FULL, said)
        case ["1", "7" | "8"]:
            return _refusal(reply, said)
        case ["3" | "4", _]:
            return Unavailable(said)
        case [] | ["7", _] | ["0" | "2", "0"]:
            if _OF_GREYLISTING.search(reply.text):
                return Greylisted(said, of_recipient=True)
            if _speaks(reply, _OF_US):
                return _refusal(reply, said)
    return Unavailable(said, of_recipient=True)


def _of_class_5(reply: Reply, hop: NextHop, said: str) -> Outcome:
    if reply.code == 556 and reply.enhanced == "5.1.10":
        return NotFound(Absence.NULL_MX, said)
    clear = _CLEAR.get(reply.enhanced)
    if isinstance(clear, Absence):
        return NotFound(clear, said)
    if clear:
        return Found(clear, said)
    match reply.enhanced.split(".")[1:]:
        case ["1", "0"] if not _speaks(reply, _OF_US):
            return NotFound(source=said)
        case ["7", "1"] if hop.protocol == "lmtp" and not _speaks(reply, _OF_US):
            return Found(_NOBODY_MAY_POST, said)
        case ["1", "0" | "7" | "8"] | ["7", _]:
            return _refusal(reply, said)
    return Unavailable(said, of_recipient=reply.enhanced.startswith("5.2."))


def _unclear(reply: Reply, said: str, options: Dialogue) -> Outcome:
    if reply.code == 556:
        return NotFound(Absence.NULL_MX, said)
    if reply.code not in (550, 551, 552, 553, 554):
        return Unavailable(said)
    if reply.code == 552 or _speaks(reply, _OF_ROOM):
        return Found(_FULL_FOR_GOOD, said)
    if _speaks(reply, _OF_US) or _speaks(reply, _OF_NOW):
        return _refusal(reply, said)
    if options.bare_refusal == "no":
        return NotFound(source=said)
    return Unavailable(said, of_recipient=True)


def _refusal(reply: Reply, said: str) -> HopTrouble:
    return HopTrouble(Trouble.REFUSED, Step.RCPT, said, reply.code)


def _speaks(reply: Reply, words: re.Pattern[str]) -> bool:
    return bool(words.search(_ADDRESS.sub(" ", reply.text)))


def counted_as(outcome: Outcome) -> str:
    """Name the kind of an outcome, for counters; trouble by the words of `Trouble`."""
    match outcome:
        case Found(mailbox):
            if mailbox.disabled:
                return "disabled"
            if mailbox.quota:
                return "over quota"
            return "nobody may post" if mailbox.posting else "yes"
        case NotFound():
            return "no"
        case Greylisted():
            return "greylisted"
        case Unavailable():
            return "cannot tell of the recipient" if outcome.of_recipient else "cannot tell"
        case HopTrouble():
            return outcome.kind.value
        case TryAgain.TRY_AGAIN:
            return outcome.value
        case _:
            assert_never(outcome)
