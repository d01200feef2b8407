"""What a reply of the next hop means: to RCPT, of the recipient; anywhere else, of us."""

from enum import Enum


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
