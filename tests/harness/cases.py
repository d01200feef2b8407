r"""Reads `tests/cases/*.txt`: a world, and dialogues with the verdict that each recipient must get.

    # Whatever stands before the first statement tells what the file is about.
    domains example.org                       what an MTA counts as its own; else the domains of all stores
    daemon                                    lines of [daemon], in TOML
      default_domain = "example.org"
    store local                               recipients: see tests.harness.world
      user@example.org
      full@example.org          quota 10M used 10M
    store broken unavailable
    rules                                     [[rules]] in TOML; else one that verifies all in all stores
      [[rules]]
      when = { domain = "example.org" }
      verify = ["local"]

    case "an unknown mailbox is refused"
      RCPT <nobody@example.org>     550 5.1.1
    case "the size of the message counts against the quota"
      MAIL <x@y.example> SIZE=20000000
      RCPT <full@example.org>       552 5.2.3

A line that begins with `#` is a comment. In a case, `client 127.0.0.9` and `auth joe` come first, where
they matter; the client is 127.0.0.2 otherwise, whom no MTA here lets relay, as it does 127.0.0.1. Each
MAIL begins a transaction; without one the sender is <sender@client.example>.

A verdict, two spaces or more behind the recipient, is written once, as the milter says it: `accept`,
`not ours`, a reply such as `550 5.1.1`, or `550 5.7.1 as written` where an operator's own reply is meant.
What each map and each MTA makes of it is derived in `tests.harness.expect`.

In a recipient and in MAIL, `\xNN` is an octet and `{a*64}` sixty-four times an `a`.

A case that has MAIL, client or auth needs facts that a socketmap does not know, so it is for a milter
only; `milter only` and `map only` behind the title say so for others, and `not on sendmail, postfix`
leaves out MTAs that will not take such a dialogue.
"""

import re
import textwrap
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, NoReturn

from rcptd import address
from tests.harness.case import (
    ACCEPT,
    FOREIGN,
    MTAS,
    NOT_OURS,
    SENDER,
    Case,
    CaseFile,
    FrontEnd,
    Rcpt,
    Transaction,
    Wanted,
    query,
)
from tests.harness.world import Recipients, World, recipient

__all__ = [
    "CASES", "Case", "CaseError", "CaseFile", "Rcpt", "Transaction", "Wanted", "parse", "query", "read",
    "read_all",
]  # fmt: skip

CASES = Path(__file__).parent.parent / "cases"

_VERDICT = re.compile(r"(accept|not ours|([45]\d\d) ([45]\.\d{1,3}\.\d{1,3})( as written)?)")
_RCPT = re.compile(r"RCPT (.+?)\s{2,}(\S.*)")
_MAIL = re.compile(r'MAIL (<(?:"(?:[^"\\]|\\.)*"|[^">])*>)((?: \S+)*)')
_CASE = re.compile(r'case "([^"]+)"(.*)')
_REPEATED = re.compile(r"\{([^{}]+)\*(\d{1,5})\}")
_LOOPBACK = ip_network("127.0.0.0/8")
_OCTET = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")


class CaseError(ValueError):
    """A fault in a file of cases: `FILE:LINE: what is wrong`."""


def read_all(folder: Path = CASES) -> list[CaseFile]:
    """Read every file of a folder, by name; raises `CaseError`."""
    return [read(path) for path in sorted(folder.glob("*.txt"))]


def read(path: Path) -> CaseFile:
    """Read one file; raises `CaseError`."""
    return parse(path.read_text(encoding="utf-8"), path.name)


def parse(text: str, name: str) -> CaseFile:
    """Read the text of a file; raises `CaseError` with `name` and line."""
    return _Reader(name).read(text)


