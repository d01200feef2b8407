"""`rcptd mailbox`: each action, its exit codes, and imports and exports that lose nothing."""

import argparse
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcptd.address import parse
from rcptd.question import EXISTS, NOT_FOUND, Disabled, Found, Mailbox, Posting, Quota
from rcptd.stores.entries import Subject
from rcptd.stores.lines import Entry, Fault
from rcptd.stores.sqlite import Database
from rcptd_daemon import mailbox, mailbox_transfer
from rcptd_daemon import mailbox_formats as formats
from rcptd_daemon.mailbox_formats import incoming


class Command:
    """The command on one database; what it said is in `out` and `err` after each call."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.out = self.err = ""
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> int:
        parser = argparse.ArgumentParser(prog="rcptd mailbox")
        mailbox.add_arguments(parser)
        try:
            code = mailbox.run(parser.parse_args(list(map(str, arguments))), self.path)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def known(self, address: str) -> object:
        """What the daemon's own table says."""
        table = Database(self.path)
        answer = table.lookup(parse(address))
        table.close()
        return answer.mailbox if isinstance(answer, Found) else answer


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    command = Command(tmp_path / "recipients.db", capsys)
    assert command("add", "anna@example.org", "@example.net") == 0
    assert command.err == ""
    return command


def test_added_recipients_exist(run: Command) -> None:
    assert run.known("anna@example.org") == Mailbox()
    assert run.known("bob@example.org") == NOT_FOUND
    assert run.known("bob@example.net") == Mailbox(catch_all=True)


def test_adding_again_changes_nothing_and_says_so(run: Command) -> None:
    run("deny", "anna@example.org")
    assert run("add", "anna@example.org") == 0
    assert run.err == "rcptd mailbox: anna@example.org is there already\n"
    assert run.known("anna@example.org") == Mailbox(disabled=Disabled())


def test_the_key_is_canonical_and_the_spelling_kept(run: Command) -> None:
    assert run("add", "Bob@Bücher.example") == 0
    assert run.known("bob@xn--bcher-kva.example") == Mailbox(spelling="Bob@Bücher.example")
    assert run("show", "BOB@bücher.example") == 0
    assert run.out == "address     bob@xn--bcher-kva.example\nwritten     Bob@Bücher.example\n"


def test_who_moved_and_who_may_post_is_said_when_adding(run: Command) -> None:
    options = ("--authenticated", "--network", "192.0.2.0/24", "--network", "2001:db8::1", "--sender", "@Example.com")
    assert run("add", "bob@example.org", *options) == 0
    limited = Posting(authenticated=True, networks=("192.0.2.0/24", "2001:db8::1"), senders=("@example.com",))
    assert run.known("bob@example.org") == Mailbox(posting=limited)
    assert run("add", "bob@example.org", "--anyone", "--moved-to", "bob@example.com") == 0
    assert run.known("bob@example.org") == Mailbox(moved_to="bob@example.com")
    assert run("add", "bob@example.org", "--moved-to", "none") == 0
    assert run.known("bob@example.org") == Mailbox()
    assert run("add", "bob@example.org", "--anyone", "--authenticated") == os.EX_USAGE


def test_removed_recipients_are_gone_and_missing_ones_named(run: Command) -> None:
    assert run("remove", "anna@example.org", "bob@example.org") == 1
    assert run.err == "rcptd mailbox: bob@example.org is not there\n"
    assert run("show", "anna@example.org") == 1


def test_show_says_that_a_catch_all_takes_the_mail(run: Command) -> None:
    assert run("show", "bob@example.net") == 1
    assert run.err.endswith("but @example.net takes its mail\n")


def test_denied_for_good_for_now_and_until(run: Command) -> None:
    assert run("deny", "anna@example.org", "--text", "Gone away") == 0
    assert run.known("anna@example.org") == Mailbox(disabled=Disabled(text="Gone away"))
    assert run("deny", "anna@example.org", "--temporary") == 0
    assert run.known("anna@example.org") == Mailbox(disabled=Disabled(temporary=True))
    assert run("deny", "anna@example.org", "--until", "2027-01-01T00:00:00Z") == 0
    assert run.known("anna@example.org") == Mailbox(disabled=Disabled(temporary=True, until=1798761600.0))
    assert run("deny", "anna@example.org", "--until", "2027-01-01T00:00:00Z", "--permanent") == 0
    assert run.known("anna@example.org") == Mailbox(disabled=Disabled(until=1798761600.0))
    assert run("show", "anna@example.org") == 0
    assert "disabled    for good until 2027-01-01T00:00:00Z\n" in run.out
    assert run("allow", "anna@example.org", "--network", "192.0.2.1") == 0
    assert run.known("anna@example.org") == Mailbox(posting=Posting(networks=("192.0.2.1",)))
    assert run("allow", "anna@example.org", "--anyone") == 0
    assert run.known("anna@example.org") == EXISTS.mailbox


