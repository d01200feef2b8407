"""What is remembered of Cyrus' databases: told of each change, forgotten where that cannot be, and never too much."""

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from rcptd.stores.cyrus.databases import Absent, Damaged, SqlServer, gaps, index, lists, missing, open_database, twoskip
from rcptd.stores.cyrus.databases.missing import Missing
from rcptd.stores.cyrus.databases.onefile import OneFile
from tests.cyrus.rows import Rows, lines, near_misses, random_rows, random_value
from tests.cyrus.specimens import specimen
from tests.rig.cyrus_site import Site
from tests.rig.place import sheltered
from tests.rig.require import CYRUS_PROGRAMS, require


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require((CYRUS_PROGRAMS / "cyr_dbtool").exists() and os.geteuid() == 0, "cyr_dbtool or root's rights are missing")
    with sheltered("gaps") as place:
        made = Site(place)
        made.prepare()
        yield made


class Written:
    """A database that Cyrus' tool writes, what is in it, and ours that has it open all the time."""

    def __init__(self, site: Site, path: Path, kind: str, rows: Rows) -> None:
        self.rows: Rows = {}
        self.path = path
        self._site = site
        self._kind = kind
        self.set(rows)
        database = open_database(kind, path, what="mboxlist_db")
        assert isinstance(database, OneFile)
        self.ours = database

    def set(self, rows: Rows) -> None:
        self._site.dbtool("-n", "-T", self.path, self._kind, "set", lines=lines(rows))
        self.rows |= rows

    def delete(self, key: bytes) -> None:
        self._site.dbtool("-T", self.path, self._kind, "delete", lines=key + b"\n")
        del self.rows[key]

    def repack(self) -> None:
        self._site.dbtool(self.path, self._kind, "repack")

    def check(self, rng: random.Random, near: list[bytes], count: int = 300) -> None:
        """Ask for the keys around some, and others; twice, as the second question is answered by what is remembered."""
        known = sorted(self.rows)
        places = [known.index(key) for key in near if key in self.rows]
        around = [known[(place + off) % len(known)] for place in places for off in (-1, 0, 1)]
        keys = near + around + rng.sample(known, min(count, len(known))) + near_misses(rng, self.rows, count // 2)
        for key in keys + keys:
            assert self.ours.fetch(key) == self.rows.get(key), key

    def learn(self) -> None:
        while self.ours._file._learn():
            pass

    @property
    def remembered(self) -> index.Index:
        form = self.ours._file.format
        assert isinstance(form, twoskip.Twoskip)
        assert form._state.index
        return form._state.index


@pytest.mark.parametrize("learnt", [True, False])
def test_a_change_is_taken_note_of_and_nothing_else_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch, learnt: bool
) -> None:
    monkeypatch.setattr(index, "SPLIT", 40)
    monkeypatch.setattr(index, "PIECE", 8)
    rng = random.Random(learnt)
    written = Written(site, site.place / f"noted{learnt}.db", "twoskip", random_rows(rng, 1500))
    some = min(written.rows)
    assert written.ours.fetch(some) == written.rows[some]
    if learnt:
        written.learn()
    written.set({max(written.rows): b"far from what is known"})
    written.check(rng, [], 1500)
    kept = written.remembered
    for turn in range(40):
        new = random_rows(rng, rng.choice([1, 1, 7]))
        replaced = {key: random_value(rng) for key in rng.sample(sorted(written.rows), rng.choice([1, 1, 20]))}
        written.set(new | replaced)
        gone = rng.sample(sorted(written.rows), rng.choice([0, 1, 3]))
        for key in gone:
            written.delete(key)
        if turn % 2:
            written.check(rng, [*sorted(new | replaced), *gone])
        if turn % 7 == 5:
            written.learn()
        assert written.remembered is kept, turn
    written.repack()
    written.check(rng, [])
    assert written.remembered is not kept


def test_neighbours_are_deleted_fences_among_them(site: Site) -> None:
    rng = random.Random(11)
    # Cyrus draws the heights of records by chance, so the fences: some ninety, of which the turns delete a few.
    written = Written(site, site.place / "deleted.db", "twoskip", random_rows(rng, 3000))
    written.check(rng, [])
    written.learn()
    written.check(rng, [])
    kept = written.remembered
    for turn in range(12):
        known = sorted(written.rows)
        fences = written.remembered.table[0]
        at = known.index(fences[1 + turn % 3]) if turn % 4 else rng.choice([0, len(known) - 5])
        gone = known[at : at + 4] if turn % 2 else known[at : at + 4][::-1]
        for key in gone:
            written.delete(key)
            if turn % 3:
                written.check(rng, [], 40)
        written.check(rng, [], 600)
        for key in gone:
            assert written.ours.fetch(key) is None
    assert written.remembered is kept


