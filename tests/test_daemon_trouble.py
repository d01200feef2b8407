"""Ring 3: what must not hold up the daemon: a log that nobody reads, a store that does not let go, signals."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcptd.netstring import encode
from tests.rig.daemon import HEAD, RCPTD, Daemon, rcptd
from tests.rig.place import sheltered
from tests.rig.ports import free_port, wait_until

pytestmark = pytest.mark.daemon

RULES = """
[daemon]
drain = "500ms"
deadline = "500ms"

[stores.local]
type = "memory"
recipients = ["user@example.org"]

[[rules]]
name = "our mailboxes"
when = { domain = "example.org" }
verify = ["local"]
"""


def ask(connection: socket.socket, recipient: bytes = b"user@example.org") -> bytes:
    connection.sendall(encode(b"map " + recipient))
    return connection.recv(1000)


@contextmanager
def unread(folder: Path, configuration: str) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """Start a daemon whose standard error is a pipe that nobody reads; gives it and a connection."""
    port = free_port()
    file = folder / "rcptd.toml"
    file.write_text(configuration.replace("{map_port}", str(port)).replace("{folder}", str(folder)))
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [str(RCPTD), "serve", "-c", str(file)], stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    os.close(writing)
    connections: list[socket.socket] = []

    def connected() -> bool:
        try:
            connections.append(socket.create_connection(("127.0.0.1", port), 10))
        except ConnectionRefusedError:
            return False
        return True

    try:
        wait_until(connected, 20)
        connections[0].settimeout(10)
        yield process, connections[0]
    finally:
        process.kill()
        process.wait(5)
        os.close(reading)
        for each in connections:
            each.close()


def test_a_log_that_nobody_reads_holds_up_no_answer_no_reload_and_no_end(tmp_path: Path) -> None:
    listen = '[socketmap]\nlisten = "inet:127.0.0.1:{map_port}"\n'
    with unread(tmp_path, f'[log]\ndecisions = "all"\n{listen}{RULES}') as (process, connection):
        for _ in range(2000):  # more than a pipe holds
            assert ask(connection) == b"19:OK user@example.org,"
        file = tmp_path / "rcptd.toml"
        file.write_text(file.read_text().replace('"all"', '"none"').replace("user@", "new@"))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(connection, b"new@example.org") == b"18:OK new@example.org,", 10)
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


STORE = """
import asyncio, time
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    pass

class Store:
    next_hop = False

    async def ask(self, recipient):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    async def aclose(self):
        pass

def open_store(name, settings):
    return Store()
"""


def test_a_store_that_does_not_let_go_does_not_keep_the_process() -> None:
    """Neither by a task that ignores its cancellation nor by a thread of asyncio's own pool."""
    with sheltered("stubborn") as folder:
        (folder / "stubborn.py").write_text(STORE)
        (folder / "stubborn-1.dist-info").mkdir()
        (folder / "stubborn-1.dist-info" / "METADATA").write_text("Name: stubborn\nVersion: 1\n")
        (folder / "stubborn-1.dist-info" / "entry_points.txt").write_text("[rcptd.stores]\nstubborn = stubborn\n")
        rules = RULES.replace('"memory"', '"stubborn"').replace('recipients = ["user@example.org"]', "")
        path = f"PYTHONPATH={folder}:{os.environ.get('PYTHONPATH', '')}"
        with Daemon(folder, HEAD + rules, prefix=["env", path]) as daemon:
            with socket.create_connection(("127.0.0.1", daemon.map_port), 10) as connection:
                assert b"TEMP" in ask(connection)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 10


