"""The socketmap of rcptd from a local table and from its memory, beside the real smmapd under a real Cyrus master.

All know the same recipients. They are asked in turn, about the same keys at random, over unix sockets in lock step:
on 1, 4 and 16 connections, about recipients that are there and about others, which rcptd logs, as is its default.
Nearly all mail is for recipients that had some before, so they are: all servers were asked about each once before the
first round. Others are kept apart, and asked about once on 16 connections.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asking import AGAIN, Load, Processes, Recipients, asked, compiled, processes_of, serving
from benchmarks.cyrus import SEED, THEIRS, installation, local_part, note, socket_of
from benchmarks.processes import of_service
from benchmarks.rcptd_conf import DOMAIN, MAPS, RULES, file_store, memo_store, sqlite_store
from benchmarks.report import Report, Target, rotated

CONNECTIONS = (1, 4, 16)
ONCE = "each for the first time"
REPLIES = {"hits": "OK ", "misses": "NOTFOUND "}
SMMAPD = "Cyrus' smmapd"
FILE, SQLITE, MEMO = "rcptd, file", "rcptd, sqlite", "rcptd, memo"
WORKERS = "rcptd, file, two workers"
WARM = 3  # times that each recipient is asked about before, as each worker has a memory of its own
UNLOGGED = "rcptd, file, nothing logged"  # to tell what a line of log costs; no target is for it
OURS = (FILE, SQLITE, MEMO)


@dataclass(frozen=True)
class Server:
    """Where one is asked, and which processes it has."""

    path: Path
    processes: Processes


def scenario(connections: int, kind: str) -> str:
    """What a row is called."""
    return f"{connections} connection{'s' * (connections > 1)}, {kind}"


def targets() -> Iterator[Target]:
    """What issue 5 wants of each of our stores."""
    for server in OURS:
        for kind in REPLIES:
            where, single = scenario(16, kind), scenario(1, kind)
            yield Target(f"{where}, {server}: answers/s to smmapd's", where, server, "rate", 4, True, SMMAPD)
            yield Target(f"{where}, {server}: CPU per answer to smmapd's", where, server, "cpu", 0.25, against=SMMAPD)
            yield Target(f"{single}, {server}: p50 to smmapd's", single, server, "p50", 1, against=SMMAPD)
    where = scenario(16, "hits")
    yield Target(f"{where}, two workers: CPU per answer to one's", where, WORKERS, "cpu", 1.1, against=FILE)


@contextmanager
def server(folder: Path, store: str, known: str) -> Iterator[Server]:
    """A running rcptd with a store that knows somebody."""
    with serving(folder, MAPS + store + RULES, probe=known) as daemon:
        yield Server(folder / "map.sock", processes_of(daemon))


@contextmanager
def servers(there: Sequence[str], gone: Sequence[str]) -> Iterator[tuple[Path, Mapping[str, Server]]]:
    """All that are asked, running; and a place for files."""
    with installation(len(there), quota_share=0.1) as (cyrus, _), ExitStack() as stack:
        place = cyrus.place.parent
        found = {SMMAPD: Server(socket_of(place, THEIRS), lambda: of_service(cyrus.pid, THEIRS))}
        stores = {
            FILE: file_store(place / "file", there),
            SQLITE: sqlite_store(place / "sqlite", there),
            MEMO: memo_store(place / "memo", there, gone),
        }
        for name, store in stores.items():
            folder = place / name.split()[-1]
            found[name] = stack.enter_context(server(folder, store, there[0]))
        workers = file_store(place / "workers", there) + "[daemon]\nworkers = 2\n"
        found[WORKERS] = stack.enter_context(server(place / "workers", workers, there[0]))
        unlogged = file_store(place / "unlogged", there) + '[log]\ndecisions = "none"\n'
        found[UNLOGGED] = stack.enter_context(server(place / "unlogged", unlogged, there[0]))
        yield place, found


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    there = [f"{local_part(number)}@{DOMAIN}" for number in range(load.recipients)]
    gone = [f"{local_part(number)}@{DOMAIN}" for number in range(load.recipients, 2 * load.recipients)]
    report = Report(
        "socketmap", "answers from a table and from memory, beside Cyrus' smmapd", baseline=SMMAPD,
        compared=("rate", "cpu", "p50"), targets=tuple(targets()),
    )  # fmt: skip
    kinds = {"hits": Recipients(there, load, SEED), "misses": Recipients(gone, load, SEED)}
    with servers(there, gone) as (place, all_servers):
        program = compiled("load.c", place)

        def ask(name: str, connections: int, kind: str, keys: Sequence[str]) -> dict[str, float]:
            one = all_servers[name]
            return asked([program, one.path, str(connections), REPLIES[kind]], keys, one.processes)

        for name in all_servers:
            for kind, of in kinds.items():
                for _ in range(WARM):
                    ask(name, 16, kind, of.again)
        for number in range(load.rounds):
            names = list(rotated(list(all_servers), number))
            for kind, of in kinds.items():
                for connections in CONNECTIONS:
                    keys = of.met()
                    for name in names:
                        report.add(number, scenario(connections, kind), name, ask(name, connections, kind, keys))
                keys = of.new()
                for name in names:
                    report.add(number, f"{scenario(16, kind)}, {ONCE}", name, ask(name, 16, kind, keys))
            note(f"socketmap: round {number + 1} of {load.rounds}")
    report.remarks.append(
        f"{load.recipients} recipients, of which {AGAIN} in a hundred were asked about before; {load.questions} "
        "questions a turn, keys at random, unix sockets in lock step. rcptd's log is at its default: every miss is a "
        "line."
    )
    yield report
