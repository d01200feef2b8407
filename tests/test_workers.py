"""Several workers under one supervisor: who serves, who is replaced, and what reaches all of them."""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcptd.question import Mailbox
from tests.harness.milterwire import MilterConnection
from tests.harness.socketmapwire import SocketmapConnection
from tests.rig.daemon import HEAD, Daemon, fill, rcptd
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.processes import members

pytestmark = pytest.mark.daemon

RULES = """
[daemon]
workers = {workers}

[stores.local]
type = "sqlite"
path = "{folder}/recipients.db"

[stores.accounts]
type = "passwd"
min_uid = 0

[stores.accounts.memo]

[[rules]]
when = { domain = "example.org" }
verify = ["local"]

[[rules]]
when = { domain = "accounts.example" }
verify = ["accounts"]
"""


def configuration(workers: int | str) -> str:
    return HEAD + RULES.replace("{workers}", f'"{workers}"' if isinstance(workers, str) else str(workers))


@contextmanager
def serving(workers: int | str, *prefix: str) -> Iterator[Daemon]:
    with sheltered("workers") as folder:
        fill(folder / "recipients.db", {"user@example.org": Mailbox()})
        with Daemon(folder, configuration(workers), prefix=prefix) as daemon:
            # Their own lines may come after the supervisor's: a log's thread takes its time.
            number = workers if isinstance(workers, int) else 2
            assert wait_until(lambda: daemon.log().count("a worker is ready") >= number, 10)
            yield daemon


def workers_of(daemon: Daemon) -> list[int]:
    return sorted(pid for pid in members(daemon.pid) if pid != daemon.pid)


