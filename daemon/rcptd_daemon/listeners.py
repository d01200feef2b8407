"""What the daemon listens at: opened at once or not at all, before it serves, or before its workers are forked.

Nothing here starts a thread or needs a loop, so that processes may be forked afterwards. libmilter opens its socket
itself, once in a process, and is given who decides only when there is somebody (`decided_by`).
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rcptd import sockets
from rcptd.config import Configuration
from rcptd.query import Query
from rcptd.settled import Settled
from rcptd.sockets import Listening
from rcptd.verdict import OUR_FAULT, Verdict
from rcptd_daemon.sections import Control
from rcptd_milter.session import Decide, Recall
from rcptd_milter.settings import Settings as MilterSettings
from rcptd_socketmap.settings import Settings as SocketmapSettings

if TYPE_CHECKING:
    from rcptd_milter.libmilter import Listener

_log = logging.getLogger("rcptd")


Share = frozenset[str]
"""The front ends that a process serves."""


def _nobody(_: Query) -> Verdict | None:
    return OUR_FAULT


SECTIONS = ("socketmap", "milter", "control")
"""The sections whose sockets a reload cannot change."""


def listening_as(new: Configuration, old: Configuration) -> Configuration:
    """Give a new configuration with the sockets of the old one, which stay as they are until a restart."""
    kept = {name: section for name, section in old.sections.items() if name in SECTIONS}
    if "socketmap" in kept and (wanted := new.sections.get("socketmap")):
        kept["socketmap"] = wanted.listening_as(kept["socketmap"])
    others = {name: section for name, section in new.sections.items() if name not in SECTIONS}
    return replace(new, sections={**others, **kept}, memo=old.memo)


class Listeners:
    """The open sockets of a configuration; raises `OSError` naming the one that cannot be had.

    With several `workers` each has a control socket of its own, too, at which they ask each other: `own`, and the
    paths of the `others`.
    """

    def __init__(self, configuration: Configuration, workers: int = 1) -> None:
        sections = configuration.sections
        passed = sockets.inherited()
        self.socketmap: list[Listening] = []
        self.control: Listening | None = None
        self.own: Listening | None = None
        self.others: tuple[Path, ...] = ()
        self.shared = workers > 1
        self._private: list[Listening] = []
        self._workers = workers
        self.milter: Listener | None = None
        self._decide: Decide = _nobody
        self._recall: Recall = lambda _: None
        self._ended: Callable[[], None] = lambda: None
        milter = cast(MilterSettings | None, sections.get("milter"))
        if milter:
            self.milter = self._milter_listener(milter)
            # Ports first: whatever is in use is to be found before the name of another's unix socket is taken.
            if milter.listen.kind != "unix":
                self.milter.open()
        if settings := cast(SocketmapSettings | None, sections.get("socketmap")):
            self.socketmap = sockets.listen(
                settings.listen, mode=settings.mode, owner=settings.owner, group=settings.group, passed=passed
            )
        for name in passed.left:
            _log.warning("nobody listens on the inherited descriptor fd:%s; name it in [socketmap] listen", name)
        if section := cast(Control | None, sections.get("control")):
            path = Path(section.listen.host)
            self.control = sockets.listen_unix(path, mode=0o660, owner=section.owner, group=section.group)
            if self.shared:
                names = (path.with_name(f"{path.name}.worker-{number}") for number in range(1, workers + 1))
                self._private = [sockets.listen_unix(name, mode=0o600) for name in names]
        if self.milter and milter and milter.listen.kind == "unix":
            self.milter.open()

    def decided_by(self, decide: Decide, recall: Recall, ended: Callable[[], None]) -> None:
        """Say who decides for the milter and who recalls, and who is told if it ends (in libmilter's thread).

        To be said before it is started.
        """
        self._decide = decide
        self._recall = recall
        self._ended = ended

    def become_of_worker(self, number: int) -> None:
        """Become what the worker of a number listens at; the names stay with the process that it was forked from."""
        self.socketmap = [replace(each, identity=None) for each in self.socketmap]
        self.control = replace(self.control, identity=None) if self.control and number == 1 else None
        if self._private:
            self.own = replace(self._private[number - 1], identity=None)
            paths = [Path(each.address.host) for each in self._private]
            self.others = (*paths[: number - 1], *paths[number:])
        if self.milter:
            self.milter.leave_name(self._workers)

    def close(self) -> None:
        """Close everything and take the names away that are ours."""
        for each in (*self.socketmap, *self._private, *filter(None, (self.control,))):
            each.close()
        if self.milter:
            self.milter.close()

    def _milter_listener(self, settings: MilterSettings) -> "Listener":
        try:
            from rcptd_milter.libmilter import Listener  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise OSError(
                f"[milter] needs pymilter, which cannot be imported ({error}); install it with: "
                f"{sys.executable} -m pip install 'rcptd[milter]'"
            ) from None
        return Listener(settings, self._decide_for_milter, recall=self._recall_for_milter, ended=self._milter_ended)

    def _decide_for_milter(self, query: Query) -> Verdict | None:
        return self._decide(query)

    def _recall_for_milter(self, recipient: str) -> Settled[Any] | None:
        return self._recall(recipient)

    def _milter_ended(self) -> None:
        self._ended()
