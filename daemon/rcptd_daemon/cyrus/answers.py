"""The respondent of the drop-in: a judge's outcome in Cyrus' words, and what has to be waited for.

Theory of operation. Nearly every question is judged and answered on the spot. Three are not: one that meets the lock
of a writer is asked again after a pause; one for a mailbox that is not there, in a Murder, is asked again when the
mailbox list is up to date; one for a remote mailbox is asked of its backend. They have one deadline for all of it, and
then are deferred, or what else the original would say.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from rcptd.stores.cyrus.databases.errors import Held
from rcptd.stores.cyrus.judge import Judgement, Outcome
from rcptd_daemon.cyrus import words
from rcptd_daemon.cyrus.murder import Murder, Silence
from rcptd_daemon.cyrus.shutdown import ShutdownFile
from rcptd_daemon.cyrus.system_log import NOTICE

_log = logging.getLogger(__name__)

DEADLINE = 6.0
"""How long an answer may take, in seconds: less than the 10 s of Sendmail."""

SHORT = 500
"""How long a request may be that is answered by the shortest way, in octets."""

PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""How long to wait for a writer, in seconds: each of these, then the last again and again."""


class Judges(Protocol):
    """Who judges: what we need of `rcptd.stores.cyrus.judge.Judge`."""

    def judge(self, address: bytes, /) -> Judgement:
        """Judge an address; raises `Held`, never waits."""
        ...


class Answers:
    """Answers in Cyrus' words; on the loop.

    `murder` is None where mailboxes are never remote or missing elsewhere; `kicks` says whether a missing one may be.
    """

    def __init__(
        self,
        judge: Judges,
        *,
        strict: bool,
        audits: bool = False,
        murder: Murder | None = None,
        kicks: bool = False,
        shutdown: ShutdownFile | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._judge = judge.judge
        self._strict = strict
        self._audits = audits
        self._murder = murder
        self._kicks = kicks and murder is not None
        self._shutdown = shutdown
        self._deadline = deadline
        self._logs = audits or _log.isEnabledFor(logging.DEBUG)
        self._plainly = not self._logs and shutdown is None

    def again(self, request: bytes, peer: str, /) -> bytes | None:
        """Answer a request that came alone and whole, where the judge knows at once; None for all else."""
        if not self._plainly or len(request) > SHORT or b"\0" in request:
            return None
        length, _, rest = request.partition(b":")
        name, _, key = rest.partition(b" ")
        if not (name.isalnum() and length.isdigit() and int(length[:6]) == len(rest) - 1 and key.endswith(b",")):
            return None
        key = key[:-1]
        try:
            judgement = self._judge(key)
        except Exception:
            return None  # `begin` meets it, too
        if judgement.outcome is Outcome.OK:
            return words.found(key)
        return None if self._must_wait(judgement) else self._told(judgement, key, peer)

    def begin(self, _name: str, key: bytes, peer: str, /) -> bytes | Coroutine[Any, Any, bytes]:
        """Answer, or begin to find out; the name of the map does not count."""
        if self._shutdown and (reply := self._shutdown.reply()):
            return reply
        try:
            judgement = self._judge(key)
        except Held:
            return self._find_out(None, key, peer)
        except Exception:
            _log.exception("a question could not be judged; deferred")
            return words.TROUBLE
        if not self._logs and judgement.outcome is Outcome.OK:
            return words.found(key)
        if self._must_wait(judgement):
            return self._find_out(judgement, key, peer)
        return self._told(judgement, key, peer)

    def broken(self, complaint: bytes, peer: str, /) -> None:
        """Audit a request that was none."""
        _log.debug("%s: %s; connection closed", peer, complaint.decode("ascii", "replace"))
        if self._audits:
            _audit("failed", b"", peer)

    def _must_wait(self, judgement: Judgement) -> bool:
        outcome = judgement.outcome
        return outcome is Outcome.REMOTE or (self._kicks and outcome is Outcome.NONEXISTENT)

    async def _find_out(self, judgement: Judgement | None, key: bytes, peer: str) -> bytes:
        end = time.monotonic() + self._deadline
        if judgement is None:
            judgement = await self._judge_until(end, key)
        if judgement and self._kicks and self._murder and judgement.outcome is Outcome.NONEXISTENT:
            if not await self._murder.kick(end - time.monotonic()) and self._strict:
                return words.BUSY  # the mailbox may be in a list that we do not have
            judgement = await self._judge_until(end, key)
        if judgement is None:
            _log.warning("a database was locked for %.1f s; a question was deferred", self._deadline)
            return words.BUSY
        if judgement.outcome is Outcome.REMOTE:
            return await self._ask_backend(judgement.server, key, end)
        return self._told(judgement, key, peer)

    async def _judge_until(self, end: float, key: bytes) -> Judgement | None:
        """Ask the judge until no writer is in the way; None when there was one all the time."""
        asked = 0
        while True:
            try:
                return self._judge(key)
            except Held:
                pause = PAUSES[min(asked, len(PAUSES) - 1)]
                if time.monotonic() + pause > end:
                    return None
            asked += 1
            await asyncio.sleep(pause)

    async def _ask_backend(self, server: bytes, key: bytes, end: float) -> bytes:
        if self._strict or self._murder is None:
            return words.BUSY
        said = await self._murder.ask(server, key, end - time.monotonic())
        if said is Silence.NOTHING:
            return words.found(key)
        return words.BUSY if said is Silence.GARBAGE else said

    def _told(self, judgement: Judgement, key: bytes, peer: str) -> bytes:
        outcome = judgement.outcome
        if self._logs:
            if self._audits and (word := words.AUDITED.get(outcome)):
                _audit(word, key, peer)
            if error := words.ERRORS.get(outcome):
                why = f" ({shown(judgement.text)})" if outcome is Outcome.UNKNOWN else ""  # the judge has warned of it
                _log.debug("verify_user(%s) failed: %s%s", shown(key), error, why)
        return words.told(judgement, key, strict=self._strict)


def _audit(word: str, key: bytes, peer: str) -> None:
    _log.log(NOTICE, "auditlog: %s userid=<%s> client=<%s>", word, shown(key), peer)


def shown(octets: bytes) -> str:
    """Give what others wrote as one line of a log."""
    text = octets.decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
