"""A policy: the ordered rules of an operator and what holds for all of them.

`Rule` is one `[[rules]]` entry as the configuration declares it; `Policy` is all of them, made ready
to be walked. Both are immutable: a reload makes new ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

from rcptd import schema
from rcptd.address import Recipient
from rcptd.schema import option
from rcptd.verdict import ACCEPTED, FULL, FULL_FOR_NOW, NO_SUCH_MAILBOX, UNKNOWN, Verdict, from_reply
from rcptd.when import ASKER_FACTS, NO_DOMAINS, Domains, When
from rcptd.when import read as read_when


def _delimiters(value: object) -> str:
    text = schema.text(value)
    if not all(character in "!#$%&'*+-/=?^_`{|}~." for character in text):
        raise ValueError('write the delimiting characters, as in "+" or "+-"')
    return text


@dataclass(frozen=True, slots=True)
class Subaddress:
    """How `user+detail` (RFC 5233) is taken."""

    delimiters: str = option(_delimiters, default="+", doc="The characters that begin a detail.")
    detail: Literal["ignored", "must_exist"] = option(
        schema.choice("ignored", "must_exist"), default="ignored", doc="Whether the detail must be known."
    )
    case: Literal["ignored", "kept"] = option(
        schema.choice("ignored", "kept"), default="ignored", doc="Whether the case of a detail counts."
    )

    def base(self, recipient: Recipient) -> Recipient | None:
        """The recipient less its detail, or None where it has none."""
        return recipient.without_detail(self.delimiters)


def _subaddress(value: object) -> Subaddress | None:
    if value == "off":
        return None
    table = value if isinstance(value, Mapping) else {"detail": value}
    faults: list[str] = []

    def fault(key: str, what: str) -> None:
        faults.append(f"{key}: {what}" if key else what)

    read = schema.read(Subaddress, table, fault)
    if read is None:
        if not isinstance(value, Mapping):
            raise ValueError('write "ignored", "must_exist", "off", or a table such as { delimiters = "+-" }')
        raise ValueError("; ".join(faults))
    return read


def _reject(value: object) -> Verdict:
    return _fixed(value, "5", "defer")


def _defer(value: object) -> Verdict:
    return _fixed(value, "4", "reject")


def _fixed(value: object, digit: str, other: str) -> Verdict:
    verdict = from_reply(schema.text(value))
    if str(verdict.code)[0] != digit:
        raise ValueError(f"code {verdict.code} does not go here; did you mean {other} = …?")
    return verdict


def _accept(value: object) -> bool:
    if value is not True:
        raise ValueError("write accept = true")
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[rules]]` entry: when it applies, and the one thing it then does."""

    name: str = option(
        schema.text, default=None, doc='What logs and traces call the rule; "rule N" if left out.'
    )
    when: When = option(
        read_when,
        default={},
        doc="When the rule applies: domain, recipient, sender, client, authenticated, front_end, map. "
        "Each takes a value, a list, or { not = [...] }; left out, the rule always applies.",
    )
    verify: tuple[str, ...] | None = option(
        schema.many(schema.text),
        default=None,
        doc="Ask these stores, in order; the first that knows the recipient answers.",
    )
    accept: bool | None = option(_accept, default=None, doc="Accept the recipient unasked.")
    reject: Verdict | None = option(
        _reject, default=None, doc='Refuse with this reply, as in "550 5.7.1 text".'
    )
    defer: Verdict | None = option(_defer, default=None, doc='Defer with this reply, as in "451 4.7.1 text".')
    not_found: str = option(
        schema.choice("reject", "defer", "next"),
        default="reject",
        doc='With verify: no store knows the recipient. "next" goes on to the next rule; if none decides, '
        "the recipient is refused.",
    )
    unavailable: str = option(
        schema.choice("defer", "next", "accept"),
        default="defer",
        doc='With verify: a store cannot tell. "next" asks the next store; then a "not found" defers.',
    )
    over_quota: str = option(
        schema.choice("defer", "reject"),
        default="defer",
        doc="With verify: a full mailbox is 452 4.2.2, or for good 552 5.2.2.",
    )
    subaddress: Subaddress | None = option(
        _subaddress,
        default="ignored",
        doc='With verify: how user+detail is taken. "ignored" asks with the detail, then without; '
        '"must_exist" only with it; "off" knows no details; or a table of delimiters, detail and case, as in '
        '{ delimiters = "+-", detail = "must_exist", case = "kept" }.',
    )
    unproven: str = option(
        schema.choice("accept", "unavailable"),
        default="accept",
        doc="With verify: what the yes of a next hop is worth that says it to every local part. "
        '"unavailable" takes it for "cannot tell".',
    )
    posting_unknown: str = option(
        schema.choice("accept", "defer", "reject"),
        default="accept",
        doc="With verify: what a limit on who may post means where the asker is unknown, as in a socketmap.",
    )
    verify_targets: bool = option(
        schema.boolean, default=False, doc="With verify: ask slow stores about the ends of aliases, too."
    )
    shadow: bool = option(
        schema.boolean,
        default=False,
        doc="Log and count what the rule would have said, after the reply; change nothing.",
    )
    shadow_probes: bool = option(
        schema.boolean, default=False, doc="With shadow: also ask stores that ask another mail server."
    )

    def base(self, recipient: Recipient) -> Recipient | None:
        """The recipient less its detail, or None where it has none that counts."""
        return self.subaddress.base(recipient) if self.subaddress else None

    @property
    def fixed(self) -> Verdict | None:
        """The verdict of a rule that asks no store."""
        return self.reject or self.defer or (ACCEPTED if self.accept else None)