def test_denying_one_who_is_not_there_denies_nobody(run: Command) -> None:
    assert run("deny", "anna@example.org", "bob@example.org") == 1
    assert run.known("anna@example.org") == Mailbox()


def test_quota_sets_what_is_given_and_leaves_the_rest(run: Command) -> None:
    assert run("quota", "anna@example.org", "--limit", "1G", "--used", "10M", "--messages", "7") == 0
    assert run("quota", "anna@example.org", "--messages-used", "3", "--used", "20971520") == 0
    assert run.known("anna@example.org") == Mailbox(quota=Quota(1 << 30, 20 << 20, 7, 3))
    run("show", "anna@example.org")
    assert "quota       20971520 of 1073741824 bytes\nmessages    3 of 7\n" in run.out
    assert run("quota", "anna@example.org", "--limit", "none", "--messages", "none") == 0
    assert run.known("anna@example.org") == Mailbox(quota=Quota(None, 20 << 20, None, 3))
    run("list")
    assert "quota 20971520 of no limit bytes; messages 3 of no limit" in run.out
    assert run("quota", "bob@example.org", "--limit", "1") == 1
    assert run("quota", "anna@example.org") == os.EX_USAGE


def test_an_alias_leads_on_and_can_be_a_mailbox_again(run: Command) -> None:
    assert run("alias", "info@example.org", "anna@example.org", "@example.com") == 0
    assert run.known("info@example.org") == Mailbox(targets=("anna@example.org", "info@example.com"))
    assert run("alias", "info@example.org", "--none") == 0
    assert run.known("info@example.org") == Mailbox()
    assert run("alias", "info@example.org") == os.EX_USAGE
    assert run("alias", "info@example.org", "nobody") == os.EX_USAGE
    assert "the target 'nobody' is no address" in run.err


def test_list_is_sorted_and_can_be_of_one_domain(run: Command) -> None:
    run("add", "Zoe@example.org", "adam@example.org")
    assert run("list", "EXAMPLE.org") == 0
    assert run.out == "adam@example.org\nanna@example.org\nzoe@example.org; written Zoe@example.org\n"
    assert run("list", "example.com") == 1
    assert run("list", "a..b") == os.EX_USAGE
    assert run("list") == 0
    assert run.out.startswith("@example.net; catch-all ")


def test_json_says_all_there_is(run: Command) -> None:
    run("deny", "anna@example.org", "--until", "2027-01-01T00:00:00Z")
    run("quota", "anna@example.org", "--limit", "5")
    run("allow", "@example.net", "--authenticated")
    assert run("show", "--json", "anna@example.org") == 0
    assert json.loads(run.out) == {
        "address": "anna@example.org",
        "spelling": None,
        "catch_all": False,
        "disabled": {"temporary": True, "text": "", "until": "2027-01-01T00:00:00Z"},
        "post": None,
        "quota": {"bytes_limit": 5, "bytes_used": 0, "messages_limit": None, "messages_used": 0},
        "targets": [],
        "moved_to": None,
    }
    assert run("list", "--json", "example.net") == 0
    assert json.loads(run.out)["post"] == ["authenticated"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "anna"),
        ("add", "a@@b.example"),
        ("add", f"{'a' * 65}@example.org"),
        ("add", "anna@example.org", "--moved-to", "away"),
        ("remove", "@"),
    ],
)
def test_what_is_no_address_is_a_usage_fault_and_changes_nothing(run: Command, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == os.EX_USAGE
    assert run.err.startswith("rcptd mailbox: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deny", "a@b.example", "--text", "100%"), "would do"),
        (("deny", "a@b.example", "--until", "tomorrow"), "is no time"),
        (("deny", "a@b.example", "--until", "1960-01-01"), "is no time"),
        (("quota", "a@b.example", "--limit", "lots"), "write a size"),
        (("quota", "a@b.example", "--used", "99999999T"), "too large"),
        (("quota", "a@b.example", "--messages", "-1"), "whole number"),
        (("quota", "a@b.example", "--messages", "1.5"), "whole number"),
        (("allow", "a@b.example", "--network", "192.0.2.1/24"), "host bits"),
        (("allow", "a@b.example", "--sender", "bob"), "no domain"),
        (("allow", "a@b.example", "--sender", "*@b.example"), 'write "@b.example" for everybody there'),
    ],
)
def test_a_faulty_option_is_explained(run: Command, arguments: tuple[str, ...], said: str) -> None:
    assert run(*arguments) == 2  # argparse's own; the command line makes 64 of it
    assert said in run.err


