"""Many milter sessions at once whose lookups wait, on the real libmilter: `python -m benchmarks.milter_pool`.

The listener and the real driver run in a process of their own; a recipient at slow.example is asked of a service
that takes a while, one at local.example is looked up in a table. All sessions are opened first. Then the process is
stopped, each session tells one slow recipient and one session more a local one, and the process goes on: so it finds
all at once, which is what libmilter's pool is worst at. Without the stop a round may go well by chance. A row is one
round in a fresh process: how long the slow answers took, how long the local one, and how many threads the process had
at most.

No session is opened while others wait: that would have workers started, which is the cure (rcptd_milter.relief).

To run it from a checkout: `PYTHONPATH=core:milter:socketmap:daemon:. .venv/bin/python -m benchmarks.milter_pool`.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest import mock

from rcptd import schema
from rcptd.address import Recipient
from rcptd.drive import Driver
from rcptd.policy import Policy, read_rules
from rcptd.question import EXISTS, NOT_FOUND, Answer, Store
from rcptd.stores.memory import Memory
from rcptd.world import World
from rcptd_milter.settings import Settings
from tests.harness.milterpackets import RCPT, frame, strings
from tests.harness.milterwire import MilterConnection

RULES = """
[[rules]]
name = "slow"
when = { domain = "slow.example" }
verify = ["service"]
[[rules]]
name = "local"
when = { domain = "local.example" }
verify = ["table"]
"""
SLOW = "<gone@slow.example>"
LOCAL = "<gone@local.example>"
PATIENCE = 60.0  # seconds for one answer; far more than any measured
PAUSE = 0.01  # seconds between two local questions


@dataclass(frozen=True)
class Round:
    """What one round took; times in milliseconds."""

    sessions: int
    lookup: float
    p50: float
    slowest: float
    local: float
    """How long the session waited whose answer was in a table."""
    threads: int
    replies: dict[str, int]
    local_reply: str


class Service:
    """Knows nobody, and takes its time to say so."""

    next_hop = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def ask(self, _: Recipient) -> Answer:
        """Say no, late."""
        await asyncio.sleep(self._seconds)
        return NOT_FOUND

    async def aclose(self) -> None:
        """Keep nothing open."""


def serve(listen: str, lookup: float, deadline: float, *, relieved: bool, processes: int) -> None:
    """Serve until SIGTERM, with forks that share the socket; SIGUSR1 prints what the listener counts."""
    from rcptd_milter import libmilter  # noqa: PLC0415 - pymilter is an extra

    def sound(key: str, what: str) -> None:
        raise ValueError(f"{key}: {what}")

    settings = schema.read(Settings, {"listen": listen}, sound)
    assert settings
    stores: dict[str, Store] = {"service": Service(lookup), "table": Memory({"user@local.example": EXISTS.mailbox})}
    rules = read_rules(tomllib.loads(RULES)["rules"], dict.fromkeys(stores), sound, reached_from_map=False)
    driver = Driver(World(Policy(rules), stores, deadline))
    if not relieved:
        mock.patch.object(libmilter, "has_pool", return_value=False).start()
    listener = libmilter.Listener(settings, driver.decide_from_thread)
    driver.while_waiting = listener.waiting
    sys.setswitchinterval(0.0001)  # the daemon's default

    def tell() -> None:
        counts = {
            "sessions": listener.active_sessions,
            "faults": listener.faults,
            "connections": listener._relief.connections,  # noqa: SLF001 - of interest here only
        }
        print(json.dumps(counts), flush=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        driver.attach(loop)
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        loop.add_signal_handler(signal.SIGUSR1, tell)
        listener.start()
        if first:
            print("ready", flush=True)
        await over.wait()
        listener.stop()
        listener.close()

    listener.open()
    first = all(os.fork() for _ in range(processes - 1))  # a child forks no more
    if processes > 1:
        listener.leave_name(processes)
    asyncio.run(run())
    os._exit(0)


@contextmanager
def serving(
    listen: str, lookup: float, deadline: float, *, relieved: bool = True, processes: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """Run a listener that takes `lookup` seconds for a slow recipient, in a process group of its own."""
    command = [sys.executable, "-m", "benchmarks.milter_pool", "--serve", listen]
    command += ["--lookup", str(lookup), "--deadline", str(deadline), "--processes", str(processes)]
    command += ["--unrelieved"] * (not relieved)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def threads_of(process: int) -> int:
    """Count the threads that a process has now."""
    return len(list(Path(f"/proc/{process}/task").iterdir()))


async def opened(listen: str) -> MilterConnection:
    """Open a session and begin a transaction."""
    mta = MilterConnection(listen, patience=PATIENCE)
    await mta.open()
    await mta.connect("client.example", "192.0.2.7")
    await mta.mail("<>")
    return mta


async def one_round(listen: str, process: int, sessions: int, lookup: float) -> Round:
    """Ask about a slow recipient in each of many sessions and about a local one in one more, all at once."""
    threads = 0
    over = False

    async def count() -> None:
        nonlocal threads
        while not over:
            threads = max(threads, threads_of(process))
            await asyncio.sleep(PAUSE)

    async def answer(mta: MilterConnection) -> tuple[float, bytes]:
        said = await mta.unasked(PATIENCE)
        return (time.perf_counter() - began) * 1000, said[5:14]

    # libmilter's workers take sessions in the order of their opening: the local one has all others before it.
    slow = [await opened(listen) for _ in range(sessions)]
    local = await opened(listen)
    counting = asyncio.create_task(count())
    await settled(process)
    # While it stands still all questions arrive, so that it finds them at once: see the module's docstring.
    os.killpg(process, signal.SIGSTOP)
    for mta in slow:
        await mta.raw(question(SLOW))
    await local.raw(question(LOCAL))
    began = time.perf_counter()
    os.killpg(process, signal.SIGCONT)
    *answers, (local_took, local_said) = await asyncio.gather(*(answer(mta) for mta in (*slow, local)))
    over = True
    await counting
    for mta in (*slow, local):
        await mta.quit()
    took = [one for one, _ in answers]
    said = Counter(reply.decode() for _, reply in answers)
    return Round(sessions, lookup, median(took), max(took), local_took, threads, dict(said), local_said.decode())


async def settled(process: int) -> None:
    """Wait until the pool has let go of the workers that the opening of sessions has taken, half a second at most."""
    last = 0
    for _ in range(25):
        if last == (last := threads_of(process)):
            return
        await asyncio.sleep(0.02)


def question(recipient: str) -> bytes:
    """Put RCPT into a packet."""
    return frame(RCPT.letter, strings([recipient]))


def main(arguments: list[str] | None = None) -> None:
    """Measure, or serve for the one who measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[32, 64, 100, 300])
    parser.add_argument("--lookup", type=float, default=0.1, help="seconds that a lookup takes")
    parser.add_argument("--deadline", type=float, default=6.0, help="seconds that a decision may take")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--listen", help="instead of a unix socket")
    parser.add_argument("--processes", type=int, default=1, help="how many share the socket")
    parser.add_argument("--unrelieved", action="store_true", help="leave libmilter's pool as it is")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(
            options.serve,
            options.lookup,
            options.deadline,
            relieved=not options.unrelieved,
            processes=options.processes,
        )
    rounds: list[Round] = []
    print("| sessions | p50 ms | slowest ms | local ms | threads |\n|---|---|---|---|---|")
    for sessions in options.sessions:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(prefix="rcptd-") as folder:
                listen = options.listen or f"unix:{folder}/milter.sock"
                relieved = not options.unrelieved
                with serving(
                    listen, options.lookup, options.deadline, relieved=relieved, processes=options.processes
                ) as process:
                    one = asyncio.run(one_round(listen, process.pid, sessions, options.lookup))
            rounds.append(one)
            print(
                f"| {one.sessions} | {one.p50:.0f} | {one.slowest:.0f} | {one.local:.0f} | {one.threads} |",
                flush=True,
            )
            if sum(one.replies.values()) != sessions or len(one.replies) != 1:
                print(f"replies: {one.replies}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")


if __name__ == "__main__":
    main()
