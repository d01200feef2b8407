"""rcptd's milter beside milters that do nothing, in C on libmilter and on pymilter.

All negotiate the same, so the same packets travel. The asking program plays 32 sessions at once, each in lock step,
of 20 recipients: once as sessions that end with their transaction, as most of an MTA's do, and once as sessions that
go on for many, where recipients are nearly all that there is. The recipients are asked about at random, and were
before, but for a turn of rcptd alone in which each is new. What they wait is the time from RCPT to its reply.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asking import AGAIN, HERE, Load, Processes, Recipients, asked, compiled, processes_of, serving
from benchmarks.cyrus import SEED, local_part, note
from benchmarks.rcptd_conf import DOMAIN, MAPS, MILTER, RULES, file_store
from benchmarks.report import Report, Target, rotated
from tests.rig.place import sheltered
from tests.rig.ports import wait_until

SESSIONS, RECIPIENTS = 32, 20
IN_C, ON_PYMILTER, BARE = "C, does nothing", "pymilter, does nothing", "pymilter, bare callbacks"
OURS, WITH_MAP = "rcptd, file", "rcptd, file, and a socketmap"  # in the same process, which nobody asks
TRANSACTIONS: Mapping[str, int] = {"one transaction a session": 1, "a hundred a session": 100}
ONCE = "a hundred a session, each recipient for the first time"
UNKNOWN = "a hundred a session, unknown recipients"  # rcptd alone: the others refuse nobody
TAKEN, REFUSED = "c", "y550 5.1.1"


@dataclass(frozen=True)
class Milter:
    """Where one is asked, and which processes it has."""

    path: Path
    processes: Processes


@contextmanager
def nothing(command: Sequence[str | Path], path: Path) -> Iterator[Milter]:
    """A milter that does nothing, running."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=HERE.parent, start_new_session=True) as process:
        try:
            if not wait_until(lambda: path.is_socket() or process.poll() is not None) or process.poll() is not None:
                raise RuntimeError(f"{command[0]} did not start")
            yield Milter(path, lambda: [process.pid])
        finally:
            process.kill()


@contextmanager
def milters(place: Path, there: Sequence[str]) -> Iterator[Mapping[str, Milter]]:
    """All that are asked, running."""
    sockets = {IN_C: place / "c.sock", ON_PYMILTER: place / "pymilter.sock", BARE: place / "bare.sock"}
    python = [sys.executable, "-m", "benchmarks.nothing"]
    commands: Mapping[str, Sequence[str | Path]] = {
        IN_C: [compiled("nothing.c", place, "-lmilter"), f"unix:{sockets[IN_C]}"],
        ON_PYMILTER: [*python, f"unix:{sockets[ON_PYMILTER]}"],
        BARE: [*python, f"unix:{sockets[BARE]}", "--bare"],
    }
    with ExitStack() as stack:
        found = {name: stack.enter_context(nothing(of, sockets[name])) for name, of in commands.items()}
        for name, others, folder in ((OURS, "", place / "rcptd"), (WITH_MAP, MAPS, place / "both")):
            configuration = others + MILTER + file_store(folder, there) + RULES
            daemon = stack.enter_context(serving(folder, configuration, probe=there[0] if others else ""))
            found[name] = Milter(folder / "milter.sock", processes_of(daemon))
        wait_until_known(place, found[OURS], there[0])
        yield found


def wait_until_known(place: Path, milter: Milter, recipient: str) -> None:
    """Ask a milter until it takes a recipient: a file is read in the background."""
    command = asking_command(compiled("mta.c", place), milter.path, 1, 1, TAKEN)

    def is_known() -> bool:
        with suppress(RuntimeError):
            asked(command, [recipient] * RECIPIENTS, milter.processes)
            return True
        return False

    if not wait_until(is_known):
        raise RuntimeError("rcptd does not read its file")


def asking_command(program: Path, path: Path, sessions: int, transactions: int, reply: str) -> list[str | Path]:
    """The command that plays MTAs."""
    return [program, path, str(sessions), str(RECIPIENTS), str(transactions), reply]


def targets() -> Iterator[Target]:
    """What issue 5 wants, held against both ways to write a milter on pymilter."""
    for where in TRANSACTIONS:
        for ours in (OURS, WITH_MAP):
            for server in (ON_PYMILTER, BARE):
                yield Target(f"{where}, {ours}: RCPTs/s to {server}", where, ours, "rate", 0.8, True, server)


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    there = [f"{local_part(number)}@{DOMAIN}" for number in range(load.recipients)]
    gone = [f"{local_part(number)}@{DOMAIN}" for number in range(load.recipients, 2 * load.recipients)]
    report = Report(
        "milter", f"{SESSIONS} sessions of {RECIPIENTS} recipients", "RCPT", baseline=ON_PYMILTER,
        compared=("rate", "cpu", "p50", "p99"), targets=tuple(targets()),
    )  # fmt: skip
    known, unknown = Recipients(there, load, SEED), Recipients(gone, load, SEED)
    with sheltered("milters") as place, milters(place, there) as servers:
        program = compiled("mta.c", place)

        def ask(name: str, transactions: int, keys: Sequence[str], reply: str = TAKEN) -> dict[str, float]:
            one = servers[name]
            return asked(asking_command(program, one.path, SESSIONS, transactions, reply), keys, one.processes)

        for name in (OURS, WITH_MAP):
            ask(name, 100, known.again)
        ask(OURS, 100, unknown.again, REFUSED)
        for number in range(load.rounds):
            for scenario, transactions in TRANSACTIONS.items():
                keys = known.met()
                for name in rotated(list(servers), number):
                    report.add(number, scenario, name, ask(name, transactions, keys))
            report.add(number, ONCE, OURS, ask(OURS, 100, known.new()))
            report.add(number, UNKNOWN, OURS, ask(OURS, 100, unknown.met(), REFUSED))
            note(f"milter: round {number + 1} of {load.rounds}")
    report.remarks.append(
        f"{load.recipients} recipients, of which {AGAIN} in a hundred were asked about before; {load.questions} RCPTs "
        "a turn, unix sockets. rcptd's log is at its default: every refusal is a line. The wait for the first "
        "recipient of a transaction includes MAIL, which nobody replies to, and in a new session CONNECT."
    )
    yield report
