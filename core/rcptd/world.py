"""A world: a policy with the stores that its rules name, in force together and swapped together.

Immutable, so that a decision may keep the one that it began with while a reload puts another in force; any
thread may read it. Its stores are closed once, on the loop, when no decision can need them any more.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rcptd.address import Recipient
from rcptd.policy import Policy
from rcptd.question import Answer, Busy, Remembers, Stands, Store, Table

_log = logging.getLogger("rcptd.world")

AtOnce = Mapping[str, Callable[[Recipient], Answer | Busy]]
"""What answers on the spot, by store: tables, and what services remember."""

CLOSING = 5.0
"""How long, in seconds, a world's stores may take to close."""


@dataclass(frozen=True, slots=True)
class World:
    """A policy with the stores that its rules name; swapped whole by a reload."""

    policy: Policy
    stores: Mapping[str, Store]
    deadline: float = 6.0
    """Seconds in which every question is answered."""
    reference_in_reply: bool = False
    at_once: AtOnce = field(init=False)
    in_shadow: AtOnce = field(init=False)
    """The same for rules in shadow, which leave no trace in a memory."""
    standing: Mapping[str, Stands] = field(init=False)
    """The stores that can tell whether their answers still stand."""

    def __post_init__(self) -> None:
        tables = {name: store.lookup for name, store in self.stores.items() if isinstance(store, Table)}
        remembering = {name: store for name, store in self.stores.items() if isinstance(store, Remembers)}
        recalls = {name: store.recall for name, store in remembering.items()}
        peeks = {name: store.peek for name, store in remembering.items()}
        object.__setattr__(self, "at_once", {**tables, **recalls})
        object.__setattr__(self, "in_shadow", {**tables, **peeks})
        standing = {name: store for name, store in self.stores.items() if isinstance(store, Stands)}
        object.__setattr__(self, "standing", standing)

    async def aclose(self) -> None:
        """Close the stores, each whatever the others do; ends within `CLOSING`, never raises."""
        loop = asyncio.get_running_loop()
        await end_within(CLOSING, [loop.create_task(_close(*named)) for named in self.stores.items()])


async def _close(name: str, store: Store) -> None:
    try:
        if isinstance(store, Table):
            store.close()
        else:
            await store.aclose()
    except Exception:
        _log.exception("store %r failed to close", name)


async def end_within(seconds: float, tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait for tasks that close something; cancel and log those that are late, without waiting further."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
            _log.error("not closed within %g s: %r", seconds, task)
