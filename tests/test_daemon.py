"""Ring 3: the installed daemon over its real sockets: reload, faults, hostile clients, restart, drain."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from rcptd import netstring
from rcptd.question import Mailbox
from rcptd_daemon import serve
from tests.rig.daemon import HEAD, RCPTD, Daemon, fill, rcptd
from tests.rig.place import sheltered
from tests.rig.ports import wait_until

pytestmark = pytest.mark.daemon

RULES = """
[stores.local]
type = "sqlite"
path = "{folder}/recipients.db"

[[rules]]
name = "our mailboxes"
when = { domain = "example.org" }
verify = ["local"]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with sheltered("daemon") as folder:
        fill(folder / "recipients.db", {"user@example.org": Mailbox(), "other@example.org": Mailbox()})
        yield folder


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[Daemon]:
    with Daemon(place, HEAD + RULES) as running:
        yield running


class Client:
    """A socketmap client in lock step."""

    def __init__(self, daemon: Daemon, *, unix: bool = False) -> None:
        if unix:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(daemon.folder / "socketmap.sock"))
        else:
            self.socket = socket.create_connection(("127.0.0.1", daemon.map_port), 10)
        self.socket.settimeout(10)
        self._input = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """Read one netstring; "" at the end."""
        length = b""
        while not length.endswith(b":"):
            octet = self._input.read(1)
            if not octet:
                return ""
            length += octet
        return self._input.read(int(length[:-1]) + 1)[:-1].decode()

    def ask(self, name: str, key: str) -> str:
        self.send(netstring.encode(f"{name} {key}".encode()))
        return self.reply()


def test_both_listeners_answer(daemon: Daemon) -> None:
    for unix in (False, True):
        with Client(daemon, unix=unix) as client:
            assert client.ask("any", "user@example.org") == "OK user@example.org"
            assert client.ask("any", "nobody@example.org") == "NOTFOUND No such mailbox"
            assert client.ask("access", "nobody@example.org") == "OK 550 5.1.1 No such mailbox"
            assert client.ask("sendmail", "user@example.org") == "OK OK"


def test_a_change_of_the_store_is_seen_at_the_next_question(daemon: Daemon) -> None:
    after = len(daemon.log())
    with Client(daemon) as client:
        for _ in range(3):  # the verdict of the first still stands
            assert client.ask("any", "new@example.org") == "NOTFOUND No such mailbox"
        assert rcptd("mailbox", "-c", str(daemon.file), "add", "new@example.org")[0] == 0
        for _ in range(3):
            assert client.ask("any", "new@example.org") == "OK new@example.org"
        assert rcptd("mailbox", "-c", str(daemon.file), "remove", "new@example.org")[0] == 0
        assert client.ask("any", "new@example.org") == "NOTFOUND No such mailbox"
    refusal = r"msg=reject ref=\S+ recipient=new@example\.org code=550 enhanced=5\.1\.1 .* session=\S+ ms=\S+\n"
    assert wait_until(lambda: len(re.findall(refusal, daemon.log()[after:])) == 4)  # each has a line
    lines = re.findall(refusal, daemon.log()[after:])
    assert len({re.sub("ref=.*? |ms=.*", "", line) for line in lines}) == 1
    assert len({re.search("ref=(.*?) ", line)[1] for line in lines}) == 4  # type: ignore[index]
    assert sum("ms=0.000" in line for line in lines) == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"99999999999999999999:",
        b"10001000:any user@example.org,",
        b"5:hello,",
        b"3:abcX",
        b"\x00\xff\xfe" * 100,
        b"-1:x,",
        b"007:any a@b,",
    ],
)
def test_garbage_gets_one_reply_and_a_closed_connection_while_others_are_served(daemon: Daemon, garbage: bytes) -> None:
    with Client(daemon) as good, Client(daemon) as bad:
        assert good.ask("any", "user@example.org").startswith("OK ")
        bad.send(garbage)
        assert bad.reply().startswith("PERM ")
        assert bad.reply() == ""
        assert good.ask("any", "user@example.org").startswith("OK ")


