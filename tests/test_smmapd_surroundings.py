"""What stands around smmapd: options, telemetry, the system's log, hosts.allow, keepalive, umask, the debugger."""

import asyncio
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rcptd_daemon.cyrus import hosts_files, program, system_log, telemetry
from rcptd_daemon.cyrus.answers import Answers
from rcptd_daemon.cyrus.options import DEFAULT_CONF, Options, Usage, read
from rcptd_daemon.cyrus.program import Program
from rcptd_daemon.cyrus.service import Door, Keepalive
from rcptd_daemon.cyrus.system_log import NOTICE, SystemLog, ident
from rcptd_daemon.cyrus.telemetry import Telemetry
from rcptd_daemon.cyrus.words import CYRUS
from rcptd_socketmap.connection import Connection
from tests.rig.place import sheltered
from tests.rig.smmapd import Conf, FakeMaster, ended, installed
from tests.test_smmapd_wire import StubJudge
from tests.test_socketmap_connection import Recorder

# The command line.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Options()),
        ("-C /x -U 5 -T 7 -D -p -X", Options(Path("/x"), 5, 7, debug=True, drop_folder=True, stdio=True)),
        ("-U -5", Options(uses=1)),
        ("-U 0", Options(uses=1)),
        ("-U 12x", Options(uses=12)),
        ("-T x", Options(idle=0)),
        ("-T -1", Options(idle=0)),
        ("-C a -C b", Options(Path("b"))),
        ("-L unix:/a -L inet:127.0.0.1:1", Options(listen=("unix:/a", "inet:127.0.0.1:1"))),
        ("stray - -p word", Options(drop_folder=True)),
        ("-- -Z", Options()),
    ],
)
def test_the_command_line_is_read_as_cyrus_reads_it(words: str, expected: Options) -> None:
    assert read(words.split()) == expected


def test_the_default_configuration_is_that_of_cyrus() -> None:
    assert Path("/etc/imapd.conf") == DEFAULT_CONF


@pytest.mark.parametrize("words", ["-U30", "-Dp", "--help", "-C -foo", "-U -10", "-H", "-C", "-p -L"])
def test_a_faulty_command_line_is_refused(words: str) -> None:
    with pytest.raises(Usage):
        read(words.split())


# Telemetry.


def recorded(directory: Path, client: str, *pieces: bytes) -> bytes:
    """Give what a client is answered on a connection that may be recorded."""

    async def main() -> bytes:
        transport = Recorder()
        connection = Connection(
            Answers(StubJudge(), strict=False), peer=client, on_lost=lambda _: None, dialect=CYRUS
        )
        protocol = Door(telemetry=Telemetry(directory, "smmap")).protocol(connection)
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
        protocol.pause_writing()
        protocol.resume_writing()
        protocol.eof_received()
        protocol.connection_lost(None)
        return transport.written

    return asyncio.run(main())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    directory = tmp_path / "log"
    directory.mkdir()
    return directory


def test_nothing_is_recorded_where_no_directory_is(tmp_path: Path, log: Path) -> None:
    assert recorded(tmp_path, "[192.0.2.7]", b"9:cyrus foo,") == b"6:OK foo,"
    assert list(log.iterdir()) == []


@pytest.mark.parametrize(("name", "client"), [("smmapd", "[192.0.2.7]"), ("192.0.2.7", "[192.0.2.7]"),
                                              ("unix", "[unix socket]")])  # fmt: skip
def test_a_directory_records_everybody_or_a_named_client(tmp_path: Path, log: Path, name: str, client: str) -> None:
    (log / name).mkdir()
    assert recorded(tmp_path, client, b"9:cyr", b"us foo,") == b"6:OK foo,"
    (file,) = (log / name).iterdir()
    assert file.name == f"smmap-{os.getpid()}-1"
    assert file.stat().st_mode & 0o777 == 0o600
    shown = client.strip("[]").replace("unix socket", "unix")
    pattern = rb"---------- %b \w{3} .*\n\n<\d{10}<9:cyr\n<\d{10}<us foo,\n>\d{10}>6:OK foo,"
    assert re.fullmatch(pattern % re.escape(shown.encode()), file.read_bytes())


def test_another_client_is_not_recorded(tmp_path: Path, log: Path) -> None:
    (log / "192.0.2.8").mkdir()
    recorded(tmp_path, "[192.0.2.7]", b"9:cyrus foo,")
    assert list((log / "192.0.2.8").iterdir()) == []


def test_a_record_is_bounded(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "FILE_OCTETS", 100)
    (log / "smmapd").mkdir()
    assert recorded(tmp_path, "[192.0.2.7]", b"9:cyrus foo," * 30) == b"6:OK foo," * 30
    (file,) = (log / "smmapd").iterdir()
    assert file.stat().st_size == 100
    monkeypatch.setattr(telemetry, "FILES", 0)
    recorded(tmp_path, "[192.0.2.7]", b"9:cyrus foo,")
    assert len(list((log / "smmapd").iterdir())) == 1


