"""A private Cyrus IMAP: cyrmaster in the foreground, own directories, sockets and log, ended by its process id.

    with sheltered() as place, Cyrus(place, imapd_conf={"virtdomains": "userid"}) as cyrus:
        with cyrus.imap() as imap:
            imap.create("user/foo")
        with Asker(cyrus.smmap) as real:
            assert real.ask(b"foo") == b"OK foo"

Its services are the real smmapd on a unix socket and an imapd on loopback, and whatever lines a test adds to
SERVICES: `service("ours", "/path/to/smmapd -C imapd.conf", place / "ours.sock")`. Cyrus logs to /dev/log only. So
it runs in a mount namespace with a small /dev of its own, in which that is a socket of the rig: nothing of the
machine changes, and `log()` has every line of master and of its children.
"""

import contextlib
import imaplib
import re
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.rig.cyrus_site import Site
from tests.rig.ports import LOOPBACK, free_port, is_open, wait_until
from tests.rig.processes import end_group
from tests.rig.require import require_program

ADMIN, PASSWORD = "cyrus", "secret"  # of this one instance, which ends with its test
HOST_NAME = "mx.example.org"
PATIENCE = 10.0  # seconds for one answer, and for master's end
REPLY_OCTETS = 10_100
COMPLAINT = re.compile(
    r"ERROR|Fatal|Software bug|long dead|not known|unable|too many failures|signaled|abnormal|exited, status [1-9]",
    re.IGNORECASE,
)

# A /dev of its own: the devices that daemons open, and the rig's socket as the system's log. No core of what aborts.
_ENTER = """\
ulimit -c 0 && mount --make-rprivate / && mount -t tmpfs -o mode=0755 rig /mnt &&
mkdir /mnt/shm && mount --bind /dev/shm /mnt/shm &&
for one in null zero full random urandom tty; do : >/mnt/$one && mount --bind /dev/$one /mnt/$one || exit; done &&
ln -s /proc/self/fd /mnt/fd && ln -s "$0" /mnt/log && mount --move /mnt /dev && exec "$@"
"""


def service(name: str, command: str, listen: str | Path, *, prefork: int = 1, maxchild: int | None = None) -> str:
    """A line of SERVICES; the command is split at blanks, so no path in it may have one."""
    most = "" if maxchild is None else f" maxchild={maxchild}"
    return f'{name} cmd="{command}" listen="{listen}" prefork={prefork}{most}'