class _Reader:
    """Goes through a file block by block: a statement, and the indented lines below it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = 0
        self.stores: dict[str, Recipients | Literal["unavailable"]] = {}
        self.toml: dict[str, str] = {}
        self.domains: tuple[str, ...] | None = None
        self.cases: list[Case] = []

    def read(self, text: str) -> CaseFile:
        for number, statement, block in _blocks(text):
            self.at = number
            try:
                self._statement(statement, block)
            except CaseError:
                raise
            except ValueError as error:
                self._fault(str(error))
        if not self.stores:
            self.at = 1
            self._fault("a world needs a store")
        return CaseFile(self.name, self._world(), tuple(self.cases))

    def _fault(self, what: str) -> NoReturn:
        raise CaseError(f"{self.name}:{self.at}: {what}")

    def _statement(self, statement: str, block: list[tuple[int, str]]) -> None:
        word, _, rest = statement.partition(" ")
        if word == "case":
            self._case(statement, block)
        elif self.cases:
            self._fault("the world must be complete before the first case")
        elif word == "store":
            self._store(rest.split(), block)
        elif word in ("rules", "daemon") and not rest:
            self._toml(word, block)
        elif word == "domains" and rest and not block:
            self.domains = tuple(rest.split())
        elif statement.startswith((" ", "\t")):
            self._fault("an indented line belongs to no statement")
        else:
            self._fault(f"cannot read {statement!r}; write domains, daemon, store, rules or case")

    def _store(self, words: list[str], block: list[tuple[int, str]]) -> None:
        if not words or words[1:] not in ([], ["unavailable"]):
            self._fault("write `store NAME` or `store NAME unavailable`")
        name = words[0]
        if name in self.stores:
            self._fault(f"there is a store {name!r} already")
        if words[1:]:
            if block:
                self._fault("a store that is unavailable has no recipients")
            self.stores[name] = "unavailable"
            return
        recipients: Recipients = {}
        for self.at, line in block:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            text, mailbox = recipient(_expanded(line.strip()))
            if text in recipients:
                self._fault(f"{text} is there already")
            recipients[text] = mailbox
        self.stores[name] = recipients

    def _toml(self, word: str, block: list[tuple[int, str]]) -> None:
        if word in self.toml:
            self._fault(f"there are {word} already")
        text = textwrap.dedent("".join(f"{line}\n" for _, line in block))
        first = block[0][0] if block else self.at
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"at line (\d+)", str(error))
            self.at = first + int(found[1]) - 1 if found else first
            self._fault(f"in TOML: {error}")
        self.toml[word] = text

    def _case(self, statement: str, block: list[tuple[int, str]]) -> None:
        line = self.at
        head = _CASE.fullmatch(statement)
        if not head:
            self._fault('write `case "TITLE"`, and behind it perhaps `milter only`, `map only`, `not on MTA`')
        dialogue = _Dialogue()
        for self.at, text in block:
            stripped = text.strip()
            if stripped and not stripped.startswith("#"):
                dialogue.take(stripped, self.at)
        self.at = line
        transactions = dialogue.transactions()
        if not transactions or not all(transaction.recipients for transaction in transactions):
            self._fault("a case needs a RCPT, and so does each MAIL in it")
        front_ends, mtas = _restrictions(head[2])
        if dialogue.facts:
            if front_ends == ("socketmap",):
                self._fault(f"a map does not know {', '.join(sorted(dialogue.facts))}")
            front_ends = ("milter",)
        self.cases.append(
            Case(
                self.name, line, head[1], dialogue.client, dialogue.auth, transactions,
                frozenset(dialogue.facts), front_ends, mtas,
            )
        )  # fmt: skip

    def _world(self) -> World:
        entries = [text for store in self.stores.values() if store != "unavailable" for text in store]
        named = dict.fromkeys(text.rpartition("@")[2].lower() for text in entries)
        own = self.domains if self.domains is not None else tuple(named)
        # Postfix takes U-labels and A-labels for different domains, so an MTA must know both.
        spellings = dict.fromkeys(name for domain in own for name in (domain, address.domain(domain)))
        rules = self.toml.get("rules")
        if rules is None:
            rules = f"""\
