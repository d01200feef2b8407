"""Listening sockets: rights before names, overlapping restarts, inherited descriptors, clear faults."""

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rcptd import sockets
from rcptd.schema import Address
from rcptd.sockets import Inherited, Listening, allow_descriptors, inherited, listen, listen_unix, publish, withdraw

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory: the path of a unix socket has 107 octets."""
    with tempfile.TemporaryDirectory(prefix="rcptd-") as name:
        yield Path(name)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def free_port(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def rights(path: Path) -> tuple[int, int, int]:
    there = path.lstat()
    return stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_unix_socket_has_its_mode_whatever_the_umask(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listening = listen_unix(place / "s", mode=0o660)
    finally:
        os.umask(before)
    assert rights(place / "s")[0] == 0o660
    assert answers(place / "s")
    assert not listening.socket.getblocking()
    assert not listening.socket.get_inheritable()
    listening.close()
    assert list(place.iterdir()) == []


@pytest.mark.skipif(not ROOT, reason="only root gives sockets away")
def test_a_unix_socket_has_its_owner_and_group(place: Path) -> None:
    [listening] = listen([Address("unix", str(place / "s"))], mode=0o600, owner=NOBODY, group=NOBODY)
    assert rights(place / "s") == (0o600, NOBODY, NOBODY)
    listening.close()
    listening = listen_unix(place / "s", mode=0o600, group=NOBODY)
    assert rights(place / "s") == (0o600, 0, NOBODY)
    listening.close()


def test_nobody_gets_in_before_the_rights_are_right(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early: list[bool] = []
    chmod = Path.chmod

    def watched(path: Path, mode: int) -> None:
        early.append(answers(path))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    listen_unix(place / "s", mode=0o600).close()
    assert early == [False]


def test_a_restart_overlaps_and_the_elder_leaves_the_name_alone(place: Path) -> None:
    elder = listen_unix(place / "s", mode=0o600)
    younger = listen_unix(place / "s", mode=0o600)
    elder.close()
    assert answers(place / "s")
    younger.close()
    assert not (place / "s").exists()
    elder.close()  # twice is as good as once


def test_stale_sockets_are_replaced(place: Path) -> None:
    for name in ("s", "s.new"):
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(place / name))
        dead.close()
    listening = listen_unix(place / "s", mode=0o600)
    assert answers(place / "s")
    assert [each.name for each in place.iterdir()] == ["s"]
    listening.close()


@pytest.mark.parametrize("name", ["s", "s.new"])
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_replaced(place: Path, name: str, kind: str) -> None:
    there = place / name
    if kind == "file":
        there.write_text("precious")
    elif kind == "directory":
        there.mkdir()
    else:
        there.symlink_to("elsewhere")
    with pytest.raises(FileExistsError, match="something that is no socket; move it away"):
        listen_unix(place / "s", mode=0o600)
    assert [each.name for each in place.iterdir()] == [name]


def fault(address: Address, *, owner: int | None = None, group: int | None = None) -> OSError:
    with pytest.raises(OSError, match=r".") as caught:
        listen([address], owner=owner, group=group)
    return caught.value


def test_a_missing_directory_is_named(place: Path) -> None:
    error = fault(Address("unix", f"{place}/none/s"))
    assert error.errno == errno.ENOENT
    assert error.strerror == (
        f"unix:{place}/none/s: there is no directory {place}/none; make it (RuntimeDirectory= in a service unit does)"
    )


def test_a_directory_that_is_none_is_named(place: Path) -> None:
    (place / "file").touch()
    assert fault(Address("unix", f"{place}/file/s")).strerror == (
        f"unix:{place}/file/s: {place}/file is no directory"
    )


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Be an ordinary user for the length of a test."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "is mounted read-only (ReadWritePaths= in a service unit opens it)"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_directory_that_takes_no_names_is_told_and_nothing_is_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def fail(_path: Path, _target: Path) -> Path:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "rename", fail)
    strerror = fault(Address("unix", f"{place}/s")).strerror
    assert strerror
    assert strerror.endswith(said)
    assert list(place.iterdir()) == []


def test_a_stale_name_that_cannot_be_removed_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES if missing_ok else errno.EPERM, "no")

    monkeypatch.setattr(Path, "unlink", fail)
    error = fault(Address("unix", f"{place}/s"))
    assert error.strerror
    assert "may not write to" in error.strerror


def test_a_mode_that_cannot_be_set_is_told_and_nothing_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, _mode: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "chmod", fail)
    assert fault(Address("unix", f"{place}/s")).strerror == (
        f"unix:{place}/s: cannot set the mode and owner of the socket: Input/output error"
    )
    assert list(place.iterdir()) == []


@pytest.fixture
def open_place(place: Path) -> Path:
    place.chmod(0o777)
    return place


@pytest.mark.skipif(not ROOT, reason="takes another user")
@pytest.mark.usefixtures("as_nobody")
def test_a_directory_of_somebody_else_is_told_with_our_name() -> None:
    assert fault(Address("unix", "/usr/s")).strerror == "unix:/usr/s: user nobody may not write to /usr"


@pytest.mark.skipif(not ROOT, reason="takes another user")
@pytest.mark.usefixtures("open_place", "as_nobody")
@pytest.mark.parametrize(
    ("owner", "group", "whom"),
    [(0, 54321, "user root and group 54321"), (54321, None, "user 54321"), (None, 0, "group root")],
)
def test_giving_a_socket_away_without_the_right_to_is_told(
    place: Path, owner: int | None, group: int | None, whom: str
) -> None:
    assert fault(Address("unix", f"{place}/s"), owner=owner, group=group).strerror == (
        f"unix:{place}/s: user nobody may not give the socket to {whom}: "
        "root may, and a member of a group may give it to the group"
    )
    assert list(place.iterdir()) == []


def test_publishing_what_somebody_else_opened(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place / "m.new"))
        other.listen()
        identity = publish(place / "m.new", place / "m", 0o660)
        assert rights(place / "m")[0] == 0o660
        assert answers(place / "m")
        assert not withdraw(place / "m", (identity[0], identity[1] + 1))
        assert withdraw(place / "m", identity)
        assert not withdraw(place / "m", identity)


def test_publishing_what_is_not_there(place: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot set the mode and owner of the socket: No such file"):
        publish(place / "m.new", place / "m", 0o660)


def test_an_inet_listener() -> None:
    port = free_port()
    [listening] = listen([Address("inet", "127.0.0.1", port)])
    assert listening.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert not listening.socket.getblocking()
    socket.create_connection(("127.0.0.1", port), 5).close()
    taken = fault(Address("inet", "127.0.0.1", port))
    assert taken.errno == errno.EADDRINUSE
    assert taken.strerror == (
        f"inet:127.0.0.1:{port}: the port is in use, perhaps by another rcptd; see ss -ltnp sport = {port}"
    )
    listening.close()


def test_inet6_leaves_the_port_of_inet_alone() -> None:
    port = free_port(socket.AF_INET6, "::")
    opened = listen([Address("inet6", "::", port), Address("inet", "0.0.0.0", port)])
    for each in opened:
        each.close()


def test_an_address_of_another_host() -> None:
    assert fault(Address("inet", "192.0.2.7", free_port())).strerror.endswith(  # type: ignore[union-attr]
        "no interface of this host has that address"
    )


class _Refusing(socket.socket):
    """A socket whose bind fails as it is told to."""

    fault = OSError(errno.EACCES, "Permission denied")

    def bind(self, _address: object) -> None:
        raise self.fault


def test_a_port_of_the_mighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", _Refusing)
    assert fault(Address("inet", "127.0.0.1", 25)).strerror == (
        "inet:127.0.0.1:25: ports below 1024 are for root or CAP_NET_BIND_SERVICE; take a higher one"
    )
    monkeypatch.setattr(_Refusing, "fault", OSError(errno.ENOBUFS, "No buffer space available"))
    assert fault(Address("inet", "127.0.0.1", 25)).strerror == "inet:127.0.0.1:25: No buffer space available"


def test_a_system_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    assert fault(Address("inet6", "::1", 7850)).strerror == (
        "inet6:[::1]:7850: this system has no such protocol: Address family not supported by protocol"
    )


def test_all_are_opened_or_none(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        listen([Address("unix", f"{place}/s"), Address("unix", f"{place}/none/s")])
    assert list(place.iterdir()) == []


def test_a_port_in_use_leaves_the_sockets_of_the_one_who_runs_alone(place: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as used:
        inet, unix = Address("inet", "127.0.0.1", used.getsockname()[1]), Address("unix", f"{place}/s")
        (running,) = listen([unix])
        with pytest.raises(OSError, match="in use"):
            listen([unix, inet])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(unix.host)
        running.close()


def test_descriptors_may_be_raised_up_to_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert allow_descriptors(100) == 256
        assert allow_descriptors(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        if hard != resource.RLIM_INFINITY:
            assert allow_descriptors(hard + 1) == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("limits", "allowed", "set_to"),
    [
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 5000, None),
        ((1024, resource.RLIM_INFINITY), 5000, 5000),
        ((1024, 4096), 4096, 4096),
    ],
)
def test_limits_that_are_infinite(
    limits: tuple[int, int], allowed: int, set_to: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: done.append(new))
    assert allow_descriptors(5000) == allowed
    assert done == ([(set_to, limits[1])] if set_to else [])


# Inherited descriptors. They must be 3 and up, so a shell puts them there in a process of its own.

CHILD = """
import os, sys
from rcptd import sockets
from rcptd.schema import Address
try:
    passed = sockets.inherited()
    print(sorted(name for name in os.environ if name.startswith("LISTEN_")), passed.left)
    for name in sys.argv[1:]:
        opened = sockets.listen([Address("fd", name)], passed=passed)
        print(name, len(opened), [each.socket.get_inheritable() for each in opened], passed.left)
        for each in opened:
            each.close()
