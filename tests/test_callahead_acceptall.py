"""Which next hops take every local part: learnt by a stranger, tested again, bounded."""

import random

import pytest

from rcptd.stores.callahead import acceptall
from rcptd.stores.callahead.acceptall import RETRY, AcceptAll

KEY, OTHER = ("smtp:one:25", "example.org"), ("smtp:one:25", "example.net")
HOURS = 3600.0


def make(retest: float = 4 * HOURS) -> AcceptAll:
    return AcceptAll(retest, random.Random(7).random)


@pytest.mark.parametrize("takes_all", [True, False])
def test_a_test_is_made_once_and_again_after_its_time(takes_all: bool) -> None:
    known = make()
    assert known.known(KEY, 0.0) is None
    assert known.is_due(KEY, 0.0)
    assert not known.is_due(KEY, 0.0), "one at a time"
    known.learn(KEY, takes_all, 1.0)
    assert known.known(KEY, 1.0) is takes_all
    assert known.known(OTHER, 1.0) is None
    assert not known.is_due(KEY, 4 * HOURS)
    assert known.is_due(KEY, 4 * HOURS + 1)
    assert known.known(KEY, 4 * HOURS + 1) is takes_all, "while it is tested again"


def test_what_was_known_is_not_known_for_ever() -> None:
    known = make()
    known.learn(KEY, True, 0.0)
    assert known.is_due(KEY, 4 * HOURS)
    assert known.known(KEY, 8 * HOURS - 1)
    assert known.known(KEY, 8 * HOURS) is None


def test_a_test_without_a_result_is_made_again_after_a_pause() -> None:
    known = make()
    assert known.is_due(KEY, 0.0)
    assert not known.is_due(KEY, RETRY - 1)
    assert known.is_due(KEY, RETRY)


def test_a_test_that_was_not_made_is_left_to_the_next_question() -> None:
    known = make()
    assert known.is_due(KEY, 0.0)
    known.withdrawn(KEY)
    assert known.is_due(KEY, 0.0)


def test_a_change_of_mind_counts_at_once() -> None:
    known = make()
    known.learn(KEY, True, 0.0)
    known.learn(KEY, False, 1.0)
    assert known.known(KEY, 1.0) is False
    assert len(known) == 1


def test_strangers_are_never_the_same() -> None:
    known = make()
    names = {known.stranger("example.org").key for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith("rcptd-") and name.endswith("@example.org") for name in names)
    assert AcceptAll(1.0, lambda: 1.0).stranger("example.org").local


def test_the_number_of_pairs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptall, "MOST", 2)
    known = make()
    for number in range(5):
        assert known.is_due(("hop", str(number)), 0.0)
    assert len(known._tests) == 2
    for number in range(5):
        known.learn(("hop", str(number)), True, 0.0)
    assert len(known) == 2
    assert known.known(("hop", "4"), 0.0)
    assert known.known(("hop", "0"), 0.0) is None
