"""The recipient's mailbox: a store must know it, and everything known of it must allow the mail.

Theory of operation. `verify` asks the stores of a rule in order and gives the rule's verdict on what
they say; `_ask` puts the one question to one store, with and without a detail; `_judge` holds what a
store knows against the query. All three are generators: they yield `Lookup`s and are sent `Answer`s.
"""

from typing import assert_never

from rcptd.address import NotAnAddress, Recipient, fold, parse
from rcptd.case import Case, Steps
from rcptd.policy import Subaddress, Walked
from rcptd.question import EXISTS, NOT_FOUND, Answer, Found, Lookup, Mailbox, NotFound, Unavailable
from rcptd.rules.alias import alias
from rcptd.rules.disabled import disabled
from rcptd.rules.moved import moved
from rcptd.rules.posting import posting
from rcptd.rules.quota import quota
from rcptd.verdict import Verdict


def verify(case: Case, walked: Walked, recipient: Recipient) -> Steps[Verdict | None]:
    """Ask the stores of a rule about a recipient; None leaves it to the next rule."""
    rule = walked.rule
    stores = rule.verify or ()
    if case.query.wire == "smmapd":
        stores = tuple(case.policy.as_smmapd.get(store, store) for store in stores)
    unanswered = False
    unasked = False
    for store in stores:
        if case.unasked(store, rule):
            case.trace.note(rule.name, f"{store} is not asked about the end of an alias")
            unasked = True
            continue
        answer = yield from _ask(store, recipient, rule.subaddress)
        match answer:
            case Found(mailbox):
                if answer is EXISTS:
                    return walked.accepted
                return (yield from _judge(case, walked, mailbox))
            case Unavailable():
                if rule.unavailable != "next":
                    return walked.accepted if rule.unavailable == "accept" else walked.unknown
                unanswered = True
            case NotFound():
                pass
            case _:
                assert_never(answer)
    if unanswered:
        return walked.unknown
    # An end that only an unasked store could know is taken as it stands: see Case.unasked.
    return walked.accepted if unasked else _nobody_knows(walked)


def _nobody_knows(walked: Walked) -> Verdict | None:
    match walked.rule.not_found:
        case "next":
            return None
        case "reject":
            return walked.not_found
        case _:
            return walked.unknown


def _ask(store: str, recipient: Recipient, subaddress: Subaddress | None) -> Steps[Answer]:
    """Ask a store about a recipient, and about the recipient without its detail where that may count.

    An exact entry for `user+detail` goes first, then one for `user`, then the domain's catch-all.
    """
    whole = yield Lookup(store, recipient)
    base = subaddress.base(recipient) if subaddress else None
    if base is None or subaddress is None:
        return whole
    if subaddress.detail == "must_exist":
        return _as_spelled(whole, recipient, subaddress) if subaddress.case == "kept" else whole
    match whole:
        case Unavailable():
            return whole
        case Found(mailbox) if not mailbox.catch_all:
            return whole
        case _:
            without = yield Lookup(store, base)
            if isinstance(without, NotFound):
                return whole
            if isinstance(without, Found) and without.mailbox.catch_all and isinstance(whole, Found):
                return whole  # the same catch-all, but this answer leads on with the detail
            return without


def _as_spelled(answer: Answer, recipient: Recipient, subaddress: Subaddress) -> Answer:
    """Give the answer, or a no where the store knows the detail in another case than it was asked in."""
    if not isinstance(answer, Found) or answer.mailbox.catch_all:
        return answer
    spelling = answer.mailbox.spelling
    try:
        known = parse(spelling) if spelling else Recipient(fold(recipient.local), recipient.domain)
    except NotAnAddress as error:
        return Unavailable(f"a spelling is no address: {error}")
    # Not cut at the same place: a base may be longer in one spelling than in the other (a sharp s is "ss").
    return answer if _detail(known, subaddress) == _detail(recipient, subaddress) else NOT_FOUND


def _detail(recipient: Recipient, subaddress: Subaddress) -> str:
    base = subaddress.base(recipient)
    return recipient.local[len(base.local) :] if base else ""


def _judge(case: Case, walked: Walked, mailbox: Mailbox) -> Steps[Verdict]:
    """Hold what a store knows of a mailbox against the query."""
    rule = walked.rule
    verdict = moved(mailbox) or disabled(mailbox, case.now)
    if verdict is None and not case.path:
        verdict = posting(mailbox, case.query, rule.posting_unknown)
    if verdict is None and mailbox.targets:
        verdict = yield from alias(case, mailbox)
    if verdict is None:
        verdict = quota(mailbox, case.query.size, walked.full)
    return verdict.said_by(rule.name) if verdict else walked.accepted
