"""Cyrus' words: what each outcome is told as, and how requests are read and complained about.

Every reply is given framed, as it goes out. A deny message comes from a database: its control characters become
spaces, so that it cannot pretend to be something else, and it is cut where the original cuts it. All other texts are
constants; why something is not known is never among them.
"""

from rcptd.address import KEY_OCTETS
from rcptd.netstring import Fault, MissingColon, MissingComma, MissingLength, ShortBody, TooLong, encode
from rcptd.stores.cyrus.judge import Judgement, Outcome
from rcptd.verdict import OUR_FAULT, UNKNOWN, safe_text
from rcptd_socketmap.protocol import Dialect, MissingKey

MESSAGE_OCTETS = 4096  # of a deny message: the original's buffer

_CONTROL = bytes(range(0x20))
_NO_CONTROL = bytes.maketrans(_CONTROL, b" " * len(_CONTROL))


def _reply(text: str) -> bytes:
    return encode(text.encode("ascii"))


BUSY = _reply(f"TEMP {UNKNOWN.text}")
"""We do not know, or do not know in time."""

TROUBLE = _reply(f"TEMP {OUR_FAULT.text}")
"""A fault of ours."""

_NONEXISTENT = _reply("NOTFOUND Mailbox does not exist")
_OVER_QUOTA = {False: _reply("TEMP Over quota"), True: _reply("PERM Over quota")}
_RESERVED = {
    False: _reply("PERM Mailbox is currently reserved"),
    True: _reply("TEMP Mailbox is currently reserved"),  # semantics of strict: it is being created or moved
}
_NOT_POSTABLE = _reply("PERM Permission denied")

AUDITED = {
    Outcome.OK: "ok",
    Outcome.NONEXISTENT: "nonexistent",
    Outcome.OVER_QUOTA: "overquota",
    Outcome.RESERVED: "failed",
    Outcome.NOT_POSTABLE: "failed",
    Outcome.UNKNOWN: "failed",
}
"""The word of each outcome in the audit log; what is not here is not audited."""

ERRORS = {
    Outcome.NONEXISTENT: "Mailbox does not exist",
    Outcome.OVER_QUOTA: "Over quota",
    Outcome.RESERVED: "Mailbox is currently reserved",
    Outcome.NOT_POSTABLE: "Permission denied",
    Outcome.DENIED: "Access denied",
    Outcome.UNKNOWN: "not known",
}
"""The error text of each outcome in the debug log."""


def found(key: bytes) -> bytes:
    """Accept: the key is echoed as it came."""
    return b"%d:OK %b," % (len(key) + 3, key)


def told(judgement: Judgement, key: bytes, *, strict: bool) -> bytes:
    """Give the reply to a judgement; of a remote mailbox only its backend knows."""
    match judgement.outcome:
        case Outcome.OK:
            return found(key)
        case Outcome.NONEXISTENT:
            return _NONEXISTENT
        case Outcome.DENIED:
            return encode(b"NOTFOUND " + judgement.text[:MESSAGE_OCTETS].translate(_NO_CONTROL))
        case Outcome.OVER_QUOTA:
            return _OVER_QUOTA[judgement.final]
        case Outcome.RESERVED:
            return _RESERVED[strict]
        case Outcome.NOT_POSTABLE:
            return _NOT_POSTABLE
        case Outcome.UNKNOWN | Outcome.REMOTE:
            return BUSY


def deferred(text: str) -> bytes:
    """Defer with a text of the administrator's."""
    return _reply(f"TEMP {safe_text(text, OUR_FAULT.text)}")


_DETAILS: dict[type[Fault], bytes] = {
    MissingKey: b"missing key",
    MissingLength: b"missing length",
    MissingColon: b"missing length",
    MissingComma: b"missing terminator",
    ShortBody: b"request size doesn't match length",
    TooLong: b"request size doesn't match length",
}


def _complaint(fault: Fault) -> bytes:
    return b"PERM Bad protocol (%b)" % _DETAILS.get(type(fault), b"missing length")


CYRUS = Dialect(
    leading_zeros=True,
    nameless=True,
    complaint=_complaint,
    name_octets=KEY_OCTETS,  # the map name is ignored completely, its length too
    nul_ends=True,
    answers_stalled=True,
)
"""How Cyrus reads requests."""
