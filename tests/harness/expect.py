"""What an MTA says to its client when rcptd has come to a verdict: the one place that knows.

A verdict goes two steps. The front end renders it: a milter as a reply, a map as one of OK, NOTFOUND,
TEMP, PERM, or as a value that carries the reply (the table of docs/verdicts). Then the MTA takes that
in its own way (measured on Postfix 3.7.11 and Sendmail 8.17.1.9; the harness follows Postfix for
`key`, `smmapd` and `access`, and the Sendmail ruleset for `error`). Before all that it refuses relaying
by itself, and some junk never reaches a filter.
"""

from dataclasses import dataclass
from typing import Literal

from rcptd.verdict import NAMED, Cause
from tests.harness.case import RELAYING, Case, Rcpt, Wanted
from tests.harness.world import World

Mode = Literal["milter", "key", "smmapd", "access", "error"]
Mta = Literal["harness", "postfix", "sendmail"]

# A Sendmail ruleset has no use for access(5) actions, and to a Postfix table an `error:` value is a yes.
MODES: dict[Mta, tuple[Mode, ...]] = {
    "harness": ("milter", "key", "smmapd", "access", "error"),
    "postfix": ("milter", "key", "smmapd", "access"),
    "sendmail": ("milter", "key", "smmapd", "error"),
}


class NotExpressibleError(ValueError):
    """This MTA has no use for a map of this kind."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The reply that the client must get, and others that the MTA may give of its own accord."""

    code: int
    enhanced: str
    else_by_mta: tuple[tuple[int, str], ...] = ()

    def meets(self, code: int, enhanced: str) -> bool:
        """Say whether a reply is one of those."""
        return (code, enhanced) in ((self.code, self.enhanced), *self.else_by_mta)

    def __str__(self) -> str:
        return " or ".join(f"{code} {enhanced}" for code, enhanced in self._all())

    def _all(self) -> tuple[tuple[int, str], ...]:
        return ((self.code, self.enhanced), *self.else_by_mta)


_CAUSES = {(verdict.code, verdict.enhanced): verdict.cause for verdict in NAMED}
_OK = (250, "2.1.5")
_TEMP = frozenset(
    {Cause.DISABLED_FOR_NOW, Cause.FULL_FOR_NOW, Cause.UNKNOWN, Cause.OUR_FAULT}
)  # what every map must take for "later"
# The original's own use of it: "may not post" and "over quota for good".
_PERM = frozenset({Cause.NOT_ALLOWED, Cause.FULL, Cause.TOO_LARGE, Cause.OPERATOR})

# The words of a table, as each MTA takes them.
_POSTFIX_TABLE = {"OK": _OK, "NOTFOUND": (550, "5.1.1"), "TEMP": (451, "4.3.0"), "PERM": (451, "4.3.5")}
_SENDMAIL_TABLE = {"OK": _OK, "NOTFOUND": (550, "5.1.1"), "TEMP": (451, "4.4.3"), "PERM": (550, "5.1.1")}
_TABLES = {"harness": _POSTFIX_TABLE, "postfix": _POSTFIX_TABLE, "sendmail": _SENDMAIL_TABLE}

_NO_RELAY = {
    "harness": ((550, "5.7.1"),),
    "postfix": ((554, "5.7.1"), (454, "4.7.1")),  # by reject_ and by defer_unauth_destination
    "sendmail": ((550, "5.7.1"),),
}

# What each MTA's own parser says to junk; whether it is asked at all depends on the kind of junk.
_BAD_SYNTAX = {
    "harness": ((500, ""), (501, "")),
    # A second @ is a route to Postfix, which does not relay for strangers; and a map is asked about
    # <.user@...> as ".user"@..., which is an address, only nobody's.
    "postfix": ((501, "5.1.3"), (500, "5.5.2"), (550, "5.1.1"), *_NO_RELAY["postfix"]),
    "sendmail": ((553, "5.1.0"), (553, "5.1.2"), (553, "5.1.3"), (553, "5.0.0"), (501, "5.1.3"), (501, "5.5.2")),
}


def word(wanted: Wanted, mode: Mode) -> str:
    """Give the word that a map of tables, `key` or `smmapd`, says for a verdict."""
    if wanted.code == 250:
        return "OK" if wanted.ours else "NOTFOUND"
    known = Cause.OPERATOR if wanted.as_written else _CAUSES.get((wanted.code, wanted.enhanced))
    cause = known or Cause.OPERATOR
    if cause in _TEMP or wanted.code < 500:
        return "TEMP"
    if mode == "smmapd":
        return "PERM" if cause in _PERM else "NOTFOUND"
    # Postfix takes PERM for a broken table, so only NOTFOUND refuses; full is never "no such user".
    return "TEMP" if cause in (Cause.FULL, Cause.TOO_LARGE) else "NOTFOUND"


def expected(
    wanted: Wanted, mode: Mode, mta: Mta, *, own_domain: bool = True, relaying: bool = False
) -> Expected:
    """Say what the client gets for a verdict.

    `own_domain` says whether the MTA counts the recipient's domain as its own, `relaying` whether the
    client may send to others. Raises `NotExpressibleError`.
    """
    if mode not in MODES[mta]:
        raise NotExpressibleError(f"{mta} has no use for a map of kind {mode!r}")
    if not own_domain and not relaying:
        first, *others = _NO_RELAY[mta]
        return _mended(Expected(*first, tuple(others)), wanted, mta)
    if not own_domain and mode in ("key", "smmapd", "error"):
        return _mended(Expected(*_OK), wanted, mta)  # such a map is asked about own domains only
    if mode in ("key", "smmapd"):
        return _mended(Expected(*_TABLES[mta][word(wanted, mode)]), wanted, mta)
    if mode == "error" and not wanted.ours:
        return Expected(550, "5.1.1")  # the MTA counts the domain as ours, so NOTFOUND is a no
    if mode == "access" and mta == "postfix" and (wanted.code, wanted.enhanced) == (556, "5.1.10"):
        return Expected(556, "5.1.0")  # Postfix reads one digit there (measured)
    return _mended(Expected(wanted.code, wanted.enhanced), wanted, mta)


def expected_of(case: Case, one: Rcpt, world: World, mode: Mode, mta: Mta) -> Expected:
    """Say what the client of a case gets for one of its recipients."""
    return expected(
        one.wanted,
        mode,
        mta,
        own_domain=world.owns(one.path),
        relaying=case.client == RELAYING or bool(case.auth),
    )


def _mended(reply: Expected, wanted: Wanted, mta: Mta) -> Expected:
    """Allow for what the MTA's own parser refuses before anybody is asked."""
    if (wanted.code, wanted.enhanced) != (553, "5.1.3"):
        return reply
    return Expected(reply.code, reply.enhanced, (*reply.else_by_mta, *_BAD_SYNTAX[mta]))
