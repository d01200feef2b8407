"""The engine: a policy is an ordered list of rules, and `decide` walks it.

Theory of operation. `decide` is a generator: it yields `Lookup`s, is sent `Answer`s and returns a
`Verdict`, or None where no rule decided and the recipient is none of ours. It does no I/O, knows no
thread and no loop, and a test can feed it by hand; `drive` runs it for real.

The walk is the operator's order: the first rule that decides, decides. Three things stand before it,
all about addresses: what is no address is refused, what is ours but at fault is refused, and the
postmaster of our domains is accepted before any store is asked.
"""

from rcptd.address import NotAnAddress, Recipient, parse
from rcptd.case import Case, Steps
from rcptd.policy import Policy, Walked
from rcptd.query import Query
from rcptd.rules.mailbox import verify
from rcptd.rules.postmaster import is_postmaster
from rcptd.rules.syntax import syntax
from rcptd.trace import Trace
from rcptd.verdict import ACCEPTED, BAD_SYNTAX, Verdict

_NOT_AN_ADDRESS = BAD_SYNTAX.said_by("syntax")
_POSTMASTER = ACCEPTED.said_by("postmaster")


def open_case(policy: Policy, query: Query, trace: Trace, now: float) -> Case:
    """Begin a case; `now` is seconds since the epoch."""
    return Case(policy, query, trace, now, _walk)


def decide(case: Case) -> Steps[Verdict | None]:
    """Decide on the query of a case; what stands before the walk is done at once."""
    query = case.query
    policy = case.policy
    try:
        recipient = parse(query.recipient)
    except NotAnAddress as error:
        case.trace.note("syntax", str(error))
        return _settled(_NOT_AN_ADDRESS)
    bare = not recipient.domain
    if bare and policy.default_domain:
        recipient = recipient.with_domain(policy.default_domain)
    if (recipient.fault or not recipient.ascii) and (bare or recipient.domain in policy.own):
        verdict = syntax(query, recipient)
        if verdict:
            case.trace.note("syntax", recipient.fault or "in UTF-8, which MAIL FROM did not ask for")
            return _settled(verdict.said_by("syntax"))
    return _walk(case, recipient, bare)


def _settled(verdict: Verdict) -> Steps[Verdict | None]:
    yield from ()  # a generator, like any other way to a verdict
    return verdict


def shadow(case: Case, walked: Walked, recipient: Recipient) -> Steps[Verdict | None]:
    """Evaluate one rule in shadow, for what it would have said; changes nothing."""
    case.in_shadow = True
    return (yield from _act(case, walked, recipient))


def _walk(case: Case, recipient: Recipient, bare: bool) -> Steps[Verdict | None]:
    """Take a recipient through the rules; the first that decides, decides."""
    query = case.query
    not_found: Verdict | None = None
    for walked in case.policy.walk:
        rule = walked.rule
        if not rule.when.applies(query, recipient):
            if case.trace.verbose:
                case.trace.note(rule.name, rule.when.unmet(query, recipient))
            continue
        if case.trace.verbose:
            case.trace.note(rule.name, "applies")
        if rule.shadow:
            _keep_for_later(case, walked, recipient)
            continue
        if walked.fixed:
            return walked.fixed
        if is_postmaster(case.policy, recipient, bare=bare):
            return _POSTMASTER
        verdict = yield from verify(case, walked, recipient)
        if verdict:
            return verdict
        case.trace.note(rule.name, "no store knows the recipient; on to the next rule")
        not_found = walked.not_found
    if is_postmaster(case.policy, recipient, bare=bare):
        return _POSTMASTER
    return not_found


def _act(case: Case, walked: Walked, recipient: Recipient) -> Steps[Verdict | None]:
    """Do what a rule that applies does."""
    if walked.fixed:
        return walked.fixed
    return (yield from verify(case, walked, recipient))


def _keep_for_later(case: Case, walked: Walked, recipient: Recipient) -> None:
    case.trace.note(walked.rule.name, "is in shadow: evaluated after the reply")
    if case.path or case.in_shadow:
        return
    if case.shadows is None:
        case.shadows = []
    case.shadows.append((walked, recipient))
