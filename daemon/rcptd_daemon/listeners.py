"""What the daemon listens at: opened at once or not at all, before it serves, or before its workers are forked.

Nothing here starts a thread or needs a loop, so that processes may be forked afterwards. libmilter opens its socket
itself, once in a process, and is given who decides only when there is somebody (`decided_by`).
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rcptd import sockets
from rcptd.config import Configuration
from rcptd.query import Query
from rcptd.sockets import Listening
from rcptd.verdict import OUR_FAULT, Verdict
from rcptd_daemon.sections import Control
from rcptd_milter.session import Decide
from rcptd_milter.settings import Settings as MilterSettings
from rcptd_socketmap.settings import Settings as SocketmapSettings

if TYPE_CHECKING:
    from rcptd_milter.libmilter import Listener

_log = logging.getLogger("rcptd")


def _nobody(_: Query) -> Verdict | None:
    return OUR_FAULT


class Listeners:
    """The open sockets of a configuration; raises `OSError` naming the one that cannot be had."""

    def __init__(self, configuration: Configuration) -> None:
        sections = configuration.sections
        passed = sockets.inherited()
        self.socketmap: list[Listening] = []
        self.control: Listening | None = None
        self.milter: Listener | None = None
        self._decide: Decide = _nobody
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
        if self.milter and milter and milter.listen.kind == "unix":
            self.milter.open()

    def decided_by(self, decide: Decide, ended: Callable[[], None]) -> None:
        """Say who decides for the milter, and who is told (in libmilter's thread) if it ends; before it is started."""
        self._decide = decide
        self._ended = ended

    def _milter_listener(self, settings: MilterSettings) -> "Listener":
        try:
            from rcptd_milter.libmilter import Listener  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise OSError(
                f"[milter] needs pymilter, which cannot be imported ({error}); install it with: "
                f"{sys.executable} -m pip install 'rcptd[milter]'"
            ) from None
        return Listener(settings, self._decide_for_milter, ended=self._milter_ended)

    def _decide_for_milter(self, query: Query) -> Verdict | None:
        return self._decide(query)

    def _milter_ended(self) -> None:
        self._ended()
