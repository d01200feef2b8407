"""The house: who may import whom, which names are taken, what is packed, and that all of it is explained."""

import ast
import configparser
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import rcptd
from rcptd import schema, stores
from rcptd_daemon.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("core", "milter", "socketmap", "daemon")
OURS = ("rcptd", "rcptd_milter", "rcptd_socketmap", "rcptd_daemon")
IGNORED = {".git", ".venv", ".run", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__"}


def files(pattern: str, *under: str) -> list[Path]:
    roots = [ROOT / name for name in under] if under else [ROOT]
    found = (path for root in roots for path in root.rglob(pattern))
    return sorted(path for path in found if not IGNORED & set(path.relative_to(ROOT).parts))


SOURCES = files("*.py", *SOURCE_ROOTS)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Give all modules that a file imports, those that it imports in a function, too."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in OURS}


# The layers of the core, from below: a module imports only from the layers under its own, or from its own package.
VOCABULARY: dict[str, set[str]] = {
    "rcptd": set(),
    "rcptd.address": set(),
    "rcptd.verdict": set(),
    "rcptd.query": set(),
    "rcptd.netstring": set(),
    "rcptd.schema": set(),
    "rcptd.lines": set(),
    "rcptd.question": {"rcptd.address"},
}
WORDS = {"rcptd.address", "rcptd.verdict", "rcptd.query", "rcptd.question", "rcptd.schema"}
DECIDING = WORDS | {"rcptd.when", "rcptd.policy", "rcptd.case", "rcptd.trace", "rcptd.rules"}


def may_import(module: str) -> set[str]:
    """Give what a module of the core may import of ours; a package stands for all in it."""
    if module in VOCABULARY:
        return VOCABULARY[module]
    if module.startswith("rcptd.rules"):
        return DECIDING
    if module.startswith("rcptd.stores"):
        return WORDS | {"rcptd.stores", "rcptd.netstring"}
    if module.startswith("rcptd.memo"):
        return WORDS | {"rcptd.memo", "rcptd.trace"}
    return {
        "rcptd.sockets": {"rcptd.schema"},
        "rcptd.trace": {"rcptd.question", "rcptd.address"},
        "rcptd.when": WORDS,
        "rcptd.policy": WORDS | {"rcptd.when"},
        "rcptd.case": DECIDING - {"rcptd.rules"},
        "rcptd.engine": DECIDING,
        "rcptd.world": {"rcptd.address", "rcptd.policy", "rcptd.question"},
        "rcptd.settled": DECIDING - {"rcptd.rules"} | {"rcptd.world"},
        "rcptd.decision": DECIDING - {"rcptd.rules"} | {"rcptd.engine", "rcptd.world", "rcptd.settled"},
        "rcptd.drive": DECIDING - {"rcptd.rules"} | {"rcptd.engine", "rcptd.world", "rcptd.settled", "rcptd.decision"},
        "rcptd.config": DECIDING - {"rcptd.rules"} | {"rcptd.world", "rcptd.lines", "rcptd.stores", "rcptd.memo"},
    }[module]  # a new module of the core has to find its place here


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "rcptd"])
def test_the_core_imports_downward_only(module: str) -> None:
    allowed = may_import(module)
    for name in ours(MODULES[module]):
        known = name in allowed or name.rpartition(".")[0] in allowed or of_its_store(module, name)
        assert known, f"{module} imports {name}"


def of_its_store(module: str, name: str) -> bool:
    """Say whether both are of one store that is a package: below it is its own house."""
    store = ".".join(module.split(".")[:3])
    return store.startswith("rcptd.stores.") and (name + ".").startswith(store + ".")


def test_rules_and_stores_never_see_each_other() -> None:
    for module, path in MODULES.items():
        for one, other in (("rcptd.rules", "rcptd.stores"), ("rcptd.stores", "rcptd.rules")):
            if module.startswith(one):
                assert not any(name.startswith(other) for name in ours(path)), module