def test_the_first_and_the_last_record_are_replaced(site: Site) -> None:
    rng = random.Random(4)
    written = Written(site, site.place / "ends.db", "twoskip", random_rows(rng, 200))
    written.check(rng, [])
    written.learn()
    for _ in range(5):
        ends = [min(written.rows), max(written.rows)]
        written.set(dict.fromkeys(ends, random_value(rng)))
        written.check(rng, ends)
        written.set({ends[0][:-1] or b"\1": b"lower", ends[1] + b"z": b"higher"})
        written.check(rng, ends)


def test_many_changes_at_once_and_a_file_that_has_grown_are_learnt_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    written = Written(site, site.place / "grown.db", "twoskip", random_rows(rng, 300))
    written.check(rng, [])
    written.learn()
    kept = written.remembered
    written.set(random_rows(rng, 600))
    written.check(rng, [])
    assert written.remembered is not kept  # more than NEWS_MOST
    monkeypatch.setattr(twoskip, "NEWS_MOST", 1 << 30)
    kept = written.remembered
    written.set(random_rows(rng, 300))
    written.check(rng, [])
    assert written.remembered is kept
    written.set(random_rows(rng, 1500))
    written.check(rng, [])
    assert written.remembered is not kept  # twice as large


def test_news_that_are_damaged_are_no_news(site: Site) -> None:
    rng = random.Random(6)
    written = Written(site, site.place / "harmed.db", "twoskip", random_rows(rng, 100))
    written.check(rng, [])
    written.learn()
    kept = written.remembered
    written.set({b"Nuser\x1fnew": b"value that is harmed"})
    octets = written.path.read_bytes()
    at = octets.rindex(b"harmed")
    written.path.write_bytes(octets[:at] + b"H" + octets[at + 1 :])
    with pytest.raises(Damaged):
        written.ours.fetch(b"Nuser\x1fnew")
    assert written.remembered is not kept
    written.path.write_bytes(octets)
    written.check(rng, [b"Nuser\x1fnew"])


@pytest.mark.parametrize("bound", ["ROOM", "MEMBERS_MOST"])
def test_what_is_remembered_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(gaps if bound == "ROOM" else lists, bound, 20)
    monkeypatch.setattr(index if bound == "ROOM" else twoskip, bound, 20)
    rng = random.Random(2)
    monkeypatch.setattr("time.time", lambda: 0.0)  # so that a file that has just changed has settled
    written = Written(site, site.place / f"{bound}.skiplist", "skiplist", random_rows(rng, 400))
    written.check(rng, [])
    form = written.ours._file.format
    assert isinstance(form, lists.Lists)
    assert form._state.gaps
    kept = [keys for tier in form._state.gaps.tiers for keys, _ in tier.values()]
    assert len(kept) == 1 if bound == "ROOM" else all(len(keys) <= 20 for keys in kept)
    written = Written(site, site.place / f"{bound}.twoskip", "twoskip", random_rows(rng, 400))
    written.check(rng, [])
    written.learn()
    known = [gap for gap in written.remembered.table[2] if gap is not None]
    assert all(len(gap[2]) <= 4 * 20 for gap in known)
    assert not known or bound == "MEMBERS_MOST"
    written.check(rng, [])


def test_a_harmed_record_closes_its_own_gap_only(site: Site) -> None:
    rng = random.Random(3)
    written = Written(site, site.place / "closed.db", "twoskip", random_rows(rng, 2000))
    fences = written.path.read_bytes()
    for learnt in (False, True):
        for key in (sorted(written.rows)[1000], _fence(written), max(written.rows)):
            octets = fences
            at = octets.rindex(key + written.rows[key]) + len(key)
            written.path.write_bytes(octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :])
            database = open_database("twoskip", written.path, what="m")
            assert isinstance(database, OneFile)
            while learnt and database._file._learn():
                pass
            troubles = 0
            for one in sorted(written.rows) * 2:
                try:
                    assert database.fetch(one) == written.rows[one]
                except Damaged:
                    assert one == key
                    troubles += 1
            assert troubles == 2
            for one in near_misses(rng, written.rows, 200):
                try:
                    assert database.fetch(one) is None
                except Damaged:
                    troubles += 1
            assert troubles < 60
            database.close()


