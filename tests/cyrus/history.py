"""What was true when: a writer's account of its changes, against which answers given meanwhile are held.

    history = History({b"foo": MISSING})
    with history.change({b"foo": b"OK foo"}):
        imap.create("user/foo")                 # true before, true after: while it runs, either
    asked = history.now()
    answer = ...
    history.check(b"foo", asked, answer)        # raises when that was true at no moment since

Any thread may check; one thread alone changes.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_FOR_EVER = float("inf")


@dataclass
class _Truth:
    """An answer that may be given from the begin of the change that brought it to the end of the one that ended it."""

    answers: frozenset[bytes]
    begin: float
    end: float = _FOR_EVER


class History:
    """Which answer each question may have had at which moment."""

    def __init__(self, truths: Mapping[bytes, bytes]) -> None:
        self._lock = threading.Lock()
        self._truths = {question: [_Truth(frozenset({answer}), 0.0)] for question, answer in truths.items()}

    @staticmethod
    def now() -> float:
        """A moment."""
        return time.monotonic()

    @contextmanager
    def change(self, to: Mapping[bytes, bytes], *, meanwhile: frozenset[bytes] = frozenset()) -> Iterator[None]:
        """Run a change: until it is done the old answers are right, from its begin on the new ones are.

        `meanwhile` are answers that are true for a moment in the middle of it.
        """
        with self._lock:
            begin = self.now()
            for question, answer in to.items():
                self._truths[question].append(_Truth(frozenset({answer}) | meanwhile, begin))
        yield
        with self._lock:
            end = self.now()
            for question, answer in to.items():
                *_, old, new = self._truths[question]
                old.end = end
                if meanwhile:
                    new.end = end
                    self._truths[question].append(_Truth(frozenset({answer}), begin))

    def check(self, question: bytes, asked: float, answer: bytes) -> None:
        """Raise `AssertionError` unless the answer was true at some moment from `asked` to now."""
        now = self.now()
        with self._lock:
            truths = list(self._truths[question])
        possible = {one for truth in truths if truth.begin <= now and truth.end >= asked for one in truth.answers}
        assert answer in possible, f"{question!r}: {answer!r}, but true was {possible} (asked {now - asked:.4f} s ago)"

    def questions(self) -> frozenset[bytes]:
        """Every question of which it is told what was true."""
        return frozenset(self._truths)

    def answers(self, question: bytes) -> list[bytes]:
        """Every answer that was true for a question, in order."""
        with self._lock:
            return [one for truth in self._truths[question] for one in truth.answers]
