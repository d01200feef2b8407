"""`rcptd memo`: shows and purges what a running daemon remembers of its slow stores, over the control socket."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcptd import address
from rcptd.config import Configuration, FaultyConfiguration
from rcptd_daemon import control

EX_OK, EX_USAGE, EX_UNAVAILABLE = 0, 64, 69  # sysexits(3)

PATIENCE = 30.0
"""How long, in seconds, an answer may take."""

EPILOG = """\
examples:
  rcptd memo show user@example.org       what is remembered, from whom, since when, for how long
  rcptd memo show --all                  all of it, the first 200 of each store, and the counts
  rcptd memo purge user@example.org      forget it: the next question is asked of the store
  rcptd memo purge @example.org          forget a whole domain; noes that were held back are believed again

exit status:
  0 done, 64 usage, 69 no daemon is running, or one of its workers did not answer, 78 configuration"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    actions = parser.add_subparsers(
        dest="action", title="actions", metavar="ACTION", required=True, parser_class=type(parser)
    )
    for name, what in (
        ("show", "show what is remembered, from whom, since when and for how long"),
        ("purge", "forget it, so that the next question is asked of the store"),
    ):
        action = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        action.add_argument("--store", metavar="NAME", help="only this store (default: all that remember)")
        action.add_argument("--all", action="store_true", help="whatever is remembered")
        action.add_argument("address", nargs="*", metavar="ADDRESS|@DOMAIN", help="whom it is about")


def run(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Ask the running daemon; gives the exit status."""
    if bool(arguments.address) == arguments.all:
        print("rcptd: name addresses, @domains, or --all", file=sys.stderr)
        return EX_USAGE
    section = configuration.sections.get("control")
    if section is None:
        raise FaultyConfiguration([f"{configuration.path}:1: control: memo needs a [control] section"])
    unanswered = False
    try:
        wanted = [_canonical(text) for text in arguments.address] or [""]
        with control.connected(Path(section.listen.host), PATIENCE) as ask:
            for text in wanted:
                request = {"op": "memo", "do": arguments.action, "store": arguments.store, "address": text}
                result = ask(request)
                if arguments.action == "show":
                    _show(result["stores"])
                else:
                    _tell_purged(text, result["purged"])
                for what in result["unanswered"]:
                    print(f"rcptd: {what}", file=sys.stderr)
                    unanswered = True
    except OSError as error:
        why = control.no_answer(error)
        print(f"rcptd: no answer from the running daemon at {section.listen}: {why}", file=sys.stderr)
        return EX_UNAVAILABLE
    except ValueError as error:
        print(f"rcptd: {error}", file=sys.stderr)
        return EX_USAGE
    return EX_UNAVAILABLE if unanswered else EX_OK


def _canonical(text: str) -> str:
    """Bring an address to the form in which it is remembered; raises `ValueError`."""
    if text.startswith("@"):
        return f"@{address.domain(text[1:])}"
    recipient = address.parse(text)
    return f"{recipient.local}@{recipient.domain}"


def _show(stores: Mapping[str, Any]) -> None:
    if not stores:
        print("no store remembers anything")
    for name, shown in stores.items():
        for entry in shown["entries"]:
            print(f"{name}: {entry['address']}")
            for line in entry["known"]:
                print(f"    {line}")
        more = shown["number"] - len(shown["entries"])
        if more:
            print(f"{name}: and {more} more")
        if not shown["number"]:
            print(f"{name}: nothing remembered")
        counts = ", ".join(f"{number} {what}" for what, number in sorted(shown["counts"].items()))
        if counts:
            print(f"{name}: since the start {counts}")
        if shown["condition"]:
            print(f"{name}: {shown['condition']}")


def _tell_purged(text: str, purged: Mapping[str, int]) -> None:
    for name, number in purged.items():
        print(f"{name}: {number} forgotten of {text or 'all'}")
    if not purged:
        print("no store remembers anything")
