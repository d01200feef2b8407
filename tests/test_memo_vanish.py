"""The guard against mass vanishing: when noes of a domain are not believed, and when they are again."""

import pytest

from rcptd.memo.vanish import MOST_ADDRESSES, MOST_DOMAINS, Vanishing


def guard(**options: float) -> Vanishing:
    settings = {"least": 3, "share": 50, "window": 60.0, "hold": 600.0} | options
    return Vanishing("backend", **settings)  # type: ignore[arg-type]


def gone(vanishing: Vanishing, number: int, *, now: float = 0.0, first: int = 0, domain: str = "a.example") -> None:
    for at in range(first, first + number):
        vanishing.note(domain, f"u{at}", gone=True, now=now)


def there(vanishing: Vanishing, number: int, *, now: float = 0.0, first: int = 0) -> None:
    for at in range(first, first + number):
        vanishing.note("a.example", f"u{at}", gone=False, now=now)


def test_a_few_deleted_mailboxes_are_believed() -> None:
    vanishing = guard()
    gone(vanishing, 2)
    assert not vanishing.holds("a.example", 1)
    assert vanishing.condition() == ""


def test_many_that_vanish_together_are_not(caplog: pytest.LogCaptureFixture) -> None:
    vanishing = guard()
    gone(vanishing, 3)
    assert vanishing.holds("a.example", 1)
    assert not vanishing.holds("b.example", 1)
    assert "noes of a.example not believed" in vanishing.condition()
    assert "3 good addresses of a.example vanished together, of 3" in caplog.text
    assert caplog.text.count("good addresses") == 1
    gone(vanishing, 5, first=3, now=2)
    assert caplog.text.count("good addresses") == 1


def test_many_are_believed_where_far_more_are_still_there() -> None:
    vanishing = guard()
    there(vanishing, 10)
    gone(vanishing, 5, first=100)
    assert not vanishing.holds("a.example", 1)


def test_many_over_a_long_time_are_believed() -> None:
    vanishing = guard()
    for at in range(20):
        gone(vanishing, 1, first=at, now=at * 61.0)
        assert not vanishing.holds("a.example", at * 61.0)


def test_noes_are_believed_again_when_addresses_are_back(caplog: pytest.LogCaptureFixture) -> None:
    vanishing = guard()
    gone(vanishing, 4)
    there(vanishing, 4, now=10)
    assert not vanishing.holds("a.example", 11)
    assert "are back" in caplog.text
    assert vanishing.condition() == ""


def test_the_passing_of_the_window_alone_proves_nothing() -> None:
    vanishing = guard()
    gone(vanishing, 4)
    there(vanishing, 1, now=100, first=50)
    assert vanishing.holds("a.example", 101)


def test_that_others_are_there_does_not_bring_back_those_who_vanished() -> None:
    vanishing = guard()
    gone(vanishing, 6)
    for minute in range(9):
        there(vanishing, 30, now=minute * 60.0, first=100)
    assert vanishing.holds("a.example", 599)
    there(vanishing, 3, now=550)
    assert vanishing.holds("a.example", 551)
    gone(vanishing, 1, now=555)  # once more
    there(vanishing, 1, now=556)
    assert vanishing.holds("a.example", 557)
    assert vanishing.is_missing("a.example", "u5")
    there(vanishing, 1, now=558, first=5)
    assert not vanishing.holds("a.example", 559)
    assert not vanishing.is_missing("a.example", "u4")


def test_whoever_vanishes_later_has_to_come_back_too() -> None:
    vanishing = guard()
    gone(vanishing, 3)
    gone(vanishing, 3, first=3, now=10)
    there(vanishing, 3, now=20)
    assert vanishing.holds("a.example", 21)
    gone(vanishing, 2 * MOST_ADDRESSES, first=6, now=30)
    assert len(vanishing._domains["a.example"].vanished) == MOST_ADDRESSES


def test_noes_are_believed_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    vanishing = guard()
    gone(vanishing, 4)
    assert vanishing.holds("a.example", 599)
    assert not vanishing.holds("a.example", 601)
    assert "believed now" in caplog.text
    assert not vanishing.holds("a.example", 602)


def test_an_operator_may_say_that_all_is_well() -> None:
    vanishing = guard()
    gone(vanishing, 4)
    gone(vanishing, 4, domain="b.example")
    vanishing.forget("a.example")
    vanishing.forget("c.example")
    assert not vanishing.holds("a.example", 1)
    assert vanishing.holds("b.example", 1)
    vanishing.forget()
    assert not vanishing.holds("b.example", 1)


def test_none_means_never() -> None:
    vanishing = guard(least=0)
    gone(vanishing, 1000)
    assert not vanishing.holds("a.example", 1)


def test_what_is_kept_track_of_is_bounded() -> None:
    vanishing = guard()
    gone(vanishing, MOST_ADDRESSES + 50)
    vanishing.forget()
    there(vanishing, MOST_ADDRESSES + 50)
    assert len(vanishing._domains["a.example"].seen) <= MOST_ADDRESSES
    for number in range(MOST_DOMAINS + 1):
        vanishing.note(f"d{number}.example", "u", gone=False, now=0.0)
    assert len(vanishing._domains) == MOST_DOMAINS
    assert not vanishing.holds("a.example", 1)


def test_many_domains_are_told_in_few_words() -> None:
    vanishing = guard()
    for name in ("a", "b", "c", "d", ""):
        gone(vanishing, 3, domain=name and f"{name}.example")
    assert "and 2 more" in vanishing.condition()
