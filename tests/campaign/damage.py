"""Harm to databases, for as long as one likes.

    make campaign-damage ARGS="[SECONDS [SEED]]"

Each round writes one database of each format and harms it a thousand times, each time from the beginning: a flipped
bit mostly. Where there are checksums (twoskip, twom) one wrong answer ends the campaign with status 1; for skiplist
and flat, which have none, the sums say how often a harm goes unnoticed. A crash or a question of more than a second
ends it everywhere.
"""

import random
import sys
import time

from tests.cyrus.damage import Tally, cuts, flips
from tests.cyrus.specimens import CHECKED, KINDS, specimen
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered

HARMS = 1000


def round_of(site: Site, kind: str, seed: int, tally: Tally) -> bool:
    """Harm one database; whether all answers were right or none, where they can be."""
    path = site.place / f"{kind}.db"
    path.unlink(missing_ok=True)
    made = specimen(site, kind, path, seed=seed, count=random.Random(seed).choice([3, 30, 120]))
    lengths = random.Random(seed).sample(range(path.stat().st_size), min(HARMS, path.stat().st_size))
    for one in (
        flips(kind, path, made.rows, made.misses, seed=seed, count=HARMS, asked=20),
        cuts(kind, path, made.rows, made.misses, lengths, asked=5),
    ):
        tally.right += one.right
        tally.trouble += one.trouble
        tally.wrong_none += one.wrong_none
        tally.wrong_value += one.wrong_value
    return kind not in CHECKED or not tally.wrong


def main() -> int:
    """Go on until the time is over or something is wrong."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600
    first = seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    tallies = {kind: Tally() for kind in KINDS}
    end = time.monotonic() + seconds
    with sheltered("damage") as place:
        site = Site(place)
        site.prepare()
        while time.monotonic() < end:
            for kind, tally in tallies.items():
                if not round_of(site, kind, seed, tally):
                    print(f"{kind}, seed {seed}: wrong: {tally}")
                    return 1
            seed += 1
    print(f"{seed - first} rounds from seed {first}, {2 * HARMS} harms of each format in each:")
    for kind, tally in tallies.items():
        print(f"{kind:9} {tally}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
