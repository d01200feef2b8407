"""`rcptd mailbox`: keeps the recipients of the embedded sqlite store.

A running daemon sees each change with its next question. Whatever an action changes, it changes whole
or not at all. Exit codes are those of sysexits.h, and 1 where an address that was asked for is not
there.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rcptd import address, schema
from rcptd.address import NotAnAddress
from rcptd.question import Mailbox
from rcptd.stores import entries
from rcptd.stores.entries import NUMBER, Subject, public_text, sender, subject
from rcptd.stores.sqlite_schema import network
from rcptd_daemon import mailbox_database as database
from rcptd_daemon import mailbox_formats as formats
from rcptd_daemon import mailbox_transfer as transfer
from rcptd_daemon.mailbox_database import Fault

Run = Callable[[argparse.Namespace, Path], int]

UNCHANGED = object()  # an option that was not given, where None means "no limit"

_EXIT = """\
exit status:
  0 done   1 an address is not there   64 usage   65 faulty data or not our database
  66 no such file   73 cannot create   74 input/output   75 another process is writing
  77 a right is missing
"""

_CSV_HELP = "columns of CSV, named by its first line (only address is a must; what is left out stays as it is):\n"
_CSV_HELP += "\n".join(f"  {name:15} {doc}" for name, (_, doc) in formats.CSV.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    parser.description = (
        "Keep the recipients of the embedded database. A running daemon sees each change with its next question.\n"
        "ADDRESS is user@domain, or @domain for every local part that has no entry of its own. -c and --store come\n"
        "before ACTION; `rcptd mailbox ACTION --help` tells the rest."
    )
    parser.epilog = _EXIT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    add = _action(actions, "add", _add, "add recipients, or change those that are there", create=True)
    add.add_argument("address", nargs="+", metavar="ADDRESS")
    add.add_argument("--moved-to", metavar="NEW", help="refuse with the new address; none: no longer")
    _add_posting(add)
    remove = _action(actions, "remove", _remove, "remove recipients")
    remove.add_argument("address", nargs="+", metavar="ADDRESS")
    show = _action(actions, "show", _show, "show all that is known of recipients")
    show.add_argument("address", nargs="+", metavar="ADDRESS")
    show.add_argument("--json", action="store_true", help="one JSON object to a line")
    listing = _action(actions, "list", _list, "list recipients, sorted by domain")
    listing.add_argument("domain", nargs="?", metavar="DOMAIN", help="only those of this domain")
    listing.add_argument("--json", action="store_true", help="one JSON object to a line")
    quota = _action(actions, "quota", _quota, "set how much fits and how much is used")
    quota.add_argument("address", metavar="ADDRESS")
    quota.add_argument(
        "--limit", default=UNCHANGED, type=_reader(_octets), metavar="SIZE", help="as in 500M or 2G; none: no limit"
    )
    quota.add_argument(
        "--used", default=UNCHANGED, type=_reader(_sized), metavar="SIZE", help="how much of that is used"
    )
    quota.add_argument(
        "--messages", default=UNCHANGED, type=_reader(_number), metavar="N", help="limit in messages; none: no limit"
    )
    quota.add_argument(
        "--messages-used", default=UNCHANGED, type=_reader(_whole), metavar="N", help="how many there are"
    )
    deny = _action(actions, "deny", _deny, "take no mail for recipients: for good, or for now")
    deny.add_argument("address", nargs="+", metavar="ADDRESS")
    deny.add_argument("--text", type=_reader(public_text), default="", help="text of the reply, for the world to see")
    deny.add_argument(
        "--until",
        type=_reader(formats.moment),
        metavar="DATE",
        help="when it ends, as in 2026-12-24; implies --temporary",
    )
    lasting = deny.add_mutually_exclusive_group()
    lasting.add_argument("--temporary", action="store_true", help="say 450, so that the sender tries again")
    lasting.add_argument("--permanent", action="store_true", help="say 550, the default without --until")
    allow = _action(actions, "allow", _allow, "take mail again after deny; with options, only from some")
    allow.add_argument("address", nargs="+", metavar="ADDRESS")
    _add_posting(allow)
    alias = _action(
        actions, "alias", _alias, "lead an address to others, and add it where it is not there", create=True
    )
    alias.add_argument("address", metavar="ADDRESS")
    alias.add_argument("target", nargs="*", metavar="TARGET", help="user@domain; @domain for the same local part there")
    alias.add_argument("--none", action="store_true", help="make it a mailbox again")
    doc = "take recipients in from a file, all of them or none"
    taking = _action(actions, "import", transfer.take_in, doc, create=True)
    taking.add_argument("file", metavar="FILE", help="- for standard input")
    taking.add_argument("--replace", action="store_true", help="remove all that are not in the file")
    giving = _action(actions, "export", transfer.give_out, "give all recipients out")
    giving.add_argument("file", nargs="?", default="-", metavar="FILE", help="- for standard output, the default")
    for either in (taking, giving):
        either.add_argument("--format", choices=formats.FORMATS, default="csv", help="default csv; see docs/stores.md")
        either.add_argument("--targets", action="store_true", help="with postfix: values are addresses (virtual(5))")
        either.epilog = f"{_CSV_HELP}\n\n{_EXIT}"


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run_: Run,
    help_: str,
    *,
    create: bool = False,
) -> argparse.ArgumentParser:
    made = " Makes the database where there is none." if create else ""
    parser = actions.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.{made}",
        epilog=_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(mailbox_run=run_)
    return parser


def _add_posting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--anyone", action="store_true", help="whoever likes may post (the default)")
    parser.add_argument("--authenticated", action="store_true", help="who has authenticated may post")
    parser.add_argument(
        "--network", type=_reader(network), action="append", metavar="CIDR", help="clients there may post"
    )
    parser.add_argument(
        "--sender", type=_reader(sender), action="append", metavar="A", help="user@domain or @domain may post"
    )


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Give argparse a reader whose own words reach the operator."""

    def read_argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