def test_half_a_request_and_silence_hold_up_nobody(daemon: Daemon) -> None:
    with Client(daemon) as silent, Client(daemon) as half, Client(daemon) as good:
        half.send(b"20:any user@exa")
        began = time.monotonic()
        assert good.ask("any", "user@example.org") == "OK user@example.org"
        assert time.monotonic() - began < 2
        half.send(b"mple.org,")
        assert half.reply() == "OK user@example.org"
        assert silent.ask("any", "user@example.org") == "OK user@example.org"


def test_many_connections_are_served(daemon: Daemon) -> None:
    clients = [Client(daemon) for _ in range(500)]
    try:
        for client in clients:
            client.send(netstring.encode(b"any user@example.org"))
        assert {client.reply() for client in clients} == {"OK user@example.org"}
    finally:
        for client in clients:
            client.__exit__()


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    keys = [f"{'user' if number % 2 else 'nobody'}@example.org" for number in range(2000)]
    with Client(daemon) as client:
        sender = threading.Thread(
            target=client.send, args=(b"".join(netstring.encode(f"any {key}".encode()) for key in keys),)
        )
        sender.start()
        replies = [client.reply() for _ in keys]
        sender.join()
    assert replies == [f"OK {key}" if key.startswith("user") else "NOTFOUND No such mailbox" for key in keys]


def test_check_live_and_from_the_file_say_the_same(daemon: Daemon) -> None:
    for address, code, verdict in (
        ("user@example.org", 0, "accept"),
        ("nobody@example.org", 1, "reject"),
        ("someone@elsewhere.example", 0, "none"),
        ("a b@example.org", 1, "reject"),
    ):
        live = daemon.check(address)
        from_file = daemon.check(address, live=False)
        assert live[0] == from_file[0] == code
        (one,), (other,) = live[1], from_file[1]
        assert one["verdict"] == verdict
        for result in (one, other):
            del result["ref"]
        assert one == other


def test_with_a_map_the_reply_decides(daemon: Daemon) -> None:
    assert daemon.check("--map", "any", "someone@elsewhere.example")[0] == 1
    assert daemon.check("--map", "access", "someone@elsewhere.example")[0] == 0


def test_addresses_come_from_standard_input(daemon: Daemon) -> None:
    stdin = "user@example.org\n\nnobody@example.org\n"
    code, out, _ = rcptd("check", "-c", str(daemon.file), "--json", "-", stdin=stdin)
    assert code == 1
    assert [json.loads(line)["verdict"] for line in out.splitlines()] == ["accept", "reject"]


def test_without_a_daemon_live_ends_with_69(tmp_path: Path) -> None:
    silent = Daemon(tmp_path, HEAD + RULES)
    code, _, err = rcptd("check", "-c", str(silent.file), "--live", "user@example.org")
    assert code == 69
    assert f"no answer from the running daemon at unix:{silent.folder / 'control.sock'}: " in err
    assert "is rcptd running" in err


def test_usage_ends_with_64_and_a_faulty_file_with_78(tmp_path: Path) -> None:
    assert rcptd("check")[0] == 64
    assert rcptd("frobnicate")[0] == 64
    faulty = tmp_path / "faulty.toml"
    faulty.write_text('[daemon]\ndeadline = "soon"\n\n[[rules]]\nverify = ["nowhere"]\n')
    for command in (["check", "a@b.example"], ["config"], ["serve"], ["mailbox", "list"]):
        code, _, err = rcptd(command[0], "-c", str(faulty), *command[1:])
        assert code == 78
        assert f"{faulty}:2: daemon.deadline: " in err
        assert f"{faulty}:5: rules.0.verify: there is no [stores.nowhere]" in err


