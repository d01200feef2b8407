"""What a trouble of a next hop means for those who ask it again: its pool, its breaker, the log."""

from rcptd.stores.callahead.meaning import HopTrouble, Step, Trouble

_TRANSACTION = (Step.RSET, Step.MAIL, Step.RCPT)
_GREETING = (Step.BANNER, Step.HELLO)


def is_refusal(trouble: HopTrouble) -> bool:
    """Say whether the hop is well and does not want us, or we it: what an operator has to mend."""
    return trouble.kind in (Trouble.REFUSED, Trouble.AUTH, Trouble.TLS, Trouble.LOOP)


def is_limit(trouble: HopTrouble) -> bool:
    """Say whether it may be the hop's limit on connections."""
    return trouble.kind is Trouble.REFUSED and trouble.step in _GREETING


def is_loss(trouble: HopTrouble) -> bool:
    """Say whether the connection was lost before there was an answer, so that another one may bring it."""
    return trouble.kind is Trouble.BROKEN or is_farewell(trouble)


def is_farewell(trouble: HopTrouble) -> bool:
    """Say whether the hop said that it ends the connection (RFC 5321 3.8)."""
    return trouble.code == 421


def is_outage(trouble: HopTrouble) -> bool:
    """Say whether the breaker counts it: nobody is there, or nobody who would listen to us.

    A refusal within a transaction may be of this sender or of this moment.
    """
    return trouble.kind is not Trouble.REFUSED or trouble.step not in _TRANSACTION
