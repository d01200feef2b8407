"""The command line `rcptd`: serve, check, config, memo, cyrus, mailbox."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rcptd import __version__, schema
from rcptd.config import Configuration, FaultyConfiguration
from rcptd_daemon import reading
from rcptd_daemon.reading import DEFAULT_PATH

# sysexits(3)
EX_OK, EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG = 0, 64, 69, 75, 78
REFUSED = 1

_DESCRIPTION = """\
rcptd says, while the client still waits at RCPT TO, whether a recipient exists, takes mail, is not denied and
is under quota: as a milter, and as a socketmap daemon."""

_EPILOG = """\
files:
  /etc/rcptd/rcptd.toml   the configuration, unless -c or RCPTD_CONFIG names another

exit status:
  0   done; check: every recipient is accepted or none of ours
  1   check: a recipient is refused; mailbox: no such recipient
  64  the command line is wrong
  69  check --live: no daemon is running
  70  serve: libmilter has ended
  71  serve: a socket cannot be opened; the log says why
  75  check: a recipient is deferred (this outranks 1); mailbox: another process is writing, try again
  78  the configuration is faulty; every fault is printed as FILE:LINE: key: what and what would be right
  mailbox has some more: see rcptd mailbox --help"""

_CHECK_EPILOG = """\
examples:
  rcptd check user@example.org                     the verdict, and each front end's reply
  rcptd check --live --explain user@example.org    the same from the running daemon, step by step
  rcptd check --map access user@example.org        what check_recipient_access would be told
  rcptd check --sender a@b.example --client 192.0.2.7 --size 30000000 user@example.org
  rcptd check --json - < recipients                one JSON object a line

A sender or client that is not given is unknown, so that rules which test it do not apply; without --auth the
client has not authenticated; without --size MAIL FROM names none.

exit status:
  0 all accepted or not ours, 1 any refused, 75 any deferred (outranks 1), 64 usage, 69 no daemon (--live),
  78 configuration. With --map the map's reply decides."""


