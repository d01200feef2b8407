"""A private Postfix: its own configuration, queue and port on loopback, beside whatever the machine runs.

    with Postfix(place, main_cf={"smtpd_milters": "inet:127.0.0.1:7851"}) as postfix:
        ask(postfix.port, "user@example.org")

It takes mail for example.org and throws it away; 127.0.0.1 may relay, 127.0.0.2 may not. `place` is a
sheltered directory (see place.py). No limit of Postfix's on errors or clients disturbs a test, and nothing
asks the DNS.
"""

import os
import pwd
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.rig.ports import LOOPBACK, free_port, is_open, wait_until
from tests.rig.processes import end_group
from tests.rig.require import program, require_program

HOST_NAME = "mx.example.org"

_MAIN_CF = {
    "compatibility_level": "3.6",
    "myhostname": HOST_NAME,
    "mydomain": "example.org",
    "mydestination": "",
    "mynetworks": f"{LOOPBACK}/32",
    "inet_interfaces": LOOPBACK,
    "inet_protocols": "ipv4",
    "relay_domains": "example.org",
    "relay_transport": "discard",
    "default_transport": "discard",
    "virtual_transport": "discard",
    "local_transport": "discard",
    "alias_maps": "",
    "alias_database": "",
    "biff": "no",
    "smtpd_peername_lookup": "no",
    "smtp_host_lookup": "native",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "100000",
    "smtpd_hard_error_limit": "100000",
    "smtpd_recipient_limit": "100000",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
    "notify_classes": "",
}

# What Debian's master.cf has, as far as a test can come by it. {chroot} is y or n.
_MASTER_CF = """\
{host}:{port} inet n - {chroot} - {smtpd} smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """One private Postfix; a context manager, or `start` and `stop`.

    `main_cf` is further settings, or lines of a main.cf as they stand in a file, which may override any of
    the rig's; `master_cf` is further services; `chroot` puts smtpd into the queue directory, as Debian
    does.
    """

    def __init__(
        self,
        place: Path,
        *,
        main_cf: Mapping[str, str] | str = "",
        master_cf: str = "",
        chroot: bool = False,
        smtpd_processes: int = 60,
        port: int | None = None,
    ) -> None:
        self.place = place / "postfix"
        self.port = port or free_port()
        self.queue = self.place / "queue"
        self.config = self.place / "etc"
        self._log = self.place / "log" / "mail.log"
        self._main_cf = main_cf
        self._master_cf = master_cf
        self._chroot = "y" if chroot else "n"
        self._smtpd_processes = smtpd_processes
        self._pid: int | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Write the configuration and start; return when the port is open."""
        self.prepare()
        started = self._postfix("start")
        if started.returncode or not wait_until(self._is_up):
            self.stop()
            raise RuntimeError(f"Postfix did not start: {started.stderr}{started.stdout}\n{self.log()}")
        return self

    def prepare(self) -> None:
        """Create the directories, with the queue's root in place for sockets, and write the configuration."""
        postfix = pwd.getpwnam("postfix")
        for one in (self.place, self.config, self.queue, self.place / "data", self._log.parent):
            one.mkdir(exist_ok=True)
            one.chmod(0o755)
        os.chown(self.place / "data", postfix.pw_uid, postfix.pw_gid)
        self.configure(self._main_cf)
        self.config.joinpath("master.cf").write_text(
            _MASTER_CF.format(host=LOOPBACK, port=self.port, chroot=self._chroot, smtpd=self._smtpd_processes)
            + self._master_cf
        )

    def configure(self, main_cf: Mapping[str, str] | str) -> None:
        """Write main.cf anew: the rig's settings, then these; `reload` makes a running Postfix read it."""
        self._main_cf = main_cf
        self.config.mkdir(parents=True, exist_ok=True)
        settings = _MAIN_CF | {
            "queue_directory": str(self.queue),
            "data_directory": str(self.place / "data"),
            "maillog_file": str(self._log),
            "maillog_file_prefixes": str(self._log.parent),
        }
        text = ""
        if isinstance(main_cf, str):
            text = main_cf
            # What the text sets goes out, or postconf would warn of each that it overrides.
            for name in re.findall(r"^(\w+)\s*=", text, re.MULTILINE):
                settings.pop(name, None)
        else:
            settings |= main_cf
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        path = self.config / "main.cf"
        path.write_text(f"{lines}\n{text}\n")
        # Postfix waits two seconds for a file that has only just changed to be left alone.
        os.utime(path, (time.time() - 60,) * 2)

    def reload(self, main_cf: Mapping[str, str] | str | None = None) -> None:
        """Make every daemon read the configuration again, with new settings when some are given."""
        if main_cf is not None:
            self.configure(main_cf)
        done = self._postfix("reload")
        if done.returncode:
            raise RuntimeError(f"postfix reload: {done.stderr}{done.stdout}")

    def stop(self) -> None:
        """End every process of this instance, by its master's process group; see that they are gone."""
        group = self._pid or self._read_pid()
        self._pid = None
        if group:
            end_group(group, "Postfix")

    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="backslashreplace") if self._log.exists() else ""

    def logs(self, words: str) -> bool:
        """Whether some words are in the log, or come into it soon: it is written by a process of its own."""
        return wait_until(lambda: words in self.log(), 5)

    def setting(self, name: str) -> str:
        """The value in force of one setting, macros expanded."""
        return self._run(require_program("postconf"), "-c", str(self.config), "-xh", name).stdout.strip()

    def warnings(self) -> str:
        """What postconf finds strange in the configuration: misspelt or unused settings."""
        return self._run(require_program("postconf"), "-c", str(self.config), "-n").stderr

    def query(self, key: str, table: str) -> subprocess.CompletedProcess[str]:
        """Ask a table as `postmap -q` does, from the queue directory: exit 0 and the value, 1 not found."""
        return self._run(require_program("postmap"), "-c", str(self.config), "-q", key, table)

    def _is_up(self) -> bool:
        self._pid = self._read_pid()
        return self._pid is not None and is_open(self.port)

    def _read_pid(self) -> int | None:
        try:
            return int(self.queue.joinpath("pid", "master.pid").read_text())
        except (OSError, ValueError):
            return None

    def _postfix(self, deed: str) -> subprocess.CompletedProcess[str]:
        return self._run(program("postfix") or "postfix", "-c", str(self.config), deed)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        # Files, not pipes: the master would inherit a pipe and keep it open for its whole life.
        out, err = self.place / "out", self.place / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self.queue, timeout=60,
                check=False,
            )  # fmt: skip
        return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())
