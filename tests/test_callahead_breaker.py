"""The breaker of a next hop: time and chance are handed in."""

from rcptd.stores.callahead.breaker import FAILURES, MOST, PATIENCE, Breaker


def opened(now: float = 0.0, chance: float = 0.0) -> Breaker:
    breaker = Breaker(lambda: chance)
    told = [breaker.failed(now) for _ in range(FAILURES)]
    assert told == [False, False, True]
    return breaker


def test_closed_it_lets_everybody_through() -> None:
    breaker = Breaker(lambda: 0.0)
    assert breaker.admits(0.0)
    assert breaker.would_admit(0.0)
    assert not breaker.is_open
    assert breaker.pause(0.0) == 0.0


def test_a_success_counts_troubles_back_to_none() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(10):
        assert not breaker.failed(0.0)
        assert not breaker.failed(0.0)
        assert not breaker.succeeded()
    assert not breaker.is_open


def test_open_it_lets_nobody_through_during_the_pause() -> None:
    breaker = opened()
    assert breaker.is_open
    assert not breaker.admits(0.9)
    assert not breaker.would_admit(0.9)
    assert breaker.pause(0.75) == 0.25
    assert breaker.pause(2.0) == 0.0


def test_half_open_it_lets_one_probe_through() -> None:
    breaker = opened()
    assert breaker.would_admit(1.0)
    assert breaker.admits(1.0)
    assert not breaker.admits(1.0)
    assert not breaker.would_admit(1.0)
    assert breaker.succeeded()
    assert breaker.admits(1.0)
    assert not breaker.succeeded()


def test_pauses_double_up_to_the_longest() -> None:
    breaker = opened()
    now, pauses = 0.0, []
    for _ in range(12):
        pauses.append(breaker.pause(now))
        now += pauses[-1]
        assert breaker.admits(now)
        assert not breaker.failed(now), "it was open before"
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, MOST, MOST, MOST]


def test_chance_shortens_a_pause() -> None:
    assert opened(chance=1.0).pause(0.0) == 0.8


def test_what_went_out_before_it_opened_does_not_prolong_the_pause() -> None:
    breaker = opened()
    for _ in range(20):
        assert not breaker.failed(0.5)
    assert breaker.pause(0.5) == 0.5


def test_a_probe_that_ended_without_a_result_makes_way_for_another() -> None:
    breaker = opened()
    assert breaker.admits(1.0)
    breaker.withdrawn()
    assert breaker.admits(1.0)


def test_a_probe_of_which_nothing_is_heard_is_given_up() -> None:
    breaker = opened()
    assert breaker.admits(1.0)
    assert not breaker.admits(1.0 + PATIENCE - 0.1)
    assert breaker.admits(1.0 + PATIENCE)
