"""The control socket's own bounds."""

import asyncio
import gc
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rcptd.sockets import listen_unix
from rcptd_daemon import control


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_who_takes_no_answers_is_cut_and_keeps_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.2)

    told = 0

    async def tell(_: Mapping[str, Any]) -> str:
        nonlocal told
        told += 1
        return "x" * 1_000_000  # more than any buffer between us takes

    async def run() -> None:
        server = control.Server({"tell": tell})
        await server.start(listen_unix(tmp_path / "s", mode=0o600).socket)
        gc.collect()  # what other tests left behind must not go while we count
        before = descriptors()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for client in clients:
            client.connect(str(tmp_path / "s"))
            client.sendall(b'{"op": "tell"}\n')
        async with asyncio.timeout(5):
            while told < len(clients):  # noqa: ASYNC110 - as plain as the one below
                await asyncio.sleep(0.01)
            while descriptors() > before + len(clients):  # noqa: ASYNC110 - the kernel sets no event
                await asyncio.sleep(0.01)
        for client in clients:
            client.close()
        await server.stop()

    asyncio.run(run())
