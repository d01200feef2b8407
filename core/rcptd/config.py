"""The configuration: one TOML file, checked whole against what each section's owner declares.

Theory of operation. `load` reads the file into a `Configuration` or raises `FaultyConfiguration` with
every fault as `FILE:LINE: key: what is wrong and what would be right` (a syntax error is only the first
one, as nothing behind it can be trusted). Core knows the sections `daemon`, `stores` and `rules`; those
of the front ends are handed in by whoever knows them. Nothing is opened here: `open_world` does that.
"""

import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcptd import address, schema, stores
from rcptd.lines import Lines
from rcptd.memo.lifetimes import Lifetimes
from rcptd.policy import Policy, Rule, read_rules
from rcptd.question import Service, SpeaksSmmapd, Store, Table
from rcptd.schema import option
from rcptd.world import World

if TYPE_CHECKING:
    from rcptd.memo.file import MemoFile

MOST_OCTETS = 4 << 20
"""How large a configuration file may be; a million domains belong into a store."""


class FaultyConfiguration(Exception):
    """A configuration that cannot be used; `faults` are lines for the operator."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _domain(value: object) -> str:
    try:
        return address.domain(schema.text(value))
    except address.NotAnAddress as error:
        raise ValueError(f"{value!r} is no domain: {error}") from None


def _workers(value: object) -> int | str:
    if value == "front_ends":
        return "front_ends"
    try:
        return schema.number(1, 64)(value)
    except ValueError:
        raise ValueError('write a whole number from 1 to 64, or "front_ends"') from None


@dataclass(frozen=True, slots=True)
class Daemon:
    """The options of `[daemon]`: what holds for every question and for the process."""

    deadline: float = option(
        schema.duration(0.1, 90),
        default="6s",
        doc="Every question is answered within this, whatever the stores do. Keep it below the MTA's own "
        "limit: Sendmail waits 10 s for a milter unless told otherwise, Postfix 30 s.",
    )
    default_domain: str = option(
        _domain, default=None, doc="Qualifies a bare local part, as Cyrus' and Sendmail's maps send it."
    )
    postmaster: bool = option(
        schema.boolean,
        default=True,
        doc="Accept the postmaster of our domains before any store is asked (RFC 5321 4.5.1).",
    )
    posting_unknown: str = option(
        schema.choice("accept", "defer", "reject"),
        default="accept",
        doc="What a store's limit on who may post means where the asker is unknown, as in a socketmap; a "
        "rule may say otherwise.",
    )
    reference_in_reply: bool = option(
        schema.boolean,
        default=False,
        doc="End every refusal and deferral with the id that is in the log line.",
    )
    drain: float = option(
        schema.duration(0, 300),
        default="10s",
        doc="How long SIGTERM lets connections that wait for an answer finish.",
    )
    workers: int | str = option(
        _workers,
        default=1,
        doc='How many processes serve the front ends, all of them each; or "front_ends" for a process for each front '
        "end, so that neither slows the other.",
    )
    switch_interval: float | None = option(
        schema.duration(0.00005, 1),
        default=None,
        doc="How long one thread may hold the interpreter while others want it: low keeps the milter's "
        "answers quick while a socketmap is busy. If left out 0.1ms in a process with both front ends, else 5ms.",
    )


@dataclass(frozen=True, slots=True)
class Memo:
    """The options of `[memo]`: where answers of slow stores are kept; how long, each store says."""

    path: Path | None = option(
        schema.path,
        default=None,
        doc="The file in which remembered answers survive a restart; without it they do not. Its folder must be "
        "writable for the daemon.",
    )


@dataclass(frozen=True, slots=True)
class StoreSection:
    """One `[stores.NAME]`: equal sections mean the same store, which a reload then keeps.

    `memo` is how long its answers are remembered, None for not at all.
    """

    type: str
    settings: Any
    memo: Lifetimes | None = None

    @property
    def fingerprint(self) -> str:
        """What tells this store from another one under the same name."""
        import hashlib  # noqa: PLC0415 - for stores that remember, only

        return hashlib.sha256(f"{self.type} {self.settings!r}".encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A checked configuration.

    `sections` holds those of the front ends, by name, where the file has them; `raw` is the file as tomllib
    gave it, for showing what was written.
    """

    path: Path
    daemon: Daemon
    memo: Memo
    stores: Mapping[str, StoreSection]
    rules: tuple[Rule, ...]
    sections: Mapping[str, Any]
    raw: Mapping[str, Any]


