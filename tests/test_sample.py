"""contrib/rcptd.toml and docs/configuration.md: both load, or name, every option there is, with its default."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema, stores, when
from rcptd.config import Daemon, Memo
from rcptd.memo.lifetimes import Lifetimes
from rcptd.policy import Rule
from rcptd_daemon.effective import effective
from rcptd_daemon.reading import read_configuration
from rcptd_daemon.sections import SECTIONS
from tests.rig.require import ROOT

SAMPLE = ROOT / "contrib" / "rcptd.toml"
REFERENCE = ROOT / "docs" / "configuration.md"

# Accounts of the sample's examples that a machine need not have.
ACCOUNTS = re.compile(r'^(owner|group) = "\w+"', re.MULTILINE)


def sections() -> Iterator[tuple[str, type]]:
    """Every section, by the name that it has in the sample."""
    yield "daemon", Daemon
    yield "memo", Memo
    yield "lifetimes", Lifetimes
    yield from SECTIONS.items()
    for kind in stores.OURS:
        yield kind, stores.find(kind).Settings
    yield "rules", Rule


OPTIONS = [
    pytest.param(section, name, option, id=f"{section}.{name}")
    for section, owner in sections()
    for name, option in schema.declared(owner).items()
]


def uncommented() -> str:
    """The sample with every option that is commented out in force."""
    text = re.sub(r"^#(?=[a-z\[])", "", SAMPLE.read_text(), flags=re.MULTILINE)
    return ACCOUNTS.sub(r'\1 = "root"', text)


def tables(section: str, text: str) -> list[dict[str, Any]]:
    """The tables of a section; a store's goes by its type."""
    whole = tomllib.loads(text)
    if section == "lifetimes":
        return [table["memo"] for table in whole["stores"].values() if "memo" in table]
    if section in stores.OURS:
        return [table for table in whole["stores"].values() if table["type"] == section]
    found = whole.get(section, {})
    return found if isinstance(found, list) else [found]


def test_the_sample_loads_as_it_stands() -> None:
    configuration = read_configuration(SAMPLE)
    assert {"socketmap", "milter", "control"} == set(configuration.sections)
    assert [rule.name for rule in configuration.rules] == ["our mailboxes"]
    assert configuration.stores["local"].type == "sqlite"


def test_the_sample_loads_with_everything_in_force(tmp_path: Path) -> None:
    path = tmp_path / "rcptd.toml"
    path.write_text(uncommented())
    configuration = read_configuration(path)
    assert {store.type for store in configuration.stores.values()} == set(stores.OURS)
    assert len(configuration.rules) > 1


@pytest.mark.parametrize("text", [SAMPLE.read_text(), uncommented()], ids=["as it stands", "everything"])
def test_what_config_prints_is_a_configuration_that_means_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rcptd.toml"
    path.write_text(text)
    first = read_configuration(path)
    path.write_text("\n".join(effective(first)))
    again = read_configuration(path)
    assert (first.daemon, first.memo, first.stores, [rule.name for rule in first.rules]) == (
        again.daemon,
        again.memo,
        again.stores,
        [rule.name for rule in again.rules],
    )


def test_config_prints_what_a_rule_inherits(tmp_path: Path) -> None:
    path = tmp_path / "rcptd.toml"
    path.write_text('[daemon]\nposting_unknown = "defer"\n[stores.s]\ntype = "memory"\n[[rules]]\nverify = ["s"]\n')
    assert 'posting_unknown = "defer"' in list(effective(read_configuration(path)))[-1]


@pytest.mark.parametrize(("section", "name", "option"), OPTIONS)
def test_the_sample_shows_each_option_with_its_default(section: str, name: str, option: schema.Declared) -> None:
    shown = [table[name] for table in tables(section, uncommented()) if name in table]
    assert shown, f"[{section}] {name} is not in the sample"
    in_force = [table[name] for table in tables(section, SAMPLE.read_text()) if name in table]
    if not in_force and option.default not in (None, schema.REQUIRED):
        assert option.default in shown, f"[{section}] {name} is commented out, and not with its default"
    if option.default is None and not in_force:
        example = rf"^#{name} = .*# example; not set by default$"
        assert re.search(example, SAMPLE.read_text(), re.MULTILINE), f"{name} has no default, and no line says so"


@pytest.mark.parametrize(("section", "name", "option"), OPTIONS)
def test_the_reference_tells_each_option_with_its_default(section: str, name: str, option: schema.Declared) -> None:
    heading, default = _rows(section).get(name, ("", ""))
    assert heading, f"[{section}] {name} has no row in docs/configuration.md"
    match option.default:
        case schema.REQUIRED:
            wanted = "required"
        case None:
            wanted = "not set"
        case dict() if name == "when":
            wanted = "every recipient"
        case dict() as table:
            wanted = ", ".join(f'`"{key}" = {json.dumps(value)}`' for key, value in table.items())
        case value:
            wanted = f"`{json.dumps(value)}`"
    assert wanted in default, f"[{section}] {name}: docs/configuration.md says {default}, the code {wanted}"


def test_both_name_every_condition() -> None:
    for path in (SAMPLE, REFERENCE):
        text = path.read_text()
        for condition in when._READERS:
            assert re.search(rf"\b{condition}\b", text), f"{path.name} does not name the condition {condition}"


def _rows(section: str) -> dict[str, tuple[str, str]]:
    """Read the table of a section of the reference: for each option its heading and its default."""
    heading = ""
    found: dict[str, tuple[str, str]] = {}
    of_stores = {kind: f'type = "{kind}"' for kind in stores.OURS}
    wanted = {"rules": "`[[rules]]`", "lifetimes": "`[stores.NAME.memo]`", **of_stores}.get(section, f"`[{section}]`")
    for line in REFERENCE.read_text().splitlines():
        if line.startswith("#"):
            heading = line
        elif wanted in heading and (row := re.match(r"\| `(\w+)` \|[^|]*\|([^|]*)\|", line)):
            found.setdefault(row[1], (heading, row[2]))
    return found
