"""Both front ends busy: how long a RCPT waits at the milter while 16 connections ask the socketmap all they can.

The milter is asked in lock step, on one session and on 32, alone and beside the saturated socketmap. `--apart` gives a
line of [daemon] by which the front ends are workers of their own: then the same is measured with that, too. A milter in
C that does nothing, in a process of its own beside the same socketmap, tells what of the wait is for a CPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random

from benchmarks.asking import Load, asked, asking, compiled, processes_of, serving
from benchmarks.cyrus import SEED, local_part, note
from benchmarks.milters import TAKEN, Milter, asking_command, nothing
from benchmarks.rcptd_conf import DOMAIN, MAPS, MILTER, RULES, file_store
from benchmarks.report import Report, Target, rotated
from tests.rig.place import sheltered

SESSIONS = (1, 32)
CONNECTIONS = 16
IN_C = "C, does nothing"
TOGETHER, APART = "one process", "front ends apart"
MOST = {TOGETHER: 10, APART: 3}  # times the p99 alone, of issue 5
SHARE = 20  # of the questions of a turn, one in so many is a RCPT: those wait for the others
ENOUGH = 12  # times the questions of a turn, for the socketmap to be busy all the time; doubled where it is not
TRIALS = 5


def scenario(sessions: int, *, beside: bool) -> str:
    """What a row is called."""
    load = f"beside {CONNECTIONS} busy connections" if beside else "alone"
    return f"{sessions} session{'s' * (sessions > 1)}, {load}"


def targets(servers: Mapping[str, str]) -> Iterator[Target]:
    """What issue 5 wants."""
    for server in servers:
        for sessions in SESSIONS:
            where, before = scenario(sessions, beside=True), scenario(sessions, beside=False)
            told = f"{server}, {sessions} session{'s' * (sessions > 1)}: p99 of a RCPT to that alone"
            yield Target(told, where, server, "p99", MOST[server], against=server, against_scenario=before)


class Turns:
    """Asks one milter, alone and beside the socketmap of a socket."""

    def __init__(self, place: Path, milter: Milter, socketmap: Path, there: list[str], questions: int) -> None:
        self._mta, self._load = compiled("mta.c", place), compiled("load.c", place)
        self._milter, self._socketmap = milter, socketmap
        self._source = Random(SEED)
        self._there = there
        self._rcpts = max(questions // SHARE, 100)
        self._questions = questions

    def alone(self, sessions: int) -> dict[str, float]:
        """The milter, and nobody else."""
        keys = self._source.choices(self._there, k=self._rcpts)
        return asked(asking_command(self._mta, self._milter.path, sessions, 100, TAKEN), keys, self._milter.processes)

    def beside(self, sessions: int) -> dict[str, float]:
        """The milter while the socketmap is saturated from before the first RCPT until after the last."""
        command: list[str | Path] = [self._load, self._socketmap, str(CONNECTIONS), "OK "]
        number = self._questions * ENOUGH
        for _ in range(TRIALS):
            with asking(command, self._source.choices(self._there, k=number)) as busy:
                busy.begin()
                figures = self.alone(sessions)
                lasted = busy.under_way
                busy.end()
            if lasted:
                figures.pop("cpu")  # it is for both
                return figures
            number *= 2
        raise RuntimeError("the socketmap was never busy for as long as the milter was asked")


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    there = [f"{local_part(number)}@{DOMAIN}" for number in range(load.recipients)]
    settings = {TOGETHER: ""} | ({APART: f"[daemon]\n{load.apart}\n"} if load.apart else {})
    report = Report("both", "the milter beside a saturated socketmap", "RCPT", targets=tuple(targets(settings)))
    with sheltered("both") as place, ExitStack() as stack:
        servers: dict[str, Turns] = {}
        maps: dict[str, Path] = {}
        for at, (name, section) in enumerate(settings.items()):
            folder = place / f"rcptd{at}"
            configuration = section + MAPS + MILTER + file_store(folder, there) + RULES
            daemon = stack.enter_context(serving(folder, configuration, probe=there[0]))
            maps[name] = folder / "map.sock"
            milter = Milter(folder / "milter.sock", processes_of(daemon))
            servers[name] = Turns(place, milter, maps[name], there, load.questions)
        path = place / "nothing.sock"
        idle = stack.enter_context(nothing([compiled("nothing.c", place, "-lmilter"), f"unix:{path}"], path))
        servers[IN_C] = Turns(place, idle, maps[TOGETHER], there, load.questions)
        for number in range(load.rounds):
            for name in rotated(list(servers), number):
                for sessions in SESSIONS:
                    report.add(number, scenario(sessions, beside=False), name, servers[name].alone(sessions))
                    report.add(number, scenario(sessions, beside=True), name, servers[name].beside(sessions))
            note(f"both: round {number + 1} of {load.rounds}")
    report.remarks.append(
        f"{max(load.questions // SHARE, 100)} RCPTs a turn; busy is the process with both front ends, asking is "
        "the milter's asking program alone. Three programs share the CPUs, so part of the wait is for one."
    )
    yield report


