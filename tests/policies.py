"""Policies and queries in a line, for tests of the rules and of what runs them."""

import tomllib
from typing import Any

from rcptd.policy import Policy, Rule, read_rules
from rcptd.query import Query
from rcptd.verdict import Verdict

OURS = 'when = { domain = "example.org" }\n'


def faults_of(text: str, *, stores: tuple[str, ...] = ("local",), reached_from_map: bool = True) -> list[str]:
    """Read `[[rules]]` for their faults."""
    faults: list[str] = []
    _read(text, faults, stores, reached_from_map=reached_from_map)
    return faults


def rules(text: str, *, stores: tuple[str, ...] = ("local",), reached_from_map: bool = False) -> tuple[Rule, ...]:
    """Read `[[rules]]`."""
    faults: list[str] = []
    read = _read(text, faults, stores, reached_from_map=reached_from_map)
    assert not faults, faults
    return read


def _read(text: str, faults: list[str], stores: tuple[str, ...], *, reached_from_map: bool) -> tuple[Rule, ...]:
    return read_rules(
        tomllib.loads(text).get("rules", []),
        dict.fromkeys(stores),
        lambda key, what: faults.append(f"{key}: {what}"),
        reached_from_map=reached_from_map,
    )


def policy(text: str, *, stores: tuple[str, ...] = ("local", "other"), **more: Any) -> Policy:
    """Make a policy of `[[rules]]`."""
    return Policy(rules(text, stores=stores), **more)


def milter(recipient: str = "user@example.org", **facts: Any) -> Query:
    """Ask as a milter does, which knows everything."""
    known = {"sender": "", "client": None, "authenticated": "", "size": 0, "smtputf8": False}
    return Query(recipient, "milter", **(known | facts))


def socketmap(recipient: str = "user@example.org", name: str = "map") -> Query:
    """Ask as a socketmap does, which knows nothing else."""
    return Query(recipient, "socketmap", name)


def reply(verdict: Verdict | None) -> str:
    """Put a verdict into its reply code and enhanced code; "not ours" for none."""
    return f"{verdict.code} {verdict.enhanced}" if verdict else "not ours"
