"""What was settled ends when what it stands on changes: what a service remembers, a file, a database, in any thread."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rcptd import schema
from rcptd import settled as module
from rcptd.address import Recipient
from rcptd.drive import Driver
from rcptd.memo.remembering import STANDS, Remembering
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Answer,
    Busy,
    Disabled,
    Found,
    Mailbox,
    Posting,
    Quota,
)  # fmt: skip
from rcptd.settled import Ground
from rcptd.stores import file, sqlite
from rcptd.stores.memory import Memory
from rcptd_socketmap.maps import Maps
from rcptd_socketmap.verdicts import Verdicts
from tests.policies import milter, reply
from tests.test_memo import Backend, Clock, lifetimes
from tests.test_settled import RULES, USER, ask, world
from tests.test_store_sqlite import change, make

# Services that remember.


class Desk:
    """A driver with a memory in front of a backend, under one clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times: str) -> None:
        self.clock = Clock(1000.0)
        monkeypatch.setattr(module, "_monotonic", self.clock)
        self.backend = Backend()
        self.memo = Remembering("local", self.backend, lifetimes(**times), clock=self.clock)
        self.recalled = 0
        recall = self.memo.recall

        def counting(recipient: Recipient) -> Answer | Busy:
            self.recalled += 1
            return recall(recipient)

        monkeypatch.setattr(self.memo, "recall", counting)
        self.driver = Driver(world(self.memo))
        self.driver.attach(asyncio.get_running_loop())

    async def ask(self, recipient: str = USER) -> str:
        """Ask as the socketmap does."""
        if known := self.driver._settling.recall(recipient):
            return reply(known.verdict)
        ground = self.ground()
        decision = self.driver.begin(milter(recipient))
        if decision.done:
            self.driver.settle(ground, recipient, None, decision)
        else:
            await self.driver.finish(decision)
        return reply(decision.verdict)

    def ground(self) -> Ground[None]:
        return self.driver._settling.ground()


def test_a_remembered_answer_is_looked_at_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk(monkeypatch)
        for _ in range(3):  # learnt, settled, given again
            assert await desk.ask() == "250 2.1.5"
        assert desk.recalled == 3  # twice to learn it
        desk.clock.now += STANDS - 1
        assert await desk.ask() == "250 2.1.5"
        assert desk.recalled == 3
        desk.clock.now += 1
        assert await desk.ask() == "250 2.1.5"
        assert desk.recalled == 4

    asyncio.run(main())


def test_a_remembered_no_lasts_no_longer_for_being_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk(monkeypatch, no="10s")
        desk.backend.said = NOT_FOUND
        for _ in range(3):
            assert await desk.ask() == "550 5.1.1"
        desk.backend.said = EXISTS
        desk.clock.now += 9.9
        assert await desk.ask() == "550 5.1.1"
        desk.clock.now += 0.1
        assert await desk.ask() == "250 2.1.5"

    asyncio.run(main())


def test_a_purge_ends_what_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk(monkeypatch)
        desk.backend.said = NOT_FOUND
        for _ in range(3):
            assert await desk.ask() == "550 5.1.1"
        desk.backend.said = EXISTS
        desk.memo.purge(USER)
        assert await desk.ask() == "250 2.1.5"

    asyncio.run(main())


def test_a_new_answer_of_the_store_ends_what_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk(monkeypatch, soft_landing="0s")
        for _ in range(3):
            assert await desk.ask() == "250 2.1.5"
        ground = desk.ground()
        recipient = Recipient("user", "example.org")
        desk.memo._learn(USER, "example.org", EXISTS)
        assert ground.stands()  # the same again is nothing new
        desk.memo._learn("other@example.org", "example.org", NOT_FOUND)
        assert ground.stands()  # nor is one of whom nothing was known
        desk.memo._learn(USER, "example.org", NOT_FOUND)
        assert not ground.stands()
        assert await desk.ask() == "550 5.1.1"
        assert desk.memo.stands_until(recipient) > desk.clock.now
        assert desk.memo.stands_until(Recipient("nobody", "example.org")) == 0

    asyncio.run(main())


def test_noes_of_a_domain_whose_addresses_vanish_stand_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        desk = Desk(monkeypatch, soft_landing="0s")
        desk.backend.said = NOT_FOUND
        for _ in range(3):
            assert await desk.ask() == "550 5.1.1"
        good = [f"good{number}@example.org" for number in range(11)]
        for each in good:
            desk.memo._learn(each, "example.org", EXISTS)
        for each in good[:9]:
            desk.memo._learn(each, "example.org", NOT_FOUND)
        assert await desk.ask() == "550 5.1.1"
        desk.memo._learn(good[9], "example.org", NOT_FOUND)
        assert await desk.ask() == "451 4.4.3"

    asyncio.run(main())


# Real changes.


def test_a_file_that_changes_is_seen_though_its_answers_were_settled(tmp_path: Path) -> None:
    path = tmp_path / "list"
    clock = Clock(1000.0)
    path.write_text(f"{USER}\n")
    settings = schema.read(file.Settings, {"path": str(path)}, lambda *fault: pytest.fail(str(fault)))
    assert settings
    store = file.File(settings, clock=clock)

    driver = Driver(world(store))

    def wait_for(said: str) -> None:
        """Ask until that is said; the question that notices a change is answered from the state before it."""
        end = time.monotonic() + 20
        clock.now += file.LOOK
        while ask(driver) != said:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert ask(driver) == said

    wait_for("250 2.1.5")
    path.write_text(f"other@example.org\n{USER}x\n")
    wait_for("550 5.1.1")
    path.unlink()
    clock.now += file.LOOK
    assert [ask(driver), ask(driver)] == ["451 4.4.3"] * 2
    path.write_text(f"{USER}\n")
    wait_for("250 2.1.5")
    store.close()
    assert ask(driver) == "451 4.4.3"


