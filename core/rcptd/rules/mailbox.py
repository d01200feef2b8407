"""The recipient's mailbox: a store must know it, and everything known of it must allow the mail.

Theory of operation. `verify` asks the stores of a rule in order and gives the rule's verdict on what
they say; `_ask_with_detail` asks one store with and without a detail; `_judge` holds what a
store knows against the query. All three are generators: they yield `Lookup`s and are sent `Answer`s.

A store that knows the mailbox to be on another server (a Cyrus Murder's frontend) does not decide: the stores
behind it in the list are told which server to ask. Where they know nobody, the two disagree, as they do for a
moment when a mailbox is deleted or moves, and the recipient is deferred. Where it named the server for the whole
domain only, it has not said that the recipient exists, and the server's no is one.
"""

from typing import assert_never

from rcptd.address import NotAnAddress, Recipient, fold, parse
from rcptd.case import Case, Steps
from rcptd.policy import Rule, Subaddress, Walked
from rcptd.question import NOT_FOUND, PLAIN, Absence, Answer, Found, Lookup, Mailbox, NotFound, Unavailable
from rcptd.rules.alias import alias
from rcptd.rules.disabled import disabled
from rcptd.rules.moved import moved
from rcptd.rules.posting import posting
from rcptd.rules.quota import quota
from rcptd.verdict import NEEDS_SMTPUTF8, NO_SUCH_DOMAIN, NULL_MX, Verdict

_ABSENT = {Absence.DOMAIN: NO_SUCH_DOMAIN, Absence.NULL_MX: NULL_MX, Absence.UTF8: NEEDS_SMTPUTF8}


def verify(case: Case, walked: Walked, recipient: Recipient) -> Steps[Verdict | None]:
    """Ask the stores of a rule about a recipient; None leaves it to the next rule."""
    rule = walked.rule
    stores, unasked = _stores(case, rule)
    unanswered = False
    absence = Absence.MAILBOX
    server = ""
    named: Mailbox | None = None
    base = rule.base(recipient)
    for store in stores:
        if base is None:
            answer: Answer = yield Lookup(store, recipient, server)
        else:
            answer = yield from _ask_with_detail(Lookup(store, recipient, server), base, rule)
        match _proven(answer, rule, case):
            case Found(mailbox):
                if mailbox is PLAIN:
                    return walked.accepted
                if not mailbox.server:
                    return (yield from _judge(case, walked, mailbox))
                named, server = mailbox, mailbox.server
            case Unavailable():
                if walked.unavailable:
                    return walked.unavailable
                unanswered = True
            case NotFound(said):
                absence = said
                named = _unless_denied(named, store, case)
            case _:
                assert_never(answer)
    if unanswered:
        return walked.unknown
    # An end that only an unasked store could know is taken as it stands: see Case.unasked.
    return walked.accepted if unasked else _nobody_knows(walked, absence, named)


def _stores(case: Case, rule: Rule) -> tuple[tuple[str, ...], bool]:
    """Give the stores to ask, and whether one is left alone here: a slow one, at the end of an alias."""
    stores = rule.verify or ()
    if case.query.wire == "smmapd":
        stores = tuple(case.policy.as_smmapd.get(store, store) for store in stores)
    if not case.path:
        return stores, False
    asked = tuple(store for store in stores if not case.unasked(store, rule))
    for store in stores:
        if store not in asked:
            case.trace.note(rule.name, f"{store} is not asked about the end of an alias")
    return asked, len(asked) < len(stores)


def _proven(answer: Answer, rule: Rule, case: Case) -> Answer:
    """Give the answer, or "cannot tell" for a yes that proves nothing where the rule has no use for that."""
    if rule.unproven == "unavailable" and isinstance(answer, Found) and answer.mailbox.unproven:
        case.trace.note(rule.name, "who takes every local part proves nothing")
        return Unavailable("takes every local part")
    return answer


def _unless_denied(named: Mailbox | None, store: str, case: Case) -> Mailbox | None:
    """Give what was named with its server, None where that was a whole domain and the server has denied the recipient.

    Only a store that waits has asked there; a table that knows nobody says nothing of servers.
    """
    return None if named and named.catch_all and store in case.policy.slow else named


def _nobody_knows(walked: Walked, absence: Absence, named: Mailbox | None) -> Verdict | None:
    if named:
        return walked.unknown  # a store named its server, where it is not known, or nobody has asked
    match walked.rule.not_found:
        case "next":
            return None
        case "reject":
            absent = _ABSENT.get(absence)
            return absent.said_by(walked.rule.name) if absent else walked.not_found
        case _:
            return walked.unknown


def _ask_with_detail(lookup: Lookup, base: Recipient, rule: Rule) -> Steps[Answer]:
    """Ask about a recipient with a detail, and about `base`, which is without it, where that may count.

    An exact entry for `user+detail` goes first, then one for `user`, then the domain's catch-all.
    """
    subaddress = rule.subaddress
    assert subaddress is not None
    whole = yield lookup
    if subaddress.detail == "must_exist":
        return _as_spelled(whole, lookup.recipient, subaddress) if subaddress.case == "kept" else whole
    match whole:
        case Unavailable():
            return whole
        case Found(mailbox) if not mailbox.catch_all:
            return whole
        case _:
            without = yield lookup._replace(recipient=base)
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
