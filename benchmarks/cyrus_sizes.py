"""How the cost of an uncached question grows with mailboxes.db, how soon smmapd is ready, and what memory it takes.

For each size an installation of its own, with Cyrus' smmapd and ours under one master. No key is asked twice, but where
a database has too few; neither of them remembers an answer. They are asked while nobody writes, and while a real imapd
does (cyrus_writer.py). Ours learns in the background where records are, and is asked when it has; how long that takes
is a row, and what a hit costs meanwhile another. Beside it ours is started by hand (-L) and asked at once: from its
start to its first answer it is not ready. The last row of a size is a repack.

The databases are written by cyr_dbtool, in batches, so that ten million mailboxes need neither memory nor patience
that a machine has not. At most ten thousand mailboxes have a quota root, at random: each is a file.
"""

import compileall
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random

from benchmarks.asking import Load, asked, compiled
from benchmarks.cyrus import OPTIONS, OURS, REPLIES, SEED, THEIRS, note, socket_of
from benchmarks.cyrus_writer import OPTIONS as WRITABLE
from benchmarks.cyrus_writer import longest_waits, writing
from benchmarks.processes import cpu_of, of_service, private
from benchmarks.report import Report, Target, rotated
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import GROUP, GROUPS, USER, Site, record
from tests.rig.place import sheltered
from tests.rig.require import CYRUS_PROGRAMS
from tests.rig.smmapd import installed

CONNECTIONS = 16
# Kinds of questions, and whether Cyrus writes meanwhile.
KINDS = {"hits": ("hits", False), "misses": ("misses", False), "hits while Cyrus writes": ("hits", True)}
BATCH = 500_000  # mailboxes for one run of cyr_dbtool
PATIENCE = 300.0  # seconds for such a run, and for a first answer
QUOTA_ROOTS = 10_000
QUIET, IDLE = 0.5, 0.02  # seconds of little CPU time, a share of one, after which ours has learnt what there is
SMMAPD, OUR_SMMAPD, BY_HAND = "Cyrus' smmapd", "ours", "ours, by hand"
NAMES = {SMMAPD: THEIRS, OUR_SMMAPD: OURS}


def name(number: int, size: int) -> str:
    """A name for each number, in ascending order, all over the alphabet."""
    return f"{chr(ord('a') + number * 26 // size)}{number:08x}"


def key(number: int, size: int, kind: str) -> str:
    """The address of a mailbox, or one that nobody has and that sorts behind it."""
    return f"{name(number, size)}{'x' * (kind == 'misses')}@example.org"


def write_mailboxes(site: Site, size: int) -> None:
    """Write mailboxes.db, batch by batch."""
    value = record("%s lrswipkxtecdan")
    for start in range(0, size, BATCH):
        names = (name(number, size).encode() for number in range(start, min(start + BATCH, size)))
        lines = b"".join(b"Nuser\x1f%b\t%b\n" % (one, value.replace(b"%s", one)) for one in names)
        _dbtool(site, "set", lines)
    # Else Cyrus may find with any change that it is time for that, and then its own smmapd waits for a minute.
    _dbtool(site, "repack")


def _dbtool(site: Site, action: str, lines: bytes = b"") -> None:
    file = site.directory / "mailboxes.db"
    done = subprocess.run(
        [CYRUS_PROGRAMS / "cyr_dbtool", "-C", site.config, "-n", *(["-T"] if lines else []), file, "twoskip", action],
        input=lines, capture_output=True, cwd=site.place, timeout=PATIENCE, check=False, user=USER, group=GROUP,
        extra_groups=GROUPS,
    )  # fmt: skip
    if done.returncode or done.stderr:
        raise RuntimeError(f"cyr_dbtool {action}: status {done.returncode}, {done.stderr!r}")