def test_front_ends_import_the_core_alone_and_nobody_imports_upward() -> None:
    allowed = {"rcptd": {"rcptd"}, "rcptd_daemon": set(OURS)} | {
        front_end: {"rcptd", front_end} for front_end in ("rcptd_milter", "rcptd_socketmap")
    }
    for module, path in MODULES.items():
        packages = {name.split(".")[0] for name in ours(path)}
        assert packages <= allowed[module.split(".")[0]], module


def test_one_file_alone_imports_milter() -> None:
    importing = {module for module, path in MODULES.items() if {"Milter", "milter"} & set(imports(path))}
    assert importing == {"rcptd_milter.libmilter"}
    for path in files("*.py"):
        if path not in SOURCES:
            assert "milter" not in set(imports(path)), path


def test_the_names_of_pymilter_are_left_alone() -> None:
    """A file or package of theirs on the path breaks every milter in the environment."""
    for name in ("milter.py", "Milter.py", "mime.py"):
        assert not files(name), name
    for root in SOURCE_ROOTS:
        assert not (ROOT / root / "__init__.py").exists(), root
    assert not files("__init__.py", "tests")
    folders = {path.parent for path in files("*.py")}
    taken = {"milter", "Milter", "mime"}
    assert not {folder for folder in folders if folder.name in taken and folder != ROOT / "milter"}


SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def test_the_packages_that_are_packed_are_the_folders() -> None:
    listed = SETUP["options"]["packages"].split()
    assert listed == sorted(listed)
    assert listed == sorted(module_of(path) for path in SOURCES if path.name == "__init__.py")
    folders = {module_of(path.parent / "__init__.py") for path in SOURCES}
    assert set(listed) == folders
    for package in OURS:
        (root,) = (name for name in SOURCE_ROOTS if (ROOT / name / package).is_dir())
        assert f"{package} = {root}/{package}" in SETUP["options"]["package_dir"]
        assert (ROOT / root / package / "py.typed").exists(), package


def test_the_commands_that_are_installed_are_there() -> None:
    for line in SETUP["options.entry_points"]["console_scripts"].split("\n"):
        if line:
            module, _, function = line.partition("=")[2].strip().partition(":")
            names = {node.name for node in ast.parse(MODULES[module].read_text()).body
                     if isinstance(node, ast.FunctionDef)}  # fmt: skip
            assert function in names, line


def test_changelog_and_version_agree() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings
    dated = re.compile(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d")
    versions = [dated.fullmatch(one) for one in headings if one != "[Unreleased]"]
    assert all(versions), headings
    released = [version[1] for version in versions if version]
    assert len(set(released)) == len(released)
    if released and headings[0] != "[Unreleased]":
        assert released[0] == rcptd.__version__
    assert SETUP["metadata"]["version"] == "attr: rcptd.__version__"


def undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    if not ast.get_docstring(tree):
        yield "the module"
    todo: list[tuple[ast.AST, str]] = [(tree, "")]
    while todo:
        node, within = todo.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if child.name.startswith("_"):
                continue
            name = f"{within}{child.name}"
            overloaded = any(isinstance(mark, ast.Name) and mark.id in ("override", "overload")
                             for mark in child.decorator_list)  # fmt: skip
            if not ast.get_docstring(child) and not overloaded:
                yield name
            if isinstance(child, ast.ClassDef):
                todo.append((child, f"{name}."))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_everything_public_says_what_it_is(module: str) -> None:
    assert list(undocumented(MODULES[module])) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_short_enough_to_be_read(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 500


def test_every_option_says_what_it_is_for() -> None:
    sections: dict[str, type] = dict(SECTIONS)
    for name in ("rcptd.config.Daemon", "rcptd.policy.Rule", "rcptd.policy.Subaddress"):
        module, _, attribute = name.rpartition(".")
        sections[name] = getattr(import_module(module), attribute)
    sections |= {f"stores.{kind}": stores.find(kind).Settings for kind in stores.OURS}
    for name, section in sections.items():
        assert is_dataclass(section), name
        for option, declared in schema.declared(section).items():
            assert declared.doc.endswith("."), f"{name}.{option}: {declared.doc!r} is no sentence"
