"""One CPU at a time for a process whose threads all want the one interpreter.

libmilter answers in threads, and each needs the interpreter for a microsecond or two. On several CPUs they meet at its
lock all the time, and each meeting costs both of them a sleep and a wakeup, which is ten times what they wanted it for.
On one CPU they take turns anyway, and the lock is free when a turn begins. What runs beside it on other CPUs is little:
reading and writing sockets.

Which CPU it is, is the scheduler's to say. Now and then all threads may go where they like for a moment, and stay
where the first of them was put then. So no CPU is kept that others are busy on, and nothing is assumed of the machine.

Where a loop is busy in the same process this would be wrong: its turns are long, and the others would wait for them.
"""

import asyncio
import logging
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger("rcptd")

STAY = 10.0
"""How long, in seconds, the threads stay on a CPU."""

MOMENT = 0.02
"""How long, in seconds, they may go where they like; long enough for the scheduler to move who waits."""

_THREADS = Path("/proc/self/task")
_LAST_CPU = 36  # of the fields behind the name in proc_pid_stat(5): field 39


async def stay_on_one_cpu() -> None:
    """Keep all threads of this process on one CPU, another one from time to time, until cancelled; on the main thread.

    Threads that are started meanwhile are where their starter is.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        return
    try:
        while True:
            await asyncio.sleep(MOMENT)
            _put({_current()})
            await asyncio.sleep(STAY)
            _put(allowed)
    except OSError as error:
        _log.info("the threads go where they like: %s", error.strerror)
    finally:
        with suppress(OSError):  # as when the CPUs that were allowed are no more
            _put(allowed)


def _current() -> int:
    """Give the CPU that the main thread was put on."""
    stat = (_THREADS / str(os.getpid()) / "stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[_LAST_CPU])


def _put(cpus: Collection[int]) -> None:
    for thread in _THREADS.iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cpus)
