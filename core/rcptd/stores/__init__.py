"""Where answers come from: one module per type of store, found by name when a configuration asks.

A store's module has two names that count: `Settings`, a section as `rcptd.schema` declares it, and
`open_store(name, settings)`, which gives a `Table` or a `Service`. Opening neither waits nor raises
for what the world may do: a store whose file is missing opens, and says Unavailable when asked.

A third name, `MEMO`, is for services: "on" where their answers are remembered unless the operator says otherwise,
"off" where only if he says so. A module of ours without it is a table.

The table of our own is lazy, because a cold start counts and a store may need a heavy library. A type
that is not in it is looked up among the entry points of group `rcptd.stores`, whose objects are such
modules, so that another package can bring a store.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, cast

from rcptd.question import Store

GROUP = "rcptd.stores"

OURS = {
    "callahead": "rcptd.stores.callahead.store",
    "cyrus": "rcptd.stores.cyrus.store",
    "file": "rcptd.stores.file",
    "memory": "rcptd.stores.memory",
    "passwd": "rcptd.stores.passwd",
    "sqlite": "rcptd.stores.sqlite",
}


class StoreType(Protocol):
    """What a module must have to be a type of store."""

    @property
    def Settings(self) -> type:  # noqa: N802 - a class
        """The section of the configuration, as `rcptd.schema` declares it."""
        ...

    @property
    def open_store(self) -> Callable[[str, Any], Store]:
        """Open a store by its name and settings."""
        ...


def memo_of(module: StoreType) -> str | None:
    """Say whether a type of store has its answers remembered: "on", "off", or None for a table, which never has."""
    name = getattr(module, "__name__", "")
    return getattr(module, "MEMO", None if name in OURS.values() else "on")


def find(name: str) -> StoreType:
    """Import the module of a type of store; raises `ValueError` naming the types there are."""
    if name in OURS:
        return cast(StoreType, import_module(OURS[name]))
    from importlib.metadata import entry_points  # noqa: PLC0415 - 12 ms of a cold start (measured)

    foreign = {point.name: point for point in entry_points(group=GROUP)}
    if name not in foreign:
        known = sorted({*OURS, *foreign})
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no store of type {name!r}; {hint}known types: {', '.join(known)}")
    try:
        found = foreign[name].load()
    except Exception as error:
        # Somebody else's code: whatever it raises while it is imported is a fault of the configuration.
        raise ValueError(f"the store type {name!r} of {foreign[name].value} fails: {error!r}") from error
    if not hasattr(found, "Settings") or not hasattr(found, "open_store"):
        raise ValueError(f"the store type {name!r} of {foreign[name].value} lacks Settings or open_store")
    return cast(StoreType, found)
