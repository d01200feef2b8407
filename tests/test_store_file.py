"""The file store: both formats, reloading whole or not at all, and what it says of faults."""

import io
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd import schema
from rcptd.address import parse
from rcptd.question import EXISTS, NOT_FOUND, Answer, Busy, Disabled, Found, Mailbox, Unavailable
from rcptd.stores import file as store
from rcptd.stores import find
from rcptd.stores.file import File, Settings, open_store
from rcptd.stores.lines import LINE_OCTETS, Entry, Fault, read_list, read_postfix


def declared(path: Path, **table: object) -> Settings:
    faults: list[str] = []
    made = schema.read(Settings, {"path": str(path), **table}, lambda key, what: faults.append(f"{key}: {what}"))
    assert made, faults
    return made


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A file, a table on it, and hands to move both."""

    def __init__(self, path: Path, **table: object) -> None:
        self.path = path
        self.clock = Clock()
        self.table = File(declared(path, **table), clock=self.clock)

    def write(self, text: str, *, old: bool = True) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        if old:  # so that it is not watched for being written still
            os.utime(beside, (1, 1))
        beside.rename(self.path)

    def look(self) -> None:
        self.clock.now += store.LOOK
        if reader := self.table.look():
            reader.join(20)
            assert not reader.is_alive()

    def ask(self, address: str) -> Answer | Busy:
        return self.table.lookup(parse(address))

    def why(self, address: str) -> str:
        answer = self.ask(address)
        assert isinstance(answer, Unavailable)
        return answer.why


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path / "recipients")
    made.write("anna@example.org\nbob@example.org disabled Gone away\n@example.net\n")
    made.look()
    return made


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STILL", 0.01)


def listed(text: str, domain: str = "") -> dict[str, Mailbox]:
    return taken(read_list(io.BytesIO(text.encode()), domain=domain))


def postfix(text: str, domain: str = "", *, targets: bool = False) -> dict[str, Mailbox]:
    return taken(read_postfix(io.BytesIO(text.encode()), domain=domain, targets=targets))


def taken(found: Any) -> dict[str, Mailbox]:
    entries = {}
    for one in found:
        assert isinstance(one, Entry), one
        entries[str(one.of)] = one.mailbox
    return entries


def faults(text: str | bytes, **options: Any) -> list[str]:
    source = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    read: Any = read_postfix if options.pop("postfix", False) else read_list
    return [f"{one.line}: {one.what}" for one in read(source, **options) if isinstance(one, Fault)]


def test_the_type_is_found_by_name() -> None:
    assert find("file").Settings is Settings


# The list format.


def test_each_disposition_is_read() -> None:
    text = """\
# a comment