def test_config_prints_a_configuration_that_says_the_same(daemon: Daemon, tmp_path: Path) -> None:
    code, out, _ = rcptd("config", "-c", str(daemon.file))
    assert code == 0
    again = tmp_path / "again.toml"
    again.write_text(out)
    code, twice, err = rcptd("config", "-c", str(again))
    assert code == 0, err

    def said(text: str) -> list[str]:
        return [line.partition("#")[0].rstrip() for line in text.splitlines()]

    assert said(twice) == said(out)


@pytest.mark.parametrize("request_", [b"garbage\n", b"[1]\n", b'{"op": "nothing"}\n', b'{"op": "check"}\n'])
def test_the_control_socket_answers_nonsense_with_an_error(daemon: Daemon, request_: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(daemon.folder / "control.sock"))
        control.sendall(request_)
        answer = json.loads(control.makefile("rb").readline())
    assert answer["ok"] is False
    assert answer["error"]


def test_the_control_socket_bounds_a_line_and_is_private(daemon: Daemon) -> None:
    path = daemon.folder / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(10)
        control.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            control.sendall(b"x" * 1_000_000)
    assert daemon.check("user@example.org")[0] == 0
    assert "control: connection from pid" in daemon.log()


def test_a_reload_takes_effect_and_a_faulty_one_does_not() -> None:
    with sheltered("reload") as folder, Daemon(folder, HEAD + RULES) as daemon, Client(daemon) as client:
        daemon.expected_errors.append('msg="store: ')
        fill(folder / "recipients.db", {"user@example.org": Mailbox()})
        assert wait_until(lambda: client.ask("any", "user@example.org") == "OK user@example.org", 5)
        daemon.write(HEAD + RULES.replace('verify = ["local"]', 'reject = "550 5.7.1 Closed for good"'))
        daemon.reload()
        assert "needs a restart" not in daemon.log()
        assert client.ask("access", "user@example.org") == "OK 550 5.7.1 Closed for good"
        daemon.expected_errors.append("rcptd.toml:|the file is faulty")
        daemon.write(HEAD + RULES.replace("local", "nowhere", 1).replace('"sqlite"', '"nothing"'))
        daemon.reload("the configuration before it stays in force")
        assert client.ask("access", "user@example.org") == "OK 550 5.7.1 Closed for good"
        daemon.write(HEAD.replace('mode = "0666"', 'mode = "0600"') + RULES)
        daemon.reload(r"(?s)the listener of \[socketmap\] has changed, which needs a restart.*is in force")
        so_far = daemon.log().count("needs a restart")
        daemon.write(HEAD + RULES)
        daemon.reload()  # back to what is running
        assert daemon.log().count("needs a restart") == so_far
        assert wait_until(lambda: client.ask("any", "user@example.org") == "OK user@example.org", 5)


def test_a_reload_changes_maps_for_open_connections_too() -> None:
    with sheltered("maps") as folder, Daemon(folder, HEAD + RULES) as daemon, Client(daemon) as client:
        daemon.expected_errors.append('msg="store: ')
        fill(folder / "recipients.db", {"user@example.org": Mailbox()})
        assert wait_until(lambda: client.ask("any", "user@example.org") == "OK user@example.org", 5)
        daemon.write(HEAD.replace('"*"      = "key"', '"*" = "access"') + RULES)
        daemon.reload()
        assert client.ask("any", "user@example.org") == "OK DUNNO"
        assert client.ask("any", "nobody@example.org") == "OK 550 5.1.1 No such mailbox"
        assert "needs a restart" not in daemon.log()