def killed(daemon: Daemon, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Kill a worker and wait for the one that takes its place."""
    daemon.expected_errors.append("another takes its place")
    after = len(daemon.log())
    os.kill(pid, number)
    daemon.wait_for("a worker is ready", after)


def server_of(connection: SocketmapConnection) -> int:
    """Which process has the other end of a TCP connection."""
    assert connection._writer
    mine, theirs = (connection._writer.get_extra_info(name)[1] for name in ("sockname", "peername"))
    wanted = f":{theirs:04X} 0100007F:{mine:04X}"
    (line,) = (line for line in Path("/proc/net/tcp").read_text().splitlines() if wanted in line)
    inode = f"socket:[{line.split()[9]}]"
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == inode:
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError("nobody has it")


def test_all_workers_take_connections_and_one_that_dies_costs_its_own_only() -> None:
    with serving(3) as daemon:
        assert len(workers_of(daemon)) == 3
        at = f"inet:127.0.0.1:{daemon.map_port}"

        async def main() -> None:
            clients: list[SocketmapConnection] = []
            servers: list[int] = []
            for _ in range(20):  # many come at once, or one worker may be the first each time
                more = [SocketmapConnection(at) for _ in range(30)]
                replies = await asyncio.gather(*(client.ask("m", "user@example.org") for client in more))
                assert set(replies) == {"OK user@example.org"}
                clients += more
                servers += map(server_of, more)
                if set(servers) == set(workers_of(daemon)):
                    break
            assert set(servers) == set(workers_of(daemon))
            await asyncio.to_thread(killed, daemon, servers[0])
            for client, server in zip(clients, servers, strict=True):
                before = client._writer
                assert await client.ask("m", "user@example.org") == "OK user@example.org"
                assert (client._writer is before) is (server != servers[0])  # the others had no need to reconnect
                await client.close()

        asyncio.run(main())
        assert len(workers_of(daemon)) == 3
        assert daemon.stop() == 0
        assert not members(daemon.pid)
        left = {path.name for path in daemon.folder.iterdir() if path.is_socket()}
        assert not left


def test_the_milter_is_served_by_all_workers_and_survives_one() -> None:
    with serving(2) as daemon:
        at = f"inet:127.0.0.1:{daemon.milter_port}"

        async def session() -> None:
            async with MilterConnection(at) as mta:
                await mta.connect("client.example", "192.0.2.7")
                await mta.mail("<a@b.example>")
                assert not (await mta.rcpt("<user@example.org>")).text
                assert "5.1.1" in (await mta.rcpt("<nobody@example.org>")).text

        async def sessions() -> None:
            await asyncio.gather(*(session() for _ in range(20)))

        asyncio.run(sessions())
        for pid in workers_of(daemon):
            killed(daemon, pid)
            asyncio.run(sessions())


def test_each_front_end_may_have_a_worker_of_its_own() -> None:
    with serving("front_ends") as daemon:
        socketmap, milter = workers_of(daemon)
        with socket.create_connection(("127.0.0.1", daemon.map_port), 10) as client:
            client.sendall(b"18:m user@example.org,")
            assert client.recv(100) == b"19:OK user@example.org,"
        names = {pid: list(Path(f"/proc/{pid}/task").iterdir()) for pid in (socketmap, milter)}
        assert len(names[milter]) > len(names[socketmap])  # libmilter's threads
        assert daemon.check("user@example.org")[0] == 0

        async def session() -> str:
            async with MilterConnection(f"inet:127.0.0.1:{daemon.milter_port}") as mta:
                await mta.connect("client.example", "192.0.2.7")
                await mta.mail("<a@b.example>")
                return (await mta.rcpt("<nobody@example.org>")).text

        assert "5.1.1" in asyncio.run(session())


def asked_of_accounts(daemon: Daemon) -> list[int]:
    """How often each worker has asked the slow store."""
    _, out, _ = rcptd("memo", "-c", str(daemon.file), "show", "--all")
    return [int(found) for found in re.findall(r"since the start (\d+) asked", out)]


def test_a_reload_and_a_purge_reach_every_worker() -> None:
    with serving(2) as daemon:
        at = f"inet:127.0.0.1:{daemon.map_port}"

        async def ask(address: str) -> set[str]:
            clients = [SocketmapConnection(at) for _ in range(30)]
            replies = set(await asyncio.gather(*(client.ask("m", address) for client in clients)))
            for client in clients:
                await client.close()
            return replies

        for _ in range(20):  # many ask at once, or one worker may be the first each time
            assert asyncio.run(ask("root@accounts.example")) == {"OK root@accounts.example"}
            if len(asked_of_accounts(daemon)) == 2:
                break
        assert asked_of_accounts(daemon) == [1, 1]
        status, out, err = rcptd("memo", "-c", str(daemon.file), "purge", "root@accounts.example")
        assert (status, out, err) == (0, "accounts: 2 forgotten of root@accounts.example\n", "")

        daemon.write(configuration(2).replace('domain = "example.org"', 'domain = "other.example"'))
        after = len(daemon.log())
        os.kill(daemon.pid, signal.SIGHUP)
        assert wait_until(lambda: daemon.log()[after:].count("is in force") == 2, 20)
        assert asyncio.run(ask("user@example.org")) == {"NOTFOUND"}

        daemon.expected_errors += ["no such section", "the file is faulty"]
        daemon.write(configuration(2) + "[nonsense]\n")
        after = len(daemon.log())
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for("the file is faulty", after)
        assert daemon.log()[after:].count("no such section") == 1
        killed(daemon, workers_of(daemon)[0])  # its successor has the last good configuration
        assert asyncio.run(ask("user@example.org")) == {"NOTFOUND"}

        daemon.write(configuration(3))
        after = len(daemon.log())
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for("the number of workers has changed, which needs a restart", after)
        assert len(workers_of(daemon)) == 2


def test_a_worker_that_does_not_answer_is_told_of() -> None:
    with serving(2) as daemon:
        second = workers_of(daemon)[1]
        os.kill(second, signal.SIGSTOP)
        status, out, err = rcptd("memo", "-c", str(daemon.file), "purge", "--all")
        os.kill(second, signal.SIGCONT)
        assert status == 69
        assert out == "accounts: 0 forgotten of all\n"
        assert "a worker did not answer" in err


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    with serving(2, "env", "WATCHDOG_USEC=1000000") as daemon:
        daemon.expected_errors.append("is silent")
        hung = workers_of(daemon)[0]
        after = len(daemon.log())
        killed(daemon, hung, signal.SIGSTOP)
        assert "is silent; killed" in daemon.log()[after:]
        assert hung not in workers_of(daemon)
        assert len(workers_of(daemon)) == 2


def test_workers_that_die_at_once_are_not_started_in_a_storm() -> None:
    with serving(1 + 1) as daemon:
        daemon.expected_errors.append("another takes its place")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            for pid in workers_of(daemon):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        assert daemon.log().count("another takes its place") < 25
        assert daemon.running
        assert wait_until(lambda: len(workers_of(daemon)) == 2, 20)


FORK_FAILS_ONCE = """
import errno, os, runpy, sys
fork, forks = os.fork, 0
def fails_once():
    global forks
    forks += 1
    if forks == 3:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = fails_once
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_worker_that_cannot_be_started_is_tried_again_and_costs_nobody_else() -> None:
    with serving(2, sys.executable, "-c", FORK_FAILS_ONCE) as daemon:
        daemon.expected_errors.append("cannot be started")
        first, second = workers_of(daemon)
        killed(daemon, first)
        assert "cannot be started: Resource temporarily unavailable" in daemon.log()
        assert second in workers_of(daemon)
        assert len(workers_of(daemon)) == 2


def test_workers_end_when_their_supervisor_is_gone() -> None:
    with serving(2) as daemon:
        pid = daemon.pid
        daemon.kill()
        assert wait_until(lambda: not members(pid), 15)


def test_what_was_asked_is_answered_before_the_end() -> None:
    with serving(2) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.map_port), 10) as client:
            client.sendall(b"18:m user@exam")
            time.sleep(0.2)
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.wait_for("stopping")
            client.sendall(b"ple.org,")
            assert client.recv(100) == b"19:OK user@example.org,"
            assert client.recv(100) == b""
        assert daemon.stop() == 0


def test_what_cannot_be_opened_is_said_and_nothing_is_left() -> None:
    with serving(2) as daemon:
        text = daemon.file.read_text()
        other = daemon.folder / "other.toml"
        other.write_text(text)
        status, _, err = rcptd("serve", "-c", str(other))
        assert status == 71
        assert "the port is in use" in err
        other.write_text(text.replace("workers = 2", "workers = 0"))
        status, _, err = rcptd("serve", "-c", str(other))
        assert status == 78
        assert 'write a whole number from 1 to 64, or "front_ends"' in err


def test_the_service_manager_sees_one_service() -> None:
    with sheltered("notify") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        fill(folder / "recipients.db", {"user@example.org": Mailbox()})
        manager.bind(str(folder / "notify"))
        manager.settimeout(15)
        prefix = ["env", f"NOTIFY_SOCKET={folder}/notify", "WATCHDOG_USEC=4000000"]
        with Daemon(folder, configuration(2), prefix=prefix) as daemon:
            said = ""
            while "READY=1" not in said or "WATCHDOG=1" not in said:
                said += manager.recv(4096).decode() + "\n"
            assert f"MAINPID={daemon.pid}" in said
            assert "worker 2: 0 socketmap connections" in said
            os.kill(daemon.pid, signal.SIGHUP)
            while not re.search("RELOADING=1.*READY=1", said, re.DOTALL):
                said += manager.recv(4096).decode() + "\n"
            assert daemon.stop() == 0
            while "STOPPING=1" not in said:
                said += manager.recv(4096).decode() + "\n"
