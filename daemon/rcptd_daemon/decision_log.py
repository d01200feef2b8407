"""The line of a decision in the log: what was asked, what was said, and by whom.

Most of a busy daemon's log is refusals, and most of what a refusal costs was its line. So what lines have in common is
put into words once, and the writer says when the rest is.
"""

import time
from typing import Any

from rcptd.decision import Decision, Told
from rcptd.query import UNKNOWN, Query
from rcptd.question import Answer, Busy
from rcptd.settled import Said
from rcptd.trace import Mask, describe
from rcptd.verdict import Action, Verdict
from rcptd_daemon import logs
from rcptd_daemon.privacy import mask_for

ADDRESS = 320  # 64 + 1 + 255, as RFC 5321 4.5.3.1 has it for each part; a map's key may be 10,000
SAID = 1000
KNOWN = 500  # parts of lines that are kept in words


# What a line begins with, put into words once.
HEADS = {said: logs.Group({"level": "info", "msg": said}) for said in ("abandoned", "none")} | {
    action: logs.Group({"level": "info", "msg": action.value}) for action in Action
}


class DecisionLog:
    """Writes the line of a decision; called in whichever thread ended it, waits for nothing."""

    def __init__(self, settings: logs.Settings, writer: logs.Writer) -> None:
        self._writer = writer
        self.mask: Mask = mask_for(settings.addresses)
        self._refused = settings.decisions != "none"
        self._all = settings.decisions == "all"
        self._known: dict[tuple[int | str, ...], tuple[logs.Group, Verdict | None, Answer | Busy | None]] = {}

    def is_logged(self, verdict: Verdict | None) -> bool:
        """Say whether decisions with a verdict are logged; any thread may call."""
        return self._all if verdict is None or verdict.action is Action.ACCEPT else self._refused

    def on_verdict(self, told: Told) -> None:
        """Log a decision, if its kind is logged."""
        if self.is_logged(None if told.abandoned else told.verdict):
            self._writer.put(logs.Later(time.time(), self._fields, told))

    def on_shadow(self, decision: Decision, rule: str, verdict: Verdict | None) -> None:
        """Log what a rule in shadow would have said."""
        if not self._refused:
            return
        said = verdict.reply if verdict else "no opinion"
        fields = {
            "level": "info",
            "msg": "shadow",
            "ref": decision.reference,
            "recipient": self._shown(decision.query.recipient),
            "rule": rule,
            "would": said,
        }
        self._writer.put(logs.Later(time.time(), dict, fields))

    def _fields(self, told: Told) -> dict[str, Any]:
        query = told.query
        verdict = told.verdict
        fields: dict[str, Any] = {
            "head": HEADS["abandoned" if told.abandoned else verdict.action if verdict else "none"],
            "ref": told.reference,
            "recipient": self._shown(query.recipient),
            "reason": self._same(None if told.abandoned else verdict, told.said, query),
        }
        if query.sender is not UNKNOWN:
            fields["sender"] = self._shown(query.sender) if query.sender else "<>"
        if query.client is not UNKNOWN and query.client is not None:
            fields["client"] = query.client
        if query.session:
            fields["session"] = query.session
        fields["ms"] = f"{told.seconds * 1000:.3f}"
        return fields

    def _same(self, verdict: Verdict | None, said: Said | None, query: Query) -> logs.Group:
        """Give the verdict, what a store said and who asked, as fields: a few of these are in nearly all lines."""
        store, answer = said or ("", None)
        key = (id(verdict), store, id(answer), query.front_end, query.map)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            # With what the key is of, so that nothing else can have its identity.
            known = self._known[key] = (logs.Group(self._reason(verdict, said, query)), verdict, answer)
        return known[0]

    def _reason(self, verdict: Verdict | None, said: Said | None, query: Query) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if verdict:
            fields = {
                "code": verdict.code,
                "enhanced": verdict.enhanced,
                "cause": verdict.cause.value,
                "rule": verdict.rule,
            }
        if said:
            store, answer = said
            fields |= {"store": store, "said": _cut(describe(answer, self.mask), SAID)}
        fields["front_end"] = query.front_end
        if query.map:
            fields["map"] = query.map
        return fields

    def _shown(self, address: str) -> str:
        return _cut(self.mask(address), ADDRESS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
