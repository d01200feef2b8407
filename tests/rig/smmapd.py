"""Our smmapd as a program that a master can start, and a master in Python that writes down what it is told.

    program = installed(folder)
    with FakeMaster(folder, program, "-C", str(conf)) as master:
        child = master.fork()
        ...
        assert master.told() == [(4, child.pid)]

The program is a script on a copy of the sources, since the user `cyrus` may see neither this work tree nor the
interpreter of its virtual environment.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.rig.ports import wait_until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
SOURCES = ("core/rcptd", "socketmap/rcptd_socketmap", "daemon/rcptd_daemon")


def user() -> str:
    """The user that a program of ours becomes when it is started as root."""
    return "nobody"


@cache
def interpreter() -> str:
    """An interpreter that any user may run."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        command = [candidate, "-Ic", "import sys; sys.exit(sys.version_info < (3, 11))"]
        other = user() if os.geteuid() == 0 else None
        with suppress(OSError):
            tried = subprocess.run(command, check=False, capture_output=True, cwd="/", timeout=PATIENCE, user=other)
            if tried.returncode == 0:
                return candidate
    return pytest.skip("no Python from 3.11 that other users may run")


def installed(folder: Path, *, modules: bool = False) -> Path:
    """Make the program; `modules` has it say at its end what it imported, on standard error."""
    library = folder / "library"
    for source in SOURCES:
        shutil.copytree(ROOT / source, library / source.split("/")[1], ignore=shutil.ignore_patterns("__pycache__"))
    program = folder / "smmapd"
    say = "import os; end = os._exit; os._exit = lambda at: (print(*sorted(sys.modules), file=sys.stderr), end(at))\n"
    program.write_text(
        f"#!{interpreter()} -I\nimport sys\nsys.path.insert(0, {str(library)!r})\n"
        f"{say if modules else ''}from rcptd_daemon.smmapd import main\nmain()\n"
    )
    program.chmod(0o755)
    return program


class Conf:
    """An imapd.conf with a flat mailboxes.db, which needs none of Cyrus' programs."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.directory = folder / "conf"
        self.directory.mkdir()
        self.path = folder / "imapd.conf"
        self.mailboxes("foo", "bar")
        lines = {"configdirectory": str(self.directory), "mboxlist_db": "flat", **options}
        self.path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
        for one in (folder, self.directory):
            one.chmod(0o755)

    def mailboxes(self, *users: str) -> None:
        """Say who has a mailbox."""
        lines = sorted(
            b"Nuser\x1f%b\t%%(T e I x P default V 1 C 1 F 1 M 1 A %%(%b lrswipkxtecdan))\n" % (name, name)
            for name in (one.encode() for one in users)
        )
        new = self.directory / "new"
        new.write_bytes(b"".join(lines))
        new.chmod(0o644)
        new.rename(self.directory / "mailboxes.db")


class FakeMaster:
    """Starts a program as master does: the status pipe as 3, the listener as 4, its environment."""

    def __init__(self, folder: Path, program: Path, *words: str, inet: bool = False) -> None:
        self.command = [str(program), *words]
        self.environ = {
            "PATH": os.environ["PATH"], "CYRUS_SERVICE": "smmap", "CYRUS_ID": "0", "CYRUS_USER": user()
        }  # fmt: skip
        self.listener = socket.socket(socket.AF_INET if inet else socket.AF_UNIX)
        self.listener.bind(("127.0.0.1", 0) if inet else str(folder / "listener"))
        self.listener.listen(64)
        if not inet:
            (folder / "listener").chmod(0o777)
        self.children: list[subprocess.Popen[bytes]] = []
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait(PATIENCE)
        self.die()
        os.close(self._writing)

    def fork(self) -> "subprocess.Popen[bytes]":
        """Start a process of the service."""
        with (self._folder / "stderr").open("ab") as stderr:
            child = subprocess.Popen(
                ["bash", "-c", 'exec "$@" 3>&$PIPE 4<&$LISTENER', "bash", *self.command],
                env={**self.environ, "PIPE": str(self._writing), "LISTENER": str(self.listener.fileno())},
                pass_fds=(self._writing, self.listener.fileno()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=stderr, cwd=self._folder,
            )  # fmt: skip
        self.children.append(child)
        return child

    def die(self) -> None:
        """Close the reading end of the pipe, and the listener."""
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1
        self.listener.close()

    def told(self) -> list[tuple[int, int]]:
        """The messages since the last look: code and process id."""
        try:
            octets = os.read(self._reading, 1 << 16)
        except BlockingIOError:
            return []
        assert len(octets) % 8 == 0
        return list(struct.iter_unpack("=ii", octets))

    def client(self) -> "Client":
        """A new client, not necessarily accepted yet."""
        connection = socket.socket(self.listener.family)
        connection.settimeout(PATIENCE)
        connection.connect(self.listener.getsockname())
        return Client(connection)

    def stderr(self) -> str:
        """What the children have said there."""
        return (self._folder / "stderr").read_text(errors="backslashreplace")


class Client:
    """One connection; replies as they come on the wire."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, key: bytes) -> bytes:
        """Ask one question, and give the reply."""
        self.socket.sendall(b"%d:cyrus %b," % (len(key) + 6, key))
        return self.reply()

    def reply(self) -> bytes:
        """The next reply, with its frame; empty at the end."""
        head = b""
        while not head.endswith(b":"):
            one = self.socket.recv(1)
            if not one:
                assert not head
                return b""
            head += one
        body = b""
        while len(body) <= int(head[:-1]):
            body += self.socket.recv(int(head[:-1]) + 1 - len(body))
        return head + body

    def rest(self) -> bytes:
        """Everything until the server closes."""
        octets = b""
        try:
            while more := self.socket.recv(65536):
                octets += more
        except ConnectionResetError:
            pass
        return octets


def ended(child: "subprocess.Popen[bytes]") -> int:
    """Wait for the end of a child; its exit status."""
    assert wait_until(lambda: child.poll() is not None, PATIENCE)
    return child.wait(PATIENCE)