ACTIONS = ("verify", "accept", "reject", "defer")
_VERIFY_ONLY = (
    "not_found", "unavailable", "over_quota", "subaddress", "unproven", "posting_unknown", "verify_targets",
)  # fmt: skip


def read_rules(
    tables: Sequence[Mapping[str, object]],
    stores: Mapping[str, object],
    report: schema.Report,
    *,
    reached_from_map: bool,
    defaults: Mapping[str, object] | None = None,
) -> tuple[Rule, ...]:
    """Read the `[[rules]]` in order; faults are reported by a key such as `0.verify`.

    `stores` are the names that `verify` may use; `reached_from_map` says that a socketmap is configured;
    `defaults` are rule options that `[daemon]` sets for all.
    """
    rules: list[Rule] = []
    names: set[str] = set()
    for index, table in enumerate(tables):

        def fault(key: str, what: str, index: int = index) -> None:
            report(f"{index}.{key}" if key else str(index), what)

        rule = schema.read(Rule, {**(defaults or {}), **table}, fault)
        if rule is None:
            continue
        if not rule.name:
            rule = replace(rule, name=f"rule {index + 1}")
        if rule.name in names:
            fault("name", f"there is another rule {rule.name!r}; names must differ")
        names.add(rule.name)
        _cross_check(rule, table, stores, fault, reached_from_map=reached_from_map)
        rules.append(rule)
    return tuple(rules)


def _cross_check(
    rule: Rule,
    table: Mapping[str, object],
    stores: Mapping[str, object],
    fault: schema.Report,
    *,
    reached_from_map: bool,
) -> None:
    actions = [action for action in ACTIONS if getattr(rule, action) is not None]
    if len(actions) != 1:
        said = f"has {' and '.join(actions)}" if actions else "says nothing to do"
        fault("", f"rule {rule.name!r} {said}; give it exactly one of {', '.join(ACTIONS)}")
    if rule.verify is None:
        for name in _VERIFY_ONLY:
            if name in table:
                fault(name, "goes with verify only")
    for store in rule.verify or ():
        if store not in stores:
            known = ", ".join(map(repr, stores)) or "none"
            fault("verify", f"there is no [stores.{store}]; configured stores: {known}")
    if rule.shadow_probes and not rule.shadow:
        fault("shadow_probes", "goes with shadow = true only")
    asked = [fact for fact in ASKER_FACTS if fact in rule.when.facts]
    if asked and reached_from_map and not {"front_end", "map"} & set(rule.when.facts):
        fault(
            "when",
            f"tests {', '.join(asked)}, which a socketmap cannot know, so the rule would never apply there; "
            'add front_end = "milter" if that is meant',
        )


_UNAVAILABLE = {"accept": ACCEPTED, "defer": UNKNOWN}


@dataclass(frozen=True, slots=True)
class Walked:
    """A rule with the verdicts that it gives all day, made once; of `unavailable`, None asks the next store."""

    rule: Rule
    fixed: Verdict | None
    accepted: Verdict
    not_found: Verdict
    unknown: Verdict
    unavailable: Verdict | None
    full: Verdict


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides, as one immutable value; any thread may read it.

    `slow` are the names of stores that wait, `next_hops` those of them that ask another mail server.
    `as_smmapd` names, for some stores, the one that is asked in their place by a map in the words of Cyrus' smmapd.
    """

    rules: tuple[Rule, ...]
    default_domain: str = ""
    postmaster: bool = True
    slow: frozenset[str] = frozenset()
    next_hops: frozenset[str] = frozenset()
    as_smmapd: Mapping[str, str] = field(default_factory=dict)
    walk: tuple[Walked, ...] = field(init=False)
    own: Domains = field(init=False)
    asks_about_asker: bool = field(init=False)
    """Whether any rule tests what only some front ends know: the client, the sender, who is authenticated."""

    def __post_init__(self) -> None:
        walk = tuple(
            Walked(
                rule,
                rule.fixed.said_by(rule.name) if rule.fixed else None,
                ACCEPTED.said_by(rule.name),
                NO_SUCH_MAILBOX.said_by(rule.name),
                UNKNOWN.said_by(rule.name),
                unavailable.said_by(rule.name) if (unavailable := _UNAVAILABLE.get(rule.unavailable)) else None,
                (FULL if rule.over_quota == "reject" else FULL_FOR_NOW).said_by(rule.name),
            )
            for rule in self.rules
        )
        # A domain is ours where a verify rule names it; one in shadow changes nothing.
        own = (rule.when.domains for rule in self.rules if rule.verify and not rule.shadow)
        object.__setattr__(self, "walk", walk)
        object.__setattr__(self, "own", reduce(Domains.__or__, own, NO_DOMAINS))
        asked = {fact for rule in self.rules for fact in rule.when.facts}
        object.__setattr__(self, "asks_about_asker", not asked.isdisjoint(ASKER_FACTS))
