"""Aliases: as good as their best end, and followed within bounds."""

from collections.abc import Mapping
from typing import Any

import pytest

from rcptd.question import EXISTS, NOT_FOUND, Answer, Disabled, Found, Mailbox, Posting, Quota, Unavailable
from rcptd.rules.alias import DEEPEST, MOST_ENDS
from rcptd.trace import Note
from tests.policies import OURS, milter, policy
from tests.test_engine import Fed

RULES = "[[rules]]\n" + OURS + 'verify = "local"\n'
FULL = Found(Mailbox(quota=Quota(bytes_limit=1000, bytes_used=1000)))
OFF = Found(Mailbox(disabled=Disabled()))


def alias(*targets: str) -> Found:
    return Found(Mailbox(targets=targets))


def followed(
    world: Mapping[str, Answer], start: str = "a", *, rules: str = RULES, size: int = 0, **more: Any
) -> tuple[str, list[str], Fed]:
    """Give the verdict, the questions, and the case, for a store that knows these local parts."""
    fed = Fed(policy(rules, **more), milter(f"{start}@example.org", size=size))
    said = fed.start()
    asked = []
    while " " in said and "@" in said:
        asked.append(said)
        local = said.split(" ")[1].removesuffix("@example.org")
        said = fed.tell(world.get(local, NOT_FOUND))
    return said, asked, fed


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"b": EXISTS}, "250 2.1.5"),
        ({"b": NOT_FOUND, "c": EXISTS}, "250 2.1.5"),
        ({"b": NOT_FOUND, "c": OFF}, "550 5.1.1"),
        ({"b": Unavailable("down"), "c": NOT_FOUND}, "451 4.4.3"),
        ({"b": NOT_FOUND, "c": Unavailable("down")}, "451 4.4.3"),
        ({"b": Unavailable("down"), "c": EXISTS}, "250 2.1.5"),
        ({"b": FULL, "c": NOT_FOUND}, "451 4.4.3"),
        ({"b": Found(Mailbox(disabled=Disabled(temporary=True)))}, "451 4.4.3"),
        ({"b": Found(Mailbox(posting=Posting()))}, "250 2.1.5"),
    ],
)
def test_an_alias_is_as_good_as_its_best_end(ends: dict[str, Answer], said: str) -> None:
    world = {"a": alias(*(f"{end}@example.org" for end in ends)), **ends}
    assert followed(world)[0] == said


def test_an_end_that_is_full_for_good_is_still_no_definite_no() -> None:
    world = {"a": alias("b@example.org"), "b": FULL}
    assert followed(world, rules=RULES + 'over_quota = "reject"')[0] == "451 4.4.3"


def test_a_message_too_large_for_every_end_that_is_there_is_refused_as_that() -> None:
    world = {"a": alias("b@example.org", "c@example.org", "d@example.org"), "b": FULL, "d": OFF}
    assert followed(world, size=1001)[0] == "552 5.2.3"
    assert followed(world | {"c": EXISTS}, size=1001)[0] == "250 2.1.5"


def test_an_end_that_is_not_ours_accepts() -> None:
    said, asked, _ = followed({"a": alias("b@elsewhere.example", "c@example.org")})
    assert said == "250 2.1.5"
    assert asked == ["local a@example.org"]


def test_a_bare_end_is_in_the_default_domain() -> None:
    said, asked, _ = followed({"a": alias("b"), "b": EXISTS}, default_domain="example.org")
    assert (said, asked[1]) == ("250 2.1.5", "local b@example.org")


@pytest.mark.parametrize("target", ["", "b c@example.org", ":include:/list", "\udcff@example.org"])
def test_an_end_that_is_no_address_is_unknown(target: str) -> None:
    said, _, fed = followed({"a": alias(target)})
    assert said == "451 4.4.3"
    assert any(isinstance(entry, Note) and entry.address == target for entry in fed.case.trace.entries)


