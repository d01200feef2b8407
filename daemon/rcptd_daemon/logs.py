"""The log: one line for a decision at most, structured, to stderr, the journal or syslog.

Theory of operation. Everything goes through `logging`. A bounded queue and a thread of its own stand
between who logs and where it goes, because a full pipe or a slow journal must not hold up an answer,
a reload or the end; what does not fit is dropped and counted. A record may carry `fields`, a dict that becomes
`name=value` pairs (logfmt), members (JSON) or journal fields.

LIMITS. What others wrote is cut: an address at ADDRESS characters, what a store said at SAID.
"""

import json
import logging
import logging.handlers
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rcptd import schema
from rcptd.drive import Decision
from rcptd.query import UNKNOWN
from rcptd.schema import option
from rcptd.trace import Mask, describe
from rcptd.verdict import Action, Verdict
from rcptd_daemon.privacy import mask_for

QUEUE = 10_000
"""How many lines may wait to be written."""

LAST_LINES = 1.0
"""How long, in seconds, the end waits for them."""

ADDRESS = 320  # 64 + 1 + 255, as RFC 5321 4.5.3.1 has it for each part; a map's key may be 10,000
SAID = 1000

JOURNAL = "/run/systemd/journal/socket"  # systemd's native protocol: one datagram an entry
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}

_decisions = logging.getLogger("rcptd.decision")


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


Lines = queue.Queue[logging.LogRecord | None]
"""The records that wait to be written; None is the end."""


def set_up(settings: Settings) -> "Writer":
    """Send all logging to where `settings` say; give the writer, to be stopped at the end.

    Raises `OSError` where the sink cannot be had; logging then goes where it went before.
    """
    lines: Lines = queue.Queue(QUEUE)
    writer = Writer(lines, _sink(settings))
    root = logging.getLogger()
    before = root.handlers[:]
    root.addHandler(_Bounded(lines))
    for old in before:
        root.removeHandler(old)
    root.setLevel(settings.level.upper())
    return writer


def set_up_direct(settings: Settings) -> None:
    """Send all logging to where `settings` say without a thread; what would have to wait there is dropped.

    Raises `OSError` as `set_up`.
    """
    sink = _sink(settings)
    if type(sink) is logging.StreamHandler:
        sink.addFilter(lambda _: bool(select.select([], [sys.stderr], [], 0)[1]))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(sink)
    root.setLevel(settings.level.upper())


class Writer:
    """The thread that writes what waits in a queue; the only one that a sink may hold up."""

    def __init__(self, lines: Lines, sink: logging.Handler) -> None:
        self._lines = lines
        self._sink = sink
        # A daemon: a sink that never takes its line must not keep the process.
        self._thread = threading.Thread(target=self._write, name="rcptd-log", daemon=True)
        self._thread.start()

    def stop(self, patience: float = LAST_LINES) -> None:
        """Write what waits, then no more; waits `patience` seconds for that, and leaves the rest to the thread."""
        while True:
            try:
                self._lines.put_nowait(None)
                break
            except queue.Full:
                # The sink is stuck. One line makes room for the end.
                with suppress(queue.Empty):
                    self._lines.get_nowait()
        self._thread.join(patience)

    def _write(self) -> None:
        while record := self._lines.get():
            self._sink.handle(record)


class _Bounded(logging.handlers.QueueHandler):
    """Puts records into the queue without waiting, and says afterwards how many did not fit."""

    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.dropped:
            record.fields = {**getattr(record, "fields", {}), "lines_dropped": self.dropped}
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
        else:
            self.dropped = 0


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
    sink = logging.StreamHandler(sys.stderr)
    # Under systemd stderr is the journal, which takes a level in front and has a clock of its own.
    in_journal = bool(os.environ.get("JOURNAL_STREAM"))
    sink.setFormatter(_Line(settings.format, with_level=in_journal, with_time=not in_journal))
    return sink


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Give the fields of a record, its message and exception among them."""
    fields: dict[str, Any] = {"level": record.levelname.lower()}
    fields.update(getattr(record, "fields", {}))
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

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        if self._with_time:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            fields = {"time": f"{stamp}.{int(record.msecs):03d}Z", **fields}
        line = json.dumps(fields, default=str) if self._json else logfmt(fields)
        level = f"<{_PRIORITY.get(record.levelno, 6)}>" if self._with_level else ""
        return f"{level}{self._prefix}{line}"


def logfmt(fields: Mapping[str, Any]) -> str:
    """Write fields as `name=value`, quoted where a value needs it; always one line of ASCII."""
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    text = str(value)
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text)


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


class DecisionLog:
    """Writes the line of a decision; called in whichever thread ended it, waits for nothing."""

    def __init__(self, settings: Settings) -> None:
        self.mask: Mask = mask_for(settings.addresses)
        self._refused = settings.decisions != "none"
        self._all = settings.decisions == "all"

    def on_verdict(self, decision: Decision) -> None:
        """Log a decision, if its kind is logged."""
        verdict = decision.verdict
        if verdict is None or verdict.action is Action.ACCEPT or decision.abandoned:
            if not self._all:
                return
        elif not self._refused:
            return
        _decisions.info("decision", extra={"fields": self._fields(decision, verdict)})

    def on_shadow(self, decision: Decision, rule: str, verdict: Verdict | None) -> None:
        """Log what a rule in shadow would have said."""
        if not self._refused:
            return
        said = verdict.reply if verdict else "no opinion"
        fields = {
            "msg": "shadow",
            "ref": decision.reference,
            "recipient": self._shown(decision.query.recipient),
            "rule": rule,
            "would": said,
        }
        _decisions.info("shadow", extra={"fields": fields})

    def _fields(self, decision: Decision, verdict: Verdict | None) -> dict[str, Any]:
        query = decision.query
        fields: dict[str, Any] = {
            "msg": "abandoned" if decision.abandoned else verdict.action.value if verdict else "none",
            "ref": decision.reference,
            "recipient": self._shown(query.recipient),
        }
        if verdict and not decision.abandoned:
            fields |= {
                "code": verdict.code,
                "enhanced": verdict.enhanced,
                "cause": verdict.cause.value,
                "rule": verdict.rule,
            }
        if asked := decision.trace.last_asked:
            fields |= {"store": asked.store, "said": _cut(describe(asked.answer, self.mask), SAID)}
        fields |= {"front_end": query.front_end}
        if query.map:
            fields["map"] = query.map
        if query.sender is not UNKNOWN:
            fields["sender"] = self._shown(query.sender) if query.sender else "<>"
        if query.client is not UNKNOWN and query.client is not None:
            fields["client"] = query.client
        if query.session:
            fields["session"] = query.session
        fields["ms"] = f"{decision.seconds * 1000:.3f}"
        return fields

    def _shown(self, address: str) -> str:
        return _cut(self.mask(address), ADDRESS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
