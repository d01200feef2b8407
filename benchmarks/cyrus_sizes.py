"""How the cost of an uncached question grows with mailboxes.db, how soon smmapd is ready, and what memory it takes.

For each size an installation of its own, with Cyrus' smmapd and ours under one master. No key is asked twice; where a
small database has too few for that, a turn has fewer hits. Beside it ours is started by hand (-L) and asked at once:
from its start to its first answer it is not ready.

The databases are written by cyr_dbtool, in batches, so that ten million mailboxes need neither memory nor patience
that a machine has not. At most ten thousand mailboxes have a quota root, at random: each is a file.
"""

import compileall
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.asking import Load, asked, compiled
from benchmarks.cyrus import OPTIONS, OURS, REPLIES, SEED, THEIRS, note, socket_of
from benchmarks.processes import of_service, private
from benchmarks.report import Report, Target, rotated
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import GROUP, GROUPS, USER, Site, record
from tests.rig.place import sheltered
from tests.rig.require import CYRUS_PROGRAMS
from tests.rig.smmapd import installed

CONNECTIONS = 16
BATCH = 500_000  # mailboxes for one run of cyr_dbtool
PATIENCE = 300.0  # seconds for such a run, and for a first answer
QUOTA_ROOTS = 10_000
SMMAPD, OUR_SMMAPD, BY_HAND = "Cyrus' smmapd", "ours", "ours, by hand"


def name(number: int, size: int) -> str:
    """A name for each number, in ascending order, all over the alphabet."""
    return f"{chr(ord('a') + number * 26 // size)}{number:08x}"


def key(number: int, size: int, kind: str) -> str:
    """The address of a mailbox, or one that nobody has and that sorts behind it."""
    return f"{name(number, size)}{'x' * (kind == 'misses')}@example.org"


def write_mailboxes(site: Site, size: int) -> None:
    """Write mailboxes.db, batch by batch."""
    value = record("%s lrswipkxtecdan")
    file = site.directory / "mailboxes.db"
    command: list[str | Path] = [CYRUS_PROGRAMS / "cyr_dbtool", "-C", site.config, "-n", "-T", file, "twoskip", "set"]
    for start in range(0, size, BATCH):
        names = (name(number, size).encode() for number in range(start, min(start + BATCH, size)))
        lines = b"".join(b"Nuser\x1f%b\t%b\n" % (one, value.replace(b"%s", one)) for one in names)
        done = subprocess.run(
            command, input=lines, capture_output=True, cwd=site.place, timeout=PATIENCE, check=False, user=USER,
            group=GROUP, extra_groups=GROUPS,
        )  # fmt: skip
        if done.returncode or done.stderr:
            raise RuntimeError(f"cyr_dbtool: status {done.returncode}, {done.stderr!r}")


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
        cyrus = Cyrus(place, imapd_conf=OPTIONS, services=lines)
        cyrus.site.place.mkdir()
        cyrus.site.prepare()
        write_mailboxes(cyrus.site, size)
        write_quotas(cyrus.site, size)
        with cyrus:
            yield cyrus, program


def by_hand(program: Path, cyrus: Cyrus, known: Sequence[str]) -> dict[str, float]:
    """Start ours and ask at once: how long until it answers, and the memory that it has after some questions."""
    path = cyrus.place / "hand.sock"
    command: list[str | Path] = [program, "-C", cyrus.site.config, "-L", f"unix:{path}"]
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=cyrus.place) as process:
        try:
            while not path.is_socket() and process.poll() is None and time.monotonic() < start + PATIENCE:
                time.sleep(0.002)
            asker = Asker(path)
            reply = asker.ask(known[0].encode())
            seconds = time.monotonic() - start
            replies = {reply, *asker.ask_all([one.encode() for one in known])}
            asker.close()
            if not all(one.startswith(b"OK ") for one in replies):
                raise RuntimeError(f"wrong answers: {replies}")
            return {"time": seconds, "private": private(process.pid)}
        finally:
            process.kill()


def targets(sizes: Sequence[int]) -> Iterator[Target]:
    """What issue 5 wants."""
    least, most = min(sizes), max(sizes)
    for kind in REPLIES:
        where, before = scenario(most, kind), scenario(least, kind)
        told = f"{kind}: CPU per answer at {most} mailboxes to that at {least}"
        yield Target(told, where, OUR_SMMAPD, "cpu", 1.3, against=OUR_SMMAPD, against_scenario=before)
    where = scenario(most, "hits")
    yield Target(f"ready after a start, {most} mailboxes", scenario(most, "start"), BY_HAND, "time", 2.0)
    yield Target(f"private memory, {most} mailboxes", where, OUR_SMMAPD, "private", 300e6)


def scenario(size: int, kind: str) -> str:
    """What a row is called."""
    return f"{size} mailboxes, {kind}"


def run(load: Load) -> Iterator[Report]:
    """Measure, from the smallest to the largest."""
    report = Report(
        "sizes", "from few mailboxes to many, every key different", baseline=SMMAPD, targets=tuple(targets(load.sizes))
    )
    names = {SMMAPD: THEIRS, OUR_SMMAPD: OURS}
    for size in sorted(load.sizes):
        begun = time.monotonic()
        with ExitStack() as stack:
            cyrus, program = stack.enter_context(installation(size))
            note(f"sizes: {size} mailboxes made in {time.monotonic() - begun:.0f} s")
            place = cyrus.place.parent
            command = compiled("load.c", place)
            asked_at_most = min(load.questions, (size - 1) // load.rounds)
            numbers = Random(SEED).sample(range(size), asked_at_most * load.rounds)
            for number in range(load.rounds):
                these = numbers[number * asked_at_most : (number + 1) * asked_at_most]
                for kind, reply in REPLIES.items():
                    keys = [key(one, size, kind) for one in these]
                    for server in rotated(list(names), number):
                        where = names[server]
                        words: list[str | Path] = [command, socket_of(place, where), str(CONNECTIONS), reply]
                        figures = asked(words, keys, partial(of_service, cyrus.pid, where))
                        report.add(number, scenario(size, kind), server, figures)
                known = [key(one, size, "hits") for one in these[:1000]]
                report.add(number, scenario(size, "start"), BY_HAND, by_hand(program, cyrus, known))
            if complaints := cyrus.complaints():
                raise RuntimeError("\n".join(complaints))
        note(f"sizes: {size} mailboxes asked, {time.monotonic() - begun:.0f} s")
    report.remarks.append(
        f"{CONNECTIONS} connections, at most {load.questions} questions a turn; a start is to the first answer, and "
        "its memory that after a thousand questions. Nobody changes the databases meanwhile."
    )
    yield report
