"""How fast the store `callahead` asks a next hop: `make bench-callahead ARGS="--json FILE"`.

(a) Distinct recipients of a local hop that answers at once: on kept connections, and on a connection each, in turns.
(b) Thousands of questions at once, on as many connections, to a hop that takes a second over each RCPT: answers a
    second, and the most memory that the asking process had. Each answer makes room for the next question, so that there
    are always so many. They are all asked in the same moment, and so answered in one, again and again ("in step"), or
    spread over the second as those of independent clients are. A loop beside it measures how late the event loop runs,
    since local lookups run there, too.

The hop is another process (fasthop.py) on the same machine. (b) runs in a process of its own, so that its memory is
its own, and imports what rcptd would.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from rcptd import schema
from rcptd.address import Recipient
from rcptd.question import Found
from rcptd.stores.callahead.store import CallAhead, Settings, open_store

AT_ONCE = 200  # questions under way in (a), as a busy MTA's
SPARE_DESCRIPTORS = 200
STATES = ("asyncio", "uvloop")


@contextmanager
def hop(delay: float) -> Iterator[str]:
    """A next hop in a process of its own; gives it as the configuration names it."""
    words = [sys.executable, "-m", "benchmarks.fasthop", "--delay", str(delay)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdin
        yield f"lmtp:127.0.0.1:{running.stdout.readline().strip()}"
        running.stdin.close()
        running.wait(10)


def store(next_hop: str, **options: Any) -> CallAhead:
    """Open a store as a configuration would."""
    settings = schema.read(Settings, {"next_hops": [next_hop], **options}, lambda key, what: sys.exit(f"{key}: {what}"))
    assert settings
    return open_store("bench", settings)


async def ask_all(ahead: CallAhead, number: int, at_once: int) -> float:
    """Ask about so many distinct recipients, so many at a time; gives the seconds."""
    numbers = iter(range(number))
    wrong = 0

    async def one_after_the_other() -> None:
        nonlocal wrong
        for at in numbers:
            answer = await ahead.ask(Recipient(f"u{at}", "example.org"))
            wrong += not isinstance(answer, Found)

    start = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    taken = time.perf_counter() - start
    assert not wrong, f"{wrong} of {number} answers are wrong"
    return taken


async def pooled(next_hop: str, number: int) -> float:
    """Ask on kept connections."""
    ahead = store(next_hop)
    taken = await ask_all(ahead, number, AT_ONCE)
    await ahead.aclose()
    return taken


async def one_each(next_hop: str, number: int) -> float:
    """Ask on a connection each: the same store, whose connections are too old after their first transaction."""
    ahead = store(next_hop, recipients_per_transaction=1, accept_all="ignore")
    ahead._hops._limits = replace(ahead._hops._limits, age=0.0)  # noqa: SLF001
    taken = await ask_all(ahead, number, AT_ONCE)
    await ahead.aclose()
    return taken


async def many(next_hop: str, number: int, seconds: int) -> Mapping[str, float]:
    """Hold so many questions at once, and count the answers of some seconds."""
    ahead = store(next_hop, connections=number, accept_all="ignore", timeout="60s", connect_timeout="30s")
    await ask_all(ahead, number, number)  # all connections are up after that
    outcome: dict[str, float] = {}
    for name, spread in (("in step", 0.0), ("spread", 1.0)):
        outcome |= {f"{name}: {what}": value for what, value in (await hold(ahead, number, seconds, spread)).items()}
    (pool,) = ahead._hops._pools.values()  # noqa: SLF001
    outcome["connections"] = float(pool._up)  # noqa: SLF001
    outcome["peak RSS, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    await ahead.aclose()
    return outcome


async def hold(ahead: CallAhead, number: int, seconds: int, spread: float) -> Mapping[str, float]:
    """Keep so many questions under way, begun over so many seconds, and count the answers after the first two."""
    answered = wrong = 0

    async def one_after_the_other(at: int) -> None:
        nonlocal answered, wrong
        await asyncio.sleep(spread * at / number)
        for turn in count():
            answer = await ahead.ask(Recipient(f"u{at}-{turn}", "example.org"))
            answered += 1
            wrong += not isinstance(answer, Found)

    late: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            late.append(time.perf_counter() - start - 0.01)

    tasks = [asyncio.create_task(one_after_the_other(at)) for at in range(number)]
    # Half a second off the beat of those that are in step, or a burst would count or not by chance.
    await asyncio.sleep(2.5)
    watching = asyncio.create_task(watch())
    start, before, used = time.perf_counter(), answered, time.process_time()
    await asyncio.sleep(seconds)
    counted, taken, used = answered - before, time.perf_counter() - start, time.process_time() - used
    for task in (watching, *tasks):
        task.cancel()
    await asyncio.gather(watching, *tasks, return_exceptions=True)
    assert not wrong, f"{wrong} answers are wrong"
    await asyncio.sleep(1.5)  # what was under way ends
    return {
        "answers/s": counted / taken,
        "CPU, us an answer": used / counted * 1e6,
        "loop late, ms, median": median(late) * 1e3,
        "loop late, ms, 99 of 100": sorted(late)[len(late) * 99 // 100] * 1e3,
    }


def run(loop: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run on one of the two event loops."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def measure_reuse(loop: str, number: int, rounds: int) -> Mapping[str, float]:
    """Measure (a), the two ways in turn."""
    ways: dict[str, list[float]] = {"pooled": [], "one each": []}
    with hop(0.0) as next_hop:
        for _ in range(rounds):
            for name, way in (("pooled", pooled), ("one each", one_each)):
                ways[name].append(number / run(loop, way(next_hop, number)))
    ratios = [one / other for one, other in zip(ways["pooled"], ways["one each"], strict=True)]
    return {
        "pooled, answers/s": median(ways["pooled"]),
        "one connection each, answers/s": median(ways["one each"]),
        "ratio": median(ratios),
        "least ratio": min(ratios),
        "most ratio": max(ratios),
    }


def measure_many(loop: str, number: int, seconds: int) -> Mapping[str, float]:
    """Measure (b), in a process of its own."""
    with hop(1.0) as next_hop:
        words = [sys.executable, "-m", "benchmarks.callahead", "--inner", next_hop, "--loop", loop]
        words += ["--at-once", str(number), "--seconds", str(seconds)]
        found = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    numbers: Mapping[str, float] = json.loads(found.stdout)
    return numbers


def main(words: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print the numbers."""
    parser = argparse.ArgumentParser(prog="benchmarks.callahead", description=__doc__)
    parser.add_argument("--recipients", type=int, default=10_000, help="of (a)")
    parser.add_argument("--at-once", type=int, default=2000, help="questions at once of (b)")
    parser.add_argument("--rounds", type=int, default=5, help="of (a)")
    parser.add_argument("--seconds", type=int, default=10, help="for which (b) counts")
    parser.add_argument("--loop", choices=STATES, action="append", help="the event loop; both without it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--inner", metavar="HOP", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    loops = given.loop or STATES
    wanted = 2 * given.at_once + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if given.inner:
        print(json.dumps(run(loops[0], many(given.inner, given.at_once, given.seconds))))
        return
    machine = {"CPUs": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, load before {os.getloadavg()[0]:.1f}")
    outcomes: dict[str, Mapping[str, float]] = {}
    for loop in loops:
        outcomes[f"(a) {given.recipients} recipients, {loop}"] = measure_reuse(loop, given.recipients, given.rounds)
        outcomes[f"(b) {given.at_once} at once, {loop}"] = measure_many(loop, given.at_once, given.seconds)
    for at, (name, numbers) in zip(count(1), outcomes.items()):
        print(f"\n{at}. {name}")
        for what, number in numbers.items():
            print(f"   {what:34} {number:10.2f}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "outcomes": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
