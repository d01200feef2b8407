"""One imapd.conf with the directories that it names, and the databases in them, written by Cyrus' own tools.

    site = Site(place, {"virtdomains": "userid", "defaultdomain": "example.org"})
    site.mailbox(b"user\\x1ffoo", acl="foo lrswipkxtecdan")
    site.quota("user.foo", "10241\\n10\\n")
    site.write()

A site needs no running Cyrus: what reads the databases by itself can be tested on it alone. Several sites stand
under one master (tests/rig/cyrus.py), since a line of cyrus.conf may name another imapd.conf by `-C`.
"""

import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig.require import CYRUS_PROGRAMS

USER, GROUP, GROUPS = "cyrus", "mail", ("sasl",)
PATIENCE = 60.0  # seconds for one run of a tool
_FOLDERS = ("db", "lock", "log", "msg", "proc", "quota", "socket", "user")


def record(acl: str = "foo lrswipkxtecdan", kind: str = "e", **more: str) -> bytes:
    """The value of a mailbox in mailboxes.db as Cyrus writes it; `more` are further fields, `S="host"`."""
    fields = "".join(f" {name} {value}" for name, value in more.items())
    return f"%(T {kind} I x P default V 1 C 1 F 1 M 1{fields} A %({acl}))".encode("latin-1")


@dataclass
class Site:
    """An imapd.conf in a folder of its own, owned by the user `cyrus`."""

    place: Path
    options: Mapping[str, str] = field(default_factory=dict)
    mailboxes: dict[bytes, bytes] = field(default_factory=dict)  # database keys without their `N`
    quotas: dict[str, bytes] = field(default_factory=dict)  # a path below configdirectory, or a root of quota_db

    @property
    def config(self) -> Path:
        """The imapd.conf."""
        return self.place / "imapd.conf"

    @property
    def directory(self) -> Path:
        """The configdirectory."""
        return self.place / "conf"

    def option(self, name: str, default: str) -> str:
        """An option of the imapd.conf, or what Cyrus takes without it."""
        return self.options.get(name, default)

    def prepare(self) -> None:
        """Make the directories and the imapd.conf, all owned by the user `cyrus`."""
        spool = self.place / "spool"
        for one in (self.place, self.directory, spool, *(self.directory / name for name in _FOLDERS)):
            one.mkdir(exist_ok=True)
            one.chmod(0o755)
        lines = {"configdirectory": self.directory, "defaultpartition": "default", "partition-default": spool}
        self.config.write_text("".join(f"{name}: {value}\n" for name, value in {**lines, **self.options}.items()))
        # Without the stamp of a recovery every process that opens a skiplist recovers it, and says so.
        self.directory.joinpath("db", "skipstamp").write_bytes(int(time.time()).to_bytes(4, "big"))
        self.own()

    def own(self) -> None:
        """Give everything below the site to the user `cyrus`, as its tools and daemons expect."""
        for one in (self.place, *self.place.rglob("*")):
            if not one.is_symlink():
                shutil.chown(one, USER, GROUP)

    def write(self) -> None:
        """Write directories, imapd.conf and all databases."""
        self.prepare()
        keys = {b"N" + name: value for name, value in self.mailboxes.items()}
        self.write_database(self.directory / "mailboxes.db", self.option("mboxlist_db", "twoskip"), keys)
        kind = self.option("quota_db", "quotalegacy")
        if kind == "quotalegacy":
            for path, value in self.quotas.items():
                file = self.directory / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(value)
        else:
            roots = {root.encode("latin-1"): value for root, value in self.quotas.items()}
            self.write_database(self.directory / "quotas.db", kind, roots)
        self.own()

    def write_database(self, path: Path, kind: str, records: Mapping[bytes, bytes]) -> None:
        """Create a database in one transaction of cyr_dbtool; keys and values without NUL, TAB in a key, or LF."""
        for key, value in records.items():
            if b"\t" in key or b"\0" in key + value or b"\n" in key + value or not key:
                raise ValueError(f"cyr_dbtool reads lines of KEY TAB VALUE; {key!r} {value!r} is none")
        # Sorted: appending is quick, and flat needs its own order anyway, which the tool knows.
        lines = b"".join(b"%b\t%b\n" % one for one in sorted(records.items()))
        self.dbtool("-n", "-T", path, kind, "set", lines=lines)

    def dbtool(self, *arguments: str | Path, lines: bytes = b"") -> bytes:
        """Run cyr_dbtool with this imapd.conf; its output, `RuntimeError` where it failed or complained."""
        return self.tool("cyr_dbtool", *arguments, lines=lines)

    def deny(self, user: str, *, services: Iterable[str] = (), message: str = "") -> None:
        """Enter a user into the userdeny database by cyr_deny."""
        named = [part for one in services for part in ("-s", one)]
        self.tool("cyr_deny", *named, *(("-m", message) if message else ()), user)

    def tool(self, name: str, *arguments: str | Path, lines: bytes = b"") -> bytes:
        """Run a program of Cyrus' as its user, with this imapd.conf; its output."""
        done = subprocess.run(
            [CYRUS_PROGRAMS / name, "-C", self.config, *arguments], input=lines, capture_output=True, cwd=self.place,
            timeout=PATIENCE, check=False, user=USER, group=GROUP, extra_groups=GROUPS,
        )  # fmt: skip
        if done.returncode or done.stderr:
            raise RuntimeError(f"{name} {arguments}: status {done.returncode}, {done.stderr!r}")
        return done.stdout
