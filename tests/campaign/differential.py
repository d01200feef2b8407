"""The real smmapd and ours beside each other: `make campaign ARGS="QUESTIONS SEED"`, both optional.

A round is a matrix of sites under one cyrmaster (tests/cyrus/worlds.py), each with a real smmapd of its own, asked
the same questions as ours. The real one is asked twice, in another order: a reference that wavers is none. Where they
differ, which tests/cyrus/originals.py permits nowhere but in what it names, the round says all that is needed to see
why. Rounds go on until the questions are enough, each with the next seed; without a SEED the time gives the first.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.cyrus.originals import ABORTED, comparable, wanted
from tests.cyrus.worlds import World, matrix
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered

SITES = 24
QUESTIONS = 100_000

Answer = Callable[[bytes], bytes]
Ours = Callable[[Site], AbstractContextManager[Answer]]


@dataclass
class Outcome:
    """What a round found: how often each reply of the original came, and where ours was another."""

    seed: int
    replies: Counter[bytes] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def one_round(seed: int, ours: Ours, *, sites: int = SITES, questions: int = 400) -> Outcome:
    """Ask so many questions at each of so many random sites."""
    source = Random(seed)
    outcome = Outcome(seed)
    with sheltered() as place:
        worlds = [World(source, place / f"site{n}", options) for n, options in enumerate(matrix(source, sites))]
        for world in worlds:
            world.site.write()
        lines = [
            service(f"smmap{n}", f"smmapd -C {one.site.config}", _socket(one.site)) for n, one in enumerate(worlds)
        ]
        with Cyrus(place, services=lines):
            for world in worlds:
                _compare(world, list(world.questions(questions)), ours, outcome, source)
    return outcome


def _socket(site: Site) -> Path:
    return site.place / "s"


def _compare(world: World, addresses: list[bytes], ours: Ours, outcome: Outcome, source: Random) -> None:
    real = dict(zip(addresses, ask_real(_socket(world.site), addresses), strict=True))
    source.shuffle(addresses)
    for address, again in zip(addresses, ask_real(_socket(world.site), addresses), strict=True):
        assert again == real[address], f"the real one wavers at {address!r}: {real[address]!r}, {again!r}"
    with ours(world.site) as answer:
        for address in addresses:
            outcome.replies[real[address].partition(b" ")[0] if real[address][:3] == b"OK " else real[address]] += 1
            reply = comparable(answer(address))
            if reply != wanted(real[address]):
                outcome.differences.append(
                    f"{address!r}: the original {real[address]!r}, ours {reply!r}\n"
                    f"    with {dict(world.site.options)}\n    {_content(world.site, address)}"
                )


def _content(site: Site, address: bytes) -> str:
    """Those mailboxes and quota roots of a site that may have to do with an address."""
    user = max(address.replace(b"@", b"+").split(b"+")[:2], key=len).lower().replace(b"^", b".")[-8:]
    mailboxes = [f"{name!r}: {value!r}" for name, value in site.mailboxes.items() if user in name.lower()]
    quotas = [f"{root!r}: {value!r}" for root, value in site.quotas.items()]
    return "\n    ".join([*mailboxes[:8], *quotas])


def ask_real(address: Path, keys: Sequence[bytes]) -> list[bytes]:
    """The replies of a real smmapd; ABORTED where it dies instead, as 3.6.1 does at some records."""
    replies: list[bytes] = []
    together = 50
    while len(replies) < len(keys):
        batch = keys[len(replies) : len(replies) + together]
        try:
            with Asker(address) as real:
                replies += real.ask_all(batch)
        except (EOFError, ConnectionError):
            # It takes the replies of its batch with it, so that they are asked for one by one.
            for key in batch:
                try:
                    with Asker(address) as real:
                        replies.append(real.ask(key))
                except (EOFError, ConnectionError):
                    replies.append(ABORTED)
    return replies


def main(questions: int = QUESTIONS, seed: int | None = None) -> int:
    """Run rounds until there were so many questions; gives the exit status."""
    from tests.cyrus.ours import judged  # noqa: PLC0415 - the campaign alone needs it at this level

    seed = time.time_ns() if seed is None else seed
    asked, replies = 0, Counter[bytes]()
    while asked < questions:
        outcome = one_round(seed, judged, questions=500)
        asked += outcome.replies.total()
        replies += outcome.replies
        print(f"seed {seed}: {outcome.replies.total()} questions, {len(outcome.differences)} differences", flush=True)
        if outcome.differences:
            print(*outcome.differences[:20], sep="\n", flush=True)
            return 1
        seed += 1
    for reply, number in replies.most_common():
        print(f"{number:9}  {reply.decode(errors='backslashreplace') or 'aborted'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(one) for one in sys.argv[1:])))
