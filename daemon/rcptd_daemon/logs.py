"""The log: one line for a decision at most, structured, to stderr, the journal or syslog.

Theory of operation. Everything goes through `logging`. A bounded queue and a thread of its own stand
between who logs and where it goes, because a full pipe or a slow journal must not hold up an answer,
a reload or the end; what does not fit is dropped and counted. A record may carry `fields`, a dict that becomes
`name=value` pairs (logfmt), members (JSON) or journal fields. What is logged most, decisions, goes past `logging` to
the queue (`Later`): its records cost more than the decision. For standard error it is put into words before it is
queued, as two threads that both need the interpreter cost more than the words; the writer gathers lines for a moment
and writes many at once.
"""

import json
import logging
import logging.handlers
import os
import queue
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from rcptd import schema
from rcptd.schema import option

QUEUE = 10_000
"""How many lines may wait to be written."""

LAST_LINES = 1.0
"""How long, in seconds, the end waits for them."""

GATHER = 0.05
"""How long, in seconds, lines are gathered: each time that the writer wakes up costs those who decide a millisecond."""

BATCH = QUEUE
"""How many lines are written at once: as many as may wait."""

JOURNAL = "/run/systemd/journal/socket"  # systemd's native protocol: one datagram an entry
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `[log]`."""

    to: str = option(
        schema.choice("stderr", "journal", "syslog"), default="stderr", doc="Where log lines go."
    )
    format: str = option(
        schema.choice("logfmt", "json"), default="logfmt", doc="How the fields of a line are written."
    )
    level: str = option(
        schema.choice("debug", "info", "warning", "error"),
        default="info",
        doc="The least level that is logged.",
    )
    decisions: str = option(
        schema.choice("refused", "all", "none"),
        default="refused",
        doc="Which decisions are logged: those that refuse or defer, all, or none.",
    )
    addresses: str = option(
        schema.choice("full", "hashed", "domain"),
        default="full",
        doc="How addresses appear in logs, traces and check --live.",
    )


def to_syslog(settings: Settings) -> Settings:
    """The same settings with syslog in place of standard error."""
    return replace(settings, to="syslog")


DEFAULTS = schema.read(Settings, {}, lambda *_: None)


class Later(NamedTuple):
    """A line of level info whose fields, the level among them, are `fields(of)`."""

    created: float
    fields: Callable[[Any], dict[str, Any]]
    of: Any


class _Dropped(NamedTuple):
    """So many lines were dropped before the next one."""

    number: int


Item = logging.LogRecord | Later | str | _Dropped | None
"""What waits to be written: a text is a whole line, None is the end."""


def set_up(settings: Settings) -> "Writer":
    """Send all logging to where `settings` say; give the writer, to be stopped at the end.

    Raises `OSError` where the sink cannot be had; logging then goes where it went before.
    """
    writer = Writer(_sink(settings), informed=settings.level in ("debug", "info"))
    root = logging.getLogger()
    before = root.handlers[:]
    root.addHandler(_Queued(writer))
    for old in before:
        root.removeHandler(old)
    root.setLevel(settings.level.upper())
    return writer


def set_up_direct(settings: Settings) -> None:
    """Send all logging to where `settings` say without a thread; what would have to wait there is dropped.

    Raises `OSError` as `set_up`.
    """
    sink = _sink(settings)
    if isinstance(sink, logging.StreamHandler):
        sink.addFilter(lambda _: bool(select.select([], [sys.stderr], [], 0)[1]))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(sink)
    root.setLevel(settings.level.upper())


class Writer:
    """The thread that writes what waits in a queue; the only one that a sink may hold up."""

    def __init__(self, sink: logging.Handler, *, informed: bool = True) -> None:
        """Write to a sink; where it is not `informed`, lines of level info are not for it."""
        self._lines: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._sink = sink
        self._informed = informed
        self._dropped = 0
        # A daemon: a sink that never takes its line must not keep the process.
        self._thread = threading.Thread(target=self._write, name="rcptd-log", daemon=True)
        self._thread.start()

    def put(self, item: logging.LogRecord | Later) -> None:
        """Have a line written; where too many wait it is dropped, which the next one tells. Any thread may call."""
        if isinstance(item, Later) and not self._informed:
            return
        if self._lines.qsize() >= QUEUE:
            self._dropped += 1
            return
        if self._dropped:
            self._lines.put(_Dropped(self._dropped))
            self._dropped = 0
            self._lines.put(item)
        elif isinstance(item, Later) and isinstance(self._sink, _Stream):
            self._lines.put(self._sink.line(item.created, logging.INFO, fields_of_later(item)))
        else:
            self._lines.put(item)

    def stop(self, patience: float = LAST_LINES) -> None:
        """Write what waits, then no more; waits `patience` seconds for that, and leaves the rest to the thread."""
        self._lines.put(None)
        self._thread.join(patience)

    def _write(self) -> None:
        going_on = True
        while going_on:
            batch = [self._lines.get()]
            if batch[0]:
                time.sleep(GATHER)
            with suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._lines.get_nowait())
            if None in batch:
                going_on = False
                batch = batch[: batch.index(None)]
            records = _records(batch)
            if isinstance(self._sink, _Stream):
                self._sink.write([one if isinstance(one, str) else self._sink.format(one) for one in records])
            else:
                for one in records:
                    self._sink.handle(one)  # type: ignore[arg-type]  # texts are for a stream


def _records(batch: list[Item]) -> Iterator[logging.LogRecord | str]:
    """Make records of what is none yet; the first one after lines that were dropped says how many."""
    more: dict[str, Any] = {}
    for item in batch:
        if isinstance(item, str):
            yield item
        elif isinstance(item, _Dropped):
            more = {"lines_dropped": item.number}
        elif item:
            record = _record(item) if isinstance(item, Later) else item
            if more:
                record.fields = {**getattr(record, "fields", {}), **more}
                more = {}
            yield record


def fields_of_later(later: Later) -> dict[str, Any]:
    """Give the fields of a line; a bug on the way to them must not end the log."""
    try:
        return later.fields(later.of)
    except Exception as error:
        return {"level": "info", "msg": f"a line could not be put into words: {error!r}"}


def _record(later: Later) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "rcptd.decision", "levelno": logging.INFO, "levelname": "INFO"})
    record.created, record.msecs = later.created, later.created % 1 * 1000
    record.fields = fields_of_later(later)
    return record


class _Queued(logging.handlers.QueueHandler):
    """Hands records to the writer."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(queue.SimpleQueue())
        self._writer = writer

    def enqueue(self, record: logging.LogRecord) -> None:
        self._writer.put(record)


