"""What processes use: CPU time, private memory, and which of them belong together. Linux only."""

import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from tests.rig.processes import members

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(process: int) -> float:
    """The CPU time of a process and all threads that it ever had, user and system, in seconds.

    /proc has it in steps of 10 ms; the clock of the process has it to the nanosecond. Its number is built as
    clock_getcpuclockid(3) does. Raises `OSError` where the process has ended.
    """
    return time.clock_gettime(~process << 3 | 2)


def cpu_of(processes: Collection[int]) -> Mapping[int, float]:
    """The CPU time of each."""
    return {one: cpu(one) for one in processes}


def private(process: int) -> int:
    """The memory that a process shares with nobody, in octets, without the pages of files that it maps.

    Those are `Private_Clean`: whose database or program nobody else happens to map has them all there.
    """
    octets = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Dirty", "Private_Hugetlb")):
            octets += int(line.split()[1]) * 1024
    return octets


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(_fields(stat)[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def of_service(master: int, name: str) -> list[int]:
    """The processes of a service of one of Cyrus' masters; that of another run, of the same name, is another's."""
    found = []
    for process in family(master):
        with suppress(OSError):
            if f"CYRUS_SERVICE={name}\0".encode() in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
    return found


def cpu_of_group(group: int) -> float:
    """The CPU time of a process group, in seconds: of its members, and of those that they have reaped."""
    ticks = 0
    for process in members(group):
        with suppress(OSError):
            ticks += sum(map(int, _fields(Path(f"/proc/{process}/stat"))[11:15]))
    return ticks / TICKS


def _fields(stat: Path) -> list[str]:
    # The name in parentheses may hold anything; after it come state, parent, group.
    return stat.read_text(errors="replace").rpartition(") ")[2].split()