class _Parser(argparse.ArgumentParser):
    """Ends with EX_USAGE on a faulty command line; argparse's own 2 means nothing to a mail admin."""

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    from rcptd_daemon import mailbox, memo  # noqa: PLC0415 - what serve does not need, it does not import

    raw = argparse.RawDescriptionHelpFormatter
    top = _Parser(prog="rcptd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"rcptd {__version__}")
    common = _Parser(add_help=False)
    common.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=Path(os.environ.get("RCPTD_CONFIG", DEFAULT_PATH)),
        help="the configuration file (default: $RCPTD_CONFIG, else /etc/rcptd/rcptd.toml)",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    serve = commands.add_parser(
        "serve",
        parents=[common],
        help="run the front ends that the file names, in the foreground",
        description="Run the front ends that the file names, in the foreground. SIGTERM lets those who wait for an "
        "answer have it, then ends; SIGHUP reads the file again, and keeps the old one if the new is faulty.",
    )
    serve.add_argument(
        "--stdio",
        action="store_true",
        help="serve one socketmap connection on standard input and output and end with it: for inetd and Postfix' "
        "spawn(8)",
    )

    check = commands.add_parser(
        "check",
        parents=[common],
        help="say what would be said about recipients, and why",
        description="Say what each front end would say about recipients, from the file or the running daemon.",
        epilog=_CHECK_EPILOG,
        formatter_class=raw,
    )
    check.add_argument("--live", action="store_true", help="ask the running daemon, by its control socket")
    check.add_argument("--map", metavar="NAME", default="", help="ask as this socketmap only")
    check.add_argument("--sender", metavar="A", help="the address of MAIL FROM; <> is the null sender")
    check.add_argument("--client", metavar="IP", type=_client, help="the client's address")
    check.add_argument("--auth", metavar="USER", default="", help="the name the client has authenticated as")
    check.add_argument("--size", metavar="N", type=_size, default=0, help="the SIZE of MAIL FROM, in bytes or as 20M")
    check.add_argument(
        "--no-smtputf8", dest="smtputf8", action="store_false", help="MAIL FROM does not ask for SMTPUTF8"
    )
    check.add_argument("--explain", action="store_true", help="show each rule, each store asked, its answer and time")
    check.add_argument("--json", action="store_true", help="write one JSON object a recipient")
    check.add_argument("address", nargs="+", metavar="ADDRESS", help="a recipient; - reads them from standard input")

    commands.add_parser(
        "config",
        parents=[common],
        help="check the file and print what is in force",
        description="Check the configuration file and print every option with the value that is in force.",
    )

    cyrus = commands.add_parser(
        "cyrus",
        help="show what rcptd reads of a Cyrus IMAP installation",
        description="Show what rcptd reads of a Cyrus IMAP installation. It needs no configuration file of rcptd.",
    )
    actions = cyrus.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Parser)
    show = actions.add_parser(
        "show",
        help="print the options of an imapd.conf that count here, and what its databases hold",
        description="Print the options of an imapd.conf that count for recipients, each with the line that it is "
        "from, and the databases to which they lead, with backends, sizes, record counts and faults. Nothing is "
        "written. Run it as the user of the daemon, so that missing rights show.",
    )
    show.add_argument("--service", metavar="NAME", default="smmap", help="the service in cyrus.conf (default: smmap)")
    show.add_argument(
        "conf", nargs="?", type=Path, default=Path("/etc/imapd.conf"), metavar="CONF", help="default: /etc/imapd.conf"
    )

    recall = commands.add_parser(
        "memo",
        parents=[common],
        help="show or purge what the running daemon remembers of slow stores",
        description="Show or purge what the running daemon remembers of the answers of slow stores. A purge counts "
        "from the next question on.",
        epilog=memo.EPILOG,
        formatter_class=raw,
    )
    memo.add_arguments(recall)

    keep = commands.add_parser(
        "mailbox",
        parents=[common],
        help="keep the recipients of the embedded store",
        description="Keep the recipients of a store of type sqlite.",
        formatter_class=raw,
    )
    keep.add_argument("--store", metavar="NAME", help="which store, where the file has several of type sqlite")
    mailbox.add_arguments(keep)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    arguments = parser().parse_args(argv)
    try:
        match arguments.command:
            case "serve":
                from rcptd_daemon import serve  # noqa: PLC0415 - a check needs no daemon

                return serve.run(arguments.config, stdio=arguments.stdio)
            case "check":
                return _check(arguments)
            case "config":
                return _config(arguments)
            case "memo":
                from rcptd_daemon import memo  # noqa: PLC0415

                return memo.run(arguments, reading.read_configuration(arguments.config))
            case "cyrus":
                from rcptd_daemon import cyrus_show  # noqa: PLC0415 - it brings the Cyrus store

                return cyrus_show.show(arguments.conf.absolute(), arguments.service)
            case _:
                return _mailbox(arguments)
    except FaultyConfiguration as faulty:
        print(faulty, file=sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    except BrokenPipeError:
        return _nobody_reads()


def _nobody_reads() -> int:
    """End where whoever read our output has had enough; do not fail again when the interpreter flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EX_OK


def _client(text: str) -> str:
    from ipaddress import ip_address  # noqa: PLC0415

    try:
        return str(ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address") from None


def _size(text: str) -> int:
    try:
        return schema.octets(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# check


def _check(arguments: argparse.Namespace) -> int:
    configuration = reading.read_configuration(arguments.config)
    from rcptd_daemon import control  # noqa: PLC0415

    facts = {name: getattr(arguments, name) for name in ("sender", "client", "auth", "size", "smtputf8")}
    outcomes: set[str] = set()
    show = _show_json if arguments.json else _show
    if arguments.live:
        results: Iterator[dict[str, Any]] = _live(configuration, arguments, facts)
        try:
            for result in results:
                outcomes.add(result["outcome"])
                try:
                    show(result)
                except BrokenPipeError:
                    return _nobody_reads()
        except OSError as error:
            where = configuration.sections["control"].listen
            print(f"rcptd: no answer from the running daemon at {where}: {control.no_answer(error)}", file=sys.stderr)
            return EX_UNAVAILABLE
        except ValueError as error:
            print(f"rcptd: {error}", file=sys.stderr)
            return EX_USAGE
    else:

        async def check_all() -> None:
            async for result in _from_file(configuration, arguments, facts):
                show(result)
                outcomes.add(result["outcome"])

        asyncio.run(check_all())
    if "defer" in outcomes:
        return EX_TEMPFAIL
    return REFUSED if "reject" in outcomes else EX_OK


async def _from_file(
    configuration: Configuration, arguments: argparse.Namespace, facts: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    from rcptd.config import open_world  # noqa: PLC0415 - --live opens no store
    from rcptd.drive import Driver  # noqa: PLC0415
    from rcptd_daemon.check import Checker, Facts  # noqa: PLC0415

    driver = Driver(open_world(configuration))
    checker = Checker(configuration, driver, str)
    asked = Facts.of(facts)
    try:
        for address in _addresses(arguments.address, sys.stdin):
            yield await checker.check(address, asked, arguments.map, explain=arguments.explain)
    finally:
        await driver.aclose()


def _live(
    configuration: Configuration, arguments: argparse.Namespace, facts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    from rcptd_daemon import control  # noqa: PLC0415

    section = configuration.sections.get("control")
    if section is None:
        raise FaultyConfiguration([f"{configuration.path}:1: control: --live needs a [control] section"])
    patience = configuration.daemon.deadline * 4 + 5  # a check asks several front ends in a row
    with control.connected(Path(section.listen.host), patience) as ask:
        for address in _addresses(arguments.address, sys.stdin):
            request = {"op": "check", "address": address, "map": arguments.map, "explain": arguments.explain}
            yield ask({**request, **facts})


def _addresses(arguments: Sequence[str], stdin: TextIO) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            for line in stdin:
                if address := line.strip():
                    yield address
        else:
            yield argument


def _show_json(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def _show(result: dict[str, Any]) -> None:
    address = result["address"].encode("ascii", "backslashreplace").decode()
    if result["verdict"] == "none":
        print(f"{address}: none of ours")
    else:
        print(f"{address}: {result['verdict']} {result['code']} {result['enhanced']} {result['text']}")
        print(f"    because     {result['cause']}, says {result['rule']!r}")
    for front_end, reply in result["replies"].items():
        print(f"    {front_end:<19} {reply.encode('ascii', 'backslashreplace').decode()}")
    told: dict[str, str] = {}
    for front_end, entries in result.get("trace", {}).items():
        # Most front ends come to it in the same way; only the times differ.
        way = json.dumps([{name: value for name, value in entry.items() if name != "ms"} for entry in entries])
        if first := told.get(way):
            print(f"    how {front_end} came to it: as {first}")
            continue
        told[way] = front_end
        print(f"    how {front_end} came to it:")
        for line in _told(entries):
            print(f"        {line}")


def _told(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Put the trace of a decision into lines."""
    for entry in entries:
        if "store" in entry:
            yield f"store {entry['store']}: {entry['asked']} is {entry['answer']}, {entry['ms']} ms"
            for step in entry.get("steps", ()):
                yield f"    {step}"
        else:
            yield f"{entry['rule']}: {entry['note']}"
    if not entries:
        yield "no rule applies, no store was asked"


# config


def _config(arguments: argparse.Namespace) -> int:
    configuration = reading.read_configuration(arguments.config)
    from rcptd_daemon.effective import effective  # noqa: PLC0415

    for line in effective(configuration):
        print(line)
    for remark in reading.remarks(configuration):
        print(f"# note: {remark}")
    return EX_OK


# mailbox


def _mailbox(arguments: argparse.Namespace) -> int:
    from rcptd_daemon import mailbox  # noqa: PLC0415

    configuration = reading.read_configuration(arguments.config)
    found = {name: section for name, section in configuration.stores.items() if section.type == "sqlite"}
    wanted = getattr(arguments, "store", None)
    if wanted:
        found = {name: section for name, section in found.items() if name == wanted}
    if len(found) != 1:
        if wanted:
            what = f"there is no [stores.{wanted}] of type sqlite"
        elif found:
            what = f"there are several stores of type sqlite; name one with --store: {', '.join(found)}"
        else:
            what = 'there is no store of type sqlite; add [stores.local] with type = "sqlite" and a path'
        print(f"rcptd: {arguments.config}: {what}", file=sys.stderr)
        return EX_USAGE if wanted or found else EX_CONFIG
    (section,) = found.values()
    return mailbox.run(arguments, section.settings.path)