anna@example.org
bob@example.org ok
\tcarl@example.org\tdisabled
dora@example.org   disabled  Gone away
emil@example.org DEFER Moving house
fritz@example.org moved fritz@example.net
gerda@example.org alias anna@example.org, "b c"@example.org
@example.net alias @example.org
"two words"@example.org disabled
heidi@example.org server IMAP1.example.org
"""
    assert listed(text) == {
        "anna@example.org": Mailbox(),
        "bob@example.org": Mailbox(),
        "carl@example.org": Mailbox(disabled=Disabled()),
        "dora@example.org": Mailbox(disabled=Disabled(text="Gone away")),
        "emil@example.org": Mailbox(disabled=Disabled(temporary=True, text="Moving house")),
        "fritz@example.org": Mailbox(moved_to="fritz@example.net"),
        "gerda@example.org": Mailbox(targets=("anna@example.org", '"b c"@example.org')),
        "@example.net": Mailbox(targets=("@example.org",)),
        '"two words"@example.org': Mailbox(spelling='"two words"@example.org', disabled=Disabled()),
        "heidi@example.org": Mailbox(server="imap1.example.org"),
    }


def test_the_spelling_is_kept_where_it_is_not_the_key() -> None:
    assert listed("Anna@Bücher.example\n@EXAMPLE.org\n") == {
        "anna@xn--bcher-kva.example": Mailbox(spelling="Anna@Bücher.example"),
        "@example.org": Mailbox(spelling="@EXAMPLE.org"),
    }


def test_a_domain_qualifies_bare_local_parts_and_targets() -> None:
    assert listed("anna\nbob alias anna\ncarl moved anna\n", "example.org") == {
        "anna@example.org": Mailbox(),
        "bob@example.org": Mailbox(targets=("anna@example.org",)),
        "carl@example.org": Mailbox(moved_to="anna@example.org"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anna\n", "1: 'anna' is neither user@domain nor @domain: no domain"),
        ("x\n\nanna@@example.org\n", "3: 'anna@@example.org' is neither"),
        ("anna@example.org gone\n", "1: 'gone' is no disposition; write nothing, ok, disabled TEXT"),
        ("anna@example.org ok indeed\n", "1: 'ok indeed' is no disposition"),
        ("anna@example.org moved\n", "1: 'moved' is no disposition"),
        ("anna@example.org moved away\n", "1: 'away' is no address to have moved to: no domain"),
        ("anna@example.org alias\n", "1: 'alias' is no disposition"),
        ("anna@example.org server\n", "1: 'server' is no disposition"),
        ("anna@example.org server a_b..c\n", "1: 'a_b..c' is no name of a server"),
        ("anna@example.org alias ,\n", "1: an alias without a target"),
        ("anna@example.org alias bob\n", "1: the target 'bob' is no address: no domain"),
        (f"a@example.org alias {'b' * 600}@c.example\n", "is no address: far too long"),
        ('anna@example.org alias "b\n', "1: a quote is not closed"),
        ('"anna@example.org\n', "1: a quote is not closed"),
        ('anna@example.org disabled 100% "off"\n', "1: the text must be printable ASCII"),
        ("anna@example.org", "1: no final newline"),
        (b"anna@example.org\n\xff@example.org\n", "2: not UTF-8"),
        ("x" * (LINE_OCTETS + 1) + "\nanna@example.org\n", f"1: the line is longer than {LINE_OCTETS} bytes"),
        (f"{'x' * 600}@example.org\n", "longer than 512 characters"),
    ],
)
def test_a_faulty_line_is_named_with_what_would_be_right(text: str | bytes, said: str) -> None:
    assert any(said in fault for fault in faults(text)), faults(text)


def test_more_targets_than_an_alias_may_have_are_a_fault() -> None:
    ends = " ".join(f"u{at}@example.net" for at in range(51))
    assert faults(f"anna@example.org alias {ends}\n") == ["1: more than 50 targets"]


# Postfix' tables.


def test_a_postfix_table_is_read_as_postmap_reads_it() -> None:
    text = """\
# comment
anna@example.org  OK
Bob@example.org\tbob/
  carl@example.org OK
\t# a comment between
dora@example.org
    OK
emil@example.org REJECT
fritz@example.org 550 5.7.1 Go away
gerda@example.org DEFER_IF_PERMIT Try later
hans@example.org 450 Later
@example.net x
example.org anything
"""
    assert postfix(text) == {
        "anna@example.org": Mailbox(),
        "bob@example.org": Mailbox(spelling="Bob@example.org"),
        "dora@example.org": Mailbox(),
        "emil@example.org": Mailbox(disabled=Disabled()),
        "fritz@example.org": Mailbox(disabled=Disabled(text="Go away")),
        "gerda@example.org": Mailbox(disabled=Disabled(temporary=True, text="Try later")),
        "hans@example.org": Mailbox(disabled=Disabled(temporary=True, text="Later")),
        "@example.net": Mailbox(),
    }


def test_a_virtual_table_gives_targets() -> None:
    text = """\
example.org virtual
info@example.org anna@example.org,
    bob@example.org