def test_a_store_that_is_killed_defers_and_comes_back() -> None:
    with sheltered("killed") as folder, Daemon(folder, HEAD + RULES) as daemon, Client(daemon) as client:
        daemon.expected_errors.append('msg="store: ')
        path = folder / "recipients.db"
        fill(path, {"user@example.org": Mailbox()})
        assert wait_until(lambda: client.ask("any", "user@example.org") == "OK user@example.org", 5)
        path.rename(folder / "away.db")
        assert wait_until(lambda: client.ask("any", "user@example.org").startswith("TEMP "), 5)
        assert client.ask("any", "nobody@example.org").startswith("TEMP ")
        assert client.ask("any", "x@elsewhere.example") == "NOTFOUND"
        path.write_bytes(os.urandom(20_000))
        time.sleep(1)
        assert client.ask("any", "user@example.org").startswith("TEMP ")
        (folder / "away.db").rename(path)
        assert wait_until(lambda: client.ask("any", "user@example.org") == "OK user@example.org", 5)
        assert client.ask("any", "nobody@example.org") == "NOTFOUND No such mailbox"


def test_sigterm_ends_it_quickly_and_takes_its_sockets_away() -> None:
    with sheltered("stop") as folder:
        daemon = Daemon(folder, HEAD + RULES).start()
        with Client(daemon) as idle:
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 3
            assert idle.reply() == ""
        assert not (folder / "socketmap.sock").exists()
        assert not (folder / "control.sock").exists()
        assert "level=info msg=stopped" in daemon.log()


def test_an_address_in_use_is_named_and_ends_with_71(daemon: Daemon) -> None:
    with sheltered("inuse") as folder:
        second = Daemon(folder, HEAD + RULES)
        second.map_port = daemon.map_port
        second.write(HEAD + RULES)
        second.start(ready=False)
        assert wait_until(lambda: not second.running)
        assert second.stop() == 71
        assert f"inet:127.0.0.1:{daemon.map_port}: the port is in use" in second.log()


def test_spawn_serves_one_connection_on_standard_input_and_logs_elsewhere(daemon: Daemon) -> None:
    here, there = socket.socketpair()
    with here, there:
        process = subprocess.Popen(
            [str(RCPTD), "serve", "--stdio", "-c", str(daemon.file)],
            stdin=there.fileno(),
            stdout=there.fileno(),
            stderr=there.fileno(),
        )
        there.close()
        here.settimeout(20)
        here.sendall(netstring.encode(b"any user@example.org") + netstring.encode(b"access nobody@example.org"))
        wanted = netstring.encode(b"OK user@example.org") + netstring.encode(b"OK 550 5.1.1 No such mailbox")
        got = b""
        while len(got) < len(wanted):
            got += here.recv(4096)
        assert got == wanted
        here.shutdown(socket.SHUT_WR)
        assert here.recv(4096) == b""
        assert process.wait(15) == 0


def test_readiness_status_and_watchdog_reach_the_service_manager() -> None:
    with sheltered("notify") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(15)
        daemon = Daemon(
            folder, HEAD + RULES, prefix=["env", f"NOTIFY_SOCKET={folder}/notify", "WATCHDOG_USEC=400000"]
        ).start()
        said = ""
        while "WATCHDOG=1" not in said:
            said += manager.recv(4096).decode() + "\n"
        assert "READY=1" in said
        os.kill(daemon.pid, signal.SIGHUP)
        while "RELOADING=1" not in said:
            said += manager.recv(4096).decode() + "\n"
        assert daemon.stop() == 0
        while "STOPPING=1" not in said:
            said += manager.recv(4096).decode() + "\n"


def test_a_process_with_both_front_ends_has_asyncios_loop_and_short_turns() -> None:
    both, maps, milter = serve.FRONT_ENDS, frozenset({"socketmap"}), frozenset({"milter"})
    assert serve.loop_factory(both) is None
    uvloop = pytest.importorskip("uvloop")
    assert serve.loop_factory(maps) is serve.loop_factory(milter) is uvloop.new_event_loop
    assert [serve.switch_interval(None, served) for served in (both, maps, milter)] == [0.0001, 0.005, 0.005]
    assert serve.switch_interval(0.001, both) == serve.switch_interval(0.001, milter) == 0.001


def test_without_uvloop_every_process_has_asyncios_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert serve.loop_factory(frozenset({"socketmap"})) is None
