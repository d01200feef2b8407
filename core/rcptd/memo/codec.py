"""Answers as text, for the file that survives a restart; only what counts for long is kept.

Reading trusts nothing: whatever is not exactly what was written is no answer.
"""

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from rcptd.question import PLAIN, Absence, Answer, Disabled, Found, Mailbox, NotFound, Posting, Quota

LENGTH = 8192
"""How long the text of one answer may be, in characters; a longer one is not kept."""


def encode(answer: Answer) -> str | None:
    """Write an answer, None for one that is not kept: "cannot tell" counts for a moment only."""
    match answer:
        case Found(mailbox, source):
            known = {} if mailbox == PLAIN else _less_defaults(mailbox)
            text = json.dumps({"found": known, "source": source})
        case NotFound(absence, source):
            text = json.dumps({"absent": absence.name, "source": source})
        case _:
            return None
    return text if len(text) <= LENGTH else None


def decode(text: object) -> Answer | None:
    """Read an answer, None where the text is none."""
    return _decode(text) if isinstance(text, str) and len(text) <= LENGTH else None


@lru_cache(maxsize=256)  # nearly all rows of a store are the same few words: read once, and kept once
def _decode(text: str) -> Answer | None:
    try:
        table = json.loads(text)
        source = table["source"]
        if not isinstance(source, str):
            return None
        if "absent" in table:
            return NotFound(Absence[table["absent"]], source)
        return Found(_mailbox(table["found"]), source)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _less_defaults(mailbox: Mailbox) -> dict[str, Any]:
    return {name: value for name, value in asdict(mailbox).items() if value != getattr(PLAIN, name)}


def _mailbox(table: dict[str, Any]) -> Mailbox:
    """Make a mailbox of its facts; raises what a wrong one comes to."""
    if not table:
        return PLAIN
    facts: dict[str, Any] = {}
    for name, value in table.items():
        match name:
            case "spelling" | "moved_to" | "server":
                facts[name] = _of(str, value)
            case "catch_all" | "unproven":
                facts[name] = _of(bool, value)
            case "targets":
                facts[name] = _texts(value)
            case "disabled":
                facts[name] = Disabled(
                    _of(bool, value["temporary"]), _of(str, value["text"]), _number(value["until"], float)
                )
            case "posting":
                facts[name] = Posting(
                    _of(bool, value["authenticated"]), _texts(value["networks"]), _texts(value["senders"])
                )
            case "quota":
                facts[name] = _quota(value)
            case _:
                raise ValueError(name)
    return Mailbox(**facts)


def _quota(value: dict[str, Any]) -> Quota:
    final = value["final"]
    return Quota(
        _number(value["bytes_limit"], int),
        _of(int, value["bytes_used"]),
        _number(value["messages_limit"], int),
        _of(int, value["messages_used"]),
        _of(int, value["unsized"]),
        None if final is None else _of(bool, final),
    )


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(value)
    return value


def _number(value: Any, kind: type) -> Any:
    return None if value is None else _of(kind, value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_of(str, item) for item in _of(list, value))