# The database.


def test_without_a_database_only_what_adds_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Command(tmp_path / "none.db", capsys)
    for arguments in (
        ("list",),
        ("show", "a@b.example"),
        ("remove", "a@b.example"),
        ("deny", "a@b.example"),
        ("export",),
    ):
        assert run(*arguments) == os.EX_NOINPUT
        assert "no such database" in run.err
    assert not run.path.exists()
    assert run("alias", "a@b.example", "c@d.example") == 0
    assert run.path.stat().st_mode & 0o777 == 0o640
    missing = Command(tmp_path / "folder" / "x.db", capsys)
    assert missing("add", "a@b.example") == os.EX_CANTCREAT
    assert "install -d" in missing.err


def test_a_database_made_by_root_belongs_to_the_owner_of_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    run = Command(folder / "x.db", capsys)
    assert run("add", "a@b.example") == 0
    with closing(sqlite3.connect(run.path)) as reader:
        reader.execute("SELECT * FROM recipient").fetchall()
        for path in folder.iterdir():
            assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path


def test_a_database_at_rest_is_one_file(run: Command) -> None:
    table = Database(run.path)
    table.lookup(parse("anna@example.org"))
    assert run("add", "bob@example.org") == 0
    assert run.path.with_name(run.path.name + "-wal").stat().st_size == 0
    assert table.lookup(parse("bob@example.org")) is EXISTS
    table.close()


def test_a_vacuumed_copy_gets_its_log_back(run: Command) -> None:
    copy = run.path.with_name("copy.db")
    with closing(sqlite3.connect(run.path)) as writer:
        writer.execute("VACUUM INTO ?", (str(copy),))
    copy.rename(run.path)
    assert run("add", "bob@example.org") == 0
    with closing(sqlite3.connect(run.path)) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert run.known("anna@example.org") == run.known("bob@example.org") == Mailbox()


def test_an_empty_file_becomes_a_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Command(tmp_path / "x.db", capsys)
    run.path.touch()
    assert run("add", "a@b.example") == 0
    assert run.known("a@b.example") == Mailbox()


def test_what_is_not_ours_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Command(tmp_path / "x.db", capsys)
    run.path.write_text("anna@example.org\n" * 100)
    assert run("add", "a@b.example") == os.EX_DATAERR
    assert run.path.read_text() == "anna@example.org\n" * 100
    run.path.unlink()
    with closing(sqlite3.connect(run.path)) as foreign:
        foreign.execute("CREATE TABLE t (a)")
    assert run("add", "a@b.example") == os.EX_DATAERR
    assert "no database of rcptd" in run.err


def test_a_newer_schema_is_refused(run: Command) -> None:
    with closing(sqlite3.connect(run.path)) as writer:
        writer.execute("PRAGMA user_version = 2")
    assert run("list") == os.EX_DATAERR
    assert "schema version 2, newer" in run.err


def test_nonsense_in_a_row_is_named(run: Command) -> None:
    with closing(sqlite3.connect(run.path)) as writer, writer:
        writer.execute("UPDATE recipient SET targets = 'nonsense' WHERE local = 'anna'")
    for action in (("show", "anna@example.org"), ("list",), ("export",)):
        assert run(*action) == os.EX_DATAERR
        assert "the row of anna@example.org: targets" in run.err


