"""Databases at the edge of their formats: headers, lengths, and files that change while they are looked at."""

import errno
import fcntl
import importlib
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from rcptd.stores.cyrus.databases import Absent, Damaged, Unreadable, detection, flat, open_database, twom
from tests.cyrus.specimens import specimen
from tests.cyrus.twomfile import TwomFile
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered
from tests.rig.require import CYRUS_PROGRAMS, require


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("limits") as place:
        made = Site(place)
        made.prepare()
        yield made


def sealed(kind: str, octets: bytearray) -> bytes:
    """The file with a right checksum of its header, where it has one."""
    if kind == "twoskip":
        struct.pack_into(">I", octets, 60, zlib.crc32(octets[:60]))
    if kind == "twom":
        struct.pack_into("<I", octets, 92, xxhash.xxh3_64_intdigest(bytes(octets[:92])) & 0xFFFFFFFF)
    return bytes(octets)


HEADERS = [
    ("twoskip", 20, ">I", 2, "version 2 of the format"),
    ("twoskip", 48, ">Q", 328, "a current size of 328 is impossible"),
    ("twoskip", 16, ">I", 7, "the beginning of the header"),
    ("skiplist", 16, ">I", 7, "the beginning of the header"),
    ("skiplist", 20, ">I", 2, "version 2 of the format"),
    ("skiplist", 28, ">I", 21, "levels of 21 are impossible"),
    ("skiplist", 32, ">I", 21, "21 levels of"),
    ("skiplist", 40, ">I", 1 << 30, "the log begins at"),
    ("twom", 32, "<I", 2, "version 2 with"),
    ("twom", 80, "<Q", 360, "a current size of 360 is impossible"),
]


@pytest.mark.parametrize("harm", HEADERS, ids=lambda harm: f"{harm[0]}-{harm[1]}")
def test_a_header_that_is_impossible(site: Site, harm: tuple[str, int, str, int, str]) -> None:
    kind, at, shape, number, why = harm
    path = site.place / f"header.{kind}"
    path.unlink(missing_ok=True)
    one = specimen(site, kind, path, seed=1, count=10)
    octets = bytearray(path.read_bytes())
    database = open_database(kind, path, what="mailboxes")
    key, value = next(iter(one.rows.items()))
    assert database.fetch(key) == value
    struct.pack_into(shape, octets, at, number)
    path.write_bytes(sealed(kind, octets))
    with pytest.raises(Damaged, match=why):
        database.fetch(key)
    if kind != "skiplist":
        octets[60 if kind == "twoskip" else 92] ^= 1
        path.write_bytes(octets)
        with pytest.raises(Damaged, match="header"):
            database.fetch(key)


def test_a_twoskip_whose_lists_have_no_beginning(site: Site) -> None:
    path = site.place / "beginning.twoskip"
    site.dbtool("-n", path, "twoskip", "set", lines=b"k\tv\n")
    octets = bytearray(path.read_bytes())
    for kind, why in ((b"-", "have no beginning"), (b"+", "is no record")):
        octets[64:72] = kind + octets[65:72]
        octets[72 : 72 + 32 * 8] = bytes(32 * 8)
        struct.pack_into(">I", octets, 72 + 32 * 8, zlib.crc32(octets[64 : 72 + 32 * 8]))
        path.write_bytes(octets)
        with pytest.raises(Damaged, match=why):
            open_database("twoskip", path, what="mailboxes").fetch(b"k")


@pytest.mark.parametrize(
    ("at", "octets", "why"),
    [
        (96, bytes([2]), "is no record"),
        (96 + 8, struct.pack("<QQ", 4, 4), "where no record can be"),
        (368 + 2, struct.pack("<HI", 3, 1 << 30), "are impossible"),
        (368, bytes([9]), "impossible type or level"),
    ],
)
def test_a_twom_without_checksums_is_bounded_by_its_structure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, octets: bytes, why: str
) -> None:
    monkeypatch.setattr(twom, "_xxh3", None)
    file = TwomFile(random.Random(1), fat=0)
    file.set(b"key", b"value")
    file.commit()
    made = bytearray(file.octets())
    made[at : at + len(octets)] = octets
    path = tmp_path / "mailboxes.db"
    path.write_bytes(made)
    with pytest.raises(Damaged, match=why):
        open_database("twom", path, what="mailboxes").fetch(b"key")


