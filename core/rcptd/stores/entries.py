"""What our tables have in common: how an entry is addressed, and how a set of entries answers.

An entry belongs to a domain and has a local part, both in the canonical form of `rcptd.address`; the
empty local part is the domain's catch-all. Domain and local part are kept apart, so that "not one
recipient of that domain" costs one look, and so that a quoted local part with an @ in it is never
taken for an address.

A target that is no more than `@domain` means the same local part in that domain, as in a Postfix
virtual table.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from rcptd import address
from rcptd.address import NotAnAddress, Recipient
from rcptd.question import EXISTS, NOT_FOUND, Answer, Found, Mailbox, Unavailable
from rcptd.verdict import safe_text

TARGETS = 50  # ends that an alias may have, as in the rules; more would only ever defer
WORD_OCTETS = 512  # longer than an address in any spelling (254 octets), or a network
TEXT_OCTETS = 1000  # far above the 200 characters of a reply, which are cut later
NUMBER = (1 << 63) - 1  # what SQLite's INTEGER holds

_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,"])+')
_SEPARATORS = re.compile(r"[\s,]*")


class Subject(NamedTuple):
    """Whom an entry is about: `local` is folded, "" for a catch-all; `spelling` "" if there is no other."""

    domain: str
    local: str
    spelling: str = ""

    def __str__(self) -> str:
        return str(Recipient(self.local, self.domain)) if self.local else f"@{self.domain}"


def subject(text: str, default_domain: str = "") -> Subject:
    """Read the address of an entry, `user@domain` or `@domain`; raises `NotAnAddress`."""
    if len(text) > WORD_OCTETS:
        raise NotAnAddress(f"longer than {WORD_OCTETS} characters")
    if text.startswith("@"):
        domain = address.domain(text[1:])
        return Subject(domain, "", "" if text == f"@{domain}" else text)
    recipient = address.parse(text)
    if not recipient.domain:
        if not default_domain:
            raise NotAnAddress("no domain; write user@domain")
        return Subject(default_domain, address.fold(recipient.local))
    spelling = text.strip(" \t").removeprefix("<").removesuffix(">")
    return Subject(recipient.domain, local_part(recipient), "" if spelling == recipient.key else spelling)


def local_part(recipient: Recipient) -> str:
    """Give the local part as entries have it: folded, without the domain."""
    domain = recipient.domain
    return recipient.key[: -len(domain) - 1] if domain else recipient.key


def words(text: str) -> list[str]:
    """Cut at commas and white space outside quotes; raises `ValueError` for a quote that is not closed."""
    found = []
    at = _skip(text, 0)
    while at < len(text):
        word = _WORD.match(text, at)
        if not word:
            raise ValueError("a quote is not closed")
        found.append(word[0])
        at = _skip(text, word.end())
    return found


def _skip(text: str, at: int) -> int:
    separators = _SEPARATORS.match(text, at)
    assert separators
    return separators.end()


@lru_cache(maxsize=4096)
def target(text: str, default_domain: str = "") -> str:
    """Check a target of an alias, `user@domain` or `@domain`, and give it; raises `NotAnAddress`."""
    if text.startswith("@"):
        return f"@{address.domain(text[1:])}"
    recipient = address.parse(text)
    if not recipient.domain and not default_domain:
        raise NotAnAddress("no domain; write user@domain")
    return str(recipient if recipient.domain else recipient.with_domain(default_domain))


def sender(text: str) -> str:
    """Check who may post, `user@domain` or `@domain`, and give it; raises `NotAnAddress`."""
    if text.startswith("*@"):
        raise NotAnAddress(f'write "{text[1:80]}" for everybody there')
    return target(text)


def targets(texts: Iterable[str], of: Subject, default_domain: str = "") -> tuple[str, ...]:
    """Check the targets of an alias; gives none where the alias delivers to itself.

    `user@domain user@domain` in a Postfix table says that the mailbox exists; as an alias it would be
    a loop. Raises `ValueError` naming the faulty one.
    """
    found: list[str] = []
    for text in texts:
        try:
            if len(text) > WORD_OCTETS:
                raise NotAnAddress("far too long")  # noqa: TRY301 - one kind of fault
            end = target(text, default_domain)
        except NotAnAddress as error:
            raise ValueError(f"the target {text[:80]!r} is no address: {error}") from None
        if end.startswith("@") and of.local:
            end = str(Recipient(of.local, end[1:]))
        if subject(end)[:2] == of[:2]:
            return ()
        found.append(end)
        if len(found) > TARGETS:
            raise ValueError(f"more than {TARGETS} targets")
    return tuple(found)


def caught(found: Found, recipient: Recipient) -> Found:
    """Give the answer of a domain's catch-all to one of its recipients."""
    mailbox = found.mailbox
    if not mailbox.targets:
        return found
    ends = [str(recipient.with_domain(end[1:])) if end.startswith("@") else end for end in mailbox.targets]
    return Found(replace(mailbox, targets=tuple(ends)))


CAUGHT = Found(Mailbox(catch_all=True))


class Snapshot:
    """Entries in memory: filled by one thread, then never changed again and read by any."""

    __slots__ = ("_domains", "count")

    def __init__(self) -> None:
        self._domains: dict[str, dict[str, Found]] = {}
        self.count = 0

    def add(self, of: Subject, mailbox: Mailbox) -> bool:
        """Take an entry in; False where one is there already that says something else."""
        domain = self._domains.setdefault(of.domain, {})
        if not of.local:
            mailbox = replace(mailbox, catch_all=True)
            found = CAUGHT if mailbox == CAUGHT.mailbox else Found(mailbox)
        else:
            found = EXISTS if mailbox == EXISTS.mailbox else Found(mailbox)
        kept = domain.get(of.local)
        if kept is not None:
            return kept == found
        domain[of.local] = found
        self.count += 1
        return True

    def has_domain(self, domain: str) -> bool:
        """Say whether an entry of the domain was taken in."""
        return domain in self._domains

    def lookup(self, recipient: Recipient, *, allow_empty: bool) -> Answer:
        """Say what the entries know of the recipient."""
        domain = self._domains.get(recipient.domain)
        if domain is None:
            return NOT_FOUND if allow_empty else Unavailable(no_domain(recipient.domain))
        if found := domain.get(local_part(recipient)):
            return found
        if found := domain.get(""):
            return caught(found, recipient)
        return NOT_FOUND


def no_domain(domain: str) -> str:
    """Say that a store holds nobody of a domain, which is a fault and no reason to refuse everybody."""
    return f"holds not one recipient of {domain or 'no domain'}; allow_empty = true would make that a no"


def public_text(text: str) -> str:
    """Check an operator's text for the world; raises `ValueError` with one that would do."""
    if not text or (safe := safe_text(text)) == text:
        return text
    raise ValueError(f'the text must be printable ASCII without ", % and backslash, 200 at most: {safe!r} would do')
