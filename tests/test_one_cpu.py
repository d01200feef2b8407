"""The threads of a milter's process are on one CPU at a time, and on no certain one."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcptd_daemon import one_cpu

SEVERAL = len(os.sched_getaffinity(0)) > 1


@pytest.fixture
def thread() -> Iterator[threading.Thread]:
    """Run a thread that waits, as one of libmilter's."""
    done = threading.Event()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    yield waiting
    done.set()
    waiting.join()


def cpus(thread: threading.Thread) -> set[int]:
    assert thread.native_id
    return os.sched_getaffinity(thread.native_id)


@pytest.mark.skipif(not SEVERAL, reason="there is one CPU")
def test_all_threads_are_on_one_cpu_and_afterwards_where_they_like(
    thread: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.sched_getaffinity(0)
    monkeypatch.setattr(one_cpu, "STAY", 0.05)

    async def main() -> None:
        task = asyncio.create_task(one_cpu.stay_on_one_cpu())
        seen = []
        for _ in range(200):
            await asyncio.sleep(0.001)
            seen.append((os.sched_getaffinity(0), cpus(thread)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(ours == theirs for ours, theirs in seen)
        assert any(len(ours) == 1 for ours, _ in seen)
        assert sum(ours == allowed for ours, _ in seen) > 1  # between two stays, too

    asyncio.run(main())
    assert os.sched_getaffinity(0) == cpus(thread) == allowed


@pytest.mark.skipif(not SEVERAL, reason="there is one CPU")
def test_it_is_the_cpu_on_which_the_main_thread_is() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            one_cpu._put({cpu})
            assert one_cpu._current() == cpu
    finally:
        one_cpu._put(allowed)


def test_where_the_kernel_refuses_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    asyncio.run(one_cpu.stay_on_one_cpu())


def test_on_one_cpu_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    monkeypatch.setattr(one_cpu, "_put", pytest.fail)
    asyncio.run(one_cpu.stay_on_one_cpu())


def test_a_thread_that_has_ended_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / str(2**22 + 1)).mkdir()  # above pid_max
    monkeypatch.setattr(one_cpu, "_THREADS", tmp_path)
    one_cpu._put({0})
