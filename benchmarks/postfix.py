"""Messages through a real Postfix: without a filter, with rcptd as its milter, with rcptd as its table of recipients.

Private Postfix stand beside each other, one of them with a milter in C that does nothing, which tells what a milter
costs that costs nothing. They are sent to in turn by Postfix' own smtp-source, on 16 sessions at a time, a connection
for each message, each with a recipient of its own. Mail is thrown away by the transport discard; a turn is over when
smtp-source has had its last reply, and the next begins when the queue is empty.

CPU time is that of all of the Postfix' processes and the filter's, from the first message to the empty queue.
"""

import resource
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asking import PATIENCE, Load, Processes, compiled, processes_of, serving
from benchmarks.cyrus import note
from benchmarks.milters import Milter, nothing, wait_until_known
from benchmarks.processes import cpu_of, cpu_of_group
from benchmarks.rcptd_conf import DOMAIN, MAPS, MILTER, RULES, file_store
from benchmarks.report import Report, Target, rotated
from tests.rig.place import sheltered
from tests.rig.ports import LOOPBACK, wait_until
from tests.rig.postfix import Postfix
from tests.rig.require import require_program

SESSIONS = 16
OCTETS = 4096  # of a message's body
NO_FILTER, AS_MILTER, AS_MAP = "no filter", "rcptd as milter", "rcptd as recipient map"
IN_C = "milter in C, does nothing"
SCENARIO = f"{SESSIONS} sessions"
QUEUES = ("incoming", "active", "maildrop", "deferred")


@dataclass(frozen=True)
class Mta:
    """A running Postfix, and the filter that it asks."""

    postfix: Postfix
    master: int
    filter: Processes

    def settled(self) -> bool:
        """Whether nothing is in the queue."""
        return not any(file.is_file() for name in QUEUES for file in (self.postfix.queue / name).rglob("*"))

    def cpu(self) -> tuple[float, float]:
        """The CPU time of all, and that of the filter alone."""
        of_filter = sum(cpu_of(self.filter()).values())
        return cpu_of_group(self.master) + of_filter, of_filter


@contextmanager
def mtas(place: Path, messages: int) -> Iterator[Mapping[str, Mta]]:
    """All of them, running."""
    # smtp-source -N numbers its recipients.
    there = [f"{number}user@{DOMAIN}" for number in range(messages + 2 * SESSIONS)]
    settings: dict[str, dict[str, str]] = {
        NO_FILTER: {},
        AS_MILTER: {"smtpd_milters": "unix:%s/milter.sock", "milter_default_action": "tempfail"},
        IN_C: {"smtpd_milters": "unix:%s/milter.sock", "milter_default_action": "tempfail"},
        AS_MAP: {"relay_recipient_maps": "socketmap:unix:%s/map.sock:recipients"},
    }
    front_ends = {AS_MILTER: MILTER, AS_MAP: MAPS}
    with ExitStack() as stack:
        found = {}
        for at, (name, main_cf) in enumerate(settings.items()):
            folder = place / f"filter{at}"
            folder.mkdir()
            asked: Processes = lambda: ()  # noqa: E731 - nobody
            if name == IN_C:
                path = folder / "milter.sock"
                program = compiled("nothing.c", place, "-lmilter")
                asked = stack.enter_context(nothing([program, f"unix:{path}"], path)).processes
                path.chmod(0o666)  # libmilter leaves it to its owner
            elif name in front_ends:
                configuration = front_ends[name] + file_store(folder, there) + RULES
                known = there[0] if name == AS_MAP else ""
                asked = processes_of(stack.enter_context(serving(folder, configuration, probe=known)))
            if name == AS_MILTER:
                wait_until_known(place, Milter(folder / "milter.sock", asked), there[0])
            its_place = place / f"mta{at}"
            its_place.mkdir()
            filled = {key: value.replace("%s", str(folder)) for key, value in main_cf.items()}
            postfix = stack.enter_context(Postfix(its_place, main_cf=filled))
            master = int((postfix.queue / "pid" / "master.pid").read_text())
            found[name] = Mta(postfix, master, asked)
        yield found


def turn(mta: Mta, messages: int) -> dict[str, float]:
    """Send so many messages; raises `RuntimeError` where one was not taken."""
    command = [
        require_program("smtp-source"), "-s", str(SESSIONS), "-m", str(messages), "-l", str(OCTETS), "-N",
        "-f", "sender@client.example", "-t", f"user@{DOMAIN}", f"{LOOPBACK}:{mta.postfix.port}",
    ]  # fmt: skip
    before, generator = mta.cpu(), _children()
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    seconds = time.monotonic() - begun
    if done.returncode or done.stderr:
        raise RuntimeError(f"smtp-source: status {done.returncode}, {done.stderr}")
    generator = _children() - generator
    if not wait_until(mta.settled, PATIENCE, every=0.1):
        raise RuntimeError("the queue does not become empty")
    after = mta.cpu()
    return {
        "rate": messages / seconds, "cpu": (after[0] - before[0]) / messages,
        "filter": (after[1] - before[1]) / messages, "generator": generator / seconds,
    }  # fmt: skip


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(load: Load) -> Iterator[Report]:
    """Measure."""
    report = Report(
        "postfix", "messages through Postfix", "message", baseline=NO_FILTER,
        targets=[
            Target(f"{one}: messages/s to no filter", SCENARIO, one, "rate", 0.95, True, NO_FILTER)
            for one in (AS_MILTER, AS_MAP)
        ],
    )  # fmt: skip
    with sheltered("postfix") as place, mtas(place, load.messages) as servers:
        for one in servers.values():  # so that none starts its first processes in a turn
            turn(one, 2 * SESSIONS)
        for number in range(load.rounds):
            for name in rotated(list(servers), number):
                report.add(number, SCENARIO, name, turn(servers[name], load.messages))
            note(f"postfix: round {number + 1} of {load.rounds}")
        for name, one in servers.items():
            if bad := [line for line in one.postfix.log().splitlines() if "warning:" in line or "fatal:" in line]:
                raise RuntimeError(f"{name}: {bad[0]}")
    report.remarks.append(
        f"{load.messages} messages of {OCTETS} octets a turn, one recipient each, smtp-source -s {SESSIONS}. CPU time "
        "goes in steps of 10 ms, except for rcptd's."
    )
    yield report
