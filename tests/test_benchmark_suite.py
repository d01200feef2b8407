"""Every part of the benchmarks runs, and its numbers are whole; how fast anybody is, is not tested."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as suite
from benchmarks.asking import asked, compiled, processes_of, serving
from benchmarks.rcptd_conf import MAPS, RULES, file_store
from benchmarks.report import Report, Target, Turn, rotated, spread
from tests.rig.place import sheltered
from tests.rig.require import program, require, require_cyrus, require_postfix


def run(part: str, folder: Path) -> dict[str, Any]:
    """Run a part as `make bench` does, tiny; gives its report."""
    require(program("cc"), "no C compiler is installed")
    file = folder / "bench.json"
    assert suite.main(["--quick", "--only", part, "--json", str(file), "--plot", str(folder / "bench.svg")]) == 0
    (report,) = json.loads(file.read_text())["parts"]
    assert report["part"] == part
    ET.parse(folder / "bench.svg")
    assert all(one["value"] is not None for one in report["targets"])
    for one in report["turns"]:
        figures = one["figures"]
        assert all(value >= 0 for value in figures.values())
        assert figures.get("p50", 0) <= figures.get("p99", 0)
        assert all(figures[name] > 0 for name in ("rate", "time", "cost", "private", "processes") if name in figures)
    return dict(report)


def rows(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["scenario"], one["server"]) for one in report["turns"]}


@pytest.mark.cyrus
def test_every_store_is_asked_beside_the_real_smmapd(tmp_path: Path) -> None:
    require_cyrus()
    report = run("socketmap", tmp_path)
    servers = {"Cyrus' smmapd", "rcptd, file", "rcptd, sqlite", "rcptd, memo", "rcptd, file, nothing logged",
               "rcptd, file, two workers"}  # fmt: skip
    scenarios = {f"{count}, {kind}" for count in ("1 connection", "4 connections", "16 connections")
                 for kind in ("hits", "misses")}  # fmt: skip
    scenarios |= {f"16 connections, {kind}, each for the first time" for kind in ("hits", "misses")}
    assert rows(report) == {(scenario, server) for scenario in scenarios for server in servers}
    busiest = [one for one in report["turns"] if one["scenario"].startswith("16")]
    assert min(one["figures"]["processes"] for one in busiest if one["server"] == "Cyrus' smmapd") >= 16
    ours = {one["server"]: one["figures"]["processes"] for one in busiest if one["server"] != "Cyrus' smmapd"}
    assert ours.pop("rcptd, file, two workers") == 3  # and their supervisor
    assert {*ours.values()} == {1}


@pytest.mark.cyrus
def test_databases_of_each_size_are_asked(tmp_path: Path) -> None:
    require_cyrus()
    report = run("sizes", tmp_path)
    assert ("3000 mailboxes, start", "ours, by hand") in rows(report)
    assert ("300 mailboxes, misses", "ours") in rows(report)
    assert ("3000 mailboxes, longest wait in a repack", "ours") in rows(report)
    (told,) = report["remarks"]
    assert re.search(r"created or deleted [1-9]", told)  # none of which any server got wrong


@pytest.mark.cyrus
def test_the_rows_beside_smmapd_are_a_part(tmp_path: Path) -> None:
    require_cyrus()
    assert ("16 connections, hits", "ours") in rows(run("cyrus", tmp_path))


@pytest.mark.cyrus
def test_a_cold_start_is_one(tmp_path: Path) -> None:
    require_cyrus()
    report = run("start", tmp_path)
    processes = {(one["scenario"], one["server"]): one["figures"].get("processes") for one in report["turns"]}
    assert processes["cold, 16 clients at once", "Cyrus' smmapd"] > 1
    assert processes["cold, 16 clients at once", "ours"] == 1


@pytest.mark.daemon
def test_milters_are_asked_in_turn(tmp_path: Path) -> None:
    require(program("cc"), "no C compiler is installed")
    pytest.importorskip("Milter", reason="pymilter is not installed")
    found = rows(run("milter", tmp_path))
    for scenario in ("one transaction a session", "a hundred a session"):
        assert {server for where, server in found if where == scenario} == {
            "C, does nothing", "pymilter, does nothing", "pymilter, bare callbacks", "rcptd, file",
            "rcptd, file, and a socketmap"
        }  # fmt: skip
    assert ("a hundred a session, unknown recipients", "rcptd, file") in found


@pytest.mark.daemon
def test_the_milter_is_asked_beside_a_busy_socketmap(tmp_path: Path) -> None:
    pytest.importorskip("Milter", reason="pymilter is not installed")
    assert ("1 session, beside 16 busy connections", "one process") in rows(run("both", tmp_path))


@pytest.mark.daemon
def test_a_decision_is_clocked(tmp_path: Path) -> None:
    assert len(rows(run("decision", tmp_path))) == 4


@pytest.mark.mta
def test_messages_go_through_each_postfix(tmp_path: Path) -> None:
    require_postfix()
    pytest.importorskip("Milter", reason="pymilter is not installed")
    found = rows(run("postfix", tmp_path))
    servers = {"no filter", "rcptd as milter", "milter in C, does nothing", "rcptd as recipient map"}
    assert {server for _, server in found} == servers


@pytest.mark.daemon
def test_a_wrong_reply_fails_the_run(tmp_path: Path) -> None:
    require(program("cc"), "no C compiler is installed")
    with sheltered("bench") as place:
        store = file_store(place, ["a@example.org"])
        with serving(place, MAPS + store + RULES, probe="a@example.org") as daemon:
            command: list[str | Path] = [compiled("load.c", tmp_path), place / "map.sock", "1", "OK "]
            keys = ["a@example.org"] * 5
            assert asked(command, keys, processes_of(daemon))["rate"] > 0
            with pytest.raises(RuntimeError, match="not as it should"):
                asked(command, [*keys, "nobody@example.org"], processes_of(daemon))


def test_a_part_that_fails_is_told_and_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.PARTS, "socketmap", "benchmarks.report")  # which has no run()
    file = tmp_path / "bench.json"
    assert suite.main(["--quick", "--only", "socketmap", "--json", str(file)]) == 1
    assert json.loads(file.read_text())["parts"] == []


def report() -> Report:
    made = Report(
        "trial", "of two", baseline="theirs",
        targets=[Target("twice", "s", "ours", "rate", 2, True, "theirs"), Target("soon", "s", "ours", "p99", 1e-3)],
    )  # fmt: skip
    # The machine is ten times slower in the second round; both are.
    for number, (theirs, ours) in enumerate([(100.0, 250.0), (10.0, 30.0), (100.0, 210.0)]):
        made.add(number, "s", "ours", {"rate": ours, "p99": 2e-3})
        made.add(number, "s", "theirs", {"rate": theirs})
    return made


def test_ratios_are_those_of_one_round() -> None:
    assert report().ratios("s", "ours", "rate", "theirs") == [2.5, 3.0, 2.1]


def test_targets_are_told_and_not_asserted() -> None:
    text = str(report())
    assert "- twice: 2.50; to be at least 2, reached" in text
    assert "- soon: 2000 p99 µs; to be at most 1000, **missed**" in text
    assert "| s | ours | 210 (30–250) | 2000 |" in text  # noqa: RUF001 - a range
    assert "| s | theirs | 100 (10–100) |  |" in text  # noqa: RUF001


def test_a_target_without_figures_is_not_reached() -> None:
    empty = Report("trial", "of nobody", targets=[Target("soon", "s", "ours", "p99", 1)])
    assert "- soon: not measured; to be at most" in str(empty)
    assert empty.as_json()["targets"][0]["reached"] is False


def test_another_one_is_first_in_each_round() -> None:
    assert [list(rotated("abc", number)) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_a_spread_is_median_least_and_most() -> None:
    assert spread([3, 1, 2]) == "2 (1–3)"  # noqa: RUF001
    assert spread([1.234], 2) == "1.23"
    assert spread([]) == ""


def test_rows_keep_the_order_in_which_they_came() -> None:
    made = Report("trial", "of two")
    made.turns = [Turn(1, "b", "y", {}), Turn(0, "b", "x", {}), Turn(0, "a", "x", {})]
    assert list(made.rows()) == [("b", "x"), ("b", "y"), ("a", "x")]
