"""The log never holds up anybody: a sink that is stuck costs lines, and says how many."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rcptd import schema
from rcptd.decision import Decision
from rcptd.drive import Driver
from rcptd.query import Query
from rcptd.question import Mailbox
from rcptd.stores.memory import Memory
from rcptd.verdict import OUR_FAULT
from rcptd.world import World
from rcptd_daemon import logs
from rcptd_daemon.decision_log import ADDRESS, DecisionLog
from tests.policies import policy


class Sink(logging.Handler):
    """Takes lines while it is `free`."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.free.wait(10)
        self.records.append(record)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """Send all logging to a stuck sink behind a queue of four lines."""
    stuck = Sink()
    monkeypatch.setattr(logs, "_sink", lambda _: stuck)
    monkeypatch.setattr(logs, "QUEUE", 4)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield stuck
    stuck.free.set()
    root.handlers[:] = handlers
    root.setLevel(level)


def log(*lines: int) -> None:
    for line in lines:
        logging.getLogger("test").info("line %d", line)


@pytest.mark.usefixtures("sink")
def test_a_stuck_sink_holds_up_neither_who_logs_nor_the_end() -> None:
    assert logs.DEFAULTS
    writer = logs.set_up(logs.DEFAULTS)
    began = time.monotonic()
    log(*range(50))
    writer.stop(patience=0.1)
    assert time.monotonic() - began < 1


def test_a_sink_that_comes_back_is_told_what_it_missed(sink: Sink) -> None:
    assert logs.DEFAULTS
    writer = logs.set_up(logs.DEFAULTS)
    log(0)
    while not writer._lines.empty():
        time.sleep(0.001)
    log(*range(1, 10))  # four fit
    sink.free.set()
    while len(sink.records) < 5:
        time.sleep(0.001)
    log(10)
    writer.stop(5)
    assert [getattr(record, "fields", {}) for record in sink.records][-2:] == [{}, {"lines_dropped": 5}]


def test_the_end_waits_for_lines_that_are_written(sink: Sink) -> None:
    assert logs.DEFAULTS
    writer = logs.set_up(logs.DEFAULTS)
    log(1, 2, 3)
    sink.free.set()
    writer.stop(5)
    assert [record.getMessage() for record in sink.records] == ["line 1", "line 2", "line 3"]


def test_without_a_new_sink_the_old_one_stays(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logs.DEFAULTS
    writer = logs.set_up(logs.DEFAULTS)

    def refuse(_: logs.Settings) -> logging.Handler:
        raise OSError("too many open files")

    monkeypatch.setattr(logs, "_sink", refuse)
    with pytest.raises(OSError, match="too many"):
        logs.set_up(logs.DEFAULTS)
    sink.free.set()
    log(1)
    writer.stop(5)
    assert [record.getMessage() for record in sink.records] == ["line 1"]


def logged(query: Query, settings: dict[str, str], *, abandoned: bool = False) -> dict[str, Any]:
    """Give the fields of a decision's line, {} for none."""
    rules = 'name = "ours"\nwhen = { domain = "example.org" }\nverify = ["local"]'
    world = World(policy(f"[[rules]]\n{rules}"), {"local": Memory({"user@example.org": Mailbox()})})
    decision: Decision = Driver(world).begin(query)
    if abandoned:
        decision.abandoned = True
        decision.end(OUR_FAULT.said_by("abandoned"))
    read = schema.read(logs.Settings, settings, lambda *fault: pytest.fail(str(fault)))
    assert read
    sink = Sink()
    sink.free.set()
    writer = logs.Writer(sink)
    DecisionLog(read, writer).on_verdict(decision)
    writer.stop(5)
    return logs.fields_of(sink.records[0]) if sink.records else {}


def test_lines_of_decisions_wait_their_turn_and_what_was_dropped_is_told(sink: Sink) -> None:
    assert logs.DEFAULTS
    writer = logs.set_up(logs.DEFAULTS)
    log(0)
    while not writer._lines.empty():
        time.sleep(0.001)
    for number in range(6):  # four fit
        writer.put(logs.Later(1.5, dict, {"level": "info", "msg": f"decision {number}"}))
    sink.free.set()
    while len(sink.records) < 5:
        time.sleep(0.001)
    writer.put(logs.Later(1.5, dict, {"level": "info", "msg": "decision 6"}))
    writer.stop(5)
    fields = [logs.fields_of(record) for record in sink.records]
    assert [one["msg"] for one in fields] == ["line 0", *(f"decision {number}" for number in (0, 1, 2, 3, 6))]
    assert [one.get("lines_dropped") for one in fields] == [None] * 5 + [2]


def test_a_line_that_cannot_be_put_into_words_does_not_end_the_log(sink: Sink) -> None:
    assert logs.DEFAULTS
    sink.free.set()
    writer = logs.set_up(logs.DEFAULTS)
    writer.put(logs.Later(1.5, lambda _: 1 / 0, None))  # type: ignore[arg-type,return-value]
    log(1)
    writer.stop(5)
    assert [logs.fields_of(record)["msg"] for record in sink.records][1] == "line 1"
    assert "ZeroDivisionError" in logs.fields_of(sink.records[0])["msg"]


def test_decisions_are_of_level_info(sink: Sink) -> None:
    read = schema.read(logs.Settings, {"level": "warning"}, lambda *fault: pytest.fail(str(fault)))
    assert read
    sink.free.set()
    writer = logs.set_up(read)
    writer.put(logs.Later(1.5, dict, {"level": "info", "msg": "decision"}))
    logging.getLogger("test").warning("a warning")
    writer.stop(5)
    assert [logs.fields_of(record)["msg"] for record in sink.records] == ["a warning"]


def test_standard_error_gets_many_lines_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Stream:
        def write(self, text: str) -> None:
            written.append(text)

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stderr", Stream())
    assert logs.DEFAULTS
    writer = logs.Writer(logs._sink(logs.DEFAULTS))
    for number in range(100):
        fields = {"level": "info", "msg": "decision", "number": number, "said": 'a "b" = c'}
        writer.put(logs.Later(1700000000.25, dict, fields))
    writer.stop(5)
    lines = "".join(written).splitlines()
    assert len(lines) == 100
    assert lines[7] == r'time=2023-11-14T22:13:20.250Z level=info msg=decision number=7 said="a \"b\" = c"'
    assert len(written) < 100


def test_an_abandoned_decision_is_no_deferral() -> None:
    query = Query("user@example.org", "socketmap")
    assert logged(query, {}, abandoned=True) == {}
    fields = logged(query, {"decisions": "all"}, abandoned=True)
    assert fields["msg"] == "abandoned"
    assert "code" not in fields


def test_what_a_client_wrote_is_cut() -> None:
    fields = logged(Query(f"{'a' * 9000}@example.org", "milter", sender=f"{'b' * 60000}@example.net"), {})
    assert fields["recipient"].startswith("aaaa")
    assert len(logs.logfmt(fields)) < 3 * ADDRESS
    shown = logged(Query(f"{'a' * 9000}@example.org", "milter"), {"addresses": "domain"})
    assert shown["recipient"] == "*@example.org", "cut after the mask, which needs the whole address"
