"""An alias is as good as its best end.

Accept when one end is deliverable or not ours. Defer when none is and any is unknown or full.
Refuse only when all are definite noes: as too large where that is one of them, since the mailbox is
there, else as no such mailbox. A loop or a passed bound is an unknown end.

Ends are sent through the whole policy again, but are asked for existence and quota only: who may
post was a question about the alias.
"""

from rcptd.address import NotAnAddress, parse
from rcptd.case import Case, Steps
from rcptd.question import Mailbox
from rcptd.verdict import ACCEPTED, NO_SUCH_MAILBOX, TOO_LARGE, UNKNOWN, Action, Cause, Verdict

MOST_ENDS = 50
DEEPEST = 10


def alias(case: Case, mailbox: Mailbox) -> Steps[Verdict]:
    """Follow the targets of an alias to a verdict."""
    unknown = False
    refusal = NO_SUCH_MAILBOX
    for target in mailbox.targets:
        verdict = yield from _end(case, target)
        if verdict is None or verdict.action is Action.ACCEPT:
            return ACCEPTED
        if verdict.action is Action.DEFER or verdict.cause is Cause.FULL:
            unknown = True
        elif verdict.cause is Cause.TOO_LARGE:
            refusal = TOO_LARGE
        if case.ends > MOST_ENDS:
            break
    return UNKNOWN if unknown else refusal


def _end(case: Case, target: str) -> Steps[Verdict | None]:
    """Follow one target; None means that it is not ours to judge."""
    case.ends += 1
    if case.ends > MOST_ENDS:
        case.trace.note("alias", f"more than {MOST_ENDS} ends")
        return UNKNOWN
    if len(case.path) >= DEEPEST:
        case.trace.note("alias", f"more than {DEEPEST} deep")
        return UNKNOWN
    try:
        recipient = parse(target)
    except NotAnAddress as error:
        case.trace.note("alias", f"a target is no address ({error}):", target)
        return UNKNOWN
    if not recipient.domain:
        recipient = recipient.with_domain(case.policy.default_domain)
    if recipient.key in case.path:
        case.trace.note("alias", "leads back to itself:", recipient.key)
        return UNKNOWN
    case.trace.note("alias", "leads to", recipient.key)
    case.path.append(recipient.key)
    verdict = yield from case.walk(case, recipient, False)
    case.path.pop()
    return verdict