@pytest.mark.parametrize(
    "world",
    [
        {"a": alias("a@example.org")},
        {"a": alias("A@EXAMPLE.ORG.")},
        {"a": alias("b@example.org"), "b": alias("a@example.org")},
        {"a": alias("b@example.org"), "b": alias("c@example.org"), "c": alias("b@example.org")},
    ],
)
def test_a_loop_is_unknown_and_ends(world: dict[str, Answer]) -> None:
    said, asked, _ = followed(world)
    assert said == "451 4.4.3"
    assert len(asked) <= 4


def chain(length: int) -> dict[str, Answer]:
    links: dict[str, Answer] = {f"n{step}": alias(f"n{step + 1}@example.org") for step in range(1, length)}
    return {"a": alias("n1@example.org"), **links, f"n{length}": EXISTS}


def test_ten_deep_is_followed_and_eleven_is_unknown() -> None:
    assert followed(chain(DEEPEST))[0] == "250 2.1.5"
    said, asked, _ = followed(chain(DEEPEST + 1))
    assert said == "451 4.4.3"
    assert len(asked) == DEEPEST + 1


def test_fifty_ends_are_asked_and_no_more() -> None:
    most = [f"n{number}@example.org" for number in range(MOST_ENDS)]
    said, asked, _ = followed({"a": alias(*most)})
    assert (said, len(asked)) == ("550 5.1.1", MOST_ENDS + 1)
    said, asked, fed = followed({"a": alias(*most, *most)})
    assert (said, len(asked)) == ("451 4.4.3", MOST_ENDS + 1)
    assert fed.case.ends == MOST_ENDS + 1


def test_fifty_ends_hold_for_the_whole_tree() -> None:
    """Each of fifty ends is itself an alias of fifty: 2,550 ends, of which fifty are asked."""
    branch = {f"b{number}": alias(*(f"c{number}.{leaf}@example.org" for leaf in range(50))) for number in range(50)}
    said, asked, _ = followed({"a": alias(*(f"{name}@example.org" for name in branch)), **branch})
    assert (said, len(asked)) == ("451 4.4.3", MOST_ENDS + 1)


def test_the_end_of_an_alias_is_walked_through_the_whole_policy() -> None:
    rules = '[[rules]]\nwhen = { recipient = "b@example.org" }\nreject = "550 5.7.1 No"\n' + RULES
    assert followed({"a": alias("b@example.org"), "b": EXISTS}, rules=rules)[0] == "550 5.1.1"


def test_a_slow_store_is_not_asked_about_ends_unless_the_rule_says_so() -> None:
    slow: dict[str, Any] = {"slow": frozenset({"other"})}
    rules = "[[rules]]\n" + OURS + 'verify = ["local", "other"]\n'
    said, asked, _ = followed({"a": alias("b@example.org")}, rules=rules, **slow)
    assert (said, asked) == ("250 2.1.5", ["local a@example.org", "local b@example.org"])
    said, asked, _ = followed({"a": alias("b@example.org")}, rules=rules + "verify_targets = true", **slow)
    assert (said, asked[-1]) == ("550 5.1.1", "other b@example.org")


def test_a_slow_store_in_front_does_not_keep_a_quick_one_from_being_asked_about_ends() -> None:
    slow: dict[str, Any] = {"slow": frozenset({"other"})}
    rules = "[[rules]]\n" + OURS + 'verify = ["other", "local"]\n'
    world = {"a": alias("b@example.org")}
    for answer, wanted in ((OFF, "550 5.1.1"), (EXISTS, "250 2.1.5"), (NOT_FOUND, "250 2.1.5")):
        fed = Fed(policy(rules, **slow), milter("a@example.org"))
        assert fed.start() == "other a@example.org"
        assert fed.tell(NOT_FOUND) == "local a@example.org"
        assert fed.tell(world["a"]) == "local b@example.org"
        assert fed.tell(answer) == wanted
    fed = Fed(policy(rules, **slow), milter("a@example.org"))
    fed.start()
    fed.tell(NOT_FOUND)
    fed.tell(world["a"])
    assert fed.tell(Unavailable("down")) == "451 4.4.3"
