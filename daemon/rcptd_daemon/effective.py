"""What of a configuration is in force, written as a configuration that says all of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rcptd import schema, stores
from rcptd.config import Configuration, Daemon, Memo
from rcptd.memo.lifetimes import Lifetimes
from rcptd.policy import Rule
from rcptd_daemon.sections import SECTIONS


def effective(configuration: Configuration) -> Iterator[str]:
    """Write every option with its value in force, as lines of TOML; defaults are marked as such."""
    raw = configuration.raw
    yield f"# in force from {configuration.path}"
    yield from _section("[daemon]", Daemon, raw.get("daemon", {}))
    for name, section in SECTIONS.items():
        if name in raw or name == "log":
            yield from _section(f"[{name}]", section, raw.get(name, {}))
        else:
            yield ""
            yield f"# [{name}] is not configured"
    yield from _section("[memo]", Memo, raw.get("memo", {}))
    for name, store in configuration.stores.items():
        module = stores.find(store.type)
        table = raw["stores"][name]
        yield from _section(f"[stores.{_key(name)}]", module.Settings, table, type=store.type)
        if store.memo:
            yield from _section(f"[stores.{_key(name)}.memo]", Lifetimes, table.get("memo", {}))
        elif stores.memo_of(module):
            yield 'memo = "off"'
    for rule, table in zip(configuration.rules, raw.get("rules", []), strict=True):
        yield from _section("[[rules]]", Rule, _of_rule(rule, table), brief=True)


def _of_rule(rule: Rule, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the options of a rule as written, with the name and what [daemon] says for all rules."""
    inherited: dict[str, Any] = {"name": rule.name}
    if rule.verify and rule.posting_unknown != schema.declared(Rule)["posting_unknown"].default:
        inherited["posting_unknown"] = rule.posting_unknown
    return {**inherited, **table}


def _section(
    header: str, section: type, table: Mapping[str, Any], *, brief: bool = False, **first: str
) -> Iterator[str]:
    yield ""
    yield header
    for name, value in first.items():
        yield f"{name} = {toml(value)}"
    bare = brief and "verify" not in table  # what else a rule has goes with verify only
    for name, option in schema.declared(section).items():
        if name in table:
            yield f"{name} = {toml(table[name])}"
        elif bare:
            continue
        elif option.default not in (None, schema.REQUIRED) and not (brief and option.default in (False, {})):
            yield f"{name} = {toml(option.default)}  # default"
        elif not brief:
            yield f"# {name} is not set"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("-", "").replace("_", "").isalnum() else json.dumps(name)


def toml(value: object) -> str:
    """Write a value as TOML; its strings are JSON's, which TOML reads alike."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {toml(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value if isinstance(value, str | bool | int | float) else str(value), ensure_ascii=False)
