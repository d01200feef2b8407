"""The bounded memory: what is used stays, and junk cannot push it out."""

import math

import pytest

from rcptd.memo.entries import Entries, Entry
from rcptd.question import EXISTS, NOT_FOUND, Answer


def entry(answer: Answer = EXISTS, *, used: bool = False) -> Entry:
    good_at = 0.0 if answer is EXISTS else None
    made = Entry(answer, asked=0.0, until=math.inf, refresh_at=math.inf, good_at=good_at)
    made.used = used
    return made


def keys(entries: Entries) -> set[str]:
    return {key for key, _ in entries.items()}


def test_an_entry_is_found_until_it_is_removed() -> None:
    entries = Entries(10)
    first = entry()
    assert entries.put("a", first) == []
    assert entries.get("a") is first
    assert entries.get("b") is None
    entries.remove("a")
    entries.remove("a")
    assert entries.get("a") is None
    assert len(entries) == 0


def test_a_new_answer_takes_the_place_of_the_old_and_was_used_if_that_was() -> None:
    entries = Entries(10)
    entries.put("a", entry(used=True))
    newer = entry()
    entries.put("a", newer)
    assert entries.get("a") is newer
    assert newer.used
    assert len(entries) == 1


def test_the_oldest_that_nobody_used_makes_room_and_is_named() -> None:
    entries = Entries(4)
    for key in "abcd":
        entries.put(key, entry())
    assert entries.put("e", entry()) == ["a"]
    assert keys(entries) == set("bcde")


@pytest.mark.parametrize("junk", [EXISTS, NOT_FOUND], ids=["junk that exists", "junk that does not"])
def test_a_million_addresses_asked_about_once_push_out_nobody_who_is_used(junk: Answer) -> None:
    entries = Entries(400)
    people = [f"user{number}" for number in range(200)]
    for person in people:
        entries.put(person, entry(used=True))
    for number in range(20_000):
        entries.put(f"junk{number}", entry(junk))
        if number % 100 == 0:  # now and then they are mailed again
            for person in people:
                if found := entries.get(person):
                    found.used = True
    assert set(people) <= keys(entries)
    assert len(entries) == 400


def test_a_no_is_never_proven_however_often_it_is_used() -> None:
    entries = Entries(8)
    for number in range(100):
        entries.put(f"no{number}", entry(NOT_FOUND, used=True))
        entries.put(f"yes{number}", entry(used=True))
    assert len(entries) == 8
    proven = [key for key in keys(entries) if key.startswith("yes")]
    assert len(proven) >= 6


def test_the_proven_that_nobody_uses_any_more_leave_in_their_turn() -> None:
    entries = Entries(8)
    for number in range(100):
        entries.put(f"user{number}", entry(used=True))
    assert len(entries) == 8
    forgotten: list[str] = []
    for number in range(100, 120):
        forgotten += entries.put(f"user{number}", entry())
    assert len(entries) == 8
    assert len(forgotten) == 20


def test_the_proven_that_are_used_go_round_again_before_they_leave() -> None:
    survivor = Entries(4)
    for key in "abcd":
        survivor.put(key, entry(used=True))
    survivor.put("e", entry(used=True))
    for found in survivor._proven.values():
        found.used = True
    first = next(iter(survivor._proven))
    assert survivor._forget_one(second_chance=True) == []
    assert next(reversed(survivor._proven)) == first
    assert not survivor._proven[first].used


def test_room_is_found_in_bounded_time_where_everybody_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcptd.memo.entries.LOOKS", 10)
    entries = Entries(1000)
    for number in range(1000):
        entries.put(f"user{number}", entry(used=True))
    used = 1000
    for number in range(300):
        assert len(entries.put(f"other{number}", entry(used=True))) == 1
        before, used = used, sum(found.used for _, found in entries.items())
        assert before - used <= 10
    assert len(entries) == 1000