def _sink(settings: Settings) -> logging.Handler:
    if settings.to == "journal":
        return _Journal()
    if settings.to == "syslog":
        sink: logging.Handler = logging.handlers.SysLogHandler(
            "/dev/log" if os.path.exists("/dev/log") else ("127.0.0.1", 514),  # noqa: PTH110 - a device
            facility=logging.handlers.SysLogHandler.LOG_MAIL,
        )
        sink.setFormatter(_Line(settings.format, prefix=f"rcptd[{os.getpid()}]: ", with_time=False))
        return sink
    # Under systemd stderr is the journal, which takes a level in front and has a clock of its own.
    in_journal = bool(os.environ.get("JOURNAL_STREAM"))
    return _Stream(_Line(settings.format, with_level=in_journal, with_time=not in_journal))


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Give the fields of a record, its message and exception among them."""
    fields: dict[str, Any] = {"level": record.levelname.lower()}
    fields.update(flat(getattr(record, "fields", {})))
    fields.setdefault("msg", record.getMessage())
    if record.exc_text or record.exc_info:
        fields["exception"] = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
    return fields


class _Line(logging.Formatter):
    """Writes a record as one line of logfmt or JSON."""

    def __init__(
        self, form: str, prefix: str = "", *, with_time: bool = True, with_level: bool = False
    ) -> None:
        super().__init__()
        self._json = form == "json"
        self._prefix = prefix
        self._with_time = with_time
        self._with_level = with_level
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        return self.line(record.created, record.levelno, fields_of(record))

    def line(self, created: float, level: int, fields: dict[str, Any]) -> str:
        """Write fields as one line; `created` is seconds since the epoch."""
        prefix = self._prefix
        if self._with_level:
            prefix = f"<{_PRIORITY.get(level, 6)}>{prefix}"
        if self._json:
            at = {"time": self._time(created)} if self._with_time else {}
            return prefix + json.dumps({**at, **flat(fields)}, default=str)
        if self._with_time:
            return f"{prefix}time={self._time(created)} {logfmt(fields)}"
        return prefix + logfmt(fields)

    def _time(self, created: float) -> str:
        second = int(created)
        known = self._second  # any thread may write lines
        if second != known[0]:
            known = self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{known[1]}.{int((created - second) * 1000):03d}Z"


class _Stream(logging.StreamHandler[Any]):
    """Writes lines to standard error, many in one write where many wait."""

    def __init__(self, form: _Line) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(form)
        self.line = form.line

    def write(self, lines: list[str]) -> None:
        """Write lines; what cannot be written is lost, as there is nowhere to tell."""
        with suppress(OSError, ValueError):
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()


class Group(dict[str, Any]):
    """Fields that many lines have in common, put into words once; a value of `fields`, whose name does not count."""

    __slots__ = ("words",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.words = logfmt(fields)


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give fields with those of its groups in their places."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= value if isinstance(value, Group) else {name: value}
    return found


def logfmt(fields: Mapping[str, Any]) -> str:
    """Write fields as `name=value`, quoted where a value needs it; always one line of ASCII."""
    return " ".join(
        [value.words if type(value) is Group else f"{name}={_value(str(value))}" for name, value in fields.items()]
    )


_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII less space, quote, equals sign and backslash
_quoted = lru_cache(maxsize=1024)(json.dumps)  # few of them, again and again: the names of clients


def _value(text: str) -> str:
    return text if _is_plain(text) else _quoted(text)


class _Journal(logging.Handler):
    """Sends entries to the journal by its native protocol, with fields of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(1)

    def emit(self, record: logging.LogRecord) -> None:
        fields = fields_of(record)
        entry = {
            "MESSAGE": logfmt({name: value for name, value in fields.items() if name != "level"}),
            "PRIORITY": str(_PRIORITY.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "rcptd",
            **{f"RCPTD_{name.upper()}": str(value) for name, value in fields.items()},
        }
        lines = (f"{name}={value!s}".replace("\n", " ") for name, value in entry.items())
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace") + b"\n", JOURNAL)
        except OSError:
            self.handleError(record)