def _sized(text: str) -> int:
    size = schema.octets(int(text) if text.isdecimal() else text)
    if size > NUMBER:
        raise ValueError("too large a size")
    return size


def _whole(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or int(text) > NUMBER:
        raise ValueError("write a whole number")
    return int(text)


def _octets(text: str) -> int | None:
    return None if text == "none" else _sized(text)


def _number(text: str) -> int | None:
    return None if text == "none" else _whole(text)


def run(arguments: argparse.Namespace, database_path: Path) -> int:
    """Do one action on the database at the path, and give the exit code."""
    act: Run = arguments.mailbox_run
    try:
        code = act(arguments, database_path)
        sys.stdout.flush()
    except Fault as fault:
        for line in str(fault).splitlines():
            print(f"rcptd mailbox: {line}", file=sys.stderr)
        return fault.code
    except KeyboardInterrupt:
        print("rcptd mailbox: interrupted, nothing was changed", file=sys.stderr)
        return 130  # as a shell says it
    except BrokenPipeError:
        # The reader has seen enough, as in `rcptd mailbox list | head`; nothing more is to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK
    return code


def _subject(text: str) -> Subject:
    try:
        of = subject(text)
    except NotAnAddress as error:
        raise Fault(os.EX_USAGE, f"{text!r} is neither user@domain nor @domain: {error}") from None
    if of.local and (fault := address.parse(text).fault):
        raise Fault(os.EX_USAGE, f"{text!r} would be refused as no valid address: {fault}")
    return of


def _subjects(arguments: argparse.Namespace) -> list[Subject]:
    return [_subject(text) for text in arguments.address]


def _missing(of: Subject) -> int:
    print(f"rcptd mailbox: {of} is not there", file=sys.stderr)
    return 1


def _posting_columns(arguments: argparse.Namespace) -> dict[str, Any]:
    limits = (arguments.authenticated, arguments.network, arguments.sender)
    if not any(limits):
        if not arguments.anyone:
            return {}
        return {"post_authenticated": None, "post_networks": None, "post_senders": None}
    if arguments.anyone:
        raise Fault(os.EX_USAGE, "--anyone does not go with --authenticated, --network and --sender")
    return {
        "post_authenticated": int(arguments.authenticated),
        "post_networks": "\n".join(arguments.network) if arguments.network else None,
        "post_senders": "\n".join(arguments.sender) if arguments.sender else None,
    }


def _add(arguments: argparse.Namespace, path: Path) -> int:
    columns = _posting_columns(arguments)
    if arguments.moved_to == "none":
        columns["moved_to"] = ""
    elif arguments.moved_to is not None:
        columns["moved_to"] = str(_subject(arguments.moved_to))
    subjects = _subjects(arguments)
    with database.writing(path, create=True) as connection:
        for of in subjects:
            if not database.insert(connection, of) and not columns:
                print(f"rcptd mailbox: {of} is there already", file=sys.stderr)
            database.change(connection, of, columns)
    return os.EX_OK


def _changed(arguments: argparse.Namespace, path: Path, columns: dict[str, Any]) -> int:
    """Set columns of all the addresses; where one is not there, of none."""
    subjects = _subjects(arguments)
    with database.writing(path) as connection:
        missing = [of for of in subjects if database.row(connection, of) is None]
        if not missing:
            for of in subjects:
                database.change(connection, of, columns)
    return max(map(_missing, missing), default=os.EX_OK)


def _deny(arguments: argparse.Namespace, path: Path) -> int:
    temporary = arguments.temporary or (arguments.until is not None and not arguments.permanent)
    until = None if arguments.until is None else int(arguments.until)
    return _changed(
        arguments,
        path,
        {"disabled": 2 if temporary else 1, "disabled_text": arguments.text, "disabled_until": until},
    )


def _allow(arguments: argparse.Namespace, path: Path) -> int:
    columns = {"disabled": 0, "disabled_text": "", "disabled_until": None, **_posting_columns(arguments)}
    return _changed(arguments, path, columns)


def _quota(arguments: argparse.Namespace, path: Path) -> int:
    of = _subject(arguments.address)
    given = {
        "quota_bytes": ("--limit", arguments.limit),
        "used_bytes": ("--used", arguments.used),
        "quota_messages": ("--messages", arguments.messages),
        "used_messages": ("--messages-used", arguments.messages_used),
    }
    columns = {name: value for name, (_, value) in given.items() if value is not UNCHANGED}
    if not columns:
        raise Fault(os.EX_USAGE, f"say what to set: {', '.join(option for option, _ in given.values())}")
    with database.writing(path) as connection:
        found = database.change(connection, of, columns)
    return os.EX_OK if found else _missing(of)


def _alias(arguments: argparse.Namespace, path: Path) -> int:
    of = _subject(arguments.address)
    if bool(arguments.target) == arguments.none:
        raise Fault(os.EX_USAGE, "name the targets, or say --none")
    try:
        ends = entries.targets(arguments.target, of)
    except ValueError as error:
        raise Fault(os.EX_USAGE, str(error)) from None
    with database.writing(path, create=True) as connection:
        database.insert(connection, of)
        database.change(connection, of, {"targets": "\n".join(ends)})
    return os.EX_OK


def _remove(arguments: argparse.Namespace, path: Path) -> int:
    subjects = _subjects(arguments)
    with database.writing(path) as connection:
        missing = [of for of in subjects if not database.remove(connection, of)]
    return max(map(_missing, missing), default=os.EX_OK)


def _show(arguments: argparse.Namespace, path: Path) -> int:
    code = os.EX_OK
    for of in _subjects(arguments):
        with database.reading(path) as connection:
            row = database.row(connection, of)
            catch_all = row is None and of.local and database.row(connection, Subject(of.domain, ""))
        if row is None:
            code = _missing(of)
            if catch_all:
                print(f"rcptd mailbox: but @{of.domain} takes its mail", file=sys.stderr)
        elif arguments.json:
            print(json.dumps(_as_json(of, database.mailbox(path, of, row))))
        else:
            for name, value in _as_words(of, database.mailbox(path, of, row)):
                print(f"{name:12}{value}")
    return code


def _list(arguments: argparse.Namespace, path: Path) -> int:
    domain = None
    if arguments.domain is not None:
        try:
            domain = address.domain(arguments.domain.removeprefix("@"))
        except NotAnAddress as error:
            raise Fault(os.EX_USAGE, f"{arguments.domain!r} is no domain: {error}") from None
    some = False
    with database.reading(path) as connection:
        for of, row in database.rows(connection, domain):
            some = True
            mailbox = database.mailbox(path, of, row)
            if arguments.json:
                print(json.dumps(_as_json(of, mailbox)))
            else:
                print("; ".join((str(of), *(f"{name} {value}" for name, value in _as_words(of, mailbox)[1:]))))
    return os.EX_OK if some or domain is None else 1


def _as_words(of: Subject, mailbox: Mailbox) -> list[tuple[str, str]]:
    """Say what is known, for a person; the address comes first."""
    known = [("address", str(of))]
    if mailbox.spelling:
        known.append(("written", mailbox.spelling))
    if mailbox.catch_all:
        known.append(("catch-all", "for every local part without an entry"))
    if disabled := mailbox.disabled:
        until = f"until {formats.when(disabled.until)}" if disabled.until is not None else ""
        how = ["for now" if disabled.temporary else "for good", until, disabled.text]
        known.append(("disabled", " ".join(filter(None, how))))
    if mailbox.posting:
        known.append(("post", " ".join(formats.who_may_post(mailbox.posting))))
    if quota := mailbox.quota:
        limit = "no limit" if quota.bytes_limit is None else str(quota.bytes_limit)
        known.append(("quota", f"{quota.bytes_used} of {limit} bytes"))
        if quota.messages_limit is not None or quota.messages_used:
            limit = "no limit" if quota.messages_limit is None else str(quota.messages_limit)
            known.append(("messages", f"{quota.messages_used} of {limit}"))
    if mailbox.targets:
        known.append(("alias", " ".join(mailbox.targets)))
    if mailbox.moved_to:
        known.append(("moved", f"to {mailbox.moved_to}"))
    return known


def _as_json(of: Subject, mailbox: Mailbox) -> dict[str, Any]:
    disabled, posting, quota = mailbox.disabled, mailbox.posting, mailbox.quota
    return {
        "address": str(of),
        "spelling": mailbox.spelling or None,
        "catch_all": mailbox.catch_all,
        "disabled": disabled
        and {"temporary": disabled.temporary, "text": disabled.text, "until": formats.when(disabled.until) or None},
        "post": formats.who_may_post(posting) if posting else None,
        "quota": quota
        and {
            "bytes_limit": quota.bytes_limit,
            "bytes_used": quota.bytes_used,
            "messages_limit": quota.messages_limit,
            "messages_used": quota.messages_used,
        },
        "targets": list(mailbox.targets),
        "moved_to": mailbox.moved_to or None,
    }
