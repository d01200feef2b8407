"""The guard against mass vanishing: many good addresses that turn into noes together are a fault, not a fact.

A list that came out empty, a directory with the wrong base, a next hop that has begun to refuse us in the words of
"unknown user" look to a filter like a thousand mailboxes deleted at once. So of every good address that is asked
about again it is kept whether it is still there. When at least `least` of a domain are gone, and they are the larger
part, noes are not believed there until most of those very addresses have come back, or until `hold` has passed. That
others are there, or that time passes, says nothing: half of a domain may have been kept in a place that is lost.

Pure: times are handed in, seconds on any one clock. On the loop only.
"""

import logging
from collections import OrderedDict

_log = logging.getLogger("rcptd.memo")

MOST_ADDRESSES = 1000
"""How many addresses of a domain are kept track of; the newest count."""

MOST_DOMAINS = 10_000


class _Domain:
    """What was seen of a domain's good addresses; once it is held, which of those that vanished are still missing."""

    __slots__ = ("missing", "seen", "since", "vanished")

    def __init__(self) -> None:
        self.seen: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self.since = 0.0
        self.vanished: set[str] = set()
        self.missing: set[str] = set()


class Vanishing:
    """Which domains of a store have lost so many good addresses that its noes are not believed."""

    def __init__(self, store: str, *, least: int, share: int, window: float, hold: float) -> None:
        self._store = store
        self._least = least
        self._share = share
        self._window = window
        self._hold = hold
        self._domains: OrderedDict[str, _Domain] = OrderedDict()
        self._held: set[str] = set()

    def note(self, domain: str, key: str, *, gone: bool, now: float) -> None:
        """Note that an address that was good is still there, or has just gone."""
        if not self._least:
            return
        found = self._domains.get(domain)
        if found is None:
            found = self._domains[domain] = _Domain()
            if len(self._domains) > MOST_DOMAINS:
                old, _ = self._domains.popitem(last=False)
                self._held.discard(old)
        if domain in self._held:
            self._note_held(domain, found, key, gone=gone)
            return
        found.seen.pop(key, None)
        found.seen[key] = (now, gone)
        if len(found.seen) > MOST_ADDRESSES:
            found.seen.popitem(last=False)
        self._judge(domain, found, now)

    def is_missing(self, domain: str, key: str) -> bool:
        """Say whether an address is one of those that vanished, and has not come back."""
        return domain in self._held and key in self._domains[domain].missing

    def is_held(self, domain: str) -> bool:
        """Say what `holds` said last; any thread may call."""
        return domain in self._held

    def holds(self, domain: str, now: float) -> bool:
        """Say whether noes of a domain are not to be believed."""
        if domain not in self._held:
            return False
        found = self._domains[domain]
        if now - found.since < self._hold:
            return True
        _log.error(
            "store %s: the good addresses of %s that vanished together have not come back; the noes are believed now",
            self._store,
            domain or "no domain",
        )
        self._release(domain, found)
        return False

    def forget(self, domain: str = "") -> None:
        """Begin anew with a domain, or with all, as when an operator says that the noes are right."""
        if domain:
            self._domains.pop(domain, None)
            self._held.discard(domain)
        else:
            self._domains.clear()
            self._held.clear()

    def condition(self) -> str:
        """Name the domains whose noes are not believed, "" for none; any thread may call."""
        held = sorted(self._held)  # a copy: the loop may change the set
        if not held:
            return ""
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        return f"noes of {', '.join(held[:3])}{more} not believed: good addresses vanished together"

    def _judge(self, domain: str, found: _Domain, now: float) -> None:
        while found.seen and now - next(iter(found.seen.values()))[0] > self._window:
            found.seen.popitem(last=False)
        gone = [key for key, (_, lost) in found.seen.items() if lost]
        if len(gone) >= self._least and len(gone) * 100 >= self._share * len(found.seen):
            found.since = now
            found.vanished, found.missing = set(gone), set(gone)
            self._held.add(domain)
            _log.error(
                "store %s: %d good addresses of %s vanished together, of %d asked about again within %g min; its noes "
                "are deferred, see rcptd memo show; rcptd memo purge @%s if they are right",
                self._store, len(gone), domain or "no domain", len(found.seen), self._window / 60, domain,
            )  # fmt: skip

    def _note_held(self, domain: str, found: _Domain, key: str, *, gone: bool) -> None:
        if gone:
            if key in found.vanished or len(found.vanished) < MOST_ADDRESSES:
                found.vanished.add(key)
                found.missing.add(key)
            return
        found.missing.discard(key)
        if 2 * len(found.missing) < len(found.vanished):
            _log.warning("store %s: the addresses of %s are back; its noes are believed again", self._store, domain)
            self._release(domain, found)

    def _release(self, domain: str, found: _Domain) -> None:
        self._held.discard(domain)
        found.seen.clear()
        found.vanished.clear()
        found.missing.clear()
