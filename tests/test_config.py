"""The configuration: read whole, with every fault at its line; tests/faulty holds files and what they are told.

In a `.expected` file, FILE is the path of the faulty one, and `...` stands for anything.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema, stores
from rcptd.address import parse
from rcptd.config import MOST_OCTETS, FaultyConfiguration, StoreSection, load, open_world
from rcptd.memo.file import MemoFile
from rcptd.memo.remembering import Remembering
from rcptd.question import EXISTS, Answer, Store
from rcptd.schema import option
from rcptd_daemon.sections import SECTIONS
from tests.policies import milter
from tests.test_drive import Slow, exists
from tests.test_engine import through

FAULTY = sorted((Path(__file__).parent / "faulty").glob("*.toml"))


@pytest.mark.parametrize("path", FAULTY, ids=lambda path: path.stem)
def test_a_faulty_file_is_told_its_faults(path: Path) -> None:
    with pytest.raises(FaultyConfiguration) as raised:
        load(path, SECTIONS)
    wanted = path.with_suffix(".expected").read_text().replace("FILE:", f"{path}:").splitlines()
    for fault, pattern in zip(raised.value.faults, wanted, strict=True):
        assert re.fullmatch(re.escape(pattern).replace(r"\.\.\.", ".*"), fault), fault
    assert str(raised.value) == "\n".join(raised.value.faults)


def test_every_faulty_file_has_its_faults() -> None:
    assert len(FAULTY) > 8
    assert {path.stem for path in FAULTY} == {path.stem for path in FAULTY[0].parent.glob("*.expected")}


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rcptd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(FaultyConfiguration) as raised:
        load(path, SECTIONS)
    return raised.value.faults


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    assert faults(tmp_path / "nowhere") == [f"{tmp_path}/nowhere: cannot be read: No such file or directory"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_a_file_that_is_no_utf_8_is_a_fault_at_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, b"[daemon]\n# f\xfcr\n")
    assert faults(path) == [f"{path}:2: is not UTF-8"]


def test_the_size_of_a_file_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "#\n")
    os.truncate(path, MOST_OCTETS + 1)
    assert faults(path) == [f"{path}: is larger than 4 MiB"]


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert faults(path) == [f"{path}: is no file"]


def test_a_file_with_windows_line_ends_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, '[daemon]\r\ndeadline = "3s"\r\nx = 1\r\n')
    assert faults(path)[0].startswith(f"{path}:3: daemon.x:")


SOUND = """
[daemon]
default_domain = "example.org"
posting_unknown = "defer"

[stores.local]
type = "memory"
recipients = ["user@example.org"]

[[rules]]
verify = "local"
[[rules]]
verify = "local"
posting_unknown = "reject"
"""


def test_a_sound_file_is_read_with_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, SOUND + "[log]\n")
    read = load(path, SECTIONS)
    assert (read.path, read.daemon.deadline, read.daemon.postmaster) == (path, 6.0, True)
    assert list(read.stores) == ["local"]
    assert list(read.sections) == ["log"]
    assert [rule.posting_unknown for rule in read.rules] == ["defer", "reject"]
    assert read.raw["daemon"]["default_domain"] == "example.org"
    empty = load(written(tmp_path, ""), SECTIONS)
    assert (empty.rules, empty.stores, empty.sections) == ((), {}, {})


def test_a_world_is_opened_from_a_file(tmp_path: Path) -> None:
    world = open_world(load(written(tmp_path, SOUND), SECTIONS))
    assert world.policy.default_domain == "example.org"
    assert world.deadline == 6.0
    assert world.at_once["local"](parse("user@example.org")) == EXISTS
    assert through(world.policy, milter("user"), EXISTS) == ["local user@example.org", "250 2.1.5"]


def test_of_a_running_world_a_store_is_kept_whose_section_is_the_same(tmp_path: Path) -> None:
    old = load(written(tmp_path, SOUND + '[stores.other]\ntype = "memory"\n'), SECTIONS)
    running = open_world(old)
    changed = SOUND.replace("user@", "joe@") + '[stores.other]\ntype = "memory"\n[stores.new]\ntype = "memory"\n'
    world = open_world(load(written(tmp_path, changed), SECTIONS), running.stores, old.stores)
    assert world.stores["other"] is running.stores["other"]
    assert world.stores["local"] is not running.stores["local"]
    assert world.at_once["local"](parse("joe@example.org")) == EXISTS
    assert set(world.stores) == {"local", "other", "new"}


@dataclass(frozen=True, slots=True)
class HopSettings:
    next_hop: bool = option(schema.boolean, default=False, doc="Whether it asks another mail server.")


class Foreign:
    """A type of store as another package brings it."""

    Settings = HopSettings

    @staticmethod
    def open_store(_name: str, settings: HopSettings) -> Store:
        return Slow(exists, next_hop=settings.next_hop)


def test_services_are_slow_and_those_that_ask_a_mail_server_are_next_hops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: str) -> Any:
        return Foreign

    monkeypatch.setattr(stores, "find", find)
    text = (
        '[stores.a]\ntype = "foreign"\nmemo = "off"\n[stores.b]\ntype = "foreign"\nnext_hop = true\nmemo = "off"\n'
    )
    world = open_world(load(written(tmp_path, text), SECTIONS))
    assert world.policy.slow == {"a", "b"}
    assert world.policy.next_hops == {"b"}
    assert not world.at_once


def test_a_store_that_fails_to_open_closes_those_that_were_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Table:
        def __init__(self, name: str) -> None:
            self.name = name

        def lookup(self, _: object) -> Answer:
            return EXISTS

        def close(self) -> None:
            closed.append(self.name)

    class Failing:
        Settings = HopSettings

        @staticmethod
        def open_store(name: str, _settings: HopSettings) -> Store:
            if name == "c":
                raise OSError("no")
            return Table(name)

    def find(_: str) -> Any:
        return Failing

    monkeypatch.setattr(stores, "find", find)
    read = load(written(tmp_path, "".join(f'[stores.{name}]\ntype = "x"\n' for name in "abc")), SECTIONS)
    kept = Table("a")
    with pytest.raises(FaultyConfiguration, match=r"stores\.c: cannot be opened: OSError\('no'\)"):
        open_world(read, {"a": kept}, {"a": read.stores["a"]})
    assert closed == ["b"]  # and not the one that is in use


def test_sections_that_say_the_same_are_equal() -> None:
    assert StoreSection("x", HopSettings(True)) == StoreSection("x", HopSettings(True))
    assert StoreSection("x", HopSettings(True)) != StoreSection("x", HopSettings(False))


def test_what_services_say_is_remembered_as_their_section_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "find", lambda _: Foreign)
    text = """