def test_a_name_that_somebody_put_there_as_a_link_is_not_followed(
    tmp_path: Path, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (log / "smmapd").mkdir()
    (log / "smmapd" / f"smmap-{os.getpid()}-1").symlink_to(tmp_path / "target")
    assert recorded(tmp_path, "[192.0.2.7]", b"9:cyrus foo,") == b"6:OK foo,"
    assert not (tmp_path / "target").exists()
    assert "cannot record" in caplog.text


# The system's log.


class Syslog:
    """A system log of our own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def lines(self) -> list[bytes]:
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(65536))
        return found


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    log = Syslog(tmp_path / "log")
    yield log
    log.socket.close()


@contextmanager
def system_log_at(path: Path, name: str = "x", facility: str | None = None) -> Iterator[SystemLog]:
    handler = SystemLog(name, facility, device=str(path))
    try:
        yield handler
    finally:
        handler.close()


def emit(handler: SystemLog, level: int, text: str) -> None:
    handler.emit(logging.LogRecord("x", level, "", 0, "%s", (text,), None))


def test_a_line_has_the_form_of_the_systems_log(syslog: Syslog) -> None:
    with system_log_at(syslog.path, "cyrus/smmap") as handler:
        emit(handler, NOTICE, "auditlog: ok userid=<foo> client=<[unix socket]>\nnot another line")
        emit(handler, logging.DEBUG, "accepted connection")
    (notice, debug) = syslog.lines()
    form = rb"<21>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d cyrus/smmap\[%d\]: auditlog: ok userid=<foo> .* not another line"
    assert re.fullmatch(form % os.getpid(), notice)
    assert debug.startswith(b"<23>")


@pytest.mark.parametrize(("facility", "first"), [("LOCAL6", b"<181>"), ("daemon", b"<29>"), ("nonsense", b"<21>")])
def test_the_facility_is_an_option(syslog: Syslog, facility: str, first: bytes) -> None:
    with system_log_at(syslog.path, facility=facility) as handler:
        emit(handler, NOTICE, "x")
    assert syslog.lines()[0].startswith(first)


def test_a_log_that_takes_nothing_costs_lines_and_says_how_many(syslog: Syslog) -> None:
    with system_log_at(syslog.path) as handler:
        sent = 0
        while not handler._dropped:
            emit(handler, NOTICE, "x" * 1000)
            sent += 1
            assert sent < 100_000
        emit(handler, NOTICE, "lost, too")
        assert len(syslog.lines()) == sent - 1
        emit(handler, NOTICE, "after")
    said, after = syslog.lines()
    assert said.endswith(b": 2 lines did not reach the log")
    assert after.endswith(b": after")


def test_a_log_that_was_started_again_is_found_again(tmp_path: Path) -> None:
    with system_log_at(tmp_path / "log") as handler:
        emit(handler, NOTICE, "nobody there")
        first = Syslog(tmp_path / "log")
        emit(handler, NOTICE, "one")
        assert [line.split(b": ", 1)[1] for line in first.lines()] == [b"1 lines did not reach the log", b"one"]
        first.socket.close()
        first.path.unlink()
        second = Syslog(tmp_path / "log")
        emit(handler, NOTICE, "two")
        assert [line.split(b": ", 1)[1] for line in second.lines()] == [b"two"]
        second.socket.close()


@pytest.mark.parametrize(
    ("prefix", "environ", "expected"),
    [
        (None, {}, "smmap"),
        ("cyrus", {}, "cyrus/smmap"),
        ("cyrus", {"CYRUS_SYSLOG_PREFIX": "mail"}, "mail/smmap"),
    ],
)
def test_the_ident_is_prefix_and_service(prefix: str | None, environ: dict[str, str], expected: str) -> None:
    assert ident("smmap", prefix, environ) == expected


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    others = {name: logging.getLogger(name).level for name in ("asyncio", "rcptd_socketmap")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in others.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.usefixtures("logging_as_it_was")
def test_debug_lines_name_the_error_as_the_original_does(syslog: Syslog) -> None:
    with system_log_at(syslog.path) as handler:
        system_log.set_up(handler, debug=True)
        answers = Answers(StubJudge(), strict=False)
        answers.begin("cyrus", b"nobody", "[unix socket]")
    assert syslog.lines()[0].endswith(b": verify_user(nobody) failed: Mailbox does not exist")


# hosts.allow and hosts.deny.


def test_only_a_rule_counts_as_one(tmp_path: Path) -> None:
    one, other = tmp_path / "allow", tmp_path / "deny"
    assert not hosts_files.have_rules((one, other))
    one.write_text("# /etc/hosts.allow\n\n  # nothing\n")
    assert not hosts_files.have_rules((one, other))
    other.write_text("smmap: ALL\n")
    assert hosts_files.have_rules((one, other))


class Refusing:
    """Rules that take one address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def allow(self, address: str) -> bool:
        return address == self.address


def test_a_refused_client_is_turned_away_and_a_unix_one_is_never_asked(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        door = Door(rules=Refusing("192.0.2.7"))
        assert door.admit(tcp, ("192.0.2.7", 1)) == "[192.0.2.7]"
        assert door.admit(tcp, ("192.0.2.8", 1)) is None
        assert door.admit(unix, "") == "[unix socket]"
    assert "refused connection from [192.0.2.8]" in caplog.text


HOSTS = """
import sys
from rcptd_daemon.cyrus.wrappers import Wrappers
rules = Wrappers("smmap")
print([rules.allow(one) for one in ("127.0.0.1", "192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::1")])
print(Wrappers("other").allow("192.0.2.8"))
"""


@pytest.mark.daemon
def test_the_rules_are_those_of_libwrap(tmp_path: Path) -> None:
    """In a mount namespace of its own, where hosts.allow and hosts.deny are ours."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace is not permitted here")
    allow, deny, ran = tmp_path / "allow", tmp_path / "deny", tmp_path / "ran"
    allow.write_text(f"smmap: 127.0.0.1\nsmmap: 192.0.2.7: spawn (touch {ran})\nsmmap: 192.0.2.9: twist touch {ran}\n")
    deny.write_text("smmap: ALL\n")
    over = "for one in allow deny; do mount --bind $one /etc/hosts.$one; done"
    mount = f"mount --make-rprivate / && cd {tmp_path} && {over}"
    if not all(Path(f"/etc/hosts.{one}").exists() for one in ("allow", "deny")):
        pytest.skip("there is no hosts.allow to mount over")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount}; exec {sys.executable} -c '{HOSTS}'"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if "libwrap" in done.stderr:
        pytest.skip("libwrap is not installed")
    assert done.stdout.splitlines() == ["[True, True, False, False, False]", "True"], done.stderr
    assert not ran.exists()


# The rest.


def test_keepalive_is_set_as_the_options_say() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, address = listener.accept()
        with accepted:
            door = Door(keepalive=Keepalive(count=3, idle=40, interval=5))
            assert door.admit(accepted, address) == "[127.0.0.1]"
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPCNT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
            assert [accepted.getsockopt(socket.IPPROTO_TCP, one) for one in options] == [3, 40, 5]
        assert client


def test_a_program_is_watched_by_what_it_was(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_text("1")
    watched = Program((str(one), str(tmp_path / "missing")))
    assert not watched.replaced()
    os.utime(one, (1, 1))
    assert watched.replaced()
    assert not Program((str(one),)).replaced()
    gone = Program((str(one),))
    one.unlink()
    assert gone.replaced()


def test_the_program_that_we_are_has_not_been_replaced() -> None:
    assert not program.started().replaced()


@pytest.fixture
def under_master() -> Iterator[Callable[..., FakeMaster]]:
    with sheltered("smmap") as folder:
        yield lambda *words, **options: FakeMaster(folder, installed(folder), "-C", str(Conf(folder, **options).path),
                                                   *words)  # fmt: skip


@pytest.mark.daemon
def test_the_umask_is_that_of_the_option(under_master: Callable[..., FakeMaster]) -> None:
    with under_master(umask="027") as master:
        child = master.fork()
        with master.client() as client:
            client.ask(b"foo")
            status = Path(f"/proc/{child.pid}/status").read_text()
        assert "Umask:\t0027\n" in status


@pytest.mark.daemon
def test_the_debug_command_is_run_by_the_switch(under_master: Callable[..., FakeMaster], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with under_master("-D", debug_command=f"echo %s %d %s 100%% > {trace}") as master:
        child = master.fork()
        with master.client() as client:
            assert client.ask(b"foo") == b"6:OK foo,"
        assert trace.read_text().split() == [master.command[0], str(child.pid), "smmap", "100%"]


@pytest.mark.daemon
def test_the_shutdown_file_counts_by_option_alone() -> None:
    for option, reply in (({}, b"6:OK foo,"), ({"rcptd_shutdown": "yes"}, b"14:TEMP back at 7,")):
        with sheltered("smmap") as folder:
            conf = Conf(folder, **option)
            (conf.directory / "msg").mkdir()
            (conf.directory / "msg" / "shutdown").write_text("back at 7\n")
            with FakeMaster(folder, installed(folder), "-C", str(conf.path), "-U", "1") as master:
                child = master.fork()
                with master.client() as client:
                    assert client.ask(b"foo") == reply
                assert ended(child) == 0
