"""smmapd and ours under one master, on the same mailboxes.db, each key asked about once: what benchmarks/cyrus.py asks.

The installation, the servers and the keys are those of benchmarks/cyrus.py. Here CPU time is taken to the nanosecond,
and of the processes of this run's master alone, so that another run beside it is not taken for its own.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.asking import Load, asked, compiled
from benchmarks.cyrus import (
    CONNECTIONS,
    NAMES,
    OURS,
    OURS_UVLOOP,
    REPLIES,
    SEED,
    THEIRS,
    installation,
    local_part,
    note,
    socket_of,
)
from benchmarks.processes import of_service
from benchmarks.report import Report, Target, rotated

QUOTA_SHARE = 0.1


def scenario(connections: int, kind: str) -> str:
    """What a row is called."""
    return f"{connections} connection{'s' * (connections > 1)}, {kind}"


def targets() -> Iterator[Target]:
    """What issue 5 wants: every key another one, nothing remembered, the quota check included."""
    for connections in CONNECTIONS:
        for kind in REPLIES:
            where = scenario(connections, kind)
            for server in (NAMES[OURS], NAMES[OURS_UVLOOP]):
                told = f"{where}, {server}"
                yield Target(f"{told}: answers/s to smmapd's", where, server, "rate", 1.2, True, NAMES[THEIRS])
                yield Target(f"{told}: CPU per answer to smmapd's", where, server, "cpu", 1, against=NAMES[THEIRS])


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    needed = load.questions * load.rounds * len(CONNECTIONS)
    mailboxes = max(load.mailboxes, needed)
    source = Random(SEED)
    numbers = {"hits": range(mailboxes), "misses": range(mailboxes, 2 * mailboxes)}
    sampled = {kind: source.sample(of, needed) for kind, of in numbers.items()}
    keys = {kind: iter([f"{local_part(one)}@example.org" for one in of]) for kind, of in sampled.items()}
    report = Report(
        "cyrus", "a real mailboxes.db, every key different", baseline=NAMES[THEIRS], compared=("rate", "cpu", "p50"),
        targets=tuple(targets()),
    )  # fmt: skip
    with installation(mailboxes, QUOTA_SHARE) as (cyrus, servers):
        place = cyrus.place.parent
        program = compiled("load.c", place)
        for number in range(load.rounds):
            for connections in CONNECTIONS:
                for kind, reply in REPLIES.items():
                    these = list(islice(keys[kind], load.questions))
                    for server in rotated(servers, number):
                        command: list[str | Path] = [program, socket_of(place, server), str(connections), reply]
                        figures = asked(command, these, partial(of_service, cyrus.pid, server))
                        report.add(number, scenario(connections, kind), NAMES[server], figures)
            note(f"cyrus: round {number + 1} of {load.rounds}")
        if complaints := cyrus.complaints():
            raise RuntimeError("\n".join(complaints))
    report.remarks.append(
        f"{mailboxes} mailboxes, a quota root for {QUOTA_SHARE:.0%} of them, {load.questions} questions a turn; the "
        "databases had just been written, so they were in the page cache."
    )
    yield report
