"""Options: every reader takes what it should, and says of everything else what would be right."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd import schema
from rcptd.schema import Address, option

duration = schema.duration(0.1, 90)
number = schema.number(1, 10)
choice = schema.choice("a", "b")
LONGEST = "/" + "x" * (schema.UNIX_PATH_OCTETS - len(".new") - 1)

TAKEN: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (schema.boolean, True, True),
    (schema.text, "x", "x"),
    (number, 1, 1),
    (number, 10, 10),
    (choice, "b", "b"),
    (duration, "100ms", 0.1),
    (duration, "1.5m", 90),
    (duration, "6s", 6),
    (schema.duration(0, 1e9), "2h", 7200),
    (schema.duration(0, 1e9), "1d", 86400),
    (schema.octets, 0, 0),
    (schema.octets, "10", 10),
    (schema.octets, "500M", 500 << 20),
    (schema.octets, "1.5 GiB", 3 << 29),
    (schema.octets, "2tb", 2 << 40),
    (schema.octets, "1k", 1024),
    (schema.path, "/a/b", Path("/a/b")),
    (schema.many(schema.text), "x", ("x",)),
    (schema.many(schema.text), ["x", "y"], ("x", "y")),
    (schema.network, "192.0.2.7", ip_network("192.0.2.7/32")),
    (schema.network, "2001:db8::/32", ip_network("2001:db8::/32")),
    (schema.network, "::ffff:192.0.2.0/120", ip_network("192.0.2.0/24")),
    (schema.network, "::ffff:0:0/96", ip_network("0.0.0.0/0")),
    (schema.network, "::/0", ip_network("::/0")),
    (schema.octal_mode, "0660", 0o660),
    (schema.octal_mode, "777", 0o777),
    (schema.user, "root", 0),
    (schema.user, 0, 0),
    (schema.group, "root", 0),
    (schema.group, 1234, 1234),
    (schema.address, "unix:/run/x.sock", Address("unix", "/run/x.sock")),
    (schema.address, f"unix:{LONGEST}", Address("unix", LONGEST)),
    (schema.address, "inet:127.0.0.1:1", Address("inet", "127.0.0.1", 1)),
    (schema.address, "inet:localhost:65535", Address("inet", "127.0.0.1", 65535)),
    (schema.address, "inet6:[::1]:25", Address("inet6", "::1", 25)),
    (schema.address, "inet6:localhost:25", Address("inet6", "::1", 25)),
    (schema.address, "fd:milter", Address("fd", "milter")),
]


@pytest.mark.parametrize(("read", "value", "meant"), TAKEN)
def test_a_reader_takes(read: Callable[[Any], Any], value: Any, meant: Any) -> None:
    assert read(value) == meant


REFUSED: list[tuple[Callable[[Any], Any], Any, str]] = [
    (schema.boolean, "true", "without quotes"),
    (schema.boolean, 1, "write true or false"),
    (schema.text, "", "text in quotes"),
    (schema.text, 5, "text in quotes"),
    (number, 0, "from 1 to 10"),
    (number, 11, "from 1 to 10"),
    (number, True, "from 1 to 10"),
    (number, 5.0, "from 1 to 10"),
    (number, "5", "from 1 to 10"),
    (choice, "c", "write one of 'a', 'b'"),
    (choice, ["a"], "write one of 'a', 'b'"),
    (duration, 6, "with its unit"),
    (duration, "6", "with its unit"),
    (duration, "-6s", "with its unit"),
    (duration, "6 s", "with its unit"),
    (duration, float("inf"), "with its unit"),
    (duration, "99ms", "must be from 0.1s to 90s"),
    (duration, "91s", "must be from 0.1s to 90s"),
    (schema.octets, -1, "write a size"),
    (schema.octets, True, "write a size"),
    (schema.octets, "1X", "write a size"),
    (schema.octets, 1.5, "write a size"),
    (schema.path, "a/b", "absolute path"),
    (schema.path, "/a\0b", "absolute path"),
    (schema.path, 5, "absolute path"),
    (schema.many(schema.text), [], "the list is empty"),
    (schema.many(schema.text), ["x", 5], "text in quotes"),
    (schema.network, "192.0.2.7/24", "did you mean 192.0.2.0/24"),
    (schema.network, "192.0.2.0/33", "is no address or network"),
    (schema.network, "host.example", "is no address or network"),
    (schema.network, 5, "is no address or network"),
    (schema.octal_mode, 660, "mode in quotes"),
    (schema.octal_mode, "0888", "mode in quotes"),
    (schema.octal_mode, "4755", "mode in quotes"),
    (schema.user, "no such user here", "there is no user"),
    (schema.user, "a\0b", "null"),
    (schema.user, -1, "text in quotes"),
    (schema.user, True, "text in quotes"),
    (schema.user, 1 << 32, "text in quotes"),
    (schema.group, (1 << 32) - 1, "text in quotes"),
    (schema.group, "no such group here", "there is no group"),
    (schema.address, 25, 'write "unix:/path"'),
    (schema.address, "/run/x", 'write "unix:/path"'),
    (schema.address, "unix:run/x", 'write "unix:/path"'),
    (schema.address, "unix:/run/\0", 'write "unix:/path"'),
    (schema.address, f"unix:{LONGEST}x", "too long"),
    (schema.address, "fd:", 'write "unix:/path"'),
    (schema.address, "fd:a/b", 'write "unix:/path"'),
    (schema.address, "inet:127.0.0.1", 'write "unix:/path"'),
    (schema.address, "inet:host.example:25", "is no IP address"),
    (schema.address, "inet6:[127.0.0.1]:25", "does not go with inet6:"),
    (schema.address, "inet:[::1]:25", "does not go with inet:"),
    (schema.address, "inet:127.0.0.1:0", "from 1 to 65535"),
    (schema.address, "inet:127.0.0.1:65536", "from 1 to 65535"),
    (schema.address, "inet6:::1:25", 'write "unix:/path"'),
]


@pytest.mark.parametrize(("read", "value", "fault"), REFUSED)
def test_a_reader_says_what_would_be_right(read: Callable[[Any], Any], value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault.replace(".", r"\.").replace("(", r"\(")):
        read(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
READERS = [
    schema.boolean, schema.text, number, choice, duration, schema.octets, schema.path, schema.many(schema.network),
    schema.network, schema.octal_mode, schema.user, schema.group, schema.address,
]  # fmt: skip


@given(st.sampled_from(READERS), VALUES)
def test_whatever_stands_in_a_file_only_value_errors_come_of_it(read: Callable[[Any], Any], value: Any) -> None:
    with suppress(ValueError):
        read(value)


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "inet:127.0.0.1:25", "inet6:[::1]:25", "fd:milter"])
def test_an_address_shows_itself_as_it_is_written(text: str) -> None:
    assert str(schema.address(text)) == text


@dataclass(frozen=True, slots=True)
class Section:
    path: Path = option(schema.path, doc="Where.")
    mode: int = option(schema.octal_mode, default="0660", doc="The mode.")
    owner: int | None = option(schema.user, default=None, doc="Whose.")


def read(table: dict[str, Any], **more: Any) -> tuple[Section | None, list[str]]:
    faults: list[str] = []
    section = schema.read(Section, table, lambda key, what: faults.append(f"{key}: {what}"), **more)
    return section, faults


def test_a_section_is_read_with_its_defaults() -> None:
    assert read({"path": "/x"}) == (Section(Path("/x"), 0o660, None), [])
    assert read({"path": "/x", "type": "y"}, known=("type",))[1] == []
    assert list(schema.declared(Section)) == ["path", "mode", "owner"]


def test_all_faults_of_a_section_are_reported() -> None:
    section, faults = read({"mode": 5, "pathh": "/x", "zzz": 1}, known=("type",))
    assert section is None
    assert faults == [
        "pathh: no such option; did you mean 'path'?",
        "zzz: no such option; known here: type, path, mode, owner",
        ": 'path' is missing: Where.",
        'mode: write a mode in quotes, as in "0660"',
    ]


def test_a_key_is_shown_on_one_line() -> None:
    assert schema.shown("stores.über") == "stores.über"
    assert schema.shown("a\nb\x1b[m") == r"'a\nb\x1b[m'"


def test_the_longest_path_of_a_socket_really_is_one() -> None:
    assert len(os.fsencode(LONGEST)) + len(".new") == schema.UNIX_PATH_OCTETS


def test_options_that_do_not_go_together_are_a_fault_of_the_section() -> None:
    @dataclass(frozen=True, slots=True)
    class Pair:
        low: int = option(number, default=1, doc="The lower one.")
        high: int = option(number, default=5, doc="The higher one.")

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    faults: list[tuple[str, str]] = []
    assert schema.read(Pair, {"low": 5}, lambda *fault: faults.append(fault)) == Pair(5, 5)
    assert schema.read(Pair, {"low": 6}, lambda *fault: faults.append(fault)) is None
    assert faults == [("", "low is above high")]