def test_a_reload_that_takes_long_holds_up_nobody() -> None:
    """A configuration of 4 MiB is read for seconds."""
    with sheltered("reload") as folder, Daemon(folder, HEAD + RULES) as daemon:
        domains = ", ".join(f'"{number:x}.example.net"' for number in range(60_000))
        longest = 0.0
        done = threading.Event()

        def asking() -> None:
            nonlocal longest
            with socket.create_connection(("127.0.0.1", daemon.map_port), 10) as connection:
                while not done.is_set():
                    began = time.monotonic()
                    ask(connection)
                    longest = max(longest, time.monotonic() - began)
                    time.sleep(0.001)

        asker = threading.Thread(target=asking)
        asker.start()
        try:
            daemon.write(f'{HEAD}{RULES}[[rules]]\nwhen = {{ domain = [{domains}] }}\nreject = "550 5.7.1 No"\n')
            began = time.monotonic()
            daemon.reload()
            took = time.monotonic() - began
        finally:
            done.set()
            asker.join(10)
        assert longest < took / 2


def test_sighup_while_it_starts_is_a_reload_and_sigterm_an_end() -> None:
    for number, expected in ((signal.SIGHUP, "reload: .* is in force"), (signal.SIGTERM, "stopped")):
        with sheltered("signals") as folder:
            daemon = Daemon(folder, HEAD + RULES)
            daemon.start(ready=False)
            try:
                # The first of the sockets: those of libmilter and of control are still to come.
                wait_until((folder / "socketmap.sock").exists, 20, 0)
                os.kill(daemon.pid, number)
                daemon.wait_for(expected)
            finally:
                daemon.stop()


def test_sighup_and_a_second_sigterm_while_it_drains_change_nothing() -> None:
    with sheltered("draining") as folder, Daemon(folder, HEAD + RULES.replace("500ms", "3s", 1)) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.map_port), 10) as connection:
            connection.settimeout(10)
            question = encode(b"map user@example.org")
            connection.sendall(question[:5])
            time.sleep(0.2)
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.wait_for("stopping")
            os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(0.1)
            os.kill(daemon.pid, signal.SIGTERM)
            os.kill(daemon.pid, signal.SIGINT)
            time.sleep(0.2)
            connection.sendall(question[5:])
            assert connection.recv(1000) == b"19:OK user@example.org,"
        assert daemon.stop() == 0
        assert "reload" not in daemon.log()


@pytest.mark.parametrize("milter", ["inet", "unix"])
def test_a_second_start_takes_nothing_from_the_first(milter: str) -> None:
    """Somebody starts it by hand beside the service: it ends, and the service is still where it was."""
    port = '"inet:127.0.0.1:{map_port}", '
    if milter == "unix":
        head = HEAD.replace('"inet:127.0.0.1:{milter_port}"', '"unix:{folder}/milter.sock"')
    else:
        head = HEAD.replace(port, "")
    with sheltered("second") as folder, Daemon(folder, head + RULES) as daemon:
        names = {path: path.stat().st_ino for path in folder.glob("*.sock")}
        assert len(names) == 2 + (milter == "unix")
        assert rcptd("serve", "-c", str(daemon.file))[0] == 71
        assert {path: path.stat().st_ino for path in folder.glob("*.sock")} == names
        assert daemon.check("user@example.org")[0] == 0


def test_without_a_socket_or_pipes_stdio_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rcptd.toml"
    file.write_text('[socketmap]\nlisten = "inet:127.0.0.1:1"\n' + RULES)
    code, out, _ = rcptd("serve", "--stdio", "-c", str(file))
    assert (code, out) == (0, "")
    with Path(os.devnull).open() as nothing:
        done = subprocess.run(
            [str(RCPTD), "serve", "--stdio", "-c", str(file)],
            stdin=nothing, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 71
    assert "must be one socket, or two pipes" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_log_line_goes_where_replies_go(tmp_path: Path) -> None:
    """spawn(8) makes standard error the client's socket; a shell may make it the pipe of standard output."""
    file = tmp_path / "rcptd.toml"
    file.write_text('[log]\ndecisions = "all"\n[socketmap]\nlisten = "inet:127.0.0.1:1"\n' + RULES)
    done = subprocess.run(
        [str(RCPTD), "serve", "--stdio", "-c", str(file)],
        input=encode(b"map user@example.org"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout == b"19:OK user@example.org,"
