"""The fuzz targets, briefly and always alike; at length by `make fuzz`."""

import random

import pytest

from tests import fuzzing

INPUTS = {"configuration": 400}


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    one = fuzzing.target(name)
    for seed in range(INPUTS.get(name, 1500)):
        one(random.Random(seed))


def test_a_run_is_as_long_as_told() -> None:
    assert fuzzing.fuzz("address", 0.05) > 0
    fuzzing.again("address", 1)
    assert {"address", "configuration", "netstring"} <= set(fuzzing.TARGETS)
