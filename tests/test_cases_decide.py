"""Ring 1: every case that a postmaster can read, straight through the engine, as each front end asks."""

import pytest

from rcptd.drive import Driver
from tests.harness.cases import Case, query, read_all
from tests.harness.world import World
from tests.worlds import running

FILES = read_all()
CASES = [(file.world, case) for file in FILES for case in file.cases]


@pytest.mark.parametrize(("world", "case"), CASES, ids=[case.id for _, case in CASES])
def test_each_recipient_gets_the_verdict_that_the_case_names(world: World, case: Case) -> None:
    driver = Driver(running(world))
    for front_end in case.front_ends:
        for transaction, one in case.recipients():
            decision = driver.begin(query(case, transaction, one, front_end, "map"), verbose=True)
            assert decision.done
            said = decision.verdict.reply if decision.verdict else "not ours"
            assert one.wanted.matches(decision.verdict), (
                f"{case.file}:{one.line}: {one.path} as {front_end}: wanted {one.wanted}, got {said}; "
                f"{decision.trace.entries}"
            )


def test_the_cases_are_many() -> None:
    """A parser that finds nothing must not look like success."""
    assert len(CASES) > 50
    assert {front_end for _, case in CASES for front_end in case.front_ends} == {"milter", "socketmap"}
