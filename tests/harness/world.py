"""A world in which dialogues happen: stores with their recipients, the rules, what the MTA calls its own.

Plain data, made by `tests.harness.cases` from a file that a postmaster can read, and used alike by tests
that feed the engine and by tests that set up a daemon and an MTA. `recipient` reads one line of a store:

    user@example.org
    full@example.org         quota 10M used 10M, messages 100 used 7
    several@example.org      alias user@example.org, post authenticated, quota 10M
    off@example.org          disabled temporary until 2099-12-31 "Back next year"
    list@example.org         post authenticated, network 127.0.0.8/29, sender boss@example.org
    gone@example.org         moved new@example.net
    sales@example.org        alias user@example.org, other@elsewhere.example
    @catch.example                            a catch-all
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Literal

from rcptd import address, schema
from rcptd.question import Disabled, Mailbox, Posting, Quota

Recipients = dict[str, Mailbox]


@dataclass(frozen=True, slots=True)
class World:
    """What is there before the first dialogue begins.

    `stores` has for each name its recipients by address as written (`@domain` for a catch-all), or the
    word "unavailable". `rules` and `daemon` are TOML: `[[rules]]` tables, and lines of `[daemon]`.
    `domains` are what an MTA counts as its own, in every spelling that it must know.
    """

    stores: dict[str, Recipients | Literal["unavailable"]] = field(default_factory=dict)
    rules: str = ""
    daemon: str = ""
    domains: tuple[str, ...] = ()

    def owns(self, path: str) -> bool:
        """Tell whether an MTA of this world counts a recipient, as typed, as its own."""
        _, at, domain = path.strip("<>").rpartition("@")
        return not at or domain.lower().removesuffix(".") in self.domains


_TOKEN = re.compile(r'\s*(?:(,)|"((?:[^"\\]|\\.)*)"(?=[\s,]|$)|((?:"(?:[^"\\]|\\.)*"|[^\s,"])+))')
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')


def recipient(line: str) -> tuple[str, Mailbox]:
    """Read one line of a store; raises `ValueError` saying what is wrong and what would be right."""
    found = _ADDRESS.match(line)
    if not found:
        raise ValueError("a line of a store begins with an address")
    text = found[0]
    words = _Words(line[found.end() :])
    facts: dict[str, object] = {}
    while words:
        _fact(words, facts)
        words.skip(",")
    limits = {name: facts.pop(name) for name in tuple(facts) if name in Quota.__slots__}
    if limits:
        facts["quota"] = Quota(**limits)  # type: ignore[arg-type]
    if text.startswith("@"):
        canonical = f"@{address.domain(text[1:])}"
        facts["catch_all"] = True
    else:
        canonical = address.parse(text).key
        if "@" not in canonical:
            raise ValueError(f"{text!r} has no domain")
    if text != canonical:
        facts["spelling"] = text
    return text, Mailbox(**facts)  # type: ignore[arg-type]


class _Words:
    """The words that follow the address, one after the other."""

    def __init__(self, text: str) -> None:
        self._words: list[tuple[str, bool]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise ValueError(f"cannot read {text[at:].strip()!r}")
            comma, quoted, plain = found.groups()
            self._words.append((comma or plain, False) if quoted is None else (quoted, True))
            at = found.end()

    def __bool__(self) -> bool:
        return bool(self._words)

    def skip(self, word: str) -> bool:
        """Take `word` if it is next."""
        if self._words and self._words[0] == (word, False):
            self._words.pop(0)
            return True
        return False

    def next(self, what: str) -> str:
        """Take the next word, whatever it is."""
        if not self._words or self._words[0] == (",", False):
            raise ValueError(f"{what} is missing")
        return self._words.pop(0)[0]

    def quoted(self) -> str:
        """Take the next word if it was in quotes."""
        return self._words.pop(0)[0] if self._words and self._words[0][1] else ""

    def goes_on(self, known: Callable[[str], object]) -> bool:
        """Take a comma if what follows it is still part of the list, and not the next fact."""
        return len(self._words) > 1 and bool(known(self._words[1][0])) and self.skip(",")

    def addresses(self) -> tuple[str, ...]:
        """Take addresses parted by commas."""
        found = [self.next("a target")]
        while self.goes_on(lambda word: "@" in word):
            found.append(self.next("a target"))
        return tuple(found)


def _fact(words: _Words, facts: dict[str, object]) -> None:
    word = words.next("a fact")
    if word == "disabled":
        temporary = words.skip("temporary")
        permanent = words.skip("permanent")
        until = _date(words.next("the date")) if words.skip("until") else None
        # As `rcptd mailbox deny` has it: a date by which it ends makes it a thing of now.
        temporary = temporary or (until is not None and not permanent)
        facts["disabled"] = Disabled(temporary, words.quoted(), until)
    elif word == "post":
        facts["posting"] = _posting(words)
    elif word == "quota":
        facts["bytes_limit"] = schema.octets(_number(words.next("the limit")))
        facts["bytes_used"] = schema.octets(_number(words.next("the use"))) if words.skip("used") else 0
    elif word == "messages":
        facts["messages_limit"] = int(words.next("the limit"))
        facts["messages_used"] = int(words.next("the use")) if words.skip("used") else 0
    elif word == "moved":
        facts["moved_to"] = words.next("the new address")
    elif word == "alias":
        facts["targets"] = words.addresses()
    else:
        raise ValueError(f"{word!r} is no fact; write disabled, post, quota, messages, moved or alias")


def _posting(words: _Words) -> Posting:
    authenticated = False
    networks: list[str] = []
    senders: list[str] = []
    while True:
        if words.skip("authenticated"):
            authenticated = True
        elif words.skip("network"):
            networks.append(str(ip_network(words.next("the network"))))
        elif words.skip("sender"):
            senders.append(words.next("the sender"))
        else:
            raise ValueError("after post write authenticated, network NETWORK or sender ADDRESS")
        if not words.goes_on(("authenticated", "network", "sender").__contains__):
            return Posting(authenticated, tuple(networks), tuple(senders))


def _number(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def _date(word: str) -> float:
    try:
        return datetime.fromisoformat(word).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ValueError(f"{word!r} is no date; write it as 2099-12-31") from None