anna@example.org anna@example.org
bob@example.org bob@example.org, copy@example.com
carl@example.org @example.net
@example.com @example.net
"""
    assert postfix(text, targets=True) == {
        "info@example.org": Mailbox(targets=("anna@example.org", "bob@example.org")),
        "anna@example.org": Mailbox(),
        "bob@example.org": Mailbox(),
        "carl@example.org": Mailbox(targets=("carl@example.net",)),
        "@example.com": Mailbox(targets=("@example.net",)),
    }


def test_a_domain_qualifies_the_keys_of_a_local_table() -> None:
    assert postfix("anna OK\n", "example.org") == {"anna@example.org": Mailbox()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anna@example.org\n", "1: 'anna@example.org' has no value; write `anna@example.org OK`"),
        ("anna OK\n", "1: 'anna' has no domain and is none of this file's"),
        ("an..na OK\n", "1: 'an..na' has no domain and is none of this file's"),
        ("  anna@example.org OK\n", "1: the line begins with white space"),
        ("anna@@example.org OK\n", "1: 'anna@@example.org' is neither"),
        ("anna@example.org OK", "1: no final newline"),
        (f"a@example.org {'x' * LINE_OCTETS}\n", "1: the line is longer"),
        (f"a@example.org {'x' * 20_000}\n {'x' * 20_000}\n", "2: with the lines before it is longer"),
    ],
)
def test_a_faulty_line_of_a_table_is_named(text: str, said: str) -> None:
    assert any(said in fault for fault in faults(text, postfix=True)), faults(text, postfix=True)


@given(st.binary(max_size=200), st.booleans())
def test_whatever_the_bytes_are_they_are_entries_or_faults(octets: bytes, targets: bool) -> None:
    for found in (read_list(io.BytesIO(octets)), read_postfix(io.BytesIO(octets), targets=targets)):
        for one in found:
            assert isinstance(one, Entry | Fault)
            assert 1 <= one.line <= octets.count(b"\n") + 1


lines = st.lists(
    st.sampled_from(
        ["a@b.example", "@b.example", "b.example x", " more", "#", "", "ok", "alias", '"', "disabled", "\t"]
    )
)


@given(st.lists(lines.map(" ".join)).map("\n".join), st.booleans())
def test_nearly_right_text_is_entries_or_faults(text: str, targets: bool) -> None:
    test_whatever_the_bytes_are_they_are_entries_or_faults.hypothesis.inner_test(text.encode(), targets)  # type: ignore[attr-defined]


# Reloading.


def test_what_is_in_the_file_is_answered(scene: Scene) -> None:
    assert scene.ask("Anna@example.org") is EXISTS
    assert scene.ask("bob@example.org") == Found(Mailbox(disabled=Disabled(text="Gone away")))
    assert scene.ask("carl@example.org") == NOT_FOUND
    assert scene.ask("carl@example.net") == Found(Mailbox(catch_all=True))
    assert "holds not one recipient of example.com" in scene.why("anna@example.com")


def test_a_catch_all_may_say_more(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "f")
    scene.write("@example.org disabled\n@example.net alias @example.com one@example.com\n")
    scene.look()
    assert scene.ask("carl@example.org") == Found(Mailbox(catch_all=True, disabled=Disabled()))
    ends = ("carl@example.com", "one@example.com")
    assert scene.ask("carl@example.net") == Found(Mailbox(catch_all=True, targets=ends))


def test_allow_empty_makes_a_no_of_a_domain_that_is_not_held(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "f", allow_empty=True)
    scene.write("")
    scene.look()
    assert scene.ask("anna@example.com") == NOT_FOUND


def test_the_postfix_format_is_chosen_by_the_settings(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "f", format="postfix", targets=True, domain="Bücher.example")
    scene.write("info anna, bob@example.org\n")
    scene.look()
    targets = ("anna@xn--bcher-kva.example", "bob@example.org")
    assert scene.ask("info@bücher.example") == Found(Mailbox(targets=targets))


def test_a_domain_that_is_none_is_a_fault_of_the_configuration() -> None:
    said: list[str] = []
    assert schema.read(Settings, {"path": "/x", "domain": "a..b"}, lambda *fault: said.append(": ".join(fault))) is None
    assert said == ["domain: 'a..b' is no domain: the domain is not a host name"]


def test_a_change_is_taken_in_while_the_old_state_answers(scene: Scene) -> None:
    scene.write("anna@example.org\ncarl@example.org\n")
    assert scene.ask("carl@example.org") == NOT_FOUND
    scene.clock.now += store.LOOK
    first = scene.ask("carl@example.org")
    assert first in (NOT_FOUND, EXISTS)
    deadline = time.monotonic() + 10
    while scene.ask("carl@example.org") is not EXISTS:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unchanged_file_is_not_read_again(scene: Scene) -> None:
    scene.clock.now += store.LOOK
    assert scene.table.look() is None


def test_before_the_first_reading_the_table_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("anna@example.org\n")  # just written: it is watched for a while
    table = open_store("few", declared(path))
    answer = table.lookup(parse("anna@example.org"))
    assert isinstance(answer, Busy)
    deadline = time.monotonic() + 10
    while isinstance(answer, Busy):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        answer = table.lookup(parse("anna@example.org"))
    assert answer is EXISTS
    table.close()
    assert isinstance(table.lookup(parse("anna@example.org")), Unavailable)
    assert table.look() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anna@example.org\nfoo bar\ncarl@example.org\n", ":2: 'foo' is neither user@domain nor @domain"),
        ("anna@example.org\nbob@example.org\ncarl@example.org", ":3: no final newline"),
        ("anna@example.org\nb@example.org\nanna@example.org disabled\n", ":3: anna@example.org stands here a second"),
        ("anna@example.org\n", ": has 1 entries where there were 3; allow_shrink = true"),
        ("", ": has 0 entries where there were 3"),
    ],
)
def test_a_faulty_state_keeps_the_last_good_one_and_says_so_once(
    scene: Scene, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    scene.write(text)
    for _ in range(3):
        scene.look()
    assert scene.ask("bob@example.org") != NOT_FOUND
    assert scene.ask("carl@example.org") == NOT_FOUND
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert lines[0].startswith(f"store: {scene.path}{said}"), lines
    assert lines[1:] == [f"store: {scene.path}: the last good state stays in force, 3 entries"]
    scene.write("bob@example.org\ncarl@example.org\n")
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS


def test_the_same_entry_twice_is_no_fault(scene: Scene) -> None:
    scene.write("anna@example.org\nanna@example.org ok\ncarl@example.org\n")
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS


def test_only_the_first_faults_are_named(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.write("nonsense\n" * 100)
    scene.look()
    assert len(caplog.records) == store.FAULTS + 1


def test_allow_shrink_lets_most_entries_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "f", allow_shrink=True)
    scene.write("".join(f"u{at}@example.org\n" for at in range(10)))
    scene.look()
    scene.write("u1@example.org\n")
    scene.look()
    assert scene.ask("u2@example.org") == NOT_FOUND


def test_a_faulty_file_at_the_start_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "f")
    scene.write("foo\n")
    scene.look()
    assert scene.why("anna@example.org").startswith(f"{scene.path}:1: 'foo' is neither")
    scene.write("anna@example.org\n")
    scene.look()
    assert scene.ask("anna@example.org") is EXISTS


def test_a_file_that_is_gone_is_unavailable_and_half_of_it_does_not_come_back(scene: Scene) -> None:
    scene.path.unlink()
    scene.look()
    assert scene.why("anna@example.org") == f"{scene.path}: No such file or directory"
    scene.write("anna@example.org\n")
    scene.look()
    assert "has 1 entries where there were 3" in scene.why("anna@example.org")
    scene.write("anna@example.org\n@example.net\n")
    scene.look()
    assert scene.ask("anna@example.org") is EXISTS


def test_a_file_that_is_still_being_written_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_on(_: float) -> None:
        with scene.path.open("a") as file:
            file.write("dora@example.org\n")

    scene.write("anna@example.org\ncarl@example.org\n", old=False)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", write_on)
        scene.look()
        scene.look()
    assert scene.ask("carl@example.org") == NOT_FOUND
    assert [line.getMessage() for line in caplog.records] == [
        f"store: {scene.path}: is still changing",
        f"store: {scene.path}: the last good state stays in force, 3 entries",
    ]
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS
    assert scene.ask("dora@example.org") is EXISTS


def test_a_file_that_changes_while_it_is_read_is_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    really = scene.table._parsed

    def meanwhile(source: Any) -> Any:
        scene.write("anna@example.org\ndora@example.org\n")
        return really(source)

    scene.write("anna@example.org\ncarl@example.org\n")
    with monkeypatch.context() as patched:
        patched.setattr(scene.table, "_parsed", meanwhile)
        scene.look()
    assert scene.ask("carl@example.org") == NOT_FOUND
    scene.look()
    assert scene.ask("dora@example.org") is EXISTS


def test_a_file_that_goes_while_it_is_read_is_not_believed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    really = scene.table._parsed

    def meanwhile(source: Any) -> Any:
        scene.path.unlink()
        return really(source)

    scene.write("anna@example.org\ncarl@example.org\n")
    monkeypatch.setattr(scene.table, "_parsed", meanwhile)
    scene.look()
    assert scene.ask("carl@example.org") == NOT_FOUND
    scene.look()
    assert isinstance(scene.ask("carl@example.org"), Unavailable)


def test_a_disk_that_fails_keeps_the_last_good_state(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise OSError(5, "Input/output error")

    scene.write("anna@example.org\ncarl@example.org\n")
    with monkeypatch.context() as patched:
        patched.setattr(scene.table, "_parsed", fail)
        scene.look()
    assert scene.ask("carl@example.org") == NOT_FOUND
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS


def test_a_bug_in_reading_is_said_and_the_table_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> Any:
        raise ZeroDivisionError

    scene.write("anna@example.org\ncarl@example.org\n")
    with monkeypatch.context() as patched:
        patched.setattr(scene.table, "_parsed", fail)
        scene.look()
    assert "reading failed" in caplog.text
    assert scene.ask("anna@example.org") is EXISTS
    scene.clock.now += store.RETRY - 1
    assert scene.ask("carl@example.org") == NOT_FOUND
    assert not scene.table._reading.locked(), "not at once: the file may be large"
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS, "but it is tried again: perhaps there was no memory"


def test_no_thread_to_be_had_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scene.write("anna@example.org\ncarl@example.org\n")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        scene.look()
    assert scene.ask("carl@example.org") == NOT_FOUND
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS


def test_a_reading_under_way_is_not_begun_twice(scene: Scene) -> None:
    with scene.table._reading:
        assert scene.table.look() is None


def test_a_reading_that_ends_after_close_is_not_heard(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    really = scene.table._parsed

    def meanwhile(source: Any) -> Any:
        scene.table.close()
        return really(source)

    scene.write("anna@example.org\ncarl@example.org\n")
    monkeypatch.setattr(scene.table, "_parsed", meanwhile)
    scene.look()
    assert scene.why("carl@example.org") == f"{scene.path}: closed"


def test_a_faulty_file_that_is_read_after_close_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path / "f")
    really = scene.table._parsed

    def meanwhile(source: Any) -> Any:
        scene.table.close()
        return really(source)

    scene.write("foo\n")
    monkeypatch.setattr(scene.table, "_parsed", meanwhile)
    scene.look()
    assert scene.why("carl@example.org") == f"{scene.path}: closed"


def test_what_is_no_file_and_what_is_too_large_is_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "fifo")
    os.mkfifo(scene.path)
    scene.look()
    assert scene.why("anna@example.org") == f"{scene.path}: is no regular file"
    scene = Scene(tmp_path / "large", max_size=10)
    scene.write("anna@example.org\n")
    scene.look()
    assert scene.why("anna@example.org") == f"{scene.path}: has 17 bytes, max_size is 10"


def test_a_file_that_cannot_be_opened_is_unavailable(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    table = File(declared(scene.path))
    monkeypatch.setattr(os, "open", refuse)
    reader = table.look()
    assert reader
    reader.join(10)
    answer = table.lookup(parse("anna@example.org"))
    assert answer == Unavailable(f"{scene.path}: Permission denied")


def test_a_state_that_could_not_be_opened_is_tried_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a free descriptor the last good state stays in force for a moment, and not until the next change."""

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    scene.write("anna@example.org\ncarl@example.org\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        scene.look()
        scene.look()
    assert caplog.text.count("Too many open files") == 1
    scene.look()
    assert scene.ask("carl@example.org") is EXISTS


def test_a_folder_in_place_of_the_file_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "folder")
    scene.path.mkdir()
    scene.look()
    assert scene.why("anna@example.org") == f"{scene.path}: is no regular file"
    open_there = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(scene.path)]
    assert not open_there