def _fence(written: Written) -> bytes:
    written.ours.fetch(b"x")
    written.learn()
    fences = written.remembered.table[0]
    return fences[len(fences) // 2]


def test_an_index_that_does_not_fit_its_file_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    written = Written(site, site.place / "unfit.db", "twoskip", random_rows(rng, 600))
    written.ours.fetch(b"x")
    written.learn()
    fences, places, known = written.remembered.table
    at = max(range(1, len(known) - 1), key=lambda number: len((known[number] or ((),) * 3)[2]))
    for what in ("place", "key"):
        kept = fences[at + 1], places[at + 1]
        if what == "place":
            places[at + 1] += 8
        else:
            fences[at + 1] = fences[at] + b"\0"
        written.remembered.forget(at)
        assert written.ours.fetch(fences[at]) == written.rows[fences[at]]
        assert not written.remembered.wanted(at)
        assert known[at] is None
        fences[at + 1], places[at + 1] = kept
    node = (b"a", (0, 0, 0, 0, 0, 64), 64)
    monkeypatch.setattr(twoskip.Twoskip, "_load", lambda *_, **__: node)
    form = twoskip.Twoskip("x")
    new = index.Index(64, 1000)
    form._learn_fences(0, lists.State(b""), new)
    assert new.fenced
    assert new.unbounded
    assert new.table[0] == [b"", b"a"]


def test_a_gap_in_memory() -> None:
    one = index.Index(64, 1000)
    assert one.place(b"a") == -1
    one.put(0, [b"ab", b"ac", b"adx"], [400, 801, 1208])
    assert [one.place(key) for key in (b"ab", b"ac", b"adx", b"a", b"ad", b"b", b"ab\nc", b"b\nc")] == [
        400, 801, 1208, 0, 0, 0, -1, 0,
    ]  # fmt: skip
    for keys, places in (([b"a\nb", b"c"], [400, 800]), ([b"a"], [1 << 34])):
        one.put(0, keys, places)
        assert one.place(keys[0]) == -1
        assert not one.wanted(0)
    one.put(0, [], [])
    assert one.place(b"a") == 0
    assert one.room == index.ROOM - index._octets(one.table[2][0])
    one.fence(b"k", 2000)
    one.next = 2
    one.deleted(None)  # the gap of the fence is not known
    assert one.table == ([b""], [64], [None])
    assert one.next == 1


def test_a_mark_of_deletion_names_the_record_behind() -> None:
    for follower, left in ((b"ac", [b"", b"k"]), (b"kb", [b""]), (b"kc", [b"", b"k"])):
        one = index.Index(64, 1000)
        one.fence(b"k", 2000)
        one.put(0, [b"ab", b"ac"], [400, 800])
        one.put(1, [b"k", b"kb"], [2000, 2400])
        one.deleted(follower)
        assert one.table[0] == left
        assert None in one.table[2]


@pytest.mark.parametrize("follower", [None, b"z"])
def test_the_only_record_of_a_gap_is_its_last(follower: bytes | None) -> None:
    one = index.Index(64, 1000)
    one.fence(b"k", 2000)
    if follower:
        one.fence(follower, 3000)
    one.put(0, [b"ab"], [400])
    one.put(1, [b"k"], [2000])
    one.deleted(follower)
    assert one.table[0] == [b"", *([follower] if follower else [])]
    assert one.table[2][0] is None


def test_fences_are_learnt_in_slices(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twoskip, "SLICE", 2)
    written = Written(site, site.place / "slices.db", "twoskip", random_rows(random.Random(7), 1500))
    assert isinstance(written.ours, OneFile)
    written.ours.fetch(b"a")
    turns = 0
    while written.ours._file._learn():
        turns += 1
    assert turns > 10
    written.check(random.Random(8), [])


def test_news_of_an_unknown_kind_are_no_news(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    written = Written(site, site.place / "kind.db", "twoskip", random_rows(rng, 100))
    written.check(rng, [])
    kept = written.remembered
    written.set({b"Nuser\x1fnew": b"value"})
    head = twoskip.Twoskip._head
    with monkeypatch.context() as odd:
        odd.setattr(twoskip.Twoskip, "_head", lambda *about: (0, *head(*about)[1:]))
        with pytest.raises(Damaged):
            written.ours.fetch(b"Nuser\x1fnew")
    assert written.remembered is not kept
    written.check(rng, [b"Nuser\x1fnew"])


def test_what_a_file_that_is_left_dirty_has_is_not_learnt(site: Site) -> None:
    path = site.place / "dirty.twoskip"
    site.dbtool("-n", "-T", path, "twoskip", "set", lines=lines({b"a": b"b"}))
    octets = bytearray(path.read_bytes())
    octets[59] |= twoskip.DIRTY
    octets[60:64] = zlib.crc32(octets[:60]).to_bytes(4, "big")
    path.write_bytes(octets)
    database = open_database("twoskip", path, what="m")
    assert isinstance(database, OneFile)
    assert database.fetch(b"a") == b"b"
    assert not database._file._learn()
    path.unlink()
    assert not database._file._learn()


@pytest.mark.parametrize("kind", ["twoskip", "twom"])
def test_a_record_that_is_another_one_than_remembered_is_no_answer(site: Site, kind: str) -> None:
    made = specimen(site, kind, site.place / f"other.{kind}", seed=3, count=40)
    database = open_database(kind, made.path, what="mboxlist_db")
    assert isinstance(database, OneFile)
    octets = bytearray(made.path.read_bytes())
    key = next(key for key, value in made.rows.items() if len(key) > 8 and 20 < len(value) < 200)
    assert database.fetch(key) == database.fetch(key) == made.rows[key]
    while database._file._learn():
        pass
    between = b"\0" if kind == "twom" else b""
    tail = bytearray(key + between + made.rows[key] + between)
    at = octets.rindex(tail)
    tail += bytes(-len(tail) % 8)
    tail[len(key) - 1] ^= 1
    checksum = xxhash.xxh3_64_intdigest(bytes(tail)) & 0xFFFFFFFF if kind == "twom" else zlib.crc32(tail)
    octets[at - 4 : at] = checksum.to_bytes(4, "little" if kind == "twom" else "big")
    octets[at : at + len(tail)] = tail
    made.path.write_bytes(octets)  # the header is the same
    with pytest.raises(Damaged, match="the key is another one"):
        database.fetch(key)
    made.path.write_bytes(octets[:at])
    with pytest.raises(Damaged, match=r"cut off|checksum"):
        database.fetch(key)
    made.path.write_bytes(octets[:120])
    with pytest.raises(Damaged, match="cut off"):
        database.fetch(key)


@pytest.mark.parametrize(("octets", "changed"), [(5, 7), (7, 5)])
@pytest.mark.parametrize("what", ["key", "value"])
def test_a_length_in_a_skiplist_fits_its_padding(site: Site, octets: int, changed: int, what: str) -> None:
    path = site.place / f"padded{octets}{what}.skiplist"
    key, value = b"abcdefg"[:octets], b"tuvwxyz"[:octets]
    site.dbtool("-n", "-T", path, "skiplist", "set", lines=lines({key: value}))
    database = open_database("skiplist", path, what="mboxlist_db")
    assert database.fetch(key) == value
    content = bytearray(path.read_bytes())
    at = content.rindex(key if what == "key" else value) - 4
    content[at : at + 4] = changed.to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(Damaged, match=f"the length of a {what} is another one"):
        database.fetch(key)


# ---- names that are not there ---------------------------------------------------------------------------------------


def test_a_missing_name_is_believed_until_its_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "user_deny.db"
    assert Missing.at(str(path)) is None  # the directory has just changed
    monkeypatch.setattr(missing, "SETTLED", -1)
    here = Missing.at(str(path))
    assert here
    assert here.lasts()
    database = open_database("flat", path, what="userdeny_db")
    for _ in range(2):
        with pytest.raises(Absent):
            database.fetch(b"a")
    path.write_bytes(b"a\t1\n")
    assert not here.lasts()
    assert database.fetch(b"a") == b"1"
    assert Missing.at(str(path)) is None
    path.unlink()
    with pytest.raises(Absent):
        database.fetch(b"a")
    path.symlink_to(tmp_path / "nowhere")
    assert Missing.at(str(path)) is None
    assert Missing.at(str(tmp_path / "no" / "folder")) is None
    assert Missing.at(str(tmp_path / ("x" * 300))) is None
    gone = Missing(str(tmp_path / "no"), tmp_path.stat())
    assert not gone.lasts()


def test_a_quota_root_for_all_is_seen_when_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "SETTLED", -1)
    folder = tmp_path / "quota" / "u"
    folder.mkdir(parents=True)
    database = open_database("quotalegacy", tmp_path / "quotas.db", what="q", letter=lambda _: b"u", domains=True)
    assert database.fetch(b"user") is None
    assert database.fetch(b"user") is None
    (folder / "user").write_bytes(b"1 2\n")
    assert database.fetch(b"user") == b"1 2"
    (folder / "user").unlink()
    assert database.fetch(b"user") is None


@pytest.mark.parametrize("kind", ["sql", "quotalegacy"])
def test_only_a_file_can_be_known_to_be_missing(tmp_path: Path, kind: str) -> None:
    for sql in (None, SqlServer("sqlite", str(tmp_path / "db"))):
        database = open_database(kind, tmp_path / "user_deny.db", what="d", letter=lambda _: b"u", sql=sql)
        assert not database.missing()
        database.close()