[daemon]
workers = "front_ends"
[memo]
path = "/var/lib/rcptd/memo.db"
[stores.a]
type = "foreign"
[stores.a.memo]
yes = "3h"
[stores.b]
type = "foreign"
[stores.c]
type = "foreign"
memo = "off"
"""
    configuration = load(written(tmp_path, text), SECTIONS)
    assert configuration.daemon.workers == "front_ends"
    assert configuration.memo.path == Path("/var/lib/rcptd/memo.db")
    a, b, c = (configuration.stores[name] for name in "abc")
    assert a.memo
    assert b.memo
    assert (a.memo.yes, b.memo.yes, c.memo) == (10800, 7200, None)
    assert a.fingerprint == b.fingerprint != StoreSection("foreign", 5).fingerprint
    file = MemoFile(tmp_path / "memo.db")
    world = open_world(configuration, memo_file=file)
    assert isinstance(world.stores["a"], Remembering)
    assert isinstance(world.stores["b"], Remembering)
    assert isinstance(world.stores["c"], Slow)
    assert set(world.at_once) == set(world.in_shadow) == {"a", "b"}
    file.close()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('type = "memory"\nmemo = "off"', "a store of type 'memory' answers at once"),
        ('type = "passwd"\nmemo = "on"', 'write "off", or a section of its own'),
        ('type = "passwd"\nmemo = { yes = 5 }', "stores.s.memo.yes: write a time with its unit"),
        ('type = "passwd"\nmemo = { yess = "5s" }', "did you mean 'yes'?"),
    ],
)
def test_faults_of_a_memo_are_told(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(FaultyConfiguration) as faulty:
        load(written(tmp_path, f"[stores.s]\n{text}\n"), SECTIONS)
    assert fault in faulty.value.faults[0]


def test_the_memo_of_accounts_is_off_unless_it_is_written(tmp_path: Path) -> None:
    text = '[stores.a]\ntype = "passwd"\n[stores.b]\ntype = "passwd"\n[stores.b.memo]\nno = "1m"\n'
    read = load(written(tmp_path, text), SECTIONS).stores
    assert read["a"].memo is None
    assert read["b"].memo
    assert read["b"].memo.no == 60


@pytest.mark.parametrize("value", ["0", "65", '"two"', "true", "1.5"])
def test_workers_are_a_number_or_one_for_each_front_end(tmp_path: Path, value: str) -> None:
    with pytest.raises(FaultyConfiguration, match='from 1 to 64, or "front_ends"'):
        load(written(tmp_path, f"[daemon]\nworkers = {value}\n"), SECTIONS)
    assert load(written(tmp_path, "[daemon]\nworkers = 2\n"), SECTIONS).daemon.workers == 2
