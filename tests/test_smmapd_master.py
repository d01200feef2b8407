"""smmapd as a process: what it tells master, when it ends and with which status, and who else may start it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.smmapd import PATIENCE, Client, Conf, FakeMaster, ended, installed, interpreter, user

pytestmark = pytest.mark.daemon

NONE = b"31:NOTFOUND Mailbox does not exist,"


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    with sheltered("smmapd") as place:
        yield installed(place)


@pytest.fixture
def folder() -> Iterator[Path]:
    with sheltered("smmap") as place:
        yield place


@pytest.fixture
def master(program: Path, folder: Path) -> Iterator[FakeMaster]:
    with FakeMaster(folder, program, "-C", str(Conf(folder).path)) as here:
        yield here


def gone(child: "subprocess.Popen[bytes]", status: int) -> None:
    assert ended(child) == status


# What master is told.


def test_each_connection_is_told_by_a_four_and_nothing_else(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as one, master.client() as two:
        assert one.ask(b"foo") == b"6:OK foo,"
        assert two.ask(b"nobody") == NONE
        assert one.ask(b"bar") == b"6:OK bar,"
        assert master.told() == [(4, child.pid)] * 2
    with master.client() as three:
        assert three.ask(b"foo") == b"6:OK foo,"
    assert master.told() == [(4, child.pid)]


def test_several_workers_share_a_listener_and_count_each_client_once(master: FakeMaster) -> None:
    children = [master.fork() for _ in range(3)]
    for _ in range(60):
        with master.client() as client:
            assert client.ask(b"foo") == b"6:OK foo,"
    told = master.told()
    assert len(told) == 60
    assert {code for code, _ in told} == {4}
    assert {pid for _, pid in told} <= {child.pid for child in children}


def test_a_pipe_that_is_full_holds_nobody_up_and_nothing_is_forgotten(master: FakeMaster) -> None:
    filled = 0
    os.set_blocking(master._writing, False)
    try:
        while True:
            filled += os.write(master._writing, b"\0" * 8)
    except BlockingIOError:
        os.set_blocking(master._writing, True)
    child = master.fork()
    for _ in range(5):
        with master.client() as client:
            assert client.ask(b"foo") == b"6:OK foo,"
    while filled:
        told = len(master.told())
        filled -= 8 * told
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
    assert master.told() == [(4, child.pid)] * 6


def test_the_descriptors_of_master_are_for_no_child_of_ours(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as client:
        client.ask(b"foo")
        for descriptor in (3, 4):
            flags = Path(f"/proc/{child.pid}/fdinfo/{descriptor}").read_text()
            octal = next(line.split()[1] for line in flags.splitlines() if line.startswith("flags:"))
            assert int(octal, 8) & os.O_CLOEXEC, descriptor


def test_it_is_not_root(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as client:
        client.ask(b"foo")
        status = Path(f"/proc/{child.pid}/status").read_text()
    uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert "0" not in uids


# When it ends.


def test_the_uses_are_counted_and_the_last_client_is_served_to_its_end(master: FakeMaster) -> None:
    master.command += ["-U", "2"]
    child = master.fork()
    with master.client() as one, master.client() as two, master.client() as three:
        assert one.ask(b"foo") == b"6:OK foo,"
        assert two.ask(b"foo") == b"6:OK foo,"
        # It says that it takes no more, so that master starts another for the third.
        assert wait_until(lambda: (2, child.pid) in master.told(), PATIENCE)
        other = master.fork()
        assert three.ask(b"foo") == b"6:OK foo,"
        assert two.ask(b"bar") == b"6:OK bar,"
        assert child.poll() is None
    gone(child, 0)
    assert other.poll() is None


def test_the_last_use_of_one_after_the_other_ends_it_without_a_word(master: FakeMaster) -> None:
    master.command += ["-U", "2"]
    child = master.fork()
    for _ in range(2):
        with master.client() as client:
            assert client.ask(b"foo") == b"6:OK foo,"
    gone(child, 0)
    assert [code for code, _ in master.told()] in ([4, 4], [4, 4, 2])


@pytest.mark.parametrize("uses", ["0", "-1", "nonsense"])
def test_no_uses_are_one(master: FakeMaster, uses: str) -> None:
    master.command += ["-U", uses]
    child = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
    gone(child, 0)


def test_who_was_used_and_is_idle_ends_after_the_time_out_and_who_was_not_does_not(master: FakeMaster) -> None:
    master.command += ["-T", "1"]
    used = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
        unused = master.fork()
        time.sleep(1.5)
        assert used.poll() is None  # it has a client
    began = time.monotonic()
    gone(used, 0)
    assert 0.9 <= time.monotonic() - began < 5
    assert [code for code, _ in master.told()] == [4]
    assert unused.poll() is None


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGHUP, 0), (signal.SIGALRM, 0), (signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGQUIT, 75)],
)
def test_an_idle_process_ends_at_once(master: FakeMaster, number: signal.Signals, status: int) -> None:
    child = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
    master.told()
    child.send_signal(number)
    gone(child, status)
    assert [code for code, _ in master.told()] in ([], [2])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 0), (signal.SIGTERM, 75)])
def test_what_was_asked_is_answered_before_a_signal_ends_it(
    master: FakeMaster, number: signal.Signals, status: int
) -> None:
    child = master.fork()
    with master.client() as client, master.client() as idle:
        assert idle.ask(b"foo") == b"6:OK foo,"
        assert client.ask(b"foo") == b"6:OK foo,"
        child.send_signal(signal.SIGSTOP)
        client.socket.sendall(b"9:cyrus foo,9:cyrus bar,")
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)
        assert client.rest() == b"6:OK foo,6:OK bar,"
        assert idle.rest() == b""
    gone(child, status)


def test_other_signals_are_ignored(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as client:
        client.ask(b"foo")
        for number in (signal.SIGUSR2, signal.SIGPIPE):
            child.send_signal(number)
        assert client.ask(b"bar") == b"6:OK bar,"


def test_a_replaced_program_serves_its_clients_to_the_end_and_takes_no_more(
    folder: Path, master: FakeMaster, program: Path
) -> None:
    own = folder / "own"
    own.write_bytes(program.read_bytes())
    own.chmod(0o755)
    master.command[0] = str(own)
    child = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
        own.write_bytes(program.read_bytes() + b"# newer\n")
        with master.client() as next_one:
            assert wait_until(lambda: (2, child.pid) in master.told(), PATIENCE)
            assert client.ask(b"bar") == b"6:OK bar,"
            newer = master.fork()
            assert next_one.ask(b"foo") == b"6:OK foo,"
    gone(child, 0)
    assert newer.poll() is None


def test_a_link_that_leads_elsewhere_is_a_replaced_program(folder: Path, master: FakeMaster, program: Path) -> None:
    link = folder / "link"
    link.symlink_to(program)
    master.command[0] = str(link)
    child = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
    other = folder / "other"
    other.write_bytes(b"#!/bin/sh\n")
    (folder / "new").symlink_to(other)
    (folder / "new").rename(link)
    with master.client():
        gone(child, 0)


def test_without_a_master_it_ends(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as client:
        assert client.ask(b"foo") == b"6:OK foo,"
        master.die()
        gone(child, 75)


# What must not end it.


def test_a_broken_request_costs_one_client_alone(master: FakeMaster) -> None:
    child = master.fork()
    with master.client() as good:
        assert good.ask(b"foo") == b"6:OK foo,"
        with master.client() as bad:
            bad.socket.sendall(b"9:cyrus foo,abc9:cyrus foo,")
            assert bad.rest() == b"6:OK foo,34:PERM Bad protocol (missing length),"
        assert good.ask(b"foo") == b"6:OK foo,"
    assert child.poll() is None


def test_a_missing_database_is_temporary_and_noticed_when_it_is_back(folder: Path, program: Path) -> None:
    conf = Conf(folder)
    (conf.directory / "mailboxes.db").unlink()
    with FakeMaster(folder, program, "-C", str(conf.path)) as master:
        child = master.fork()
        with master.client() as client:
            assert client.ask(b"foo").split(b":", 1)[1].startswith(b"TEMP ")
            conf.mailboxes("foo")
            assert client.ask(b"foo") == b"6:OK foo,"
        assert child.poll() is None
        assert sorted(one.name for one in conf.directory.iterdir()) == ["mailboxes.db"]  # and nothing else was made


# How it does not start.


def by_nobody(**more: str) -> dict[str, str]:
    """An environment without a master, for one who is to become nobody."""
    return {"PATH": os.environ["PATH"], "CYRUS_USER": user(), **more}


def run(program: Path, *words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *words], env=by_nobody(**environ), cwd="/", check=False,
        input="", capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


UNDER_MASTER = {"CYRUS_SERVICE": "smmap", "CYRUS_ID": "0"}


@pytest.mark.parametrize(
    "case",
    [
        (["-U30"], UNDER_MASTER, 64, "a word of its own"),
        (["--help"], UNDER_MASTER, 64, "usage: smmapd"),
        (["-C", "-foo"], UNDER_MASTER, 64, "a word of its own"),
        (["-Z"], UNDER_MASTER, 64, "no switch -Z"),
        (["-C"], UNDER_MASTER, 64, "-C needs a value"),
        (["-C", "CONF", "-L", "nonsense"], {}, 64, "unix:/path"),
        (["-C", "CONF"], {}, 70, "could not getenv(CYRUS_SERVICE)"),
        (["-C", "CONF"], {"CYRUS_SERVICE": "smmap"}, 70, "could not getenv(CYRUS_ID)"),
        (["-C", "CONF"], {"CYRUS_ID": "0"}, 70, "could not getenv(CYRUS_SERVICE)"),
        (["-C", "CONF"], {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, 70, "could not getenv(CYRUS_SERVICE)"),
        (["-C", "CONF"], UNDER_MASTER, 75, "descriptor 4 is not the listener"),
        (["-C", "CONF", "-L", "unix:/nowhere/at/all"], {}, 75, "there is no directory /nowhere/at"),
        (["-C", "/no/such/file", "-X"], {}, 78, "cannot open /no/such/file"),
        (["-C", "BAD", "-X"], {}, 78, "neither on nor off"),
        (["-C", "CONF", "-X"], {"CYRUS_USER": "no-such-user"}, 78, "must not run as root"),
        (["-C", "CONF", "-X"], {"CYRUS_USER": "root"}, 78, "must not run as root"),
    ],
)
def test_what_cannot_start_says_why_and_ends_with_its_status(
    folder: Path, program: Path, case: tuple[list[str], dict[str, str], int, str]
) -> None:
    words, environ, status, say = case
    if "root" in say and os.geteuid() != 0:
        pytest.skip("only root can stay root")
    conf = Conf(folder)
    bad = folder / "bad.conf"
    bad.write_text(f"configdirectory: {conf.directory}\nunixhierarchysep: maybe\nauditlog: perhaps\n")
    places = {"CONF": str(conf.path), "BAD": str(bad)}
    done = run(program, *(places.get(word, word) for word in words), **environ)
    assert (done.returncode, done.stdout) == (status, "")
    assert say in done.stderr
    assert "Traceback" not in done.stderr
    if "BAD" in words:
        assert f"{bad}:2: " in done.stderr
        assert f"{bad}:3: " in done.stderr  # all faults at once


# Who else starts it.


def test_inetd_gives_it_a_connected_socket(folder: Path, program: Path) -> None:
    conf = Conf(folder)
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with subprocess.Popen(
        [str(program), "-C", str(conf.path)], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno(),
        env=by_nobody(),
    ) as child, Client(ours) as client:  # fmt: skip
        theirs.close()
        assert client.ask(b"foo") == b"6:OK foo,"
        assert client.ask(b"nobody") == NONE
        client.socket.sendall(b"abc")
        # Not a word of a log, though standard error is the client's, too.
        assert client.rest() == b"34:PERM Bad protocol (missing length),"
        gone(child, 0)


def test_on_pipes_by_x(folder: Path, program: Path) -> None:
    done = subprocess.run(
        [program, "-C", Conf(folder).path, "-X"], input=b"9:cyrus foo,0009:other foo,4: foo,9:cyrus",
        env=by_nobody(), capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    size = b"53:PERM Bad protocol (request size doesn't match length),"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"6:OK foo,6:OK foo,6:OK foo," + size, b"")


def test_systemd_gives_it_listeners(folder: Path, program: Path) -> None:
    conf = Conf(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            ["bash", "-c", 'LISTEN_PID=$$ exec "$@" 3>&$LISTENER', "sh", program, "-C", conf.path, "-U", "1"],
            env=by_nobody(LISTEN_FDS="1", LISTENER=str(listener.fileno())),
            pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL,
        )  # fmt: skip
        with Client(socket.create_connection(listener.getsockname(), PATIENCE)) as client:
            assert client.ask(b"foo") == b"6:OK foo,"
        gone(child, 0)


def test_by_hand_it_listens_where_it_is_told_and_logs_to_standard_error(folder: Path, program: Path) -> None:
    conf = Conf(folder, auditlog="yes", syslog_prefix="cyrus")
    path = folder / "sock"
    child = subprocess.Popen(
        [str(program), "-C", str(conf.path), "-L", f"unix:{path}"], env=by_nobody(),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert wait_until(path.is_socket, PATIENCE)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            client = Client(connection)
            assert client.ask(b"foo") == b"6:OK foo,"
            assert client.ask(b"no\nbody") == NONE
            connection.sendall(b"x")
            client.rest()
    finally:
        child.terminate()
        _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    lines = [line.split(": ", 1)[1] for line in said.decode().splitlines() if "auditlog" in line]
    assert lines == [
        "auditlog: ok userid=<foo> client=<[unix socket]>",
        "auditlog: nonexistent userid=<no\\x0abody> client=<[unix socket]>",
        "auditlog: failed userid=<> client=<[unix socket]>",
    ]
    assert f"cyrus/smmap[{child.pid}]" in said.decode()


# What it costs to start.

# Heavy, and none of smmapd's business.
HEAVY = {
    "argparse", "idna", "dns", "sqlite3", "sqlalchemy", "json", "logging.handlers", "tomllib", "rcptd.drive",
    "rcptd.engine", "rcptd.config", "rcptd_milter", "milter", "Milter", "email", "http", "importlib.metadata", "ctypes",
    "multiprocessing", "unittest", "pickle", "random", "hashlib",
}  # fmt: skip


def test_it_imports_only_what_it_needs(folder: Path) -> None:
    program = installed(folder, modules=True)
    done = run(program, "-C", str(Conf(folder).path), "-X")
    assert done.returncode == 0
    imported = set(done.stderr.split())
    assert "asyncio" in imported
    assert imported & HEAVY == set()
    assert {one for one in imported if one.startswith("rcptd_socketmap.")} <= {
        "rcptd_socketmap.connection", "rcptd_socketmap.protocol", "rcptd_socketmap.server", "rcptd_socketmap.stdio",
    }  # fmt: skip
    assert interpreter()
