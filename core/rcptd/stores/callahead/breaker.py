"""Whether a next hop is worth asking now: a breaker that opens when it does not answer, or refuses us.

Theory of operation. Pure: time and randomness are handed in. Closed, it lets everybody through and counts
troubles that follow each other; a success counts them back to none. At the third it opens for a pause, during
which nobody waits for the hop. After the pause it is half open: one question is let through as a probe, and
its end decides. A success closes, a failure opens again, for twice the pause, up to five minutes.

Each pause is shortened by up to a fifth at random, so that many processes do not come back to a hop that
has just risen all at once. A probe of which nothing was heard for as long as `PATIENCE` is given up, and the next
question is the probe: a question that was cancelled must not leave the breaker half open for ever.
"""

from collections.abc import Callable

FAILURES = 3  # troubles in a row that open it: one is chance, two a restart
FIRST = 1.0  # seconds of the first pause
MOST = 300.0  # seconds of the longest pause
JITTER = 0.2  # the share of a pause that chance may take away
PATIENCE = 60.0  # seconds after which a probe is given up


class Breaker:
    """The breaker of one next hop; `random` gives a number from 0 to 1. Only the loop may call."""

    __slots__ = ("_failures", "_opened", "_probing_until", "_random", "_until")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0
        self._opened = 0  # how often in a row, 0 while closed
        self._until = 0.0
        self._probing_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Say whether the hop was last found unwell; half open counts as open."""
        return self._opened > 0

    def admits(self, now: float) -> bool:
        """Say whether the hop may be asked now; where half open, whoever is told so is the probe."""
        if not self._opened:
            return True
        if now < self._until or (self._probing_until is not None and now < self._probing_until):
            return False
        self._probing_until = now + PATIENCE
        return True

    def would_admit(self, now: float) -> bool:
        """Say what `admits` would, without becoming the probe."""
        return not self._opened or (now >= self._until and (self._probing_until or 0.0) <= now)

    def pause(self, now: float) -> float:
        """Tell in how many seconds a probe may go out, 0 while closed or due."""
        return max(0.0, self._until - now) if self._opened else 0.0

    def succeeded(self) -> bool:
        """Close; says whether it was open."""
        was_open = self._opened > 0
        self._failures = self._opened = 0
        self._probing_until = None
        return was_open

    def failed(self, now: float) -> bool:
        """Count a trouble; says whether it opened the breaker that was closed before."""
        self._failures += 1
        if self._opened:
            # Troubles of questions that went out before it opened say nothing new; only the probe's counts.
            if self._probing_until is not None:
                self._open(now)
            return False
        if self._failures < FAILURES:
            return False
        self._open(now)
        return True

    def withdrawn(self) -> None:
        """Hear that the probe ended without a result; the next question is the probe."""
        self._probing_until = None

    def _open(self, now: float) -> None:
        pause = min(MOST, FIRST * 2.0 ** min(self._opened, 20))
        self._opened += 1
        self._until = now + pause * (1 - JITTER * self._random())
        self._probing_until = None
