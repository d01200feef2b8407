"""The formats in which `rcptd mailbox` takes recipients in and gives them out.

CSV says all there is; its first line names the columns, of which only `address` is a must. What a
file does not name stays as it is for recipients that are there already. `list` and `postfix` are the
formats of the `file` store (see `rcptd.stores.lines`) and say less; what got lost is counted.

What is written is what is read: an export is taken in again and changes nothing.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple, TextIO

from rcptd import schema
from rcptd.address import NotAnAddress
from rcptd.question import Disabled, Mailbox, Posting, Quota
from rcptd.stores import entries
from rcptd.stores.entries import NUMBER, Subject, public_text, sender, subject, target, words
from rcptd.stores.lines import Entry, Fault, bounded_lines, read_list, read_postfix
from rcptd.stores.sqlite_schema import network

FORMATS = ("csv", "list", "postfix")

# The columns of CSV, the columns of the database that each sets, and what a person is told of it.
CSV: dict[str, tuple[tuple[str, ...], str]] = {
    "address": (("spelling",), "user@domain, or @domain for the whole domain"),
    "disabled": (("disabled",), "empty, yes, or temporary"),
    "text": (("disabled_text",), "the text of the reply while disabled, for the world to see"),
    "until": (("disabled_until",), "when that ends, as in 2026-12-24 or 2026-12-24T08:00:00Z"),
    "post": (
        ("post_authenticated", "post_networks", "post_senders"),
        "who may post: empty for anyone, else any of: authenticated, networks, senders, @domains; or nobody",
    ),
    "quota_bytes": (("quota_bytes",), "the limit, as in 1048576, 500M, 2G; empty for none"),
    "used_bytes": (("used_bytes",), "how much of that is used"),
    "quota_messages": (("quota_messages",), "the limit in messages; empty for none"),
    "used_messages": (("used_messages",), "how many there are"),
    "targets": (("targets",), "an alias: the addresses it leads to"),
    "moved_to": (("moved_to",), "the new address of one who left"),
}

_DISABLING = ("disabled", "disabled_text", "disabled_until")


class Incoming(NamedTuple):
    """A file being read: which columns of the database it sets, and its entries and faults."""

    columns: tuple[str, ...]
    entries: Iterator[Entry | Fault]


def incoming(source: BinaryIO, format_: str, *, targets: bool) -> Incoming:
    """Read a file of recipients; a CSV without a header that makes sense is one fault and no entry."""
    if format_ == "list":
        return Incoming(("spelling", *_DISABLING, "targets", "moved_to"), _without_servers(read_list(source)))
    if format_ == "postfix":
        columns = ("spelling", "targets") if targets else ("spelling", *_DISABLING)
        return Incoming(columns, read_postfix(source, targets=targets))
    return _incoming_csv(source)


def _without_servers(entries: Iterator[Entry | Fault]) -> Iterator[Entry | Fault]:
    for entry in entries:
        if isinstance(entry, Entry) and entry.mailbox.server:
            yield Fault(entry.line, "the database has no place for a server; keep it in a store of type file")
        else:
            yield entry


class _BadLine(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def _text_lines(source: BinaryIO) -> Iterator[str]:
    for _, line in bounded_lines(source):
        if isinstance(line, Fault):
            raise _BadLine(line)
        yield line + "\n"


def _incoming_csv(source: BinaryIO) -> Incoming:
    reader = csv.reader(_text_lines(source), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header:
            header[0] = header[0].removeprefix("\ufeff")  # spreadsheets begin with a byte order mark
        unknown = [name for name in header if name not in CSV]
        if "address" not in header or unknown or len(set(header)) != len(header):
            what = f"no column is called {unknown[0]!r}" if unknown else "name each column once, address among them"
            raise _BadLine(  # noqa: TRY301
                Fault(1, f"the first line names the columns; {what}; there are: {','.join(CSV)}"))
    except (csv.Error, _BadLine) as error:
        fault = error.fault if isinstance(error, _BadLine) else Fault(1, str(error))
        return Incoming(("spelling",), iter([fault]))
    columns = tuple(column for name in header for column in CSV[name][0])
    return Incoming(columns, _csv_entries(reader, header))


def _csv_entries(reader: "Iterator[list[str]]", header: list[str]) -> Iterator[Entry | Fault]:
    number = 1
    try:
        for fields in reader:
            number = reader.line_num  # type: ignore[attr-defined] # csv.reader has it, Iterator does not
            if not fields:
                continue
            if len(fields) != len(header):
                yield Fault(number, f"has {len(fields)} fields where the first line has {len(header)}")
                continue
            try:
                yield _csv_entry(number, dict(zip(header, fields, strict=True)))
            except ValueError as error:
                yield Fault(number, str(error))
    except _BadLine as bad:
        yield bad.fault
    except csv.Error as error:
        yield Fault(number + 1, f"{error}; nothing after it was read")


def _csv_entry(number: int, fields: dict[str, str]) -> Entry:
    try:
        of = subject(fields["address"].strip())
    except NotAnAddress as error:
        raise ValueError(f"{fields['address'][:80]!r} is neither user@domain nor @domain: {error}") from None
    get = {name: text.strip() for name, text in fields.items() if text}.get
    mailbox = Mailbox(spelling=of.spelling)
    if len(fields) == 1:
        return Entry(number, of, mailbox)
    disabled = None
    match (get("disabled") or "").lower():
        case "" | "no":
            pass
        case "yes" | "temporary" as word:
            until = get("until")
            disabled = Disabled(word == "temporary", public_text(get("text") or ""), moment(until) if until else None)
        case other:
            raise ValueError(f"disabled is empty, yes or temporary, and not {other[:80]!r}")
    quota = Quota(
        _size(get("quota_bytes")),
        _size(get("used_bytes")) or 0,
        _count("quota_messages", get("quota_messages")),
        _count("used_messages", get("used_messages")) or 0,
    )
    post = get("post")
    return Entry(
        number,
        of,
        replace(
            mailbox,
            disabled=disabled,
            posting=posting(words(post)) if post else None,
            quota=quota,
            targets=entries.targets(words(get("targets") or ""), of),
            moved_to=target(get("moved_to") or "") if get("moved_to") else "",
        ),
    )


def moment(text: str) -> float:
    """Read a date or a time into seconds since the epoch; without a zone it is the local one."""
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        seconds = -1
    if seconds < 0:
        raise ValueError(f"{text[:80]!r} is no time, as in 2026-12-24 or 2026-12-24T08:00:00Z")
    return seconds


def posting(items: list[str]) -> Posting:
    """Read who may post; raises `ValueError`."""
    networks, senders = [], []
    authenticated = False
    for item in items:
        if "@" in item:
            senders.append(sender(item))
        elif item.lower() == "authenticated":
            authenticated = True
        elif item.lower() != "nobody" or len(items) > 1:
            networks.append(network(item))
    return Posting(authenticated, tuple(networks), tuple(senders))


def _size(text: str | None) -> int | None:
    return None if not text else _bounded(schema.octets(int(text) if text.isdecimal() else text))


def _count(column: str, text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or not text.isascii():
        raise ValueError(f"{column} is a whole number, and not {text[:80]!r}")
    return _bounded(int(text))


def _bounded(number: int) -> int:
    if number > NUMBER:
        raise ValueError(f"{number} is too large a number")
    return number


def written(of: Subject, mailbox: Mailbox) -> str:
    """Give the address of an entry as it was written, or as its key where the two do not agree."""
    try:
        if mailbox.spelling and subject(mailbox.spelling)[:2] == of[:2]:
            return mailbox.spelling
    except NotAnAddress:
        pass
    return str(of)


def when(until: float | None) -> str:
    """Write a time as `moment` reads it."""
    if until is None:
        return ""
    try:
        return datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(until)


Outgoing = Callable[[Subject, Mailbox], bool]
"""Writes an entry; False where the format cannot say all of it."""


def outgoing(sink: TextIO, format_: str, *, targets: bool) -> Outgoing:
    """Begin to write a file of recipients, and give what writes an entry."""
    if format_ == "list":
        return _outgoing_list(sink)
    if format_ == "postfix":
        return _outgoing_postfix(sink, targets=targets)
    return _outgoing_csv(sink)


def _outgoing_csv(sink: TextIO) -> Outgoing:
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(CSV)

    def write(of: Subject, mailbox: Mailbox) -> bool:
        disabled, quota = mailbox.disabled or Disabled(), mailbox.quota or Quota()
        writer.writerow(
            (
                written(of, mailbox),
                "" if mailbox.disabled is None else "temporary" if disabled.temporary else "yes",
                disabled.text,
                when(disabled.until),
                " ".join(who_may_post(mailbox.posting)),
                quota.bytes_limit,
                quota.bytes_used or "",
                quota.messages_limit,
                quota.messages_used or "",
                " ".join(mailbox.targets),
                mailbox.moved_to,
            )
        )
        return True

    return write


def who_may_post(who: Posting | None) -> list[str]:
    """Write what `posting` reads; nothing for anyone."""
    if who is None:
        return []
    return [*(["authenticated"] if who.authenticated else []), *who.networks, *who.senders] or ["nobody"]


def _outgoing_list(sink: TextIO) -> Outgoing:
    def write(of: Subject, mailbox: Mailbox) -> bool:
        disabled = mailbox.disabled
        line = io.StringIO()
        line.write(written(of, mailbox))
        if disabled:
            line.write(f" {'defer' if disabled.temporary else 'disabled'} {disabled.text}".rstrip())
        elif mailbox.moved_to:
            line.write(f" moved {mailbox.moved_to}")
        elif mailbox.targets:
            line.write(f" alias {' '.join(mailbox.targets)}")
        sink.write(line.getvalue() + "\n")
        said = sum(map(bool, (disabled, mailbox.moved_to, mailbox.targets)))
        return said <= 1 and not (disabled and disabled.until) and not mailbox.posting and not mailbox.quota

    return write


def _outgoing_postfix(sink: TextIO, *, targets: bool) -> Outgoing:
    def write(of: Subject, mailbox: Mailbox) -> bool:
        disabled = mailbox.disabled
        address = written(of, mailbox)
        if targets:
            value = ", ".join(mailbox.targets or (address,))
        elif disabled:
            value = f"{'DEFER' if disabled.temporary else 'REJECT'} {disabled.text}".rstrip()
        elif mailbox.moved_to:
            value = "REJECT Mailbox has moved"
        else:
            value = "OK"
        sink.write(f"{address}\t{value}\n")
        more = mailbox.posting or mailbox.quota or mailbox.moved_to or (disabled and disabled.until)
        return not more and not (disabled if targets else mailbox.targets)

    return write
