"""The benchmark of the store callahead runs, and its numbers are whole; how fast anybody is, is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks import callahead

pytestmark = pytest.mark.daemon


def test_a_short_round_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers.json"
    words = "--recipients 100 --rounds 1 --at-once 20 --seconds 1 --loop uvloop --json"
    callahead.main([*words.split(), str(file)])
    reuse, many = json.loads(file.read_text())["outcomes"].values()
    assert reuse["ratio"] > 0
    assert 0 < many["spread: answers/s"] <= 25
    assert many["connections"] == 20
    assert many["peak RSS, MB"] > 0
    assert "one connection each, answers/s" in capsys.readouterr().out