class Cyrus:
    """One private Cyrus; a context manager, or `start` and `stop`.

    `imapd_conf` adds to the main site's options, `services` to the SERVICES of cyrus.conf. `site` is the main
    site, which a test may fill before the start; further sites are the test's own, named by its services.
    """

    def __init__(
        self,
        place: Path,
        *,
        imapd_conf: Mapping[str, str] = MappingProxyType({}),
        services: Iterable[str] = (),
    ) -> None:
        self.place = place / "cyrus"
        self.place.mkdir()
        self.port = free_port()
        self.smmap = self.place / "smmap.sock"
        self.site = Site(self.place / "site", {**self._login(), **imapd_conf})
        self._services = list(services)
        self._running: subprocess.Popen[bytes] | None = None
        self._log = _Log(self.place / "log.sock")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Write the configuration and start; return when every socket is there and imapd answers."""
        self.site.prepare()
        self._set_password()
        lines = [
            service("smmap", f"smmapd -C {self.site.config}", self.smmap),
            service("imap", f"imapd -C {self.site.config}", f"{LOOPBACK}:{self.port}", prefork=1),
            *self._services,
        ]
        configuration = self.place / "cyrus.conf"
        configuration.write_text("START {\n}\nSERVICES {\n%s\n}\nEVENTS {\n}\n" % "\n".join(lines))  # noqa: UP031
        self._log.start()
        master = [require_program("cyrmaster"), "-C", str(self.site.config), "-M", str(configuration)]
        with self.place.joinpath("stderr").open("ab") as stderr:
            self._running = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", _ENTER, str(self._log.path), *master, "-p", self.place / "pid", "-D"],
                stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=self.place, start_new_session=True,
            )  # fmt: skip
        if not wait_until(lambda: self._has_ended() or self._is_up()) or self._has_ended():
            self.stop()
            raise RuntimeError(f"Cyrus did not start:\n{self.log()}")
        return self

    def stop(self) -> None:
        """End master and all its children, and see that they are gone."""
        running, self._running = self._running, None
        if running:
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for its children for ever
                running.wait(PATIENCE)
            end_group(running.pid, "Cyrus")
            running.wait(PATIENCE)
        self._log.stop()

    @property
    def pid(self) -> int:
        """The process id of master."""
        assert self._running
        return self._running.pid

    def log(self) -> str:
        """What master and its children have said so far: syslog lines, then its standard error."""
        stderr = self.place / "stderr"
        return self._log.text() + (stderr.read_text(errors="backslashreplace") if stderr.exists() else "")

    def complaints(self, but: str = r"IDLE: error") -> list[str]:
        """The lines of the log that tell of trouble, without those that match `but`: there is no idled."""
        return [one for one in self.log().splitlines() if COMPLAINT.search(one) and not re.search(but, one)]

    @contextlib.contextmanager
    def imap(self) -> Iterator[imaplib.IMAP4]:
        """A connection to imapd as the administrator; mailboxes are named `user/foo`."""
        with imaplib.IMAP4(LOOPBACK, self.port, timeout=PATIENCE) as connection:
            connection.login(ADMIN, PASSWORD)
            yield connection

    def _login(self) -> dict[str, str]:
        return {
            "admins": ADMIN,
            "allowplaintext": "yes",
            "servername": HOST_NAME,
            "sasl_mech_list": "PLAIN",
            "sasl_pwcheck_method": "auxprop",
            "sasl_auxprop_plugin": "sasldb",
            "sasl_sasldb_path": str(self.place / "site" / "sasldb2"),
        }

    def _set_password(self) -> None:
        # Cyrus looks the administrator up in the realm of its server's name, and of the default domain when
        # there are domains.
        file = self.place / "site" / "sasldb2"
        for realm in {HOST_NAME, socket.gethostname(), self.site.option("defaultdomain", "internal")}:
            subprocess.run(
                [require_program("saslpasswd2"), "-f", file, "-p", "-c", "-u", realm, ADMIN],
                input=PASSWORD.encode(), check=True, capture_output=True, timeout=PATIENCE,
            )  # fmt: skip
        self.site.own()

    def _is_up(self) -> bool:
        sockets = re.findall(r'listen="(/[^"]+)"', self.place.joinpath("cyrus.conf").read_text())
        return all(Path(one).is_socket() for one in sockets) and is_open(self.port)

    def _has_ended(self) -> bool:
        return self._running is None or self._running.poll() is not None


class Asker:
    """A client of smmapd on a unix socket, or on a port of loopback: raw keys, raw replies.

    Several questions go in one write, which is never longer than the original reads at a time: it answers what
    is cut off there with an error (all versions do).
    """

    _TOGETHER = 4000  # octets; it reads 4096 at most

    def __init__(self, address: Path | int, *, name: bytes = b"cyrus") -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(address) if isinstance(address, Path) else (LOOPBACK, address))
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._socket.close()

    def ask(self, key: bytes) -> bytes:
        """The reply to one key, without the netstring's frame; `EOFError` when the server closes instead."""
        return self.ask_all([key])[0]

    def ask_all(self, keys: Iterable[bytes]) -> list[bytes]:
        """The replies to many keys, in their order."""
        replies: list[bytes] = []
        batch: list[bytes] = []
        octets = 0
        for key in keys:
            request = b"%d:%b %b," % (len(self._name) + 1 + len(key), self._name, key)
            if batch and octets + len(request) > self._TOGETHER:
                replies += self._exchange(batch)
                batch, octets = [], 0
            batch.append(request)
            octets += len(request)
        return replies + self._exchange(batch)

    def _exchange(self, batch: list[bytes]) -> list[bytes]:
        self._socket.sendall(b"".join(batch))
        return [self._reply() for _ in batch]

    def _reply(self) -> bytes:
        head = b""
        while not head.endswith(b":"):
            head += self._octets(1)
            if len(head) > 6:
                raise ValueError(f"{head!r} is no length of a reply")
        if int(head[:-1]) > REPLY_OCTETS:
            raise ValueError(f"a reply of {head!r} octets")
        payload = self._octets(int(head[:-1]) + 1)
        if not payload.endswith(b","):
            raise ValueError(f"no comma at the end of {payload!r}")
        return payload[:-1]

    def _octets(self, number: int) -> bytes:
        octets = self._reader.read(number)
        if len(octets) != number:
            raise EOFError("the server closed")
        return octets


class _Log:
    """The system's log as Cyrus sees it: a datagram socket whose lines a thread collects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._collect, name="rig-log", daemon=True)

    def start(self) -> None:
        """Bind the socket and collect."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        self._thread.start()

    def stop(self) -> None:
        """Collect what is still there, then close."""
        if self._socket and self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(self.path))
            self._thread.join(PATIENCE)
            self._socket.close()

    def text(self) -> str:
        """The lines so far, each `cyrus/smmap[123]: text` without time and priority."""
        return "".join(f"{one}\n" for one in self._lines)

    def _collect(self) -> None:
        assert self._socket
        while datagram := self._socket.recv(65536):
            text = datagram.rstrip(b"\n\0").decode(errors="backslashreplace")
            self._lines.append(re.sub(r"^<\d+>\w{3} [ \d]\d \d\d:\d\d:\d\d ", "", text))
