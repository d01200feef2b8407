"""A disabled mailbox takes no mail: for good, or for now."""

from rcptd.question import Mailbox
from rcptd.verdict import DISABLED, DISABLED_FOR_NOW, Verdict


def disabled(mailbox: Mailbox, now: float) -> Verdict | None:
    """Refuse or defer for a mailbox that is disabled at `now`, in seconds since the epoch."""
    state = mailbox.disabled
    if state is None or (state.until is not None and state.until <= now):
        return None
    return (DISABLED_FOR_NOW if state.temporary else DISABLED).with_text(state.text)