except OSError as error:
    print(error.strerror)
"""


def with_descriptors(
    listeners: list[socket.socket], *take: str, number: str | None = None, names: str | None = None, pid: str = "$$"
) -> list[str]:
    numbers = [each.fileno() for each in listeners]
    # First out of the way of 3 and up, then there.
    moved = "".join(f" {60 + at}<&{fd}" for at, fd in enumerate(numbers))
    placed = "".join(f" {3 + at}<&{60 + at}" for at in range(len(numbers)))
    variables = f"LISTEN_PID={pid} LISTEN_FDS={len(numbers) if number is None else number} "
    if names is not None:
        variables += f"LISTEN_FDNAMES={names} "
    script = f'exec{moved}\nexec{placed}\nexec env {variables} "$0" -c "$@"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, CHILD, *take],
        capture_output=True, text=True, timeout=30, check=False, pass_fds=numbers,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def passed(place: Path) -> Iterator[list[socket.socket]]:
    unix, inet, second = socket.socket(socket.AF_UNIX), socket.socket(), socket.socket()
    unix.bind(str(place / "s"))
    inet.bind(("127.0.0.1", 0))
    second.bind(("127.0.0.1", 0))
    for each in (unix, inet, second):
        each.listen()
    yield [unix, inet, second]
    for each in (unix, inet, second):
        each.close()


def test_descriptors_are_taken_by_name_and_a_name_may_have_several(
    passed: list[socket.socket], place: Path
) -> None:
    assert with_descriptors(passed, "map", "control", names="map:control:map") == [
        "[] ['control', 'map']",
        "map 2 [False, False] ['control']",
        "control 1 [False] []",
    ]
    assert (place / "s").exists()  # the name is the service manager's


def test_descriptors_without_names_go_by_their_numbers(passed: list[socket.socket]) -> None:
    assert with_descriptors(passed, "4", "4") == [
        "[] ['3', '4', '5']",
        "4 1 [False] ['3', '5']",
        "fd:4: no such inherited descriptor; there are 3, 5 (FileDescriptorName= in a socket unit)",
    ]


@pytest.mark.parametrize(("pid", "number"), [("1", "3"), ("$$", "x"), ("$$", "''"), ("''", "3")])
def test_descriptors_that_are_not_for_us_are_left_alone(
    passed: list[socket.socket], pid: str, number: str
) -> None:
    assert with_descriptors(passed, "map", names="map:map:map", pid=pid, number=number) == [
        "[] []",
        "fd:map: no such inherited descriptor; there are none (FileDescriptorName= in a socket unit)",
    ]


def test_numbers_and_names_that_disagree(passed: list[socket.socket]) -> None:
    assert with_descriptors(passed, names="map") == ["LISTEN_FDS=3 and LISTEN_FDNAMES='map' do not agree"]


def test_descriptors_of_the_wrong_kind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        [said] = with_descriptors([datagrams], names="map")
        assert said == (
            "fd:map: inherited descriptor 3 is no listening stream socket; "
            "the socket unit needs ListenStream= and Accept=no"
        )
    one, other = socket.socketpair()
    with one, other:
        assert with_descriptors([one], names="map")[0].startswith("fd:map: inherited descriptor 3 is no listening")
    assert with_descriptors([], names="map", number="1") == [
        "fd:map: inherited descriptor 3 is no listening stream socket"
    ]


def test_taking_descriptors_over_in_process(passed: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "map", "HOME": "/"}
    monkeypatch.setattr(sockets, "FIRST_INHERITED", os.dup(passed[0].fileno()))
    taken = inherited(environ)
    assert environ == {"HOME": "/"}
    [listening] = listen([Address("fd", "map")], passed=taken)
    assert listening.identity is None
    listening.close()
    assert inherited({}).left == []
    with pytest.raises(OSError, match="there are none"):
        listen([Address("fd", "map")])
    with pytest.raises(OSError, match="do not agree"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "map"})


def test_wrong_descriptors_in_process(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    one, other = socket.socketpair()
    with one, other:
        monkeypatch.setattr(sockets, "FIRST_INHERITED", one.fileno())
        with pytest.raises(OSError, match="needs ListenStream="):
            inherited(dict(environ))
        one.send(b"still open")
    with (place / "file").open("w") as file:
        monkeypatch.setattr(sockets, "FIRST_INHERITED", file.fileno())
        with pytest.raises(OSError, match=r"is no listening stream socket$"):
            inherited(dict(environ))


def test_names_in_process() -> None:
    assert Inherited().left == []
    assert Inherited({"b": [], "a": []}).left == ["a", "b"]


def test_users_and_groups_without_names() -> None:
    assert sockets._user(0) == "root"
    assert sockets._group(0) == "root"
    assert sockets._user(54321) == "54321"
    assert sockets._group(54321) == "54321"


def test_a_listener_without_a_name_of_its_own_closes() -> None:
    listener = socket.socket()
    Listening(Address("inet", "127.0.0.1", 1), listener).close()
    assert listener.fileno() == -1
