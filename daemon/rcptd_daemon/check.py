"""What `rcptd check` finds out: the verdict on an address and the exact reply of each front end.

The same code answers from the file, in the command, and `--live`, in the running daemon: both ask a
`Driver` as the front ends do, and render with the front ends' own renderers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from rcptd.config import Configuration
from rcptd.decision import Decision
from rcptd.drive import Driver
from rcptd.query import UNKNOWN, Query, Unknown
from rcptd.question import Explains
from rcptd.trace import Asked, Mask, describe
from rcptd.verdict import Verdict
from rcptd_milter.replies import Status
from rcptd_milter.replies import reply as milter_reply
from rcptd_socketmap.maps import EVERY_OTHER, Maps, Shape, render


@dataclass(frozen=True, slots=True)
class Facts:
    """What the asker says of the mail: who sends it, from where, as whom, how large.

    A sender or client of None is unknown to the milter, too; `auth` "" is nobody. `smtputf8` says whether
    MAIL FROM asks for it where it must.
    """

    sender: str | None = None
    client: IPv4Address | IPv6Address | None = None
    auth: str = ""
    size: int = 0
    smtputf8: bool = True

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Facts":
        """Read facts as they come over the control socket; raises `ValueError`."""
        sender, client, auth, size = (table.get(name) for name in ("sender", "client", "auth", "size"))
        if not isinstance(sender, str | None) or not isinstance(auth, str | None):
            raise ValueError("sender and auth are texts")  # noqa: TRY004 - one kind of fault
        if not isinstance(size, int | None) or isinstance(size, bool) or (size or 0) < 0:
            raise ValueError("size is a number of octets")
        address = None if client is None else ip_address(str(client))
        bare = None if sender is None else sender.strip("<>")
        return cls(bare, address, auth or "", size or 0, table.get("smtputf8") is not False)

    def query(self, address: str) -> Query:
        """Make the query that the milter would ask."""
        sender: str | Unknown = UNKNOWN if self.sender is None else self.sender
        return Query(
            address,
            "milter",
            sender=sender,
            client=UNKNOWN if self.client is None else self.client,
            authenticated=self.auth,
            size=self.size,
            smtputf8=self.smtputf8,
            session="check",
        )


class Checker:
    """Checks addresses under a configuration by means of a driver; on the loop."""

    def __init__(self, configuration: Configuration, driver: Driver, mask: Mask) -> None:
        socketmap = configuration.sections.get("socketmap")
        self._maps: Maps | None = socketmap.maps if socketmap else None
        # A file without front ends still has verdicts: the milter shows all that there is to them.
        self._milter = "milter" in configuration.sections or not socketmap
        self._driver = driver
        self._mask = mask

    async def check(self, address: str, facts: Facts, map_name: str = "", *, explain: bool = False) -> dict[str, Any]:
        """Give the verdict on an address and each front end's reply, in plain types.

        With a map name only that map is asked, and `outcome` is what its reply means.
        """
        asked: dict[str, Decision] = {}
        replies: dict[str, str] = {}
        if self._milter and not map_name:
            asked["milter"] = await self._ask(facts.query(address), explain=explain)
            replies["milter"] = _as_milter(asked["milter"].verdict)
        maps = self._maps or Maps()
        names = [map_name] if map_name else list(maps.named or {EVERY_OTHER: Shape.KEY}) if self._maps else []
        outcome = ""
        for name in names:
            shape = maps.shape(name)
            query = Query(address, "socketmap", map=name, session="check", wire=shape.value)
            decision = asked[f"socketmap {name}"] = await self._ask(query, explain=explain)
            body = render(shape, decision.verdict, address.encode("utf-8", "surrogateescape"))
            replies[f"socketmap {name}"] = body.decode("utf-8", "surrogateescape")
            if map_name:
                outcome = _outcome_of(shape, decision.verdict, body)
        first = next(iter(asked.values()))
        found = {
            "address": address,
            **_verdict(first),
            "outcome": outcome or _action(first.verdict),
            "replies": replies,
        }
        if explain:
            found["trace"] = {name: self._trace(decision) for name, decision in asked.items()}
        return found

    async def _ask(self, query: Query, *, explain: bool) -> Decision:
        decision = self._driver.begin(query, verbose=explain)
        await self._driver.finish(decision)
        return decision

    def _trace(self, decision: Decision) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for entry in decision.trace.entries:
            if isinstance(entry, Asked):
                found = {
                    "store": entry.store,
                    "asked": self._mask(entry.recipient.key),
                    "answer": describe(entry.answer, self._mask),
                    "ms": round(entry.seconds * 1000, 3),
                }
                if steps := self._steps(decision, entry):
                    found["steps"] = steps
                entries.append(found)
            else:
                words = f"{entry.what} {self._mask(entry.address)}" if entry.address else entry.what
                entries.append({"rule": entry.rule, "note": words})
        return entries

    def _steps(self, decision: Decision, asked: Asked) -> list[str]:
        """Have a store tell how it came to its answer, unless that would show what the log hides."""
        store = decision.world.stores.get(asked.store)
        if not isinstance(store, Explains) or self._mask("local@domain") != "local@domain":
            return []
        return store.explain(asked.recipient)


def _action(verdict: Verdict | None) -> str:
    return verdict.action.value if verdict else "none"


def _verdict(decision: Decision) -> dict[str, Any]:
    verdict = decision.verdict
    found: dict[str, Any] = {"verdict": _action(verdict), "ref": decision.reference}
    if verdict:
        found |= {
            "code": verdict.code,
            "enhanced": verdict.enhanced,
            "text": verdict.text,
            "cause": verdict.cause.value,
            "rule": verdict.rule,
        }
    return found


def _as_milter(verdict: Verdict | None) -> str:
    answer = milter_reply(verdict)
    if answer.status == Status.CONTINUE:
        return "continue"
    return f"{answer.rcode} {answer.xcode} {answer.text}"


def _outcome_of(shape: Shape, verdict: Verdict | None, body: bytes) -> str:
    """Say what a map's reply means to the MTA: accept, none, reject or defer."""
    word = body.split(b" ", 1)[0]
    if shape in (Shape.ACCESS, Shape.ERROR):
        return _action(verdict)
    return {b"OK": "accept", b"NOTFOUND": "reject", b"PERM": "reject"}.get(word, "defer")