def test_another_writer_makes_it_busy(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcptd_daemon.mailbox_database.PATIENCE", 0.05)
    with closing(sqlite3.connect(run.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert run("add", "bob@example.org") == os.EX_TEMPFAIL
        assert "another process is writing" in run.err
        assert run("list") == 0
        writer.execute("ROLLBACK")
    assert run("add", "bob@example.org") == 0


def test_a_missing_right_is_named(run: Command) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    for folder in (run.path.parent, *run.path.parent.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    run.path.chmod(0o644)
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
# Before the other user, who may not be able to read the folders of this Python.
import argparse
from rcptd_daemon import mailbox, mailbox_transfer
from rcptd_daemon.mailbox_formats import incoming
parser = argparse.ArgumentParser()
mailbox.add_arguments(parser)
arguments = parser.parse_args(sys.argv[1:])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(mailbox.run(arguments, Path({str(run.path)!r})))
"""

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    done = as_nobody("list")
    assert done.returncode == os.EX_NOPERM, done.stderr
    assert f"{run.path.parent} cannot be written by uid 65534" in done.stderr
    mode = run.path.parent.stat().st_mode
    run.path.parent.chmod(0o700)
    done = as_nobody("list")
    run.path.parent.chmod(mode)
    assert done.returncode == os.EX_NOPERM, done.stderr
    assert f"{run.path.parent} cannot be entered by uid 65534" in done.stderr
    run.path.unlink()
    assert as_nobody("add", "a@b.example").returncode == os.EX_CANTCREAT


def test_a_reader_that_has_seen_enough_is_no_fault(run: Command) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
import argparse
from rcptd_daemon import mailbox, mailbox_transfer
from rcptd_daemon.mailbox_formats import incoming
parser = argparse.ArgumentParser()
mailbox.add_arguments(parser)
sys.exit(mailbox.run(parser.parse_args(["list"]), Path({str(run.path)!r})))
"""
    source = run.path.with_name("many.txt")
    source.write_text("".join(f"u{at}@example.org\n" for at in range(20_000)))
    assert run("import", "--format", "list", source) == 0
    lister = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lister.stdout
    assert lister.stderr
    lister.stdout.readline()
    lister.stdout.close()
    said = lister.stderr.read()
    lister.stderr.close()
    assert (lister.wait(30), said) == (0, b"")


def test_an_interrupt_changes_nothing(run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> Iterator[tuple[object, ...]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(mailbox_transfer, "_put", interrupt)
    (tmp_path / "in.csv").write_text("address\nbob@example.org\n")
    assert run("import", "--replace", tmp_path / "in.csv") == 130
    monkeypatch.undo()
    assert run.known("anna@example.org") == Mailbox()


# Import and export.


def test_an_import_adds_and_leaves_what_it_does_not_name(run: Command, tmp_path: Path) -> None:
    run("quota", "anna@example.org", "--limit", "5")
    (tmp_path / "in.csv").write_text("address,disabled\nAnna@example.org,yes\nbob@example.org,\n")
    assert run("import", tmp_path / "in.csv") == 0
    assert "2 recipients" in run.err
    anna = Mailbox(spelling="Anna@example.org", disabled=Disabled(), quota=Quota(5))
    assert run.known("anna@example.org") == anna
    assert run.known("bob@example.org") == Mailbox()
    assert run("import", "--replace", tmp_path / "in.csv") == 0
    assert run.known("anna@example.org") == Mailbox(spelling="Anna@example.org", disabled=Disabled())
    assert not isinstance(run.known("x@example.net"), Mailbox)


def test_all_columns_of_csv_are_read(run: Command, tmp_path: Path) -> None:
    header = ",".join(formats.CSV)
    line = (
        'bob@example.org,temporary,"Gone, for now",2027-01-01T00:00:00Z,authenticated 192.0.2.0/24 "a b"@c.example,'
        "1G,5,10,2,"
        '"one@example.org, two@example.org",bob@example.com'
    ).replace('"a b"@c.example', "@c.example")
    (tmp_path / "in.csv").write_text(f"\ufeff{header}\n{line}\n\ncarl@example.org,no,,,nobody,,,,,,\n")
    assert run("import", tmp_path / "in.csv") == 0, run.err
    assert run.known("bob@example.org") == Mailbox(
        disabled=Disabled(temporary=True, text="Gone, for now", until=1798761600.0),
        posting=Posting(authenticated=True, networks=("192.0.2.0/24",), senders=("@c.example",)),
        quota=Quota(1 << 30, 5, 10, 2),
        targets=("one@example.org", "two@example.org"),
        moved_to="bob@example.com",
    )
    assert run.known("carl@example.org") == Mailbox(posting=Posting())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1: the first line names the columns; name each column once, address among them"),
        ("adress\n", ":1: the first line names the columns; no column is called 'adress'"),
        ("address,address\n", ":1: the first line names"),
        ("bob@example.org\n", ":1: the first line names the columns; no column is called 'bob@example.org'"),
        ('address"x"y\n"', ":1: "),
        ("address\n", " has not one recipient"),
        ("address\nbob@example.org", ":2: no final newline"),
        ("address\nbob\n", ":2: 'bob' is neither user@domain nor @domain"),
        ("address\nbob@example.org,yes\n", ":2: has 2 fields where the first line has 1"),
        ('address\nbob@example.org\n"bob@example.org\n', ":3: "),
        ("address,disabled\nbob@example.org,often\n", ":2: disabled is empty, yes or temporary, and not 'often'"),
        ("address,disabled,text\nbob@example.org,yes,100%\n", ":2: the text must be"),
        ("address,disabled,until\nbob@example.org,yes,soon\n", ":2: 'soon' is no time"),
        ("address,post\nbob@example.org,192.0.2.1/24\n", ":2: 192.0.2.1/24 has host bits set"),
        ("address,quota_bytes\nbob@example.org,lots\n", ":2: write a size"),
        ("address,quota_messages\nbob@example.org,1.5\n", ":2: quota_messages is a whole number, and not '1.5'"),
        (f"address,used_messages\nbob@example.org,{1 << 70}\n", "is too large a number"),
        ("address,targets\nbob@example.org,bob\n", ":2: the target 'bob' is no address"),
        ("address,moved_to\nbob@example.org,away\n", ":2: no domain"),
    ],
)
def test_a_faulty_csv_is_taken_not_at_all(run: Command, tmp_path: Path, text: str, said: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(text)
    assert run("import", "--replace", source) == os.EX_DATAERR
    assert said in run.err.replace(str(source) + ": ", " "), run.err
    assert f"rcptd mailbox: {source}" in run.err
    assert run.known("anna@example.org") == Mailbox()


def test_faulty_lines_are_named_all_at_once_up_to_twenty(run: Command, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("bob@example.org\nx\ny\n")
    assert run("import", "--format", "list", source) == os.EX_DATAERR
    assert [line.split(": ")[1] for line in run.err.splitlines()[:2]] == [f"{source}:2", f"{source}:3"]
    assert run.err.endswith("nothing was changed\n")
    source.write_text("x\n" * 100)
    assert run("import", "--format", "list", source) == os.EX_DATAERR
    assert len(run.err.splitlines()) == mailbox_transfer.FAULTS + 1


def test_a_file_that_is_not_there_or_no_file_is_named(run: Command, tmp_path: Path) -> None:
    assert run("import", tmp_path / "none") == os.EX_NOINPUT
    assert run("import", "--format", "list", tmp_path) == os.EX_NOINPUT


def test_standard_input_is_imported(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bob@example.org OK\n")))
    assert run("import", "--format", "postfix", "-") == 0
    assert run.known("bob@example.org") == Mailbox()


def test_progress_is_said_every_few_seconds(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox_transfer, "PROGRESS", 0.0)
    source = tmp_path / "in.txt"
    source.write_text("".join(f"u{at}@example.org\n" for at in range(9000)))
    assert run("import", "--format", "list", source) == 0
    assert "rcptd mailbox: 4096 recipients (" in run.err
    assert "rcptd mailbox: 9000 recipients, " in run.err.splitlines()[-1]


def test_an_import_of_many_is_fast(run: Command, tmp_path: Path) -> None:
    """A million in a minute is asked for: 60 us each; loosely here, since the machine is shared."""
    source = tmp_path / "in.txt"
    source.write_text("address\n" + "".join(f"u{at * 7919 % 50021}@example.org\n" for at in range(50_000)))
    begun = time.monotonic()
    assert run("import", source) == 0
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ("--format", "list"),
            "@example.net\nAnna@example.org\nbob@example.org disabled Gone\ncarl@example.org defer\n",
        ),
        (
            ("--format", "list"),
            "anna@example.org moved a@example.com\nbob@example.org alias a@example.com b@example.com\n",
        ),
        (("--format", "postfix"), "@example.net\tOK\nbob@example.org\tREJECT Gone\ncarl@example.org\tDEFER\n"),
        (
            ("--format", "postfix", "--targets"),
            (
                "@example.net\t@example.com\nanna@example.org\tanna@example.org\n"
                "bob@example.org\ta@example.com, b@example.com\n"
            ),
        ),
    ],
)
def test_an_export_is_what_was_imported(run: Command, tmp_path: Path, options: tuple[str, ...], text: str) -> None:
    source = tmp_path / "in.txt"
    source.write_text(text)
    assert run("import", "--replace", *options, source) == 0, run.err
    assert run("export", *options) == 0
    assert run.out == text
    assert run.err == ""


def test_what_a_format_cannot_say_is_counted(run: Command) -> None:
    run("quota", "anna@example.org", "--limit", "5")
    run("add", "bob@example.org", "--moved-to", "bob@example.com")
    run("alias", "carl@example.org", "anna@example.org")
    assert run("export", "--format", "list") == 0
    assert "of 1 recipients this format cannot say" in run.err
    assert run("export", "--format", "postfix") == 0
    assert run.out.splitlines()[2] == "bob@example.org\tREJECT Mailbox has moved"
    assert "of 3 recipients" in run.err


def test_an_export_to_a_file_replaces_it_whole(run: Command, tmp_path: Path) -> None:
    sink = tmp_path / "out.csv"
    assert run("export", sink) == 0
    assert sink.read_text().splitlines()[1:] == ["@example.net,,,,,,,,,,", "anna@example.org,,,,,,,,,,"]
    with closing(sqlite3.connect(run.path)) as writer, writer:
        writer.execute("UPDATE recipient SET targets = 'nonsense' WHERE local = 'anna'")
    assert run("export", sink) == os.EX_DATAERR
    assert len(sink.read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv"]
    assert run("export", tmp_path / "none" / "out.csv") == os.EX_CANTCREAT


addresses = st.sampled_from(["a@b.example", "@c.example", '"x y, z"@d.example', "ü@e.example"])
counts = st.integers(0, (1 << 63) - 1)
known = st.builds(
    Mailbox,
    disabled=st.none()
    | st.builds(
        Disabled,
        temporary=st.booleans(),
        text=st.sampled_from(["", "Gone, for now", "it's; over"]),
        until=st.none() | st.integers(0, 4_000_000_000).map(float),
    ),
    posting=st.none()
    | st.builds(
        Posting,
        authenticated=st.booleans(),
        networks=st.lists(st.sampled_from(["192.0.2.1", "2001:db8::/32"]), unique=True).map(tuple),
        senders=st.lists(addresses, unique=True).map(tuple),
    ),
    quota=st.none() | st.builds(Quota, counts, counts, st.none() | counts, counts),
    targets=st.lists(addresses.filter(lambda one: one[0] != "@"), unique=True).map(tuple),
    moved_to=st.sampled_from(["", "a@b.example", '"x y"@d.example']),
)


@given(known)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_csv_says_everything_and_reads_it_back(mailbox_: Mailbox) -> None:
    sink = io.StringIO()
    of = Subject("example.org", "anna")
    assert formats.outgoing(sink, "csv", targets=False)(of, mailbox_)
    (entry,) = formats.incoming(io.BytesIO(sink.getvalue().encode()), "csv", targets=False).entries
    assert isinstance(entry, Entry), entry
    assert (entry.of, entry.mailbox.quota or Quota()) == (of, mailbox_.quota or Quota())
    for name in ("disabled", "posting", "targets", "moved_to"):
        assert getattr(entry.mailbox, name) == getattr(mailbox_, name)


@given(st.binary(max_size=120))
def test_whatever_a_csv_holds_it_is_entries_or_faults(octets: bytes) -> None:
    for one in formats.incoming(io.BytesIO(b"address,post,until,targets\n" + octets), "csv", targets=False).entries:
        assert isinstance(one, Entry | Fault)
        assert 1 <= one.line <= octets.count(b"\n") + octets.count(b"\r") + 3


def test_a_spelling_that_is_not_of_the_key_is_not_exported() -> None:
    assert formats.written(Subject("example.org", "anna"), Mailbox(spelling="bob@example.org")) == "anna@example.org"
    assert formats.written(Subject("example.org", "anna"), Mailbox(spelling="nonsense")) == "anna@example.org"
    assert formats.when(1e30) == "1e+30"


def test_a_list_that_names_servers_is_not_taken_for_one_of_plain_mailboxes() -> None:
    source = io.BytesIO(b"anna@example.org\nbob@example.org server imap1.example.org\n")
    entry, fault = incoming(source, "list", targets=False).entries
    assert isinstance(entry, Entry)
    assert fault == Fault(2, "the database has no place for a server; keep it in a store of type file")
