"""A private Sendmail: own configuration, queue and port on loopback, from packages that were only unpacked.

    with Sendmail(place, mc="INPUT_MAIL_FILTER(`rcptd', `S=inet:7851@127.0.0.1, F=T')dnl") as sendmail:
        ask(sendmail.port, "user@example.org")

It relays for example.org and its clients on 127.0.0.1, not for 127.0.0.2, queues what it takes and delivers
nothing. `place` is a sheltered directory (see place.py): Sendmail refuses sockets elsewhere. It runs under a
host name of its own, since it sleeps a minute when the machine's is not qualified, and without a name server.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.rig.ports import LOOPBACK, free_port, is_open, wait_until
from tests.rig.processes import end_group
from tests.rig.require import ROOT, SENDMAIL_PREFIX, require_program

HOST_NAME = "mx.example.org"
FEATURES = ROOT / "contrib" / "sendmail" / "cf" / "feature"

_TOP_MC = """\
VERSIONID(`rig')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `{host_name}')dnl
define(`confPID_FILE', `{place}/pid')dnl
define(`STATUS_FILE', `{place}/statistics')dnl
define(`ALIAS_FILE', `{place}/aliases')dnl
define(`QUEUE_DIR', `{place}/queue')dnl
define(`confSERVICE_SWITCH_FILE', `{place}/service.switch')dnl
define(`confHOSTS_FILE', `{place}/hosts')dnl
define(`confDELIVERY_MODE', `queueonly')dnl
define(`confTO_IDENT', `0')dnl
define(`confREFUSE_LA', `10000')dnl
define(`confQUEUE_LA', `10000')dnl
define(`confDELAY_LA', `0')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`accept_unresolvable_domains')dnl
DAEMON_OPTIONS(`Family=inet, Addr={host}, Port={port}, Name=MTA')dnl
{relayed}
"""

# Names and mounts of its own: before it has read its configuration it looks its host name up, by the C library.
# That finds it in our hosts file, and no name server if it tries one after all.
_ENTER = """\
hostname "$0" &&
mount --bind "$1/hosts" /etc/hosts &&
mount --bind "$1/resolv.conf" "$(readlink -f /etc/resolv.conf)" &&
shift && exec "$@"
"""


class Sendmail:
    """One private Sendmail; a context manager, or `start` and `stop`.

    `mc` is what a site's .mc has before its MAILER lines, `mc_local` what follows them: LOCAL_CONFIG,
    LOCAL_RULESETS and their kin. `aliases` is the text of an alias file, `cf_edit` what to replace in the
    sendmail.cf that is made. FEATUREs of contrib/sendmail are
    found beside Sendmail's own.
    """

    def __init__(
        self,
        place: Path,
        *,
        mc: str = "",
        mailers: str = "MAILER(`local')dnl\nMAILER(`smtp')dnl\n",
        mc_local: str = "",
        relay_domains: tuple[str, ...] = ("example.org",),
        aliases: str = "",
        cf_edit: Mapping[str, str] = MappingProxyType({}),
        port: int | None = None,
    ) -> None:
        self.place = place / "sendmail"
        self.port = port or free_port()
        self.config = self.place / "sendmail.cf"
        self._mc = (mc, mailers, mc_local)
        self._relay_domains = relay_domains
        self._aliases = aliases
        self._cf_edit = cf_edit
        self._running: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the configuration and start; return when the port is open."""
        self.prepare()
        with (self.place / "stderr").open("ab") as stderr:
            self._running = subprocess.Popen(
                self._command("-bD", "-X", str(self.place / "traffic")),
                stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=self.place,
                start_new_session=True,
            )  # fmt: skip
        if not wait_until(lambda: self._has_ended() or is_open(self.port)) or self._has_ended():
            self.stop()
            raise RuntimeError(f"Sendmail did not start:\n{self.log()}")
        return self

    def prepare(self) -> None:
        """Create the directories, the alias database, and sendmail.cf from the .mc."""
        for one in (self.place, self.place / "queue"):
            one.mkdir(exist_ok=True)
            one.chmod(0o755 if one is self.place else 0o700)
        self.place.joinpath("service.switch").write_text("hosts files\naliases files\n")
        # Clients need a name as well: without one a refusal to relay is a 450, since the name server is down.
        clients = "".join(f"127.0.0.{number} client{number}.example.net\n" for number in range(2, 10))
        self.place.joinpath("hosts").write_text(f"{LOOPBACK} {HOST_NAME} localhost\n{clients}")
        self.place.joinpath("resolv.conf").write_text(f"nameserver {LOOPBACK}\noptions timeout:1 attempts:1\n")
        self.place.joinpath("aliases").write_text(self._aliases + "postmaster: root\n")
        top = _TOP_MC.format(
            place=self.place, host=LOOPBACK, port=self.port, host_name=HOST_NAME,
            relayed="".join(f"RELAY_DOMAIN(`{one}')dnl\n" for one in self._relay_domains),
        )  # fmt: skip
        self.place.joinpath("rig.mc").write_text("\n".join([top, *self._mc]))
        self._make_cf()
        self.run("-bi")

    def stop(self) -> None:
        """End every process of this instance and see that they are gone."""
        running, self._running = self._running, None
        if running:
            running.terminate()  # the leader; the group follows
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(10)
            end_group(running.pid, "Sendmail")

    def log(self) -> str:
        """What it said and heard so far: its standard error, then the traffic of all its sessions."""
        parts = (self.place / "stderr", self.place / "traffic")
        return "\n".join(one.read_text(errors="backslashreplace") for one in parts if one.exists())

    def run(self, *arguments: str, text: str = "") -> str:
        """Run the program with this configuration, `run("-bt", text="/map sendmail KEY")`; its output."""
        done = subprocess.run(
            self._command(*arguments), input=text, capture_output=True, text=True, timeout=60, cwd=self.place,
            check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def _make_cf(self) -> None:
        # A tree of links stands for Sendmail's cf directory, so that our features lie beside its own and the
        # unpacked packages stay as they are.
        tree, original = self.place / "cf", SENDMAIL_PREFIX / "usr/share/sendmail/cf"
        tree.joinpath("feature").mkdir(parents=True, exist_ok=True)
        links = [(tree / one.name, one) for one in original.iterdir() if one.name != "feature"]
        features = [*original.joinpath("feature").iterdir(), *FEATURES.glob("*.m4")]
        for link, target in [*links, *((tree / "feature" / one.name, one) for one in features)]:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        made = subprocess.run(
            [require_program("m4"), f"-D_CF_DIR_={tree}/", f"{tree}/m4/cf.m4", "rig.mc"],
            capture_output=True, text=True, timeout=60, cwd=self.place, check=False,
        )  # fmt: skip
        if made.returncode or made.stderr:
            raise RuntimeError(f"m4: {made.stderr}")
        text = made.stdout
        for old, new in self._cf_edit.items():
            if old not in text:
                raise ValueError(f"sendmail.cf has no {old!r} to replace")
            text = text.replace(old, new)
        self.config.write_text(text)

    def _command(self, *arguments: str) -> list[str]:
        binary = SENDMAIL_PREFIX / "usr/libexec/sendmail/sendmail"
        return [
            "unshare", "-u", "-m", "sh", "-c", _ENTER, HOST_NAME, str(self.place),
            str(binary), f"-C{self.config}", *arguments,
        ]  # fmt: skip

    def _has_ended(self) -> bool:
        return self._running is None or self._running.poll() is not None
