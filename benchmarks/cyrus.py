"""The real smmapd and ours under one cyrmaster, on the same databases: `make bench ARGS="--json FILE"`.

A private installation has a million mailboxes in a twoskip mailboxes.db, made by cyr_dbtool, and a quota root for
each tenth of them. All servers are services of one master and are asked in turn, another one first in each round,
about the same keys in the same order: mailboxes that are there, at random and each one once, then as many that are
not. A small C program asks (load.c), so that it is not the program that is measured. Every reply is looked at.

The CPU time is that of the service's processes, user and system, as /proc has it. It goes in steps of 10 ms, so a
turn should take a second or more.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median

from tests.rig.cyrus import Cyrus, service
from tests.rig.cyrus_site import USER, record
from tests.rig.place import sheltered
from tests.rig.smmapd import installed, interpreter

SEED = 20261120
CONNECTIONS = (1, 16)
REPLIES = {"hits": "OK ", "misses": "NOTFOUND "}
THEIRS, OURS, OURS_UVLOOP = "theirs", "ours", "oursuv"
NAMES = {THEIRS: "Cyrus' smmapd", OURS: "ours", OURS_UVLOOP: "ours, uvloop"}
PATIENCE = 60.0  # seconds for one run of a tool; a turn is ended by load.c
OPTIONS = {"virtdomains": "userid", "defaultdomain": "example.org"}


@dataclass(frozen=True)
class Turn:
    """One server, asked for a moment; times in seconds, of one question where the name does not say otherwise."""

    server: str
    connections: int
    kind: str
    rate: float  # answers a second
    cpu: float
    p50: float
    p99: float
    busy: float  # CPUs that the server's processes used
    generator: float  # the share of one CPU that the asking program used
    processes: int


def local_part(number: int) -> str:
    """A name for each number, no two the same, all over the alphabet."""
    return f"{chr(ord('a') + number % 26)}{number * 2654435761 % 2**32:08x}"


@contextmanager
def installation(mailboxes: int, quota_share: float) -> Iterator[tuple[Cyrus, list[str]]]:
    """A running master with the servers as its services, and the servers' names."""
    with sheltered("bench") as place:
        programs = {THEIRS: "smmapd", OURS: str(installed(_folder(place / OURS)))}
        if with_uvloop := _with_uvloop(place / OURS_UVLOOP):
            programs[OURS_UVLOOP] = str(with_uvloop)
        config = place / "cyrus" / "site" / "imapd.conf"
        words = f"-C {config} -U 1000000 -T 3600"  # no process ends while it is measured
        lines = [service(name, f"{program} {words}", socket_of(place, name)) for name, program in programs.items()]
        cyrus = Cyrus(place, imapd_conf=OPTIONS, services=lines)
        site = cyrus.site
        site.place.mkdir()
        for number in range(mailboxes):
            user = local_part(number)
            value = record(f"{user} lrswipkxtecdan").replace(b"I x", b"I %032x" % number)
            site.mailboxes[b"user\x1f" + user.encode()] = value
        site.write()
        site.mailboxes.clear()
        with cyrus:
            for number in Random(SEED).sample(range(mailboxes), int(mailboxes * quota_share)):
                user = local_part(number)
                file = _folder(site.directory / "quota" / user[0]) / f"user.{user}"
                file.write_text("104857600\n1048576\n")
                shutil.chown(file, USER)  # the original opens it for writing, too
            yield cyrus, list(programs)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _with_uvloop(folder: Path) -> Path | None:
    """Our program with a copy of uvloop beside it, where there is one that its interpreter can load."""
    found = find_spec("uvloop")
    if not found or not found.origin:
        return None
    program = installed(_folder(folder))
    shutil.copytree(Path(found.origin).parent, folder / "library" / "uvloop")
    command = [interpreter(), "-Ic", f"import sys; sys.path.insert(0, {str(folder / 'library')!r}); import uvloop"]
    return None if subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE).returncode else program


def socket_of(place: Path, name: str) -> Path:
    """Where a service listens."""
    return place / f"{name}.sock"


def compile_load(program: Path) -> None:
    """Make the asking program with the machine's C compiler."""
    source = Path(__file__).with_name("load.c")
    subprocess.run(["cc", "-O2", "-o", program, source], check=True, timeout=PATIENCE)


