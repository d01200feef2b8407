"""What may wait: done in slices, by a thread that is there only as long as there is something to do.

What is learnt in advance makes later questions cheap, and must not make the questions of now dear. So a slice takes
some tenths of a millisecond, which is as long as a question may have to wait for the interpreter, and between slices
the thread sleeps longer than it worked.

Where no thread is to be had nothing is learnt in advance.
"""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

REST = 1.0  # of the time that a slice took
LEAST = 0.0005  # seconds of rest
ENDING = 1.0  # seconds that `close` waits for a slice to end

Slice = Callable[[], bool]
"""Does a little, and says whether there is more to do; raises nothing."""


class Learning:
    """What is to be learnt in advance for one judge; any thread."""

    def __init__(self) -> None:
        self._wanted: list[Slice] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def want(self, what: Slice) -> None:
        """Have something learnt, unless it is being learnt."""
        with self._lock:
            if self._closed or (what in self._wanted and self._thread and self._thread.is_alive()):
                return
            if what not in self._wanted:
                self._wanted.append(what)
            if self._thread is None or not self._thread.is_alive():  # none yet, or it is a child's parent's
                thread = threading.Thread(target=self._learn, name="cyrus learning", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    _log.warning("cannot learn in advance: %s", error)
                    return
                self._thread = thread

    def close(self) -> None:
        """Learn nothing more."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread:
            thread.join(ENDING)

    def _learn(self) -> None:
        while what := self._next():
            begun = time.monotonic()
            try:
                more = what()
            except Exception:
                _log.exception("could not learn in advance")
                more = False
            if not more:
                with self._lock:
                    self._wanted.remove(what)
            time.sleep(max(LEAST, REST * (time.monotonic() - begun)))

    def _next(self) -> Slice | None:
        with self._lock:
            if self._closed or not self._wanted:
                self._thread = None
                return None
            return self._wanted[0]