def load(path: Path, sections: Mapping[str, type]) -> Configuration:
    """Read and check a configuration file; raises `FaultyConfiguration`.

    `sections` are the further sections that the file may have, with what each takes.
    """
    text = _read_text(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FaultyConfiguration([_syntax_fault(path, str(error), text)]) from None
    except RecursionError:
        raise FaultyConfiguration([f"{path}:1: brackets are nested too deeply"]) from None
    except ValueError as error:
        # A number with thousands of digits is Python's fault to find, which tells no line.
        raise FaultyConfiguration([f"{path}:1: {error}"]) from None
    return _check(path, text, tables, sections)


def _read_text(path: Path) -> str:
    try:
        # Not to wait where a pipe stands in place of the file.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FaultyConfiguration([f"{path}: is no file"])
            octets = file.read(MOST_OCTETS + 1)
    except OSError as error:
        raise FaultyConfiguration([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(octets) > MOST_OCTETS:
        raise FaultyConfiguration([f"{path}: is larger than {MOST_OCTETS >> 20} MiB"])
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise FaultyConfiguration([f"{path}:{line}: is not UTF-8"]) from None


def _syntax_fault(path: Path, message: str, text: str) -> str:
    where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = int(where[1]) if where and where[1] else text.count("\n") + 1
    what = message[: where.start()] if where else message
    return f"{path}:{line}: TOML syntax: {what}"


def _check(path: Path, text: str, tables: dict[str, Any], sections: Mapping[str, type]) -> Configuration:
    lines = Lines(text)
    faults: list[tuple[int, str]] = []

    def report_in(*around: str) -> schema.Report:
        def report(key: str, what: str) -> None:
            keys = (*around, *key.split(".")) if key else around
            line = lines.of(keys)
            faults.append((line, f"{path}:{line}: {schema.shown('.'.join(keys))}: {what}"))

        return report

    known = ("daemon", "memo", "stores", "rules", *sections)
    for name in tables:
        if name not in known:
            report_in(name)("", f"no such section; known here: {', '.join(known)}")

    daemon = schema.read(Daemon, _table(tables, "daemon", report_in), report_in("daemon"))
    memo = schema.read(Memo, _table(tables, "memo", report_in), report_in("memo"))
    read_sections = {
        name: schema.read(section, _table(tables, name, report_in), report_in(name))
        for name, section in sections.items()
        if name in tables
    }
    configured = {
        name: _store(table, report_in("stores", name))
        for name, table in _table(tables, "stores", report_in).items()
    }
    rules = read_rules(
        _rule_tables(tables, report_in("rules")),
        configured,
        report_in("rules"),
        reached_from_map="socketmap" in tables,
        defaults={"posting_unknown": daemon.posting_unknown} if daemon else {},
    )
    if faults or daemon is None or memo is None:
        raise FaultyConfiguration([fault for _, fault in sorted(faults)])
    present = {name: section for name, section in configured.items() if section is not None}
    return Configuration(path, daemon, memo, present, rules, read_sections, tables)


def _table(
    tables: Mapping[str, Any], name: str, report_in: Callable[[str], schema.Report]
) -> Mapping[str, Any]:
    table = tables.get(name, {})
    if isinstance(table, Mapping):
        return table
    report_in(name)("", f"write it as a section, [{name}]")
    return {}


def _rule_tables(tables: Mapping[str, Any], report: schema.Report) -> list[Mapping[str, Any]]:
    rules = tables.get("rules", [])
    if isinstance(rules, list) and all(isinstance(rule, Mapping) for rule in rules):
        return rules
    report("", "write each rule as a section of its own, [[rules]]")
    return []


def _store(table: object, report: schema.Report) -> StoreSection | None:
    if not isinstance(table, Mapping):
        report("", 'write it as a section with a type, as in type = "sqlite"')
        return None
    kind = table.get("type")
    if not isinstance(kind, str):
        report("", f'needs a type, as in type = "sqlite"; known: {", ".join(stores.OURS)}')
        return None
    try:
        module = stores.find(kind)
    except ValueError as error:
        report("type", str(error))
        return None
    rest = {key: value for key, value in table.items() if key not in ("type", "memo")}
    settings = schema.read(module.Settings, rest, report)
    memo = _lifetimes(kind, module, table.get("memo"), report)
    return StoreSection(kind, settings, memo) if settings is not None else None


def _lifetimes(kind: str, module: stores.StoreType, value: object, report: schema.Report) -> Lifetimes | None:
    """Read how long a store's answers are remembered; None for not at all."""
    usual = stores.memo_of(module)
    if value is None:
        value = {} if usual == "on" else "off"
    elif usual is None:
        report("memo", f"a store of type {kind!r} answers at once, and nothing of it is remembered")
        return None
    if value == "off":
        return None
    if not isinstance(value, Mapping):
        report("memo", 'write "off", or a section of its own, as in [stores.NAME.memo]')
        return None

    def report_in_memo(key: str, what: str) -> None:
        report(f"memo.{key}" if key else "memo", what)

    return schema.read(Lifetimes, value, report_in_memo)


def open_world(
    configuration: Configuration,
    kept: Mapping[str, Store] | None = None,
    before: Mapping[str, StoreSection] | None = None,
    memo_file: "MemoFile | None" = None,
) -> World:
    """Open the stores of a configuration and make its policy ready.

    Of the stores `kept` from a running world, those are used again whose section is the same as `before`.
    `memo_file` is what the others remember in, past this process.
    Raises `FaultyConfiguration` where a store cannot be opened, which no store of ours does; those opened
    before it are closed again.
    """
    opened: dict[str, Store] = {}
    for name, section in configuration.stores.items():
        if kept and before and before.get(name) == section:
            opened[name] = kept[name]
            continue
        try:
            store = stores.find(section.type).open_store(name, section.settings)
            opened[name] = _remembering(name, store, section, memo_file)
        except Exception as error:
            for other, store in opened.items():
                # What a service holds is let go of on the loop; one that nobody has asked holds nothing yet.
                if isinstance(store, Table) and not (kept and store is kept.get(other)):
                    store.close()
            fault = f"{configuration.path}: stores.{name}: cannot be opened: {error!r}"
            raise FaultyConfiguration([fault]) from error
    as_smmapd: dict[str, str] = {}
    for name, store in tuple(opened.items()):
        if isinstance(store, SpeaksSmmapd) and store.on_smmapd:
            as_smmapd[name] = f"{name} as smmapd"
            opened[as_smmapd[name]] = store.on_smmapd
    services = {name: store for name, store in opened.items() if not isinstance(store, Table)}
    daemon = configuration.daemon
    policy = Policy(
        configuration.rules,
        default_domain=daemon.default_domain or "",
        postmaster=daemon.postmaster,
        slow=frozenset(services),
        next_hops=frozenset(
            name for name, store in services.items() if isinstance(store, Service) and store.next_hop
        ),
        as_smmapd=as_smmapd,
    )
    return World(policy, opened, daemon.deadline, daemon.reference_in_reply)


def _remembering(name: str, store: Store, section: StoreSection, file: "MemoFile | None") -> Store:
    """Put the memory in front of a store that waits."""
    if section.memo is None or isinstance(store, Table):
        return store
    from rcptd.memo.remembering import Remembering  # noqa: PLC0415 - it brings SQLite

    return Remembering(name, store, section.memo, file=file, fingerprint=section.fingerprint)