def spent(place: Path, name: str) -> dict[int, float]:
    """The CPU time of each process of a service, in seconds, user and system; not those of another benchmark's."""
    times = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CYRUS_SERVICE={name}\0".encode() not in environ.read_bytes():
                continue
            if os.fsencode(place) not in environ.with_name("cmdline").read_bytes():
                continue
            fields = environ.with_name("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        times[int(environ.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def turn(place: Path, server: str, connections: int, kind: str, keys: Sequence[str]) -> Turn:
    """Ask one server about keys; raises `RuntimeError` where a reply was wrong or missing."""
    command = [str(place / "load"), str(socket_of(place, server)), str(connections), REPLIES[kind]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdin
        assert asking.stdout
        asking.stdin.write("".join(f"{one}\n" for one in keys) + "\n")
        asking.stdin.flush()
        said = asking.stdout.readline()  # it gives up by itself where a server is silent
        before = spent(place, server)
        if said == "ready\n":
            asking.stdin.write("go\n")
            asking.stdin.flush()
            said = asking.stdout.readline()
        after = spent(place, server)
    if not said:
        raise RuntimeError(f"{server} did not answer all, or not as it should")
    if set(before) - set(after):
        raise RuntimeError(f"a process of {server} has ended, and its CPU time with it")
    cpu = sum(after.values()) - sum(before.values())
    result = json.loads(said)
    seconds = result["seconds"]
    rate = result["answers"] / seconds
    return Turn(
        server, connections, kind, rate=rate, cpu=cpu / result["answers"], p50=result["p50"], p99=result["p99"],
        busy=cpu / seconds, generator=result["generator"] / seconds, processes=len(after),
    )  # fmt: skip


def measure(*, mailboxes: int, quota_share: float, questions: int, rounds: int) -> list[Turn]:
    """Make the installation and take all turns."""
    source = Random(SEED)
    needed = questions * rounds * len(CONNECTIONS)
    if needed > mailboxes:
        raise ValueError(f"{mailboxes} mailboxes are not enough for {needed} questions with a key each")
    keys = {
        kind: [f"{local_part(number)}@example.org" for number in source.sample(numbers, needed)]
        for kind, numbers in (("hits", range(mailboxes)), ("misses", range(mailboxes, 2 * mailboxes)))
    }
    turns = []
    begun = time.monotonic()
    with installation(mailboxes, quota_share) as (cyrus, servers):
        note(f"{mailboxes} mailboxes: made in {time.monotonic() - begun:.0f} s")
        place = cyrus.place.parent
        compile_load(place / "load")
        for number in range(rounds):
            order = servers[number % len(servers) :] + servers[: number % len(servers)]
            for connections in CONNECTIONS:
                for kind, all_keys in keys.items():
                    asked, all_keys[:questions] = all_keys[:questions], []
                    turns += [turn(place, one, connections, kind, asked) for one in order]
            note(f"round {number + 1} of {rounds}: {time.monotonic() - begun:.0f} s")
        if complaints := cyrus.complaints():
            raise RuntimeError("\n".join(complaints))
    return turns


def note(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def table(turns: Sequence[Turn]) -> str:
    """The turns in Markdown: medians of the rounds, behind them the least and the most."""
    lines = heading(
        "connections", "keys", "server", "answers/s", "CPU µs/answer", "p50 µs", "p99 µs", "CPUs busy", "processes",
        "asking",
    )  # fmt: skip
    for (connections, kind, server), of in grouped(turns).items():
        waits = ["", ""]
        if connections == 1:
            waits = [spread([one.p50 * 1e6 for one in of]), spread([one.p99 * 1e6 for one in of])]
        cells = [
            str(connections), kind, NAMES[server], spread([one.rate for one in of]),
            spread([one.cpu * 1e6 for one in of]), *waits, f"{median(one.busy for one in of):.2f}",
            str(max(one.processes for one in of)), f"{median(one.generator for one in of):.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += heading("connections", "keys", "server", "answers/s, ours/theirs", "CPU per answer, ours/theirs")
    for (connections, kind, server), of in grouped(turns).items():
        if server != THEIRS:
            theirs = grouped(turns)[connections, kind, THEIRS]
            pairs = list(zip(of, theirs, strict=True))
            rate, cpu = [a.rate / b.rate for a, b in pairs], [a.cpu / b.cpu for a, b in pairs if b.cpu]
            both = f"{spread(rate, 2)} | {spread(cpu, 2) if cpu else 'too short to tell'}"
            lines.append(f"| {connections} | {kind} | {NAMES[server]} | {both} |")
    return "\n".join(lines)


def heading(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def grouped(turns: Sequence[Turn]) -> dict[tuple[int, str, str], list[Turn]]:
    """The turns of each row, in the order of the rounds."""
    rows: dict[tuple[int, str, str], list[Turn]] = {}
    for one in turns:
        rows.setdefault((one.connections, one.kind, one.server), []).append(one)
    order = {name: at for at, name in enumerate(NAMES)}
    return dict(sorted(rows.items(), key=lambda row: (row[0][0], row[0][1], order[row[0][2]])))


def spread(numbers: Sequence[float], digits: int = 0) -> str:
    """Median, least and most."""
    middle, least, most = (f"{one:.{digits}f}" for one in (median(numbers), min(numbers), max(numbers)))
    return f"{middle} ({least}–{most})"  # noqa: RUF001 - a range


def machine() -> Mapping[str, str | int | float]:
    """What it ran on, and what else ran there."""
    version = subprocess.run([interpreter(), "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return {
        "date": time.strftime("%Y-%m-%d"), "CPUs": os.cpu_count() or 0, "kernel": platform.release(),
        "python": version.stdout.split()[1], "load before": os.getloadavg()[0],
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.cyrus", description=__doc__)
    parser.add_argument("--mailboxes", type=int, default=1_000_000)
    parser.add_argument("--quota-share", type=float, default=0.1, help="the share of mailboxes with a quota root")
    parser.add_argument("--questions", type=int, default=30_000, help="for each turn of a server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there, too")
    given = parser.parse_args(words)
    on = machine()
    sizes = {"mailboxes": given.mailboxes, "quota_share": given.quota_share, "questions": given.questions}
    turns = measure(**sizes, rounds=given.rounds)
    print(", ".join(f"{name} {value}" for name, value in {**on, **sizes, "rounds": given.rounds}.items()), end="\n\n")
    print(table(turns))
    print(f"\nThe asking program used at most {max(one.generator for one in turns):.0%} of one CPU.")
    if given.json:
        text = {"machine": on, **sizes, "turns": [asdict(one) for one in turns]}
        given.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    # Who ends us, as timeout(1) does, means the master and its children, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
