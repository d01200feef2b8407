"""Damaged databases: never a crash, never a wait, and where there are checksums never a wrong answer."""

import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcptd.stores.cyrus.databases import Absent, Damaged, Database, Trouble, Unreadable, lists, open_database
from tests.cyrus.damage import Tally, ask, cuts, flips
from tests.cyrus.specimens import CHECKED, KINDS, Specimen, specimen
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered
from tests.rig.require import CYRUS_PROGRAMS, require


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("damage") as place:
        made = Site(place)
        made.prepare()
        yield made


@pytest.fixture
def made(site: Site, request: pytest.FixtureRequest) -> Specimen:
    kind: str = request.param
    path = site.place / f"{kind}.db"
    path.unlink(missing_ok=True)
    one = specimen(site, kind, path, seed=7, count=60)
    whole = Tally()
    ask(kind, path, one.rows, [*one.rows, *one.misses], whole)
    assert whole == Tally(right=len(one.rows) + len(one.misses))
    return one


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_harm_to_any_octet_is_noticed_where_it_can_be(made: Specimen) -> None:
    tally = flips(made.kind, made.path, made.rows, made.misses, seed=8, count=1000, asked=12)
    # Where order is all there is to believe, a record out of order harms those around it, too.
    assert tally.right > (10 if made.kind != "skiplist" else 8) * tally.trouble > 0
    if made.kind in CHECKED:
        assert tally.wrong == 0
    else:  # a flip in a key or a value of a format without checksums makes it another one
        assert tally.wrong < tally.right / 50


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_file_cut_at_any_length_is_noticed(made: Specimen) -> None:
    octets = made.path.read_bytes()
    ends = {at + 1 for at, octet in enumerate(octets) if octet == ord("\n")} if made.kind == "flat" else set()
    near = {at + off for at in range(0, len(octets), len(octets) // 25) for off in range(-4, 5)}
    lengths = sorted(one for one in {*range(450), *near, len(octets) - 1} - ends if 0 <= one < len(octets))
    tally = cuts(made.kind, made.path, made.rows, made.misses, lengths, asked=4)
    assert tally.wrong == 0
    assert tally.trouble > 1000


@pytest.mark.parametrize("made", ["twoskip"], indirect=True)
def test_pointers_and_lengths_of_an_enemy_harm_nothing_but_answers(made: Specimen) -> None:
    """Heads with anything in them and a right checksum: loops, jumps, impossible lengths and levels."""
    rng = random.Random(9)
    whole = made.path.read_bytes()
    heads = [at for at in range(64, len(whole) - 16, 8) if whole[at] in b"=+-$" and _head_octets(whole, at)]
    assert len(heads) > 60
    tally = Tally()
    for _ in range(400):
        octets = bytearray(whole)
        for at in rng.sample(heads, rng.choice([1, 3, 30])):
            octets_of_head = _head_octets(octets, at)
            if octets_of_head:
                _spoil(rng, octets, at, heads)
                struct.pack_into(">I", octets, at + octets_of_head, zlib.crc32(octets[at : at + octets_of_head]))
        made.path.write_bytes(octets)
        ask("twoskip", made.path, made.rows, rng.sample([*made.rows, *made.misses], 12), tally)
    assert tally.trouble > 100


def _head_octets(octets: bytes | bytearray, at: int) -> int:
    """The octets of a head without its checksums, 0 for what is none."""
    size = 8 + 8 * (octets[at + 1] + 1)
    (checksum,) = struct.unpack_from(">I", octets, at + size) if at + size + 4 <= len(octets) else (0,)
    return size if zlib.crc32(octets[at : at + size]) == checksum else 0


def _spoil(rng: random.Random, octets: bytearray, at: int, heads: list[int]) -> None:
    level = octets[at + 1]
    match rng.randrange(6):
        case 0:
            octets[at] = rng.choice(b"=+-$x")
        case 1:
            struct.pack_into(">H", octets, at + 2, rng.choice([0, 1, 0xFFFE, 0xFFFF]))
        case 2:
            struct.pack_into(">I", octets, at + 4, rng.choice([0, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
        case _:
            to = rng.choice([rng.choice(heads), rng.choice(heads), at, 0, 64, 3, len(octets) + 8, (1 << 64) - 8])
            struct.pack_into(">Q", octets, at + 8 + 8 * rng.randint(0, level), to)


@pytest.mark.parametrize("made", ["twoskip"], indirect=True)
def test_a_search_without_end_ends(made: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "HOPS", 3)
    monkeypatch.setattr(lists, "MEMBERS_MOST", 3)  # so that nothing is remembered, and all is searched
    database = open_database("twoskip", made.path, what="mailboxes")
    answers = [_told(database, key) for key in made.rows]
    assert set(answers) - set(made.rows.values())
    assert set(answers) & set(made.rows.values())
    assert all(b"comes to no end" in one for one in set(answers) - set(made.rows.values()))


def _told(database: Database, key: bytes) -> bytes:
    try:
        return database.fetch(key) or b""
    except Damaged as damaged:
        return damaged.why.encode()


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_disk_that_fails_is_trouble_and_no_more(made: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(made.kind, made.path, what="mailboxes")
    key = next(iter(made.rows))
    assert database.fetch(key) == made.rows[key]

    def failing(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        patch.setattr(os, "fstat", failing)
        with pytest.raises((Damaged, Unreadable)):
            database.fetch(key)
    assert database.fetch(key) == made.rows[key]


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_file_overwritten_in_place_is_what_it_is_now(made: Specimen) -> None:
    database = open_database(made.kind, made.path, what="mailboxes")
    key = next(iter(made.rows))
    assert database.fetch(key) == made.rows[key]
    octets = made.path.read_bytes()
    made.path.write_bytes(b"\0" * len(octets))
    assert made.kind == "flat" or _why(database, key)
    made.path.write_bytes(b"")
    assert _why(database, key)
    made.path.write_bytes(octets)
    assert database.fetch(key) == made.rows[key]


def _why(database: Database, key: bytes) -> str:
    with pytest.raises((Damaged, Absent)) as caught:
        database.fetch(key)
    return caught.value.why


def test_a_configured_format_gives_way_to_the_files_own(site: Site, tmp_path: Path) -> None:
    made = {kind: specimen(site, kind, site.place / f"own.{kind}", seed=10, count=20) for kind in KINDS}
    for configured in KINDS:
        for kind, one in made.items():
            database = open_database(configured, one.path, what="mailboxes")
            assert database.kind == configured
            key = next(iter(one.rows))
            if "flat" in (configured, kind) and configured != kind:
                with pytest.raises(Damaged, match=r"flat is configured|neither a"):
                    database.fetch(key)
            else:
                assert database.fetch(key) == one.rows[key]
                assert database.kind == kind
            database.close()
    # A conversion: by rename, and in place.
    place = tmp_path / "mailboxes.db"
    database = open_database("twoskip", place, what="mailboxes")
    for kind in ("twoskip", "skiplist", "twom", "twoskip"):
        new = tmp_path / "new"
        new.write_bytes(made[kind].path.read_bytes())
        new.replace(place)
        key = next(iter(made[kind].rows))
        assert database.fetch(key) == made[kind].rows[key]
        assert database.kind == kind
    for kind in ("skiplist", "twom", "twoskip"):
        place.write_bytes(made[kind].path.read_bytes())
        assert database.fetch(key) == made[kind].rows[key]
        assert database.kind == kind


@pytest.mark.parametrize("made", ["twoskip"], indirect=True)
def test_what_is_wrong_is_told_with_its_place(made: Specimen) -> None:
    octets = bytearray(made.path.read_bytes())
    key = sorted(made.rows)[30]
    at = octets.rfind(key + made.rows[key])
    octets[at + len(key)] ^= 1
    made.path.write_bytes(octets)
    database = open_database("twoskip", made.path, what="mailboxes")
    described = database.describe()
    assert described.records == len(made.rows)
    (fault,) = described.faults
    assert fault.startswith(f"{made.path}: at ")
    assert fault.endswith("the checksum of a key and its value is wrong")
    with pytest.raises(Trouble) as caught:
        database.fetch(key)
    assert caught.value.why == fault
