"""A service that remembers: it asks another one only where nothing that it remembers still counts.

Theory of operation. An answer counts for its kind's lifetime from when it was learnt; using it never extends that.
A yes that is used after its refresh time is asked about again in the background, and answers meanwhile. What the
store says then decides; but that it cannot tell replaces nothing, and within `stale` past its life a good answer
still stands in.

A good address whose store says no is not refused at once: for the time of the soft landing, and while too many
vanish together (`vanish`), it is deferred, and asked about again at the pace of a no.

Single flight. Whoever asks about an address joins the question that is under way. That belongs to nobody: when all
who asked have given up, it still ends and is learnt, so that the client's next try finds the answer.

Our own trouble is never remembered. `Unavailable.of_recipient` is, for a moment.

Keys are addresses as they were typed: whether case counts in a local part is for the next hop to say (RFC 5321 2.4).

Threads. `recall`, `peek`, `last_known` and `explain` may be called from any; all else is for the loop, which alone
changes anything.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from rcptd.address import Recipient
from rcptd.memo.entries import Entries, Entry
from rcptd.memo.file import MemoFile, Row
from rcptd.memo.lifetimes import Lifetimes, is_good
from rcptd.memo.telling import ago, told
from rcptd.memo.vanish import MOST_ADDRESSES, Vanishing
from rcptd.question import (
    Answer,
    AsksServers,
    Busy,
    Explains,
    Found,
    NotFound,
    Reports,
    Service,
    Unavailable,
)

_log = logging.getLogger("rcptd.memo")

NOT_REMEMBERED = Busy("")

MOST_FLIGHTS = 10_000
"""How many questions to a store may be under way; beyond, none is begun."""

LONGEST_FLIGHT = 120.0
"""How long, in seconds, a question may be under way whatever its store does."""

STANDS = 60.0
"""How long, in seconds, a remembered answer may be given again without a look at it: each look keeps it from being
forgotten."""

RETRY = 30.0
"""How long, in seconds, until a refresh that failed is tried again."""


class Remembering:
    """A service in front of another one, `service`, called `name` in the configuration."""

    def __init__(
        self,
        name: str,
        service: Service,
        lifetimes: Lifetimes,
        *,
        file: MemoFile | None = None,
        fingerprint: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.next_hop = service.next_hop
        self.service = service
        self.counts: Counter[str] = Counter()
        self._name = name
        self._lifetimes = lifetimes
        self._entries = Entries(lifetimes.most)
        self._vanishing = Vanishing(
            name,
            least=lifetimes.vanish,
            share=lifetimes.vanish_share,
            window=lifetimes.vanish_window,
            hold=lifetimes.vanish_hold,
        )
        self._clock = clock
        self._file = file
        self._fingerprint = fingerprint
        self._since_epoch = time.time() - clock()  # fixed, so that a clock that is set makes no answer older
        self._flights: dict[str, asyncio.Task[Answer]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._void: set[asyncio.Task[Answer]] = set()  # questions from before a purge
        self._standing = object()
        if file:
            self._load(file, fingerprint)

    # From any thread.

    def recall(self, recipient: Recipient) -> Answer | Busy:
        """Give the remembered answer that still counts, and see to it that it stays fresh."""
        entry = self._entries.get(f"{recipient.local}@{recipient.domain}")
        if entry is None:
            return NOT_REMEMBERED
        now = self._clock()
        if now >= entry.until or self._is_doubted(entry, recipient.domain):
            return NOT_REMEMBERED
        entry.used = True
        if now >= entry.refresh_at and not entry.refreshing:
            if self._loop is None:
                return NOT_REMEMBERED  # read from the file, and nobody has asked on the loop yet
            entry.refreshing = True
            self._loop.call_soon_threadsafe(self._refresh, _key(recipient), recipient, "")
        return entry.answer

    def peek(self, recipient: Recipient) -> Answer | Busy:
        """Give the remembered answer that still counts, unnoticed."""
        entry = self._entries.get(_key(recipient))
        if entry is None or self._clock() >= entry.until or self._is_doubted(entry, recipient.domain):
            return NOT_REMEMBERED
        return entry.answer

    def last_known(self, recipient: Recipient) -> Answer | None:
        """Give the last good answer, where it may stand in for one that does not come."""
        return self._stale(self._entries.get(_key(recipient)))

    def standing(self) -> object:
        """Give the same object until an answer is another one, or may not be believed any more."""
        return self._standing

    def stands_until(self, recipient: Recipient) -> float:
        """Say how long the answer counts before it is to be looked at again, or asked about."""
        entry = self._entries.get(_key(recipient))
        return min(entry.until, entry.refresh_at, self._clock() + STANDS) if entry else 0.0

    def explain(self, recipient: Recipient) -> list[str]:
        """Tell what is remembered, from when and for how long, and how the store comes to an answer."""
        key = _key(recipient)
        first, *more = self._told(self._entries.get(key))
        steps = [f"remembered: {first}", *(f"    {line}" for line in more)]
        if key in self._flights:
            steps.append("a question is under way")
        if condition := self._vanishing.condition():
            steps.append(condition)
        if isinstance(self.service, Explains):
            steps += self.service.explain(recipient)
        return steps

    def condition(self) -> str:
        """Say in a few words what is wrong."""
        inner = self.service.condition() if isinstance(self.service, Reports) else ""
        return "; ".join(filter(None, (self._vanishing.condition(), inner)))

    # On the loop.

    async def ask(self, recipient: Recipient) -> Answer:
        """Say what is remembered, or ask."""
        self._loop = asyncio.get_running_loop()
        said = self.recall(recipient)
        if not isinstance(said, Busy):
            return said
        return await self._join(_key(recipient), recipient, "")

    async def ask_at(self, server: str, recipient: Recipient) -> Answer:
        """Say what is remembered of a server, or ask it; a domain has no space, so such a key is no address."""
        self._loop = asyncio.get_running_loop()
        key = f"{_key(recipient)} {server}"
        entry = self._entries.get(key)
        now = self._clock()
        if entry is None or now >= entry.until or self._is_doubted(entry, recipient.domain):
            return await self._join(key, recipient, server)
        entry.used = True
        if now >= entry.refresh_at and not entry.refreshing:
            entry.refreshing = True
            self._refresh(key, recipient, server)
        return entry.answer

    async def ask_in_shadow(self, recipient: Recipient) -> Answer:
        """Ask the store past the memory."""
        return await self.service.ask(recipient)

    async def aclose(self) -> None:
        """End what is under way, then close the store."""
        flights = (*self._flights.values(), *self._void)
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights, timeout=1)
        await self.service.aclose()

    def show(self, address: str, most: int) -> tuple[int, list[tuple[str, list[str]]]]:
        """Tell what is remembered of an address, of a domain (`@domain`), or of everybody (""); of `most` at most.

        Gives how many answers there are, too.
        """
        found = list(self._matching(address))
        return len(found), [(key, self._told(entry)) for key, entry in found[:most]]

    def purge(self, address: str) -> int:
        """Forget an address, a domain, or everybody, as in `show`; gives how many answers that were.

        Questions about them that are under way are not learnt from, nor joined, as they may have been answered before.
        """
        of_many = not address or address.startswith("@")
        if of_many:
            self._vanishing.forget(address[1:].casefold())
        meant = _meant(address)
        for key in [*filter(meant, self._flights)]:
            self._void.add(self._flights.pop(key))
        keys = [key for key, _ in self._matching(address)]
        for key in keys:
            self._entries.remove(key)
            if self._file and not of_many:
                self._file.remove(self._name, key)
        self._standing = object()
        if self._file and of_many:
            self._file.remove_all(self._name, address.casefold())
        return len(keys)

    def _matching(self, address: str) -> Iterator[tuple[str, Entry]]:
        meant = _meant(address)
        return ((key, entry) for key, entry in self._entries.items() if meant(key))

    def _told(self, entry: Entry | None) -> list[str]:
        return told(entry, self._clock(), self._lifetimes.stale if self._stale(entry) else 0.0)

    # Asking.

    def _refresh(self, key: str, recipient: Recipient, server: str) -> None:
        if key in self._flights:
            return
        if len(self._flights) + len(self._void) < MOST_FLIGHTS:
            self.counts["refreshed"] += 1
            self._start(key, recipient, server)
        else:
            self._not_fresh(key)

    async def _join(self, key: str, recipient: Recipient, server: str) -> Answer:
        flight = self._flights.get(key)
        if flight:
            self.counts["joined"] += 1
        elif len(self._flights) + len(self._void) < MOST_FLIGHTS:
            self.counts["asked"] += 1
            flight = self._start(key, recipient, server)
        else:
            why = Unavailable(f"{MOST_FLIGHTS} questions to the store are under way")
            return self._stale(self._entries.get(key)) or why
        return await asyncio.shield(flight)

    def _start(self, key: str, recipient: Recipient, server: str) -> "asyncio.Task[Answer]":
        flight = asyncio.get_running_loop().create_task(self._fly(key, recipient, server))
        self._flights[key] = flight
        flight.add_done_callback(lambda _: self._landed(key, flight))
        return flight

    def _landed(self, key: str, flight: "asyncio.Task[Answer]") -> None:
        self._void.discard(flight)
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, key: str, recipient: Recipient, server: str) -> Answer:
        try:
            async with asyncio.timeout(LONGEST_FLIGHT):
                if not server:
                    said = await self.service.ask(recipient)
                elif isinstance(self.service, AsksServers):
                    said = await self.service.ask_at(server, recipient)
                else:
                    said = Unavailable(f"cannot ask the server {server}")
        except TimeoutError:
            said = Unavailable(f"no answer within {LONGEST_FLIGHT:g} s")
        except Exception as error:
            # A bug of the store's: those who were good stay so, and nothing is learnt.
            _log.exception("store %s failed", self._name)
            said = Unavailable(f"failed: {error!r}")
        if asyncio.current_task() in self._void:
            return self._believed(recipient.domain, said, self._clock())
        return self._learn(key, recipient.domain, said)

    # Learning.

    def _learn(self, key: str, domain: str, said: Answer) -> Answer:
        """Take in what the store said; gives what to answer."""
        now = self._clock()
        before = self._entries.get(key)
        match said:
            case Found(mailbox):
                if (before and before.good_at is not None) or self._vanishing.is_missing(domain, key):
                    self._note(domain, key, gone=False, now=now)
                good_at = now if is_good(mailbox) else before.good_at if before else None
                self._remember(key, said, now, good_at=good_at)
                return said
            case NotFound():
                return self._not_there(key, domain, said, before, now)
            case _:
                return self._cannot_tell(key, said, before, now)

    def _not_there(self, key: str, domain: str, said: NotFound, before: Entry | None, now: float) -> Answer:
        long_ago = before and before.good_at is not None and now - before.good_at > self._longest_good
        # What has begun to land goes on for its time, whenever it was good.
        if before is None or before.good_at is None or (long_ago and before.gone_at is None):
            believed = self._believed(domain, said, now)
            if believed is said:
                self._remember(key, said, now)
            return believed
        gone_at = before.gone_at
        if gone_at is None:
            gone_at = now
            self._note(domain, key, gone=True, now=now)
        if self._vanishing.holds(domain, now):
            why = "many good addresses vanished together"
        elif now - gone_at < self._lifetimes.soft_landing:
            why = f"it was good until {ago(now - gone_at)}"
        else:
            self._remember(key, said, now)
            return said
        self.counts["deferred"] += 1
        answer = Unavailable(f"says no, which is not believed yet: {why} ({said.source or said.absence.value})")
        life = self._lifetimes.no
        self._remember(key, answer, now, good_at=before.good_at, gone_at=gone_at, life=life)
        return answer

    def _note(self, domain: str, key: str, *, gone: bool, now: float) -> None:
        held = self._vanishing.is_held(domain)
        self._vanishing.note(domain, key, gone=gone, now=now)
        if self._vanishing.is_held(domain) and not held:
            self._standing = object()  # the other noes of the domain are in doubt

    def _believed(self, domain: str, said: Answer, now: float) -> Answer:
        """Give an answer, or "cannot tell" for a no of a domain whose good addresses vanished together."""
        if isinstance(said, NotFound) and self._vanishing.holds(domain, now):
            return Unavailable(f"not believed, as many vanished together: {said.source or said.absence.value}")
        return said

    def _is_doubted(self, entry: Entry, domain: str) -> bool:
        """Say whether an answer is a no from before the good addresses of its domain vanished together."""
        return isinstance(entry.answer, NotFound) and self._vanishing.is_held(domain)

    def _cannot_tell(self, key: str, said: Unavailable, before: Entry | None, now: float) -> Answer:
        self._not_fresh(key)
        good = self._stale(before)
        if good:
            self.counts["stale"] += 1
            return good
        if said.of_recipient and (before is None or before.good_at is None):
            self._remember(key, said, now)
        return said

    def _not_fresh(self, key: str) -> None:
        """Let a refresh that came to nothing be tried again later."""
        if entry := self._entries.get(key):
            entry.refresh_at = self._clock() + RETRY
            entry.refreshing = False

    def _stale(self, entry: Entry | None) -> Found | None:
        """Give a good answer that may stand in; one that counts still does so all the more."""
        if entry is None or not isinstance(entry.answer, Found) or not is_good(entry.answer.mailbox):
            return None
        return entry.answer if self._clock() < entry.until + self._lifetimes.stale else None

    @property
    def _longest_good(self) -> float:
        return self._lifetimes.yes + max(self._lifetimes.stale, self._lifetimes.soft_landing)

    def _remember(
        self,
        key: str,
        answer: Answer,
        asked: float,
        *,
        good_at: float | None = None,
        gone_at: float | None = None,
        life: float | None = None,
        to_file: bool = True,
    ) -> None:
        life = self._lifetimes.life(answer) if life is None else life
        refresh_at = asked + self._lifetimes.refresh_after(answer)
        entry = Entry(
            answer, asked=asked, until=asked + life, refresh_at=refresh_at, good_at=good_at, gone_at=gone_at
        )
        before = self._entries.get(key)
        forgotten = self._entries.put(key, entry)
        if before and before.answer != answer:
            self._standing = object()  # behind the change: what is learnt of it in between falls with the old one
        if self._file and to_file:
            for other in forgotten:
                self._file.remove(self._name, other)
            if not (isinstance(answer, Unavailable) and good_at is None):
                kept = None if isinstance(answer, Unavailable) else answer
                epoch = self._since_epoch
                self._file.put(
                    self._name,
                    self._fingerprint,
                    Row(key, kept, asked + epoch, _plus(good_at, epoch), _plus(gone_at, epoch)),
                )

    def _load(self, file: MemoFile, fingerprint: str) -> None:
        now = self._clock()
        oldest = now - self._longest_good
        for row in file.load(self._name, fingerprint, self._lifetimes.most, oldest + self._since_epoch):
            # A clock that was ahead when a row was written must not make it last longer.
            asked = min(row.asked - self._since_epoch, now)
            good_at, gone_at = (_plus(at, -self._since_epoch) for at in (row.good, row.gone))
            good_at = None if good_at is None else min(good_at, asked)
            gone_at = None if gone_at is None else min(gone_at, asked)
            answer = row.answer or Unavailable("said no before the restart")
            if good_at is None and asked + self._lifetimes.life(answer) <= now:
                continue
            self._remember(
                row.key,
                answer,
                asked,
                good_at=good_at,
                gone_at=gone_at,
                life=None if row.answer else 0.0,
                to_file=False,
            )
        self._note_vanished()

    def _note_vanished(self) -> None:
        """Let the guard see again what it saw before the restart, or that would be the end of it."""
        gone: dict[str, dict[str, float]] = {}
        there: dict[str, dict[str, float]] = {}
        for key, entry in self._entries.items():
            if entry.gone_at is not None and entry.good_at is not None:
                gone.setdefault(_domain(key), {})[key] = entry.gone_at
        for key, entry in self._entries.items() if gone else ():
            if entry.good_at == entry.asked and (domain := _domain(key)) in gone:
                there.setdefault(domain, {})[key] = entry.asked
        for domain, vanished in gone.items():
            begun = min(vanished.values())
            seen = [(at, key) for key, at in {**vanished, **there.get(domain, {})}.items() if at >= begun]
            for at, key in sorted(seen)[-2 * MOST_ADDRESSES :]:
                self._vanishing.note(domain, key, gone=key in vanished, now=at)


def _key(recipient: Recipient) -> str:
    return f"{recipient.local}@{recipient.domain}"


def _meant(address: str) -> Callable[[str], bool]:
    """Give what says whether a key is of an address, of a domain (`@domain`), or of anybody ("")."""
    wanted = address.casefold()
    if not wanted:
        return lambda _: True
    domain = wanted[wanted.rfind("@") :]

    def meant(key: str) -> bool:
        if domain not in key:  # which costs the many others next to nothing; domains have no capital letters
            return False
        of = key.rpartition(" ")[0] if " " in key.rpartition("@")[2] else key
        return of.endswith(domain) and (wanted == domain or of.casefold() == wanted)

    return meant


def _domain(key: str) -> str:
    return key.rpartition("@")[2].partition(" ")[0]


def _plus(at: float | None, seconds: float) -> float | None:
    return None if at is None else at + seconds
