"""One dialogue with an MTA and the verdict that each of its recipients must get; plain data.

Made by `tests.harness.cases` from a file. A verdict is written once, as a milter would say it; see
`tests.harness.expect` for what each map and each MTA makes of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from rcptd.query import Query
from rcptd.verdict import Action, Verdict
from tests.harness.world import World

FOREIGN, RELAYING = "127.0.0.2", "127.0.0.1"
SENDER = "<sender@client.example>"
MTAS = ("harness", "postfix", "sendmail")
FrontEnd = Literal["milter", "socketmap"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A verdict as a file tells it; code 250 for `accept` and, with `ours` False, for `not ours`."""

    code: int
    enhanced: str
    ours: bool = True
    as_written: bool = False

    def matches(self, verdict: Verdict | None) -> bool:
        """Say whether the engine's verdict is this one."""
        if verdict is None:
            return not self.ours
        action = {2: Action.ACCEPT, 4: Action.DEFER, 5: Action.REJECT}[self.code // 100]
        said = (verdict.action, verdict.code, verdict.enhanced)
        return self.ours and said == (action, self.code, self.enhanced)

    def __str__(self) -> str:
        if self.code == 250:
            return "accept" if self.ours else "not ours"
        return f"{self.code} {self.enhanced}{' as written' if self.as_written else ''}"


# An MTA says 250 to both; which it was shows where the recipient is of a domain that the MTA calls its own.
ACCEPT = Wanted(250, "2.1.5")
NOT_OURS = Wanted(250, "2.1.5", ours=False)


@dataclass(frozen=True, slots=True)
class Rcpt:
    """One RCPT TO: the path exactly as typed, octets outside UTF-8 as surrogates."""

    line: int
    path: str
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Transaction:
    """One MAIL FROM, its parameters, and the recipients that follow."""

    sender: str
    parameters: tuple[str, ...]
    recipients: tuple[Rcpt, ...]

    @property
    def size(self) -> int:
        """The SIZE of MAIL FROM, 0 without one."""
        sizes = [word[5:] for word in self.parameters if word.upper().startswith("SIZE=")]
        return int(sizes[-1]) if sizes else 0

    @property
    def smtputf8(self) -> bool:
        """Whether MAIL FROM asked for SMTPUTF8."""
        return "SMTPUTF8" in map(str.upper, self.parameters)


@dataclass(frozen=True, slots=True)
class Case:
    """One dialogue; `facts` are those beyond the recipient that it states."""

    file: str
    line: int
    title: str
    client: str
    auth: str
    transactions: tuple[Transaction, ...]
    facts: frozenset[str]
    front_ends: tuple[FrontEnd, ...]
    mtas: tuple[str, ...]

    @property
    def id(self) -> str:
        """What a test calls it."""
        return f"{Path(self.file).stem}:{self.line}: {self.title}"

    def recipients(self) -> Iterator[tuple[Transaction, Rcpt]]:
        """All recipients, each with its transaction."""
        for transaction in self.transactions:
            for one in transaction.recipients:
                yield transaction, one


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One file: its world and its cases."""

    path: str
    world: World
    cases: tuple[Case, ...]


def query(case: Case, transaction: Transaction, one: Rcpt, front_end: FrontEnd, map_name: str = "") -> Query:
    """Make of one recipient the question that a front end would ask the engine."""
    if front_end == "socketmap":
        return Query(one.path, "socketmap", map=map_name)
    return Query(
        one.path,
        "milter",
        sender=transaction.sender[1:-1],
        client=ip_address(case.client),
        authenticated=case.auth,
        size=transaction.size,
        smtputf8=transaction.smtputf8,
    )