[[rules]]
name = "our mailboxes"
when = {{ domain = {list(own)} }}
verify = {list(self.stores)}
"""
        return World(self.stores, rules, self.toml.get("daemon", ""), tuple(spellings))


class _Dialogue:
    """The lines of one case, taken in order."""

    def __init__(self) -> None:
        self.client = FOREIGN
        self.auth = ""
        self.facts: set[str] = set()
        self._begun: list[tuple[str, tuple[str, ...], list[Rcpt]]] = []

    def take(self, text: str, line: int) -> None:
        word, _, rest = text.partition(" ")
        if word in ("client", "auth") and rest:
            if self._begun:
                raise ValueError(f"{word} comes before MAIL and RCPT")
            self._asker(word, rest.strip())
        elif word == "MAIL":
            self._mail(text)
        elif word == "RCPT":
            found = _RCPT.fullmatch(text)
            if not found:
                raise ValueError("write `RCPT <ADDRESS>   VERDICT`, with two spaces or more between them")
            if not self._begun:
                self._begun.append((SENDER, (), []))
            self._begun[-1][2].append(Rcpt(line, _expanded(found[1]), _wanted(found[2])))
        else:
            raise ValueError(f"cannot read {text!r}; a line of a case begins with client, auth, MAIL or RCPT")

    def transactions(self) -> tuple[Transaction, ...]:
        return tuple(Transaction(sender, words, tuple(rcpts)) for sender, words, rcpts in self._begun)

    def _asker(self, word: str, value: str) -> None:
        if word == "auth":
            self.auth = value
        else:
            if ip_address(value) not in _LOOPBACK:
                raise ValueError(f"{value} is not in 127.0.0.0/8, from where a test can call a real MTA")
            self.client = value
        self.facts.add(word)

    def _mail(self, text: str) -> None:
        found = _MAIL.fullmatch(text)
        if not found:
            raise ValueError("write `MAIL <ADDRESS>`, and behind it perhaps SIZE=NUMBER or SMTPUTF8")
        words = tuple(found[2].split())
        for word in words:
            name, _, value = word.partition("=")
            if name == "SIZE" and value.isdecimal():
                self.facts.add("size")
            elif word == "SMTPUTF8":
                self.facts.add("smtputf8")
            elif word not in ("BODY=8BITMIME", "BODY=7BIT"):
                raise ValueError(f"{word} is no parameter of MAIL here")
        self.facts.add("sender")
        self._begun.append((_expanded(found[1]), words, []))





def _wanted(text: str) -> Wanted:
    found = _VERDICT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no verdict; write accept, not ours, or a reply such as 550 5.1.1")
    word, code, enhanced, as_written = found.groups()
    if not code:
        return ACCEPT if word == "accept" else NOT_OURS
    if code[0] != enhanced[0]:
        raise ValueError(f"{code} and {enhanced} are of different classes")
    return Wanted(int(code), enhanced, as_written=bool(as_written))


def _restrictions(text: str) -> tuple[tuple[FrontEnd, ...], tuple[str, ...]]:
    text = text.strip()
    front_ends: tuple[FrontEnd, ...] = ("milter", "socketmap")
    for words, only in (("milter only", "milter"), ("map only", "socketmap")):
        if text.startswith(words):
            front_ends = ("milter",) if only == "milter" else ("socketmap",)
            text = text.removeprefix(words).lstrip(" ,")
    mtas: tuple[str, ...] = MTAS
    if text.startswith("not on "):
        left_out = text.removeprefix("not on ").replace(",", " ").split()
        if unknown := set(left_out) - set(MTAS):
            raise ValueError(f"{', '.join(sorted(unknown))}: an MTA is one of {', '.join(MTAS)}")
        mtas = tuple(mta for mta in MTAS if mta not in left_out)
        text = ""
    if text:
        raise ValueError(f"cannot read {text!r} behind the title")
    return front_ends, mtas


def _expanded(text: str) -> str:
    """Resolve `{a*64}` and octets such as `\\xff`."""
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    return _OCTET.sub(lambda found: _octets(found[0]), text)


def _octets(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("\\x", "")).decode("utf-8", "surrogateescape")


def _blocks(text: str) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Cut a text into statements, each with its number and the indented lines that belong to it."""
    head: tuple[int, str] | None = None
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            line = ""  # noqa: PLW2901 - a comment leaves its line, so that lines can be counted
        if not line.strip() or line[0] in " \t":
            if head:
                block.append((number, line))
            elif line.strip():
                yield number, line, []
            continue
        if head:
            yield *head, _trimmed(block)
        head, block = (number, line.rstrip()), []
    if head:
        yield *head, _trimmed(block)


def _trimmed(block: list[tuple[int, str]]) -> list[tuple[int, str]]:
    while block and not block[-1][1].strip():
        block.pop()
    return block
