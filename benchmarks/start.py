"""How soon smmapd answers when a client is the first to come: nothing is preforked, master starts a process for it.

Cyrus' smmapd and ours are services of one master. One client connects and asks, or sixteen do at once; the time is from
the first connection to the last first answer. Then all connections are closed, and the processes end when they have
been idle for a second, so that the next start is a cold one, too. The files are in the page cache, and ours has its
bytecode, as an installed program has.

Beside it: what the interpreter takes to start at all, and what our imports add.
"""

import compileall
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.asking import Load
from benchmarks.cyrus import OPTIONS, OURS, THEIRS, local_part, note, socket_of
from benchmarks.processes import of_service
from benchmarks.report import Report, Target, rotated
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import record
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.smmapd import installed, interpreter

MAILBOXES = 1_000
CLIENTS = (1, 16)
IDLE = 1  # seconds after which a process ends
PATIENCE = 30.0
TRIALS = 4  # times that a process is woken up which does not end
LIMIT = 0.150  # seconds to the first answer, of issue 5
SMMAPD, OUR_SMMAPD, PYTHON, IMPORTS = "Cyrus' smmapd", "ours", "Python, nothing imported", "ours, what it imports"
NAMES = {SMMAPD: THEIRS, OUR_SMMAPD: OURS}
STARTING = "start of a process"
# What serves, imported as `smmapd` does; its imports inside functions are those of its first answer.
MEASURE = """
import sys, time
before = len(sys.modules)
begun = time.perf_counter()
import rcptd_daemon.smmapd
from rcptd_daemon.cyrus import start, program
print(time.perf_counter() - begun, len(sys.modules) - before)
"""


@contextmanager
def installation() -> Iterator[tuple[Cyrus, Path]]:
    """A running master that starts nobody, and the library of ours."""
    with sheltered("start") as place:
        folder = place / OURS
        folder.mkdir()
        program = installed(folder)
        compileall.compile_dir(folder / "library", quiet=1)
        words = f"-C {place / 'cyrus' / 'site' / 'imapd.conf'} -T {IDLE}"
        programs = {THEIRS: "smmapd", OURS: str(program)}
        lines = [service(one, f"{of} {words}", socket_of(place, one), prefork=0) for one, of in programs.items()]
        cyrus = Cyrus(place, imapd_conf=OPTIONS, services=lines)
        site = cyrus.site
        site.place.mkdir()
        for user in map(local_part, range(MAILBOXES)):
            site.mailboxes[b"user\x1f" + user.encode()] = record(f"{user} lrswipkxtecdan")
        site.write()
        with cyrus:
            yield cyrus, folder / "library"


def cold(cyrus: Cyrus, name: str, clients: int) -> dict[str, float]:
    """Wait until no process is there, connect, ask; the time until all have an answer, and the processes then."""
    path = socket_of(cyrus.place.parent, name)
    wait_for_the_end(cyrus, name, path)
    with ExitStack() as stack:
        begun = time.monotonic()
        askers = [stack.enter_context(Asker(path)) for _ in range(clients)]
        requests = [f"{local_part(number)}@example.org".encode() for number in range(clients)]
        # All ask before the first is heard: only then is one that serves them one by one slower.
        for asker, key in zip(askers, requests, strict=True):
            asker._socket.sendall(b"%d:cyrus %b," % (len(key) + 6, key))  # noqa: SLF001
        replies = [asker._reply() for asker in askers]  # noqa: SLF001
        seconds = time.monotonic() - begun
        processes = len(of_service(cyrus.pid, name))
    if not all(reply.startswith(b"OK ") for reply in replies):
        raise RuntimeError(f"{name}: {replies}")
    return {"time": seconds, "processes": processes}


def wait_for_the_end(cyrus: Cyrus, name: str, path: Path) -> None:
    """Wait until no process of a service is there.

    Now and then one of Cyrus' own does not end (seen twice; it waits in pselect without a time limit, for an alarm or a
    client): it gets a client, who says nothing.
    """
    for _ in range(TRIALS):
        if wait_until(lambda: not of_service(cyrus.pid, name), PATIENCE):
            return
        Asker(path).close()
    raise RuntimeError(f"processes of {name} do not end")


def imports(library: Path) -> Mapping[str, dict[str, float]]:
    """What a start of the interpreter takes, and of it our imports."""
    python = [interpreter(), "-I", "-c"]
    begun = time.monotonic()
    subprocess.run([*python, "pass"], check=True, timeout=PATIENCE, cwd="/")
    bare = time.monotonic() - begun
    text = f"import sys; sys.path.insert(0, {str(library)!r})" + MEASURE
    done = subprocess.run([*python, text], check=True, timeout=PATIENCE, cwd="/", capture_output=True, text=True)
    seconds, modules = map(float, done.stdout.split())
    return {PYTHON: {"time": bare}, IMPORTS: {"time": seconds, "modules": modules}}


def costliest(library: Path, number: int = 8) -> str:
    """The modules that take longest by themselves, in milliseconds."""
    text = f"import sys; sys.path.insert(0, {str(library)!r})" + MEASURE
    command = [interpreter(), "-I", "-X", "importtime", "-c", text]
    done = subprocess.run(command, check=True, timeout=PATIENCE, cwd="/", capture_output=True, text=True)
    lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    times = sorted(((int(one[0]), one[2].strip()) for one in lines if one[0].strip().isdigit()), reverse=True)
    return ", ".join(f"{name} {took / 1000:.1f}" for took, name in times[:number])


def scenario(clients: int) -> str:
    """What a row is called."""
    return f"cold, {clients} client{'s at once' if clients > 1 else ''}"


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    report = Report(
        "start", "smmapd started by master when a client comes", baseline=SMMAPD, compared=("time",),
        targets=[Target("first answer of ours", scenario(1), OUR_SMMAPD, "time", LIMIT)],
    )  # fmt: skip
    with installation() as (cyrus, library):
        for number in range(load.rounds):
            for clients in CLIENTS:
                for start in range(load.starts):
                    for server in rotated(list(NAMES), number + start):
                        figures = cold(cyrus, NAMES[server], clients)
                        report.add(number * load.starts + start, scenario(clients), server, figures)
            for server, figures in imports(library).items():
                report.add(number, STARTING, server, figures)
            note(f"start: round {number + 1} of {load.rounds}")
        if complaints := cyrus.complaints():
            raise RuntimeError("\n".join(complaints))
        report.remarks.append(f"{MAILBOXES} mailboxes. Modules that take longest to import, ms: {costliest(library)}.")
    yield report