def test_twom_can_do_without_xxhash(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xxhash", None)
        assert importlib.reload(twom)._xxh3 is None
    assert importlib.reload(twom)._xxh3 is not None


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (struct.pack(">IIII", 1, 0, 0, 0xFFFFFFFF), "has no pointers"),
        (struct.pack(">I", 1) + bytes(100), "come to no end"),
        (struct.pack(">IIIII", 1, 0, 0, 50, 0xFFFFFFFF), "where no record can be"),
        (struct.pack(">IIIII", 9, 0, 0, 0, 0xFFFFFFFF), "is no record"),
        (struct.pack(">IIIII", 1, 1 << 30, 0, 0, 0xFFFFFFFF), "are impossible"),
        (struct.pack(">IIIII", 1, 0, 1 << 30, 0, 0xFFFFFFFF), "are impossible"),
        (struct.pack(">I", 1), "cut off"),
    ],
)
def test_a_skiplist_record_that_is_impossible(tmp_path: Path, record: bytes, why: str) -> None:
    first = 48 + 16 + 4 * 20
    dummy = struct.pack(">III20II", 257, 0, 0, *[first] * 20, 0xFFFFFFFF)
    assert len(dummy) == first - 48
    octets = len(dummy) + 48 + len(record)
    header = struct.pack(">20s7I", b"\xa1\x02\x8b\x0dskiplist file\0\0\0", 1, 2, 20, 20, 1, octets, 0)
    path = tmp_path / "mailboxes.db"
    path.write_bytes(header + dummy + record)
    with pytest.raises(Damaged, match=why):
        open_database("skiplist", path, what="mailboxes").fetch(b"k")


def test_a_line_too_long_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mailboxes.db"
    monkeypatch.setattr(flat, "SMALL", 0)
    monkeypatch.setattr(flat, "LINE_MOST", 4000)
    for octets in (b"a\t" + b"x" * 20000 + b"\n", b"a\t1\n" + b"b\t" + b"x" * 900000):
        path.write_bytes(octets)
        with pytest.raises(Damaged, match=r"a line of more than|cut off"):
            open_database("flat", path, what="mailboxes").fetch(b"b")
    with path.open("rb") as file, pytest.raises(Damaged, match="a line of more than"):
        list(flat.Flat(str(path))._lines(file.fileno(), 4))
    path.write_bytes(b"a\t1\n" + b"b\t" + b"x" * 1_200_000)
    assert "a line of more than" in open_database("flat", path, what="mailboxes").describe().faults[0]


def test_a_last_line_that_is_long_and_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "SMALL", 0)
    path = tmp_path / "mailboxes.db"
    path.write_bytes(b"a\t1\n" + b"b\t" + b"x" * 9000)
    database = open_database("flat", path, what="mailboxes")
    assert database.fetch(b"a") == b"1"
    with pytest.raises(Damaged, match="cut off"):
        database.fetch(b"b")


def changing(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> None:
    """Do something just before the next call of a function of the system."""
    real = getattr(os, name)

    def first(*arguments: Any) -> Any:
        monkeypatch.setattr(os, name, real)
        change()
        return real(*arguments)

    monkeypatch.setattr(os, name, first)


@pytest.mark.parametrize("kind", ["twoskip", "skiplist", "flat"])
def test_a_file_emptied_between_two_looks_is_absent(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = site.place / f"emptied.{kind}"
    site.dbtool("-n", path, kind, "set", lines=b"k\tv\n")
    octets = path.read_bytes()
    database = open_database(kind, path, what="mailboxes")
    changing(monkeypatch, "pread", lambda: path.write_bytes(b""))
    with pytest.raises(Absent, match="is empty"):
        database.fetch(b"k")
    path.write_bytes(octets)
    assert database.fetch(b"k") == b"v"
    if kind != "twoskip":  # which has all that it needs in its header
        changing(monkeypatch, "fstat", lambda: path.write_bytes(b""))
        with pytest.raises(Absent, match="is empty"):
            database.fetch(b"k")


def test_a_disk_that_fails_while_a_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mailboxes.db"
    path.write_bytes(b"a\t1\n")

    def failing(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(detection, "detect", failing)
    with pytest.raises(Damaged, match="while reading it"):
        open_database("flat", path, what="mailboxes").fetch(b"a")


def test_a_file_system_without_these_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TwomFile(random.Random(1))
    file.commit()
    path = tmp_path / "mailboxes.db"
    path.write_bytes(file.octets())

    def failing(*_: object) -> bytes:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", failing)
    with pytest.raises(Unreadable, match="Invalid argument"):
        open_database("twom", path, what="mailboxes").fetch(b"a")


def test_a_file_that_goes_while_it_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mailboxes.db"
    path.write_bytes(b"a\t1\n")
    real = flat.Flat.walk

    def going(self: flat.Flat, *arguments: Any) -> None:
        real(self, *arguments)
        path.unlink()

    monkeypatch.setattr(flat.Flat, "walk", going)
    described = open_database("flat", path, what="mailboxes").describe()
    assert (described.octets, described.records) == (None, 1)
    assert described.faults == [f"{path}: No such file or directory"]


def test_a_quota_root_whose_name_no_folder_can_hold(tmp_path: Path) -> None:
    (tmp_path / "quota" / "f").mkdir(parents=True)
    database = open_database("quotalegacy", tmp_path / "quotas.db", what="q", letter=lambda _: b"f", domains=True)
    assert database.fetch(b"user.f" + b"o" * 300) is None
    assert not database.exists(b"user.f" + b"o" * 300)