def write_quotas(site: Site, size: int) -> None:
    """Give a tenth of the mailboxes a quota root, or as many as are allowed."""
    for number in Random(SEED).sample(range(size), min(size // 10, QUOTA_ROOTS)):
        user = name(number, size)
        file = site.directory / "quota" / user[0] / f"user.{user}"
        file.parent.mkdir(exist_ok=True)
        file.write_text("104857600\n1048576\n")
        for one in (file.parent, file):
            shutil.chown(one, USER, GROUP)


@contextmanager
def installation(size: int) -> Iterator[tuple[Cyrus, Path]]:
    """A running master with both as services on so many mailboxes; and our program."""
    with sheltered("sizes") as place:
        (place / OURS).mkdir()
        program = installed(place / OURS)
        compileall.compile_dir(place / OURS / "library", quiet=1)  # as an installed one is
        words = f"-C {place / 'cyrus' / 'site' / 'imapd.conf'} -U 1000000 -T 3600"
        programs = {THEIRS: "smmapd", OURS: str(program)}
        lines = [service(one, f"{of} {words}", socket_of(place, one)) for one, of in programs.items()]
        cyrus = Cyrus(place, imapd_conf={**OPTIONS, **WRITABLE}, services=lines)
        cyrus.site.place.mkdir()
        cyrus.site.prepare()
        write_mailboxes(cyrus.site, size)
        write_quotas(cyrus.site, size)
        with cyrus:
            yield cyrus, program


def by_hand(program: Path, cyrus: Cyrus, known: Sequence[str]) -> dict[str, float]:
    """Start ours and ask at once: how long until it answers, and the memory that it has after some questions."""
    path = cyrus.place / "hand.sock"
    path.unlink(missing_ok=True)  # the last one was killed
    command: list[str | Path] = [program, "-C", cyrus.site.config, "-L", f"unix:{path}"]
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=cyrus.place) as process:
        try:
            while not (asker := _connected(path)):
                if process.poll() is not None or time.monotonic() > start + PATIENCE:
                    raise RuntimeError("ours did not start by hand")
                time.sleep(0.002)
            reply = asker.ask(known[0].encode())
            seconds = time.monotonic() - start
            replies = {reply, *asker.ask_all([one.encode() for one in known])}
            asker.close()
            if not all(one.startswith(b"OK ") for one in replies):
                raise RuntimeError(f"wrong answers: {replies}")
            return {"time": seconds, "private": private(process.pid)}
        finally:
            process.kill()


def _connected(path: Path) -> Asker | None:
    with socket.socket(socket.AF_UNIX) as trial:
        if trial.connect_ex(str(path)):  # not bound, or not listening yet
            return None
    return Asker(path)


def targets(sizes: Sequence[int]) -> Iterator[Target]:
    """What issue 5 wants."""
    least, most = min(sizes), max(sizes)
    for kind in KINDS:
        where, before = scenario(most, kind), scenario(least, kind)
        told = f"{kind}: CPU per answer at {most} mailboxes to that at {least}"
        yield Target(told, where, OUR_SMMAPD, "cpu", 1.3, against=OUR_SMMAPD, against_scenario=before)
    where = scenario(most, "hits")
    yield Target(f"ready after a start, {most} mailboxes", scenario(most, "start"), BY_HAND, "time", 2.0)
    yield Target(f"private memory, {most} mailboxes", where, OUR_SMMAPD, "private", 300e6)


def scenario(size: int, kind: str) -> str:
    """What a row is called."""
    return f"{size} mailboxes, {kind}"


class Size:
    """The turns at one size."""

    def __init__(self, report: Report, load: Load, size: int, cyrus: Cyrus, program: Path) -> None:
        self._report = report
        self._load = load
        self._size = size
        self._cyrus = cyrus
        self._program = program
        self._asking = compiled("load.c", cyrus.place.parent)
        self._sockets = {server: socket_of(cyrus.place.parent, of) for server, of in NAMES.items()}
        self.changes = 0
        # No mailbox is asked about twice, by however many rounds and kinds, where there are enough.
        self._each = load.questions
        needed = (2 * load.rounds + 1) * self._each
        self._numbers = cycle(Random(SEED).sample(range(size), min(size, needed)))

    def learn(self) -> None:
        """Ask ours while it learns, and wait until it has learnt."""
        keys = [key(one, self._size, "hits") for one in islice(self._numbers, self._each)]
        processes = partial(of_service, self._cyrus.pid, OURS)
        begun = time.monotonic()
        command: list[str | Path] = [self._asking, self._sockets[OUR_SMMAPD], str(CONNECTIONS), REPLIES["hits"]]
        figures = asked(command, keys, processes)
        self._report.add(0, scenario(self._size, "hits while it learns"), OUR_SMMAPD, figures)
        while time.monotonic() - begun < PATIENCE:
            before, at = sum(cpu_of(processes()).values()), time.monotonic()
            time.sleep(QUIET)
            if sum(cpu_of(processes()).values()) - before < IDLE * (time.monotonic() - at):
                break
        learnt = time.monotonic() - begun - QUIET
        self._report.add(0, scenario(self._size, "learning"), OUR_SMMAPD, {"time": learnt})

    def round(self, number: int) -> None:
        """Ask both, each way."""
        numbers = list(islice(self._numbers, self._each))
        these = {False: numbers, True: list(islice(self._numbers, self._each))}
        for kind, (asked_for, beside_writer) in KINDS.items():
            keys = [key(one, self._size, asked_for) for one in these[beside_writer]]
            with ExitStack() as stack:
                changes = stack.enter_context(writing(self._cyrus, self._sockets)) if beside_writer else []
                for server in rotated(list(NAMES), number):
                    path, reply = self._sockets[server], REPLIES[asked_for]
                    command: list[str | Path] = [self._asking, path, str(CONNECTIONS), reply]
                    try:
                        figures = asked(command, keys, partial(of_service, self._cyrus.pid, NAMES[server]))
                    except RuntimeError as error:
                        raise RuntimeError(f"{scenario(self._size, kind)}, {server}: {error}") from error
                    self._report.add(number, scenario(self._size, kind), server, figures)
            self.changes += len(changes)  # now that the writer has ended: it makes one change at least
        known = [key(one, self._size, "hits") for one in numbers[:1000]]
        figures = by_hand(self._program, self._cyrus, known)
        self._report.add(number, scenario(self._size, "start"), BY_HAND, figures)

    def repack(self) -> None:
        """Repack, once: it takes long."""
        known = [key(one, self._size, "hits") for one in range(0, self._size, max(1, self._size // 1000))]
        for server, seconds in longest_waits(self._cyrus, self._sockets, known).items():
            self._report.add(0, scenario(self._size, "longest wait in a repack"), server, {"time": seconds})


def run(load: Load) -> Iterator[Report]:
    """Measure, from the smallest to the largest."""
    report = Report(
        "sizes", "from few mailboxes to many, every key different", baseline=SMMAPD, targets=tuple(targets(load.sizes))
    )
    changes = 0
    for size in sorted(load.sizes):
        begun = time.monotonic()
        with installation(size) as (cyrus, program):
            note(f"sizes: {size} mailboxes made in {time.monotonic() - begun:.0f} s")
            one = Size(report, load, size, cyrus, program)
            one.learn()
            for number in range(load.rounds):
                one.round(number)
            one.repack()
            changes += one.changes
            if complaints := cyrus.complaints():
                raise RuntimeError("\n".join(complaints))
        note(f"sizes: {size} mailboxes asked, {time.monotonic() - begun:.0f} s")
    report.remarks.append(
        f"{CONNECTIONS} connections, at most {load.questions} questions a turn; a start is to the first answer, and "
        f"its memory that after a thousand questions. Cyrus created or deleted {changes} mailboxes meanwhile, and "
        "every server said so at once."
    )
    yield report
