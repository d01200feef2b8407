"""What a local decision costs in Python, in a process and without a socket.

It is the daemon of a configuration with a store of type memory and the default log; it is told no listener's
questions, but asked directly, as libmilter's threads and the socketmap's protocol ask it. Each round is a process of
its own. `python -m benchmarks.decision --child FILE NUMBER` is such a one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random

from benchmarks.asking import HERE, PATIENCE, Load
from benchmarks.cyrus import SEED, local_part, note
from benchmarks.rcptd_conf import DOMAIN, MAPS, MILTER, RULES, SECTION
from benchmarks.report import Report, Target
from tests.rig.place import sheltered

FEW = 1_000  # recipients: the store is for a handful, and its lookups are those of larger ones
DECIDE, RCPT = "a decision", "a RCPT, as libmilter's callback has it"
SERVER = "rcptd, memory"


def child(configuration: Path, number: int) -> dict[str, dict[str, float]]:
    """Ask so many questions; microseconds for each, by what was asked and of whom."""
    from rcptd.query import Query  # noqa: PLC0415 - the child's imports are those of the daemon
    from rcptd_daemon.reading import read_configuration  # noqa: PLC0415
    from rcptd_daemon.serve import Daemon  # noqa: PLC0415
    from rcptd_milter.session import Session  # noqa: PLC0415

    daemon = Daemon(read_configuration(configuration))
    decide = daemon._driver.decide_from_thread  # noqa: SLF001 - what the listener is given
    macros = {"{client_addr}": "192.0.2.7", "i": "4XyZ1a2b3cz9d", "{rcpt_mailer}": "relay"}.get
    session = Session(decide)
    session.connect("client.example", 2, ("192.0.2.7", 4711), macros)
    session.mail([b"<sender@client.example>", b"SIZE=4096"], macros)
    queries = {
        kind: [
            Query(one, "milter", sender="sender@client.example", client=session._client, authenticated="", size=4096,  # noqa: SLF001
                  smtputf8=False, session="4XyZ1a2b3cz9d")
            for one in addresses()[kind]
        ]
        for kind in KINDS
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {DECIDE: {}, RCPT: {}}
    for kind in KINDS:
        arguments = [[f"<{one}>".encode()] for one in addresses()[kind]]
        verdicts = {str(decide(one)) for one in queries[kind][:10]}
        if len(verdicts) != 1 or (kind == "hits") != ("ACCEPT" in str(verdicts).upper()):
            raise RuntimeError(f"{kind}: {verdicts}")
        found[DECIDE][kind] = clocked(decide, queries[kind], number)
        found[RCPT][kind] = clocked(lambda one: session.rcpt(one, macros), arguments, number)
    return found


KINDS = ("hits", "misses")


def addresses() -> dict[str, list[str]]:
    """Those that are there, and as many that are not, in no order."""
    known = [f"{local_part(number)}@{DOMAIN}" for number in range(FEW)]
    others = [f"{local_part(number)}@{DOMAIN}" for number in range(FEW, 2 * FEW)]
    source = Random(SEED)
    return {"hits": source.sample(known, FEW), "misses": source.sample(others, FEW)}


def clocked(asked: Callable[..., object], of: Sequence[object], number: int) -> float:
    """The CPU seconds that one call takes; what the loop itself takes is less than a twentieth of a microsecond."""
    questions = list(islice(cycle(of), number))
    for one in questions[:FEW]:
        asked(one)
    begun = time.thread_time()
    for one in questions:
        asked(one)
    return (time.thread_time() - begun) / number


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    report = Report(
        "decision", "a local decision in a process", "decision",
        targets=[
            Target(f"{what}, hits", f"{what}, hits", SERVER, "cost", 7e-6)
            for what in (DECIDE, RCPT)
        ],
    )  # fmt: skip
    listed = ", ".join(f'"{one}"' for one in addresses()["hits"])
    with sheltered("decision") as place:
        configuration = place / "rcptd.toml"
        store = f'[stores.{SECTION}]\ntype = "memory"\nrecipients = [{listed}]\n'
        configuration.write_text((MAPS + MILTER + store + RULES).replace("{folder}", str(place)))
        command = [sys.executable, "-m", "benchmarks.decision", "--child", str(configuration), str(load.questions)]
        for number in range(load.rounds):
            # The log goes where a service's goes that nobody reads: a file would measure the disk.
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE.parent, check=True,
                timeout=PATIENCE,
            )  # fmt: skip
            for what, kinds in json.loads(done.stdout).items():
                for kind, cost in kinds.items():
                    report.add(number, f"{what}, {kind}", SERVER, {"cost": cost})
            note(f"decision: round {number + 1} of {load.rounds}")
    report.remarks.append(
        f"{load.questions} decisions in each row and round; CPU time of the asking thread alone. A miss is logged: the "
        "line is made here and written by another thread."
    )
    yield report


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[2]), int(sys.argv[3]))))
