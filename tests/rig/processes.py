"""Process groups of real MTAs: ended by their id, and seen to be gone."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.rig.ports import wait_until

PATIENCE = 5.0  # seconds for each of SIGTERM and SIGKILL


def end_group(group: int, name: str) -> None:
    """End every process of a group: SIGTERM, then SIGKILL; raises `RuntimeError` when one is still there."""
    for deed in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, deed)
        if wait_until(lambda: not members(group), PATIENCE):
            return
    raise RuntimeError(f"processes of {name} are still there: {members(group)}")


def members(group: int) -> list[int]:
    """The living processes of a group; a zombie that a container's init never reaps is not living."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold anything; after it come state, parent, group.
            state, _, its_group = stat.read_text(errors="replace").rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found
