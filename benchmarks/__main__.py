"""All benchmarks, or some, in one run: `make bench ARGS="--only milter --rounds 3"`.

Each part makes what it needs, asks everybody in turn, and prints its tables when it is through; docs/performance.md
says what they mean. A part that fails does not keep the others from running. Nothing is asserted.
"""

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import cast

from benchmarks.asking import Load
from benchmarks.cyrus import machine, note
from benchmarks.plot import draw
from benchmarks.report import Report

# By name, and the module that has it: one is imported only when it is wanted.
PARTS: Mapping[str, str] = {
    "socketmap": "benchmarks.socketmap",
    "cyrus": "benchmarks.cyrus_rows",
    "sizes": "benchmarks.cyrus_sizes",
    "milter": "benchmarks.milters",
    "decision": "benchmarks.decision",
    "postfix": "benchmarks.postfix",
    "both": "benchmarks.both",
    "start": "benchmarks.start",
}
NOT_BY_DEFAULT = ("sizes",)  # ten million mailboxes take a quarter of an hour, and gigabytes
QUICK = Load(rounds=2, questions=200, recipients=500, mailboxes=2_000, sizes=(300, 3_000), messages=30, starts=1)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=[*PARTS], help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--all", action="store_true", help="also what takes long: sizes")
    parser.add_argument("--quick", action="store_true", help="see that all of it works; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there, as SVG")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--questions", type=int, help="for each turn of a server")
    parser.add_argument("--recipients", type=int, help="in tables and in what is remembered")
    parser.add_argument("--mailboxes", type=int, help="of Cyrus, in the part cyrus")
    parser.add_argument("--sizes", type=_numbers, metavar="N,N", help="of mailboxes.db, in the part sizes")
    parser.add_argument("--messages", type=int, help="for each turn of Postfix")
    parser.add_argument("--starts", type=int, help="cold starts for each turn")
    apart = "in the part both: a line of [daemon] that gives front ends workers of their own"
    parser.add_argument("--apart", metavar="LINE", help=apart)
    return parser.parse_args(words)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(float(one)) for one in text.split(","))


def load_of(given: argparse.Namespace) -> Load:
    """How much is asked: the defaults, and what the command line says."""
    load = QUICK if given.quick else Load()
    said = {name: getattr(given, name) for name in asdict(load) if getattr(given, name) is not None}
    return replace(load, **said)


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; gives 1 where one of them failed."""
    given = arguments(words)
    load = load_of(given)
    on = machine()
    print(", ".join(f"{name} {value}" for name, value in on.items()), end="\n\n", flush=True)
    reports: list[Report] = []
    failed = []
    for name in given.only or [one for one in PARTS if given.all or one not in NOT_BY_DEFAULT]:
        note(f"{name}: begins")
        try:
            run = cast(Callable[[Load], Iterator[Report]], import_module(PARTS[name]).run)
            for report in run(load):
                print(report, end="\n\n", flush=True)
                reports.append(report)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        if given.json:
            text = {"machine": on, "load": asdict(load), "parts": [one.as_json() for one in reports]}
            given.json.write_text(json.dumps(text, indent=1) + "\n")
        if given.plot:
            draw(reports, given.plot)
    if failed:
        note(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    # Who ends us, as timeout(1) does, means the servers, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
