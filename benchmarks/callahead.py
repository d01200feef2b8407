"""How fast the store `callahead` asks a next hop: `make bench-callahead ARGS="--json FILE"`.

(a) Distinct recipients of a local hop that answers at once: on kept connections, and on a connection each, in turns.
(b) Thousands of questions at once, on as many connections, to a hop that takes a second over each RCPT: answers a
    second once all connections are up, and the most memory that the asking process had. A loop beside it measures how
    late the event loop runs, since local lookups run there, too.

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


async def many(next_hop: str, number: int, rounds: int) -> Mapping[str, float]:
    """Hold so many questions at once, for some rounds of answers."""
    ahead = store(next_hop, connections=number, accept_all="ignore", timeout="60s", connect_timeout="30s")
    await ask_all(ahead, number, number)  # all connections are up after that
    late: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            late.append(time.perf_counter() - start - 0.01)

    watching = asyncio.create_task(watch())
    taken = await ask_all(ahead, number * rounds, number)
    watching.cancel()
    (pool,) = ahead._hops._pools.values()  # noqa: SLF001
    used = resource.getrusage(resource.RUSAGE_SELF)
    outcome = {
        "answers/s": number * rounds / taken,
        "connections": float(pool._up),  # noqa: SLF001
        "peak RSS, MB": used.ru_maxrss / 1024,
        "CPU, us an answer": (used.ru_utime + used.ru_stime) / (number * (rounds + 1)) * 1e6,
        "loop late, ms, median": median(late) * 1e3,
        "loop late, ms, 99 of 100": sorted(late)[len(late) * 99 // 100] * 1e3,
    }
    await ahead.aclose()
    return outcome


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


def measure_many(loop: str, number: int, rounds: int) -> Mapping[str, float]:
    """Measure (b), in a process of its own."""
    with hop(1.0) as next_hop:
        words = [sys.executable, "-m", "benchmarks.callahead", "--inner", next_hop, "--loop", loop]
        words += ["--at-once", str(number), "--rounds", str(rounds)]
        found = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    numbers: Mapping[str, float] = json.loads(found.stdout)
    return numbers


def main(words: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print the numbers."""
    parser = argparse.ArgumentParser(prog="benchmarks.callahead", description=__doc__)
    parser.add_argument("--recipients", type=int, default=10_000, help="of (a)")
    parser.add_argument("--at-once", type=int, default=2000, help="questions at once of (b)")
    parser.add_argument("--rounds", type=int, default=5)
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
        print(json.dumps(run(loops[0], many(given.inner, given.at_once, given.rounds))))
        return
    machine = {"CPUs": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, load before {os.getloadavg()[0]:.1f}")
    outcomes: dict[str, Mapping[str, float]] = {}
    for loop in loops:
        outcomes[f"(a) {given.recipients} recipients, {loop}"] = measure_reuse(loop, given.recipients, given.rounds)
        outcomes[f"(b) {given.at_once} at once, {loop}"] = measure_many(loop, given.at_once, given.rounds)
    for at, (name, numbers) in zip(count(1), outcomes.items()):
        print(f"\n{at}. {name}")
        for what, number in numbers.items():
            print(f"   {what:32} {number:10.2f}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "outcomes": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
