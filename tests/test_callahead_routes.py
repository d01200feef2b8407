"""Which next hops are asked about whom: patterns, the routes file, servers that another store named."""

import io
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from rcptd.address import parse
from rcptd.stores.callahead import routes, routesfile
from rcptd.stores.callahead.nexthop import MX, NextHop, read
from rcptd.stores.callahead.routes import Route, Routes
from rcptd.stores.callahead.routesfile import FAULTS, RoutesFile, read_lines
from rcptd.stores.lines import Fault, bounded_lines

ONE, TWO, THREE = read("lmtp:one:24"), read("smtp:two:25"), read("lmtp:unix:/three")


def of(table: Routes, text: str) -> Route | str:
    return table.of(parse(text))


# Patterns.


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Example.ORG.", "example.org"),
        ("*.Example.org", "*.example.org"),
        ("Anna@Example.org", "anna@example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_pattern_has_one_form(text: str, canonical: str) -> None:
    assert routes.pattern(text) == canonical


@pytest.mark.parametrize("text", ["*", "*example.org", "a b", "@", "user@", "<>", "*.", "", "@example.org"])
def test_what_is_no_pattern_is_told_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="for all below it"):
        routes.pattern(text)


def test_a_quoted_local_part_with_an_at_is_no_pattern() -> None:
    with pytest.raises(ValueError, match="has no domain"):
        routes.pattern('"a@b"')


def test_the_most_specific_pattern_counts() -> None:
    table = routes.read_table(
        {
            "example.org": "lmtp:one:24",
            "*.example.org": ["smtp:two:25", "lmtp:one:24"],
            "*.a.example.org": "lmtp:unix:/three",
            "boss@example.org": "smtp:two:25",
            "partner.example": "mx",
        }
    )
    found = Routes(table, ())
    assert of(found, "user@example.org") == (ONE,)
    assert of(found, "Boss@example.org") == (TWO,)
    assert of(found, "user@a.example.org") == (TWO, ONE)
    assert of(found, "user@b.a.example.org") == (THREE,)
    assert of(found, "user@partner.example") == (MX,)
    assert "no route for other.example; add it" in of(found, "user@other.example")
    assert "has no domain" in of(found, "user")


def test_next_hops_are_for_everything_else() -> None:
    found = Routes(routes.read_table({"example.org": "lmtp:one:24"}), (TWO,))
    assert of(found, "user@other.example") == (TWO,)
    assert of(found, "user") == (TWO,)
    assert of(found, "user@example.org") == (ONE,)


