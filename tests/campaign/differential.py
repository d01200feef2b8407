"""The real smmapd and ours beside each other: `make campaign ARGS="QUESTIONS SEED"`, both optional.

A round is a matrix of sites under one cyrmaster (tests/cyrus/worlds.py), each with a real smmapd of its own, asked
the same questions as ours: either our program, which stands beside it under the same master, or the judge in this
process, which is quicker. The real one is asked twice, in another order: a reference that wavers is none. Where they
differ, which tests/cyrus/originals.py permits nowhere but in what it names, the round says all that is needed to see
why. Rounds go on until the questions are enough, each with the next seed; without a SEED the time gives the first.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.cyrus.originals import ABORTED, comparable, wanted
from tests.cyrus.ours import judged, open_judge
from tests.cyrus.worlds import World, matrix
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered
from tests.rig.smmapd import installed

SITES = 24
QUESTIONS = 100_000

@dataclass
class Outcome:
    """What a round found: how often each reply of the original came, and where ours was another."""

    seed: int
    replies: Counter[bytes] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def one_round(seed: int, *, program: bool, sites: int = SITES, questions: int = 400) -> Outcome:
    """Ask so many questions at each of so many random sites; ours is the program, or the judge in this process."""
    source = Random(seed)
    outcome = Outcome(seed)
    with sheltered() as place:
        worlds = [World(source, place / f"site{n}", options) for n, options in enumerate(matrix(source, sites))]
        for world in worlds:
            world.site.write()
        lines = _services("real", "smmapd", worlds)
        if program:
            lines += _services("ours", str(installed(place)), worlds)
        with Cyrus(place, services=lines) as cyrus:
            for world in worlds:
                _compare(world, list(world.questions(questions)), outcome, source, program=program)
            complaints = cyrus.complaints(but="does not answer")  # no backend does
            outcome.differences += [line for line in complaints if "ours" in line]
    return outcome


def _services(name: str, program: str, worlds: list[World]) -> list[str]:
    sites = enumerate(one.site for one in worlds)
    return [service(f"{name}{n}", f"{program} -C {site.config}", site.place / name) for n, site in sites]


def _compare(world: World, addresses: list[bytes], outcome: Outcome, source: Random, *, program: bool) -> None:
    site = world.site
    real = dict(zip(addresses, ask(site.place / "real", addresses), strict=True))
    source.shuffle(addresses)
    for address, again in zip(addresses, ask(site.place / "real", addresses), strict=True):
        assert again == real[address], f"the real one wavers at {address!r}: {real[address]!r}, {again!r}"
    if program:
        ours = ask(site.place / "ours", addresses)
    else:
        with judged(site) as answer:
            ours = [answer(address) for address in addresses]
    for address, answered in zip(addresses, ours, strict=True):
        original = real[address]
        outcome.replies[b"OK" if original.startswith(b"OK ") else original] += 1
        reply = comparable(answered)
        if reply != wanted(original):
            outcome.differences.append(
                f"{address!r}: the original {original!r}, ours {reply!r}\n"
                f"    with {dict(site.options)}\n    {_content(site, address)}"
            )


def _content(site: Site, address: bytes) -> str:
    """What our judge finds of an address on a site, step by step."""
    steps: list[str] = []
    with open_judge(site.config) as judge:
        judge.judge(address, steps=steps)
    return "\n    ".join(steps)


def ask(address: Path, keys: Sequence[bytes]) -> list[bytes]:
    """The replies of a smmapd; ABORTED where it dies instead, as 3.6.1 does at some records."""
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
    logging.disable(logging.WARNING)  # the quotas that cannot be read are many, and wanted
    seed = time.time_ns() if seed is None else seed
    asked, replies = 0, Counter[bytes]()
    while asked < questions:
        # A program starts in a quarter of a second, so it gets more questions each time, and every fourth round.
        program = seed % 4 == 0
        outcome = one_round(seed, program=program, questions=1000 if program else 500)
        asked += outcome.replies.total()
        replies += outcome.replies
        what = f"seed {seed}, our {'program' if program else 'judge'}"
        print(f"{what}: {outcome.replies.total()} questions, {len(outcome.differences)} differences", flush=True)
        if outcome.differences:
            print(*outcome.differences[:20], sep="\n", flush=True)
            return 1
        seed += 1
    for reply, number in replies.most_common():
        print(f"{number:9}  {reply.decode(errors='backslashreplace') or 'aborted'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(one) for one in sys.argv[1:])))
