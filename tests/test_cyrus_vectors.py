"""Every recorded reply of a real smmapd, and each one from which ours differs on purpose, by name."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.cyrus.originals import comparable
from tests.cyrus.ours import judged
from tests.cyrus.vectors import Vector, arguments, sites, vectors
from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import USER, Site
from tests.rig.place import sheltered
from tests.rig.require import require_cyrus
from tests.rig.smmapd import FakeMaster, installed

pytestmark = pytest.mark.cyrus

MISSING = b"NOTFOUND Mailbox does not exist"
WELL_FORMED = [one for one in vectors() if one.is_well_formed]
# Netstrings that break the protocol: tests of the wire hold them against the program.
BROKEN_PROTOCOL = {118, 122, 125, 126, 128, 129, 133, 134, 160, 161, 184}

# An older version's reply that the newest version, whose rules are ours, contradicts: number -> what ours says.
OLDER = {
    32: (b"OK foo+&AOk-t&AOk-", "3.13.4 takes an encoded detail as it is"),
    157: (b"OK foo+&AOk-t&AOk-", "3.13.4 takes an encoded detail as it is"),
    158: (b"OK foo+&-x", "3.13.4 takes an encoded detail as it is"),
    146: (b"NOTFOUND a b c", "3.13.6 turns control characters of a deny message into spaces"),
    185: (b"NOTFOUND no mail today", "3.12 consults userdeny"),
    186: (b"NOTFOUND blocked", "3.12 consults userdeny"),
    188: (b"OK foo+nosuch", "3.12 knows -p"),
}

# Ours is better on purpose, whatever the mode.
CANNOT_TELL = b"TEMP cannot tell"
BETTER = {
    76: (CANNOT_TELL, "a record that cannot be read is no reason to refuse for good"),
    77: (CANNOT_TELL, "a record that cannot be read is no reason to refuse for good"),
    78: (CANNOT_TELL, "a record that cannot be read is no reason to refuse for good"),
    85: (CANNOT_TELL, "a quota that cannot be read is no reason to refuse for good"),
}

# Strict mends an odd corner of the original's.
OVER, DENIED = b"TEMP Over quota", b"NOTFOUND no mail today"
STRICT = {
    28: (MISSING, "a ^ that was typed is not the dot of another folder"),
    42: (MISSING, "a ^ that was typed is not the dot of another user"),
    45: (MISSING, "an 0x1F that was typed reaches no folder"),
    53: (b"OK bb+sh@EXAMPLE.ORG", "the default domain is compared after downcasing"),
    54: (b"OK bb+sh@other.test", "shared mailboxes of other domains can be reached"),
    64: (MISSING, "what is no time does not stand for the mailbox before it was deleted"),
    69: (b"TEMP on another server", "a mailbox on another server is not known here"),
    74: (b"TEMP Mailbox is currently reserved", "a mailbox that is being made is no reason to refuse for good"),
    81: (OVER, "a full user stays full, whatever the case of the default domain"),
    82: (b"OK mfull", "the last message that the limit allows still fits"),
    100: (MISSING, "a ! that was typed reaches no other domain"),
    150: (DENIED, "a denied user stays denied, whatever the case of the default domain"),
    170: (CANNOT_TELL, "a deny record that cannot be read allows nothing"),
    173: (DENIED, "a denied user stays denied, whatever the case of the default domain"),
    178: (b"OK bb+sh", "-p drops the folder of users only"),
}


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, Site]]:
    require_cyrus()
    with sheltered() as place:
        yield sites(place)


@pytest.fixture(scope="module")
def ours(written: dict[str, Site]) -> Iterator[Callable[[Vector, bytes, bool], bytes]]:
    with ExitStack() as stack:
        answers = {
            (name, strict): stack.enter_context(judged(site, strict=strict, drop_folder="-p" in arguments(name)))
            for name, site in written.items()
            for strict in (False, True)
        }
        yield lambda vector, key, strict: answers[vector.site, strict](key)


def test_every_vector_is_either_a_question_or_a_broken_protocol() -> None:
    assert {one.number for one in vectors()} == {one.number for one in WELL_FORMED} | BROKEN_PROTOCOL
    assert not {one.number for one in WELL_FORMED} & BROKEN_PROTOCOL


def test_the_differences_are_named_for_vectors_that_there_are() -> None:
    assert {*OLDER, *BETTER, *STRICT} <= {one.number for one in WELL_FORMED}


@pytest.mark.parametrize("vector", WELL_FORMED, ids=lambda vector: f"{vector.number}-{vector.site}")
def test_faithful_says_what_the_newest_original_says(
    vector: Vector, ours: Callable[[Vector, bytes, bool], bytes]
) -> None:
    for key, original in vector.questions():
        wanted, why = {**OLDER, **BETTER}.get(vector.number, (original, "the original"))
        assert ours(vector, key, False) == wanted, why


@pytest.mark.parametrize("vector", WELL_FORMED, ids=lambda vector: f"{vector.number}-{vector.site}")
def test_strict_differs_in_what_it_mends_only(vector: Vector, ours: Callable[[Vector, bytes, bool], bytes]) -> None:
    for key, original in vector.questions():
        wanted, why = {**OLDER, **BETTER, **STRICT}.get(vector.number, (original, "the original"))
        assert ours(vector, key, True) == wanted, why


@pytest.mark.parametrize("mode", ["faithful", "strict"])
def test_the_program_says_what_the_judge_says(written: dict[str, Site], mode: str) -> None:
    place = next(iter(written.values())).place.parent / mode
    place.mkdir()
    program = installed(place)
    named = {**OLDER, **BETTER, **(STRICT if mode == "strict" else {})}
    with ExitStack() as stack:
        clients = {}
        for name, site in written.items():
            config = site.place / f"{mode}.conf"
            config.write_text(f"{site.config.read_text()}rcptd_mode: {mode}\n")
            (place / name).mkdir()
            master = stack.enter_context(FakeMaster(place / name, program, "-C", str(config), *arguments(name)))
            master.environ["CYRUS_USER"] = USER
            master.fork()
            clients[name] = stack.enter_context(master.client())
        for vector in WELL_FORMED:
            for key, original in vector.questions():
                wanted, why = named.get(vector.number, (original, "the original"))
                reply = clients[vector.site].ask(key)[:-1].partition(b":")[2]
                assert comparable(reply) == comparable(wanted), (vector, why)


@pytest.mark.parametrize("named", [OLDER, BETTER, STRICT], ids=["older", "better", "strict"])
def test_a_difference_that_is_named_is_one(named: dict[int, tuple[bytes, str]]) -> None:
    originals = {one.number: dict(one.questions()).values() for one in WELL_FORMED}
    assert [number for number, (ours, _) in named.items() if ours in originals[number]] == []


def test_the_real_smmapd_still_says_what_was_recorded_of_its_version(written: dict[str, Site]) -> None:
    place = next(iter(written.values())).place.parent
    lines = [service(f"v{name}", f"smmapd -C {site.config}", site.place / "s") for name, site in written.items()]
    with Cyrus(place, services=lines):
        for vector in WELL_FORMED:
            if vector.version == "3.6.1":
                with Asker(written[vector.site].place / "s") as real:
                    for key, original in vector.questions():
                        assert real.ask(key) == original, vector