def test_a_recipient_without_a_domain_is_no_pattern() -> None:
    assert of(Routes({"user": (ONE,)}, ()), "user") == "user has no domain to find a next hop by"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("x", "write a table"),
        ({"example.org": 5}, "in quotes"),
        ({"example.org": []}, "has no next hop"),
        ({"example.org": ["lmtp:h:1"] * 17}, "16 are the most"),
        ({"example.org": "lmtp"}, "is no next hop"),
        ({"*.example.org": "mx"}, "named one by one"),
        ({"example.org": "mx", "EXAMPLE.org": "mx"}, "a second time"),
    ],
)
def test_a_faulty_table_is_told(value: object, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        routes.read_table(value)


def test_next_hops_are_a_list_without_mx() -> None:
    assert routes.read_next_hops("lmtp:one:24") == (ONE,)
    assert routes.read_next_hops(["lmtp:one:24", "smtp:two:25"]) == (ONE, TWO)
    with pytest.raises(ValueError, match="would ask strangers; name the domains in routes"):
        routes.read_next_hops(["lmtp:one:24", "mx"])


# Servers.


def test_the_star_stands_for_the_host() -> None:
    servers = routes.read_servers("lmtp:*:2003")
    assert str(servers) == "lmtp:*:2003"
    wanted = NextHop("lmtp", host="backend1.example.org", port=2003)
    assert routes.server(servers, "Backend1.example.org") == wanted
    assert routes.server(servers, "backend1.example.org!default") == wanted


@pytest.mark.parametrize("value", [5, "lmtp:host:2003", "lmtp:*", "lmtp:unix:/x", "http:*:80", "lmtp:*:0"])
def test_servers_need_the_star_in_its_place(value: object) -> None:
    with pytest.raises(ValueError, match=r"star|next hop|port"):
        routes.read_servers(value)


@pytest.mark.parametrize("name", ["", "!default", "unix:/x", "a b", "[192.0.2.1]", "a:1", "ä.example", "../x"])
def test_what_is_no_host_name_is_asked_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        routes.server(routes.read_servers("lmtp:*:2003"), name)


# The file.


def lines(text: str) -> tuple[Mapping[str, Route], list[Fault]]:
    return read_lines(bounded_lines(io.BytesIO(text.encode())))


def test_the_file_has_a_pattern_and_its_hops_to_a_line() -> None:
    table, faults = lines(
        "# a comment\n\nexample.org lmtp:one:24\n *.example.org\tsmtp:two:25  lmtp:one:24\npartner.example mx\n"
    )
    assert not faults
    assert table == {"example.org": (ONE,), "*.example.org": (TWO, ONE), "partner.example": (MX,)}


def test_faults_of_the_file_have_their_lines() -> None:
    _, faults = lines("a.example lmtp:one:24\nb.example\n*.c.example mx\nA.example lmtp:one:24\nx@ y\ncut")
    assert [fault.line for fault in faults] == [2, 3, 4, 5, 6]
    _, faults = lines("b.example\n" * 100)
    assert len(faults) == FAULTS


def in_force(table: RoutesFile) -> Mapping[str, Route] | str:
    """What the file says once a reading is done."""
    table._look_at = 0.0
    table.table()
    with table._reading:
        return table._table


def old(path: Path, text: str, at: float = 100.0) -> None:
    """Write a file that has long been still."""
    path.write_text(text)
    os.utime(path, (at, at))


def test_a_change_is_taken_whole_and_a_faulty_one_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routes"
    old(path, "example.org lmtp:one:24\n")
    table = RoutesFile(path)
    assert table.pending
    assert "is being read" in table._table
    assert in_force(table) == {"example.org": (ONE,)}
    assert not table.pending
    assert in_force(table) == {"example.org": (ONE,)}, "nothing changed"
    old(path, "example.org smtp:two:25\n", 200.0)
    assert in_force(table) == {"example.org": (TWO,)}
    old(path, "example.org lmtp:\n", 300.0)
    assert in_force(table) == {"example.org": (TWO,)}
    assert in_force(table) == {"example.org": (TWO,)}
    assert sum("the last good state stays in force, 1 routes" in one for one in caplog.messages) == 1


def test_a_file_that_is_gone_gives_no_routes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "routes"
    table = RoutesFile(path)
    assert in_force(table) == f"{path}: No such file or directory"
    assert not table.pending
    in_force(table)
    old(path, "example.org lmtp:one:24\n")
    assert in_force(table) == {"example.org": (ONE,)}
    path.unlink()
    assert in_force(table) == f"{path}: No such file or directory"
    assert caplog.text.count("No such file") == 2
    found = Routes({"boss@example.org": (TWO,), "example.org": (TWO,)}, (THREE,), table.table)
    assert of(found, "boss@example.org") == (TWO,), "no file could be more specific"
    for text in ("user@example.org", "user@other.example"):
        assert of(found, text) == f"{path}: No such file or directory", "never another route"


def test_the_configuration_goes_before_the_file_for_the_same_pattern_only() -> None:
    in_file: Mapping[str, Route] = {"a.example.org": (ONE,), "example.org": (ONE,)}
    found = Routes({"*.example.org": (TWO,), "example.org": (TWO,)}, (), lambda: in_file)
    assert of(found, "user@a.example.org") == (ONE,)
    assert of(found, "user@example.org") == (TWO,)


def test_a_file_that_was_never_good_gives_no_routes(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    old(path, "nonsense\n")
    table = RoutesFile(path)
    assert in_force(table) == f"{path}:1: 'nonsense' has no next hop"
    assert of(Routes({}, (ONE,), table.table), "user@example.org") == f"{path}:1: 'nonsense' has no next hop"


@pytest.mark.parametrize("kind", ["folder", "large", "unreadable"])
def test_what_is_no_fit_file_is_not_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routes"
    if kind == "folder":
        path.mkdir()
    else:
        old(path, "example.org lmtp:one:24\n")
    if kind == "large":
        monkeypatch.setattr(routesfile, "MOST_OCTETS", 10)
    if kind == "unreadable":

        def refuse(*_: object) -> NoReturn:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    wanted = {"folder": "is no regular file", "large": "10 are the most", "unreadable": "Permission denied"}
    assert wanted[kind] in in_force(RoutesFile(path))


def test_a_file_that_still_changes_waits_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routes"
    path.write_text("example.org lmtp:one:24\n")

    def write(_: float) -> None:
        with path.open("a") as file:
            file.write("other.example lmtp:one:24\n")

    monkeypatch.setattr(time, "sleep", write)
    table = RoutesFile(path)
    assert in_force(table) == f"{path}: is still changing"
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert len(in_force(table)) == 2


def test_a_file_that_changes_while_it_is_read_waits_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "routes"
    old(path, "example.org lmtp:one:24\n")

    def meanwhile(lines: object) -> tuple[Mapping[str, Route], list[Fault]]:
        assert lines
        old(path, "example.org smtp:two:25\n", 200.0)
        return {}, []

    with monkeypatch.context() as patched:
        patched.setattr(routesfile, "read_lines", meanwhile)
        table = RoutesFile(path)
        assert in_force(table) == f"{path}: changed while it was read"
    assert in_force(table) == {"example.org": (TWO,)}


def test_an_accident_while_it_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routes"
    old(path, "example.org lmtp:one:24\n")

    def fail(_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(routesfile, "read_lines", fail)
    assert "reading failed: MemoryError()" in in_force(RoutesFile(path))
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


def test_without_a_thread_the_next_look_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routes"
    old(path, "example.org lmtp:one:24\n")
    table = RoutesFile(path)

    def fail(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert in_force(table) == f"{path}: is being read"
        assert table.pending
    assert in_force(table) == {"example.org": (ONE,)}


def test_a_look_during_a_reading_does_not_wait(tmp_path: Path) -> None:
    table = RoutesFile(tmp_path / "routes")
    with table._reading:
        table.look()
    assert table.pending
