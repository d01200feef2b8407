"""The benchmark against the real smmapd runs, and its numbers are whole; how fast anybody is, is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks import cyrus
from tests.rig.require import program, require, require_cyrus

pytestmark = pytest.mark.cyrus


def test_a_short_round_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_cyrus()
    require(program("cc"), "no C compiler is installed")
    file = tmp_path / "turns.json"
    cyrus.main(["--mailboxes", "200", "--questions", "100", "--rounds", "1", "--json", str(file)])
    turns = json.loads(file.read_text())["turns"]
    rows = {(one["server"], one["connections"], one["kind"]) for one in turns}
    servers = {one["server"] for one in turns}
    assert {"theirs", "ours"} <= servers
    assert rows == {(name, number, kind) for name in servers for number in (1, 16) for kind in ("hits", "misses")}
    assert all(one["rate"] > 0 and 0 < one["p50"] <= one["p99"] for one in turns)
    # As many processes as clients with the original, which is what makes the comparison one of all that it starts.
    assert max(one["processes"] for one in turns if one["server"] == "theirs") >= 16
    assert "| 16 | misses | ours |" in capsys.readouterr().out


def test_every_name_is_another_one() -> None:
    assert len({cyrus.local_part(number) for number in range(20_000)}) == 20_000
