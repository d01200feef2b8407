"""What the daemon says to `rcptd memo` over the control socket: what it remembers of its slow stores."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from rcptd.memo.file import MemoFile
from rcptd.memo.remembering import Remembering
from rcptd.trace import Mask
from rcptd.world import World

MOST_SHOWN = 200
"""How many addresses one answer shows."""

SAID = 1000
"""How long, in characters, one line about an address may be."""

FLUSHING = 5.0
"""How long, in seconds, a purge waits for the file."""


async def answer(world: World, file: MemoFile | None, request: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """Show or purge, as `request` says; on the loop. Raises `ValueError` where it says nothing clear."""
    wanted, do, only = request.get("address"), request.get("do"), request.get("store")
    if not isinstance(wanted, str) or do not in ("show", "purge"):
        raise ValueError("do is show or purge, address an address, @domain, or empty for all")
    found = {name: store for name, store in world.stores.items() if isinstance(store, Remembering)}
    if only is not None:
        if only not in found:
            known = ", ".join(found) or "none"
            raise ValueError(f"there is no store {only!r} that remembers; those that do: {known}")
        found = {only: found[only]}
    if do == "show":
        return {"stores": {name: _shown(store, wanted, mask) for name, store in found.items()}}
    purged = {name: store.purge(wanted) for name, store in found.items()}
    if file:
        # In memory it is done; that it does not come back after a restart takes the disk.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(file.flush()), FLUSHING)
    return {"purged": purged}


def _shown(store: Remembering, wanted: str, mask: Mask) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    number, found = store.show(wanted, MOST_SHOWN)
    for key, lines in found:
        # What a next hop said names the address, too.
        known = [line[:SAID] for line in lines] if mask(key) == key else []
        shown.append({"address": mask(key), "known": known})
    return {"entries": shown, "number": number, "condition": store.condition(), "counts": dict(store.counts)}


def together(results: Sequence[dict[str, Any] | BaseException]) -> dict[str, Any]:
    """Put together what each worker answered; `unanswered` tells which did not, and why."""
    stores: dict[str, Any] = {}
    purged: dict[str, int] = {}
    unanswered: list[str] = []
    for number, result in enumerate(results, 1):
        if isinstance(result, BaseException):
            unanswered.append(f"a worker did not answer: {result!r}")
            continue
        for name, shown in result.get("stores", {}).items():
            stores[f"{name} (worker {number})" if len(results) > 1 else name] = shown
        for name, times in result.get("purged", {}).items():
            purged[name] = purged.get(name, 0) + times
    return {"stores": stores, "purged": purged, "unanswered": unanswered}
