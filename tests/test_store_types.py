"""How a type of store is found, and the store in memory."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema, stores
from rcptd.address import NotAnAddress, Recipient, parse
from rcptd.question import EXISTS, NOT_FOUND, Busy, Disabled, Found, Mailbox, Table, Unavailable
from rcptd.stores import memory
from rcptd.stores.entries import Snapshot, Subject, public_text, subject, words
from rcptd.stores.memory import Memory, Settings, open_store


def declared(**table: object) -> Settings:
    faults: list[str] = []
    made = schema.read(Settings, table, lambda key, what: faults.append(f"{key}: {what}"))
    assert made, faults
    return made


@pytest.mark.parametrize("name", stores.OURS)
def test_each_of_our_types_has_what_a_type_must_have(name: str) -> None:
    found = stores.find(name)
    assert schema.declared(found.Settings)
    assert callable(found.open_store)


def test_every_store_module_is_in_the_table() -> None:
    folder = Path(stores.__file__).parent
    modules = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if "\ndef open_store(" in path.read_text()
    }
    assert modules == {name.removeprefix("rcptd.stores.") for name in stores.OURS.values()}


def test_an_unknown_type_names_the_known_ones() -> None:
    known = r"no store of type 'sqlit'; did you mean 'sqlite'\? known types: callahead, cyrus, file, mem"
    with pytest.raises(ValueError, match=known):
        stores.find("sqlit")
    with pytest.raises(ValueError, match=r"no store of type 'ldap'; known types: "):
        stores.find("ldap")


def test_another_package_can_bring_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("ours", "rcptd.stores.memory", stores.GROUP),
        EntryPoint("broken", "rcptd.no_such_module", stores.GROUP),
        EntryPoint("poor", "rcptd.verdict", stores.GROUP),
        EntryPoint("half", "rcptd.schema:Address", stores.GROUP),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == stores.GROUP
        return points

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert stores.find("ours").Settings is memory.Settings
    with pytest.raises(ValueError, match=r"'broken' of rcptd.no_such_module fails: ModuleNotFoundError"):
        stores.find("broken")
    for lacking in ("poor", "half"):
        with pytest.raises(ValueError, match="lacks Settings or open_store"):
            stores.find(lacking)


def test_a_store_in_memory_answers_what_it_was_given() -> None:
    table = open_store("few", declared(recipients=["Anna@example.org", "bob@example.org", "@Example.net"]))
    assert isinstance(table, Table)
    assert table.lookup(parse("bob@example.org")) is EXISTS
    assert table.lookup(parse("anna@example.org")) == Found(Mailbox(spelling="Anna@example.org"))
    assert table.lookup(parse("carl@example.org")) == NOT_FOUND
    assert table.lookup(parse("x@example.net")) == Found(Mailbox(spelling="@Example.net", catch_all=True))
    assert isinstance(table.lookup(parse("x@example.com")), Unavailable)
    table.close()
    assert isinstance(table.lookup(parse("bob@example.org")), Unavailable)


def test_a_store_in_memory_may_be_empty() -> None:
    table = open_store("none", declared(allow_empty=True))
    assert table.lookup(parse("x@example.com")) == NOT_FOUND


def test_a_store_in_memory_can_be_in_trouble() -> None:
    table = Memory({"anna@example.org": Mailbox(disabled=Disabled())})
    table.trouble = Busy("locked")
    assert table.lookup(parse("anna@example.org")) == Busy("locked")
    table.trouble = None
    assert table.lookup(parse("anna@example.org")) == Found(Mailbox(disabled=Disabled()))


def test_recipients_that_are_none_are_faults_of_the_configuration() -> None:
    said: list[str] = []
    table: dict[str, Any] = {"recipients": ["anna"]}
    assert schema.read(Settings, table, lambda *fault: said.append(": ".join(fault))) is None
    assert said == ["recipients: 'anna' is neither user@domain nor @domain: no domain; write user@domain"]


def test_a_bare_recipient_is_of_no_domain() -> None:
    table = Memory({"anna@example.org": Mailbox()})
    for bare in ("anna", '"anna@example.org"'):
        answer = table.lookup(parse(bare))
        assert isinstance(answer, Unavailable)
        assert "no domain" in answer.why


def test_a_snapshot_counts_each_entry_once() -> None:
    entries = Snapshot()
    assert entries.add(Subject("example.org", "anna"), Mailbox())
    assert entries.add(Subject("example.org", "anna"), Mailbox())
    assert not entries.add(Subject("example.org", "anna"), Mailbox(moved_to="x@y.example"))
    assert entries.count == 1
    assert entries.lookup(Recipient("anna", "example.org"), allow_empty=False) is EXISTS


def test_a_subject_prints_as_an_address() -> None:
    assert [str(subject(text)) for text in ("<a@B.example>", "@B.example", '"x y"@b.example')] == [
        "a@b.example",
        "@b.example",
        '"x y"@b.example',
    ]
    assert subject("<a@b.example>").spelling == ""
    with pytest.raises(NotAnAddress, match="longer than 512"):
        subject("a" * 600)


def test_words_are_cut_outside_quotes() -> None:
    assert words(' a, "b, c"@d ,,e\n') == ["a", '"b, c"@d', "e"]
    assert words("") == []
    with pytest.raises(ValueError, match="not closed"):
        words('a "b')


def test_a_public_text_keeps_to_the_safe_alphabet() -> None:
    assert public_text("") == ""
    assert public_text("Gone away") == "Gone away"
    with pytest.raises(ValueError, match="'100\\? off' would do"):
        public_text("100% off")