WRITER = """
import sqlite3, sys
writer = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
for line in sys.stdin:
    writer.execute(
        "INSERT INTO recipient (domain, local) VALUES ('example.org', 'user')" if line == "add\\n" else
        "DELETE FROM recipient WHERE local = 'user'"
    )
    print(flush=True)
"""


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_commit_of_another_process_is_seen_by_the_next_question(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "recipients.db"
    make(path, "other@example.org")
    change(path, f"PRAGMA journal_mode = {mode}")
    table = sqlite.open_store("local", sqlite.Settings(path, allow_empty=False))
    driver = Driver(world(table))
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin
        assert writer.stdout
        for number in range(1000):
            writer.stdin.write("del\n" if number % 2 else "add\n")
            writer.stdin.flush()
            writer.stdout.readline()
            wanted = "550 5.1.1" if number % 2 else "250 2.1.5"
            assert [ask(driver), ask(driver)] == [wanted] * 2
            assert driver._settling.ground().recall(USER) is not None
        writer.stdin.close()
    table.close()
    assert ask(driver) == "451 4.4.3"


def test_a_database_that_is_replaced_or_fails_stands_no_more(tmp_path: Path) -> None:
    path, clock = tmp_path / "recipients.db", Clock(1000.0)
    make(path, USER)
    table = sqlite.Database(path, clock=clock)
    driver = Driver(world(table))
    assert [ask(driver), ask(driver)] == ["250 2.1.5"] * 2
    make(tmp_path / "new.db", "other@example.org")
    (tmp_path / "new.db").replace(path)
    clock.now += sqlite.LOOK
    assert [ask(driver), ask(driver)] == ["550 5.1.1"] * 2
    counting = table._file.state.connection
    assert counting
    counting.close()
    assert table.standing() is None  # whatever goes wrong there
    assert [ask(driver), ask(driver)] == ["550 5.1.1"] * 2
    assert table.standing() is None  # and no other connection is tried for each question
    assert table._file.state.connection is None
    clock.now += sqlite.LOOK
    assert table.standing() is not None
    path.unlink()
    clock.now += sqlite.LOOK
    assert table.standing() is None
    assert ask(driver) == "451 4.4.3"
    table.close()
    assert table.standing() is None
    assert table._file.count() == 0


class Changing:
    """A table of numbers that one thread changes and others ask; the change is over before the next token is out."""

    def __init__(self) -> None:
        self.state: dict[str, Answer] = {}

    def lookup(self, recipient: Recipient) -> Answer:
        return self.state.get(recipient.local, NOT_FOUND)

    def standing(self) -> object:
        return self.state

    def stands_until(self, _: Recipient) -> float:
        return float("inf")

    def close(self) -> None:
        """Nothing is open."""


def test_threads_never_see_an_answer_of_a_state_that_is_over() -> None:
    store = Changing()
    driver = Driver(world(store))
    names = [f"u{number}" for number in range(5)]
    done = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        source = random.Random(1)
        while not done.is_set():
            name = source.choice(names)
            before = store.state
            said = ask(driver, f"{name}@example.org")
            if before is store.state and said != ("250 2.1.5" if name in before else "550 5.1.1"):
                wrong.append(name)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    source = random.Random(2)
    for _ in range(3000):
        store.state = dict.fromkeys(source.sample(names, 2), EXISTS)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_the_settled_are_as_the_decided_whatever_is_asked() -> None:
    source = random.Random(3)
    store = Changing()
    rules = (
        '[[rules]]\nname = "m"\nwhen = { map = "n", recipient = "u1@*" }\nreject = "550 5.7.1 No"\n'
        + RULES
        + 'not_found = "next"\n[[rules]]\nname = "last"\nwhen = { domain = "example.org" }\nverify = ["other"]\n'
    )
    driver = Driver(world(store, rules, other=Memory({"u3@example.org": Mailbox()})))
    verdicts = Verdicts(driver, Maps())
    locals_ = ["u1", "u2", "u3", "U1", "u1+x", '"u 1"', "postmaster", "ü", ".u", "u\udcff"]
    mailboxes = [Mailbox(), Mailbox(targets=("u2@example.org",)), Mailbox(quota=Quota(bytes_limit=1, bytes_used=2)),
                 Mailbox(disabled=Disabled()), Mailbox(posting=Posting(authenticated=True))]  # fmt: skip
    for number in range(20_000):
        if number % 50 == 0:
            store.state = {
                name: Found(source.choice(mailboxes)) for name in source.sample(["u1", "u2", "u3", "u1+x"], 2)
            }
        key = f"{source.choice(locals_)}{source.choice(['@example.org', '@example.net', ''])}"
        facts = {
            "authenticated": source.choice(["", "a"]),
            "size": source.choice([0, 9]),
            "smtputf8": source.choice([True, False]),
        }
        assert driver.decide_from_thread(milter(key, **facts)) == driver.begin(milter(key, **facts)).verdict
        octets, name = key.encode("utf-8", "surrogateescape"), source.choice("mn")
        request = b"%d:%b %b," % (len(octets) + 2, name.encode(), octets)
        fresh = Verdicts(driver, Maps()).begin(name, octets, "a")
        assert (verdicts.again(request, "a") or verdicts.begin(name, octets, "a")) == fresh
