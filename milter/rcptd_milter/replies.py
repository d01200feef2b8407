"""From a verdict to what libmilter is told: a status and, unless it is "go on", the parts of a reply.

`reply` is total and the last to look before the wire, so it trusts nobody: status, reply code and
enhanced code must be of one class, or the answer is our own DEFER and a line in the log. The reasons
were all measured. libmilter drops a reply in silence whose class is not that of the status, and the
client gets `550 5.7.1 Command rejected` for a 452; mixed reply and enhanced codes lose a Postfix session;
one `%` on the wire makes Sendmail turn the whole reply into a 550; 421 closes the connection under
every other recipient.

ACCEPT is never said: at RCPT it accepts the whole message, and later recipients are not asked
about. A recipient that we accept or have no opinion of gets CONTINUE.
"""

import logging
import re
from enum import IntEnum
from typing import NamedTuple

from rcptd.verdict import OUR_FAULT, Action, Verdict, safe_text

log = logging.getLogger(__name__)


class Status(IntEnum):
    """What a callback returns: the three of SMFIS_* in mfapi.h that may be an answer to RCPT."""

    CONTINUE = 0
    REJECT = 1
    TEMPFAIL = 4


class Reply(NamedTuple):
    """A status with the SMTP reply that goes with it; `rcode` is "" where the MTA speaks for itself.

    libmilter calls the reply code rcode and the enhanced status code xcode, and wants strings.
    """

    status: Status
    rcode: str = ""
    xcode: str = ""
    text: str = ""


GO_ON = Reply(Status.CONTINUE)
FAULT = Reply(Status.TEMPFAIL, str(OUR_FAULT.code), OUR_FAULT.enhanced, OUR_FAULT.text)
# RFC 3463 3.4: X.3.2, system not accepting network messages. Not 421, which closes the MTA's session.
RESTARTING = Reply(Status.TEMPFAIL, "451", "4.3.2", "Service is restarting, please try again later")

_STATUS = {Action.REJECT: (Status.REJECT, "5"), Action.DEFER: (Status.TEMPFAIL, "4")}
_XCODE = re.compile(r"[45]\.\d{1,3}\.\d{1,3}", re.ASCII)  # RFC 3463 2
_SAFE = re.compile(r"(?! )[ !#$&-\[\]-~]{1,250}(?<! )")  # rcptd.verdict.safe_text's alphabet, and room
_CLOSING = (421, 521)  # RFC 5321 3.8, RFC 7504: the connection ends with them


def reply(verdict: Verdict | None) -> Reply:
    """Give the answer to RCPT for a verdict, None for no opinion; any thread may call."""
    if verdict is None:
        return GO_ON
    if verdict.action is Action.ACCEPT and 200 <= verdict.code < 300:
        return GO_ON
    if verdict.action in _STATUS:
        status, first = _STATUS[verdict.action]
        rcode, xcode, text = str(verdict.code), verdict.enhanced, verdict.text
        if (
            len(rcode) == 3
            and rcode[0] == first
            and "0" <= rcode[1] <= "5"  # RFC 5321 4.2.1
            and verdict.code not in _CLOSING
            and _XCODE.fullmatch(xcode)
            and xcode[0] == first
        ):
            return Reply(status, rcode, xcode, text if _SAFE.fullmatch(text) else safe_text(text))
    log.error("verdict %r cannot be told to an MTA: deferred instead", verdict)
    return FAULT
