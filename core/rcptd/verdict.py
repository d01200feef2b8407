"""Verdicts: what we tell the MTA, each with its reply code, enhanced status code and text.

A verdict is one of the causes below. `Action`, reply code and enhanced code are always of one class:
mixed classes lose a Postfix session and reach a Sendmail client as they are (measured). Texts keep to
one alphabet that is safe on every wire; see `safe_text`.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum


class Action(Enum):
    """What the MTA is to do with the recipient."""

    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"


class Cause(Enum):
    """Why: the rows of the verdict table, by the words that logs and traces use."""

    ACCEPTED = "accepted"
    NO_SUCH_MAILBOX = "no such mailbox"
    NO_SUCH_DOMAIN = "no such domain"
    MOVED = "moved"
    NULL_MX = "null MX"
    NOT_ALLOWED = "not allowed to post"
    DISABLED = "denied or disabled"
    DISABLED_FOR_NOW = "disabled for now"
    FULL_FOR_NOW = "over quota, may recover"
    FULL = "over quota, final"
    TOO_LARGE = "larger than the whole quota"
    BAD_SYNTAX = "bad syntax"
    NEEDS_SMTPUTF8 = "needs SMTPUTF8"
    UNKNOWN = "we do not know"
    OUR_FAULT = "our fault"
    OPERATOR = "operator's own"


TEXT_LENGTH = 200  # below Sendmail's 250 for a quoted token (measured), with room for a reference
_UNSAFE = re.compile(r'[^ -~]|["%\\]')
_SPACES = re.compile(r" {2,}")


def safe_text(text: str, fallback: str = "Recipient refused") -> str:
    r"""Bring a text to the alphabet that every wire carries unharmed.

    Printable ASCII without `"`, `\` and `%`, at most 200 characters, never empty. A quote or an unbalanced
    bracket turns a Sendmail 452 into a 553, a stray `%` a milter's 452 into a 550, and a line end lets
    the rest of the text answer the client's next command (all measured).
    """
    clean = _SPACES.sub(" ", _UNSAFE.sub(_plainer, text)).strip()
    return clean[:TEXT_LENGTH].rstrip() or fallback


def _plainer(match: re.Match[str]) -> str:
    character = match[0]
    if character == '"':
        return "'"
    return " " if character.isspace() or character < " " else "?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict: a cause, the reply that tells it, and the rule that decided.

    `code` is the reply code (250, 450..559), `enhanced` the enhanced status code of the same class
    (RFC 3463), `text` in the safe alphabet. `rule` is the name of the deciding rule, "" until one has.
    """

    cause: Cause
    action: Action
    code: int
    enhanced: str
    text: str
    rule: str = ""

    @property
    def reply(self) -> str:
        """The whole SMTP reply, as in `550 5.1.1 No such mailbox`."""
        return f"{self.code} {self.enhanced} {self.text}"

    def said_by(self, rule: str) -> "Verdict":
        """The same verdict in the name of a rule."""
        return replace(self, rule=rule)

    def with_text(self, text: str) -> "Verdict":
        """The same verdict in an operator's own words, made safe; an empty text changes nothing."""
        return replace(self, text=safe_text(text, self.text)) if text else self


def _defer(cause: Cause, code: int, enhanced: str, text: str) -> Verdict:
    return Verdict(cause, Action.DEFER, code, enhanced, text)


def _reject(cause: Cause, code: int, enhanced: str, text: str) -> Verdict:
    return Verdict(cause, Action.REJECT, code, enhanced, text)


# Texts are for the world: they name no host, no table and no cause that is not the recipient's own.
ACCEPTED = Verdict(Cause.ACCEPTED, Action.ACCEPT, 250, "2.1.5", "Recipient OK")  # RFC 3463 3.2
NO_SUCH_MAILBOX = _reject(Cause.NO_SUCH_MAILBOX, 550, "5.1.1", "No such mailbox")  # RFC 5321 4.2.3
NO_SUCH_DOMAIN = _reject(Cause.NO_SUCH_DOMAIN, 550, "5.1.2", "No such domain")  # RFC 3463 3.2
MOVED = _reject(Cause.MOVED, 551, "5.1.6", "Mailbox has moved")  # RFC 5321 3.4, RFC 3463 3.2
NULL_MX = _reject(Cause.NULL_MX, 556, "5.1.10", "Domain takes no mail")  # RFC 7505 4.3, RFC 7504
NOT_ALLOWED = _reject(Cause.NOT_ALLOWED, 550, "5.7.1", "Not allowed to post here")  # RFC 3463 3.8
DISABLED = _reject(Cause.DISABLED, 550, "5.2.1", "Mailbox disabled")  # RFC 3463 3.3
DISABLED_FOR_NOW = _defer(Cause.DISABLED_FOR_NOW, 450, "4.2.1", "Mailbox disabled for now")  # RFC 3463 3.3
FULL_FOR_NOW = _defer(Cause.FULL_FOR_NOW, 452, "4.2.2", "Mailbox full")  # RFC 5321 4.2.3, RFC 3463 3.3
FULL = _reject(Cause.FULL, 552, "5.2.2", "Mailbox full")  # RFC 5321 4.2.3, RFC 3463 3.3
TOO_LARGE = _reject(Cause.TOO_LARGE, 552, "5.2.3", "Message too large for this mailbox")  # RFC 3463 3.3
BAD_SYNTAX = _reject(Cause.BAD_SYNTAX, 553, "5.1.3", "Not a valid address")  # RFC 3463 3.2
NEEDS_SMTPUTF8 = _reject(Cause.NEEDS_SMTPUTF8, 553, "5.6.7", "Address needs SMTPUTF8")  # RFC 6531 3.5
UNKNOWN = _defer(
    Cause.UNKNOWN, 451, "4.4.3", "Recipient cannot be verified now, please try again later"
)  # RFC 3463 3.5: directory server failure
OUR_FAULT = _defer(Cause.OUR_FAULT, 451, "4.3.0", "Temporary failure, please try again later")  # RFC 3463 3.4

NAMED = (
    ACCEPTED, NO_SUCH_MAILBOX, NO_SUCH_DOMAIN, MOVED, NULL_MX, NOT_ALLOWED, DISABLED, DISABLED_FOR_NOW,
    FULL_FOR_NOW, FULL, TOO_LARGE, BAD_SYNTAX, NEEDS_SMTPUTF8, UNKNOWN, OUR_FAULT,
)  # fmt: skip

_REPLY = re.compile(r"([45]\d\d) ([45]\.\d{1,3}\.\d{1,3}) (.+)", re.DOTALL | re.ASCII)


def from_reply(reply: str) -> Verdict:
    """Make an operator's own verdict of `550 5.7.1 text`.

    Raises `ValueError` with what is wrong and what would be right.
    """
    parts = _REPLY.fullmatch(reply.strip())
    if not parts:
        raise ValueError("not a reply; write it as '550 5.7.1 text' or '451 4.7.1 text'")
    code, enhanced, text = parts.groups()
    if code[0] != enhanced[0]:
        raise ValueError(f"reply code {code} and enhanced code {enhanced} are of different classes")
    if code in ("421", "521"):
        # They close the connection under every other recipient (421 measured on both MTAs; 521: access(5)).
        raise ValueError(f"{code} closes the connection; use {'450 or 451' if code == '421' else '550'}")
    if (safe := safe_text(text)) != text:
        raise ValueError(
            f'the text must be at most {TEXT_LENGTH} printable ASCII characters without " % and '
            f"backslash; {safe!r} would do"
        )
    action = Action.REJECT if code[0] == "5" else Action.DEFER
    return Verdict(Cause.OPERATOR, action, int(code), enhanced, text)
