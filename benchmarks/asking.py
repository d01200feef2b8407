"""Runs one of the asking programs (load.c, mta.c) and measures the server meanwhile; and starts rcptd to be asked.

The programs are in C so that they are not what is measured; the share of a CPU that they use is a figure, too. They
say `ready` when each connection has had a reply, begin at a line of input, and say at the end how long it took.
"""

import json
import select
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.processes import cpu_of, family, private
from tests.rig.cyrus import Asker
from tests.rig.daemon import Daemon

HERE = Path(__file__).parent
AGAIN = 20  # in a hundred recipients, those that are asked about more than once; rcptd keeps 100,000 verdicts
FEWEST = 100  # for a turn: each connection asks some
NEW = 4  # of the questions of a turn, one in so many for a turn in which each recipient is new
PATIENCE = 120.0  # seconds for a tool, and for a server's first answer

Processes = Callable[[], Collection[int]]
"""Gives the processes of a server at this moment."""


@dataclass(frozen=True)
class Load:
    """How much is asked; each part takes of it what it needs."""

    rounds: int = 5
    questions: int = 30_000  # for each turn of a server
    recipients: int = 100_000  # in tables and in what is remembered
    mailboxes: int = 1_000_000  # of Cyrus
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    messages: int = 2_000  # for each turn of Postfix
    starts: int = 5  # cold starts for each turn
    apart: str = ""
    """A line of [daemon] that puts the front ends into workers of their own."""


class Recipients:
    """Recipients of one kind: some that are asked about again and again, the others once each."""

    def __init__(self, addresses: Sequence[str], load: Load, seed: int) -> None:
        """Divide them; a part is for those that are asked about once, so that each round has some."""
        self.again = addresses[: len(addresses) * AGAIN // 100]
        self._once = iter(addresses[len(self.again) :])
        self._each = min(max(load.questions // NEW, FEWEST), (len(addresses) - len(self.again)) // load.rounds)
        self._questions = load.questions
        self._source = Random(seed)

    def met(self) -> list[str]:
        """Give as many as a turn asks about, at random among those that were asked about before."""
        return self._source.choices(self.again, k=self._questions)

    def new(self) -> list[str]:
        """Give those of a round that nobody has asked about."""
        return list(islice(self._once, self._each))


def compiled(source: str, folder: Path, *libraries: str) -> Path:
    """Compile a program of this directory, unless it is there."""
    program = folder / Path(source).stem
    if not program.exists():
        command: list[str | Path] = ["cc", "-O2", "-o", program, HERE / source, *libraries]
        subprocess.run(command, check=True, timeout=PATIENCE)
    return program


def asked(command: Iterable[str | Path], lines: Iterable[str], processes: Processes) -> dict[str, float]:
    """Let a program ask a server; raises `RuntimeError` where a reply was wrong or missing."""
    with asking(command, lines) as running:
        before = cpu_of(processes())
        said = running.go()
        after = cpu_of(processes())
        memory = sum(private(one) for one in after)
    if set(before) - set(after):
        raise RuntimeError("a process of the server has ended, and its CPU time with it")
    spent = sum(after.values()) - sum(before.values())
    answers, seconds = said["answers"], said["seconds"]
    return {
        "rate": answers / seconds, "cpu": spent / answers, "p50": said["p50"], "p99": said["p99"],
        "busy": spent / seconds, "private": memory, "processes": len(after), "generator": said["generator"] / seconds,
    }  # fmt: skip


class Asking:
    """A program that is ready to ask."""

    def __init__(self, process: "subprocess.Popen[str]", *, ready: bool) -> None:
        if not ready:
            raise RuntimeError("the server did not answer, or not as it should")
        self._process = process

    def begin(self) -> None:
        """Let it ask."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def go(self) -> Mapping[str, float]:
        """Let it ask, and wait for its end."""
        self.begin()
        assert self._process.stdout
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError("the server did not answer all, or not as it should")
        result: Mapping[str, float] = json.loads(said)
        return result

    @property
    def under_way(self) -> bool:
        """Whether it has not said that it is through."""
        assert self._process.stdout
        return not select.select([self._process.stdout], [], [], 0)[0]

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()


@contextmanager
def asking(command: Iterable[str | Path], lines: Iterable[str]) -> Iterator[Asking]:
    """A program that has heard all it is to ask, and has had a reply on each connection."""
    words = [str(one) for one in command]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write("".join(f"{one}\n" for one in lines) + "\n")
            process.stdin.flush()
            yield Asking(process, ready=process.stdout.readline() == "ready\n")
        except BaseException:
            process.kill()
            raise


@contextmanager
def serving(folder: Path, configuration: str, probe: str = "") -> Iterator[Daemon]:
    """The installed rcptd on `map.sock` or `milter.sock` of a folder; `probe` is a key that it must first know."""
    folder.mkdir(exist_ok=True)
    with Daemon(folder, configuration) as daemon:
        if probe:
            wait_for_answer(folder / "map.sock", probe)
        yield daemon


def wait_for_answer(path: Path, key: str) -> None:
    """Ask a socketmap until it knows a key: a file is read in the background, and Busy until then."""
    end = time.monotonic() + PATIENCE
    while True:
        asker = Asker(path)
        try:
            reply = asker.ask(key.encode())
        finally:
            asker.close()
        if reply.startswith(b"OK "):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"{path} says {reply!r} of {key}")
        time.sleep(0.1)


def processes_of(daemon: Daemon) -> Processes:
    """The processes of a running rcptd, its workers among them."""
    return lambda: family(daemon.pid)
