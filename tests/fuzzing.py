"""Run fuzz targets for a given time: `tools/fuzz [SECONDS [TARGET...]]`.

A target is a module in tests/fuzz that opens with its invariants and has `one(source)`, which tries one input made
with a source of randomness. Each input has a seed of its own, so a failure is repeated with `again(TARGET, SEED)`.
"""

import random
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

TARGETS = sorted(path.stem for path in (Path(__file__).parent / "fuzz").glob("*.py"))


def target(name: str) -> Callable[[random.Random], None]:
    """Give what tries one input."""
    one: Callable[[random.Random], None] = import_module(f"tests.fuzz.{name}").one
    return one


def again(name: str, seed: int) -> None:
    """Try the input of a seed."""
    target(name)(random.Random(seed))


def fuzz(name: str, seconds: float) -> int:
    """Fuzz a target for so long; gives how many inputs it took."""
    one = target(name)
    end = time.monotonic() + seconds
    first = seed = time.time_ns()
    while time.monotonic() < end:
        try:
            one(random.Random(seed))
        except BaseException:
            print(f"{name} failed; repeat it with tests.fuzzing.again({name!r}, {seed})", flush=True)
            raise
        seed += 1
    return seed - first


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    for name in sys.argv[2:] or TARGETS:
        print(f"{name}: {fuzz(name, seconds)} inputs in {seconds:g} s", flush=True)
