"""The real lmtpd of Cyrus on one store, listening in every way that a site may have, and what it says of recipients.

    with sheltered() as place, Lmtpd(place) as lmtpd:
        assert lmtpd.ask(lmtpd.unix, "foo@example.org")[0].code == 250

What Cyrus 3.6.1 (Debian 12) does; each is held by tests/test_rig_lmtpd.py:

- To RCPT of the null sender it says what VERDICTS has. A refusal has up to five lines, and only the last one carries
  an enhanced status code, behind a plain `550 `. An address that it cannot read gets `501 5.5.4`, and so does
  one in UTF-8: it has no SMTPUTF8.
- A detail that names no folder goes to the INBOX; one who is at the limit in messages may get one more.
- `postmaster` is a mailbox as any other, and unknown where nobody made it.
- Unknown recipients have no limit and no pause: 60 in one transaction took 3 ms.
- Over the unix socket, and over TCP with `-a`, the client is the user `postman`, and LHLO offers AUTH EXTERNAL. Over
  TCP without `-a` it offers AUTH PLAIN if `allowplaintext` is set, and takes the `admins` of that service only, by the
  service's name: `lmtpauth_admins`. MAIL gets `430 Authentication required` before. A wrong password, and one who is
  no administrator, get `501 5.5.4 undefined error!`, not 535.
- With `allowplaintext: no`, here `lmtpsecure_allowplaintext`, AUTH PLAIN is offered and taken after STARTTLS only. That
  is offered where AUTH is wanted, never to a client that is trusted.
- userdeny goes by the service's name, too.
- `-H`, for a PROXY header, is no option of it (3.12 has it): it says `421-4.3.0 usage` to its own standard error
  and exits with status 64, so that a client sees a connection closed without a word.
- EHLO gets `500 5.5.2`. VRFY says 252 of everybody.
- One process serves one client: where `maxchild` is reached the next client is connected, and waits for a banner
  until one of the others goes.
"""

import base64
import subprocess
from collections.abc import Iterable, Mapping
from imaplib import IMAP4
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.rig.certificates import certificate
from tests.rig.cyrus import ADMIN, HOST_NAME, PATIENCE, Cyrus, service
from tests.rig.cyrus_site import Site
from tests.rig.dialogue import Dialogue, Reply
from tests.rig.ports import LOOPBACK, free_port, is_open, wait_until
from tests.rig.require import require_program

CLIENT, PASSWORD = "postman", "a word"  # who may AUTH at the port that wants it
STRANGER = "stranger"  # has a password, too, and is no administrator of that service

# Code and enhanced status code of lmtpd's RCPT reply to the null sender, by what the mailbox is.
VERDICTS: Mapping[str, str] = MappingProxyType({
    "foo@example.org": "250 2.1.5",  # is there
    "FOO@Example.ORG": "250 2.1.5",  # lmtp_downcase_rcpt is the default
    "foo+lists@example.org": "250 2.1.5",  # a folder that is there
    "foo+open@example.org": "250 2.1.5",  # a folder that anyone may post to
    "foo+nosuch@example.org": "250 2.1.5",  # no such folder: INBOX
    "nobody@example.org": "550 5.1.1",
    "nobody+lists@example.org": "550 5.1.1",
    "full@example.org": "452 4.2.2",  # over quota in octets
    "many@example.org": "250 2.1.5",  # at the limit in messages
    "denied@example.org": "451 4.2.1",  # cyr_deny
    "bb+shared@example.org": "250 2.1.5",  # a shared folder to which anyone may post
    "bb+closed@example.org": "550 5.7.1",  # one that anyone may see only
    "bb+hidden@example.org": "550 5.1.1",  # one that nobody may see
    "bb+nosuch@example.org": "550 5.1.1",
    "bb@example.org": "550 5.1.1",  # the user of shared folders has no mailbox
    "foo@other.example": "250 2.1.5",  # the same name in another domain
    "nobody@other.example": "550 5.1.1",
    "bb+list@other.example": "250 2.1.5",  # a shared folder of another domain
    "foo@third.example": "550 5.1.1",  # a domain of which it knows nobody
    "postmaster@example.org": "550 5.1.1",
})  # fmt: skip


class Lmtpd:
    """One Cyrus with six lmtpds on one store; a context manager, or `start` and `stop`.

    `unix` is a path, the others are ports of loopback: `trusting` runs with `-a`, `wanting` wants AUTH, `secure` wants
    TLS before it, with `certificate`, `final` (with `-a`) says that over quota is for good, and `single` (with `-a`)
    serves one client at a time. `services` are more lines of SERVICES.
    """

    def __init__(
        self, place: Path, *, imapd_conf: Mapping[str, str] = MappingProxyType({}), services: Iterable[str] = ()
    ) -> None:
        self.unix = place / "lmtp.sock"
        self.trusting, self.wanting, self.secure, self.final, self.single = (free_port() for _ in range(5))
        self.certificate = certificate(place, HOST_NAME)
        options = {
            "virtdomains": "userid", "defaultdomain": "example.org", "postuser": "bb",
            "postmaster": "postmaster@example.org",
            "lmtpauth_admins": CLIENT, "lmtpsecure_admins": CLIENT, "lmtpsecure_allowplaintext": "no",
            "tls_server_cert": str(self.certificate.file), "tls_server_key": str(self.certificate.key),
            "lmtpfinal_lmtp_over_quota_perm_failure": "yes",
            **imapd_conf,
        }  # fmt: skip
        run = f"lmtpd -C {place / 'cyrus' / 'site' / 'imapd.conf'}"
        self.cyrus = Cyrus(
            place,
            imapd_conf=options,
            services=[
                service("lmtpunix", run, self.unix),
                service("lmtp", f"{run} -a", f"{LOOPBACK}:{self.trusting}"),
                service("lmtpauth", run, f"{LOOPBACK}:{self.wanting}"),
                service("lmtpsecure", run, f"{LOOPBACK}:{self.secure}"),
                service("lmtpfinal", f"{run} -a", f"{LOOPBACK}:{self.final}"),
                service("lmtpsingle", f"{run} -a", f"{LOOPBACK}:{self.single}", maxchild=1),
                *services,
            ],
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all, and fill the store."""
        self.cyrus.start()
        try:
            self._prepare()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all."""
        self.cyrus.stop()

    def _prepare(self) -> None:
        ports = (self.trusting, self.wanting, self.secure, self.final, self.single)
        if not wait_until(lambda: all(map(is_open, ports))):
            raise RuntimeError(f"lmtpd does not listen:\n{self.cyrus.log()}")
        with self.cyrus.imap() as imap:
            fill(imap)
        self.cyrus.site.deny("denied")
        for user in (CLIENT, STRANGER):
            set_password(self.cyrus.site, user, PASSWORD)

    def ask(self, where: Path | int, *recipients: str) -> list[Reply]:
        """Ask lmtpd itself by hand: its reply to RCPT for each recipient, from the null sender."""
        with Dialogue(where, lmtp=True) as session:
            if where == self.wanting:
                reply = authenticate(session)
                if reply.code != 235:
                    raise RuntimeError(f"AUTH: {reply}")
            mail = session.mail("")
            if mail.code != 250:
                raise RuntimeError(f"MAIL: {mail}")
            return [session.rcpt(one) for one in recipients]


def authenticate(session: Dialogue, user: str = CLIENT, password: str = PASSWORD) -> Reply:
    """AUTH PLAIN with an initial response."""
    return session.command("AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode())


def codes(reply: Reply) -> str:
    """The reply code, and the enhanced status code of the last line: lmtpd has it only there."""
    return f"{reply.code} {Reply(reply.code, reply.text.rpartition(chr(10))[2]).enhanced}"


def fill(imap: IMAP4) -> None:
    """Make the mailboxes that VERDICTS tells of."""
    for name in (
        "user/foo", "user/foo/lists", "user/foo/open", "user/full", "user/many", "user/denied", "shared", "closed",
        "hidden", "user/foo@other.example", "list@other.example",
    ):  # fmt: skip
        _do(imap.create(name))
    for name, rights in (
        ("user/foo/open", "p"), ("shared", "lrp"), ("closed", "lr"), ("hidden", '""'), ("list@other.example", "lrp"),
    ):  # fmt: skip
        _do(imap.setacl(name, "anyone", rights))
    for name, octets, limit in (("user/full", 3000, "STORAGE 1"), ("user/many", 30, "MESSAGE 1")):
        _do(imap.setacl(name, ADMIN, "lrsip"))
        _do(imap.append(name, "", "", b"Subject: x\r\n\r\n" + b"x" * octets))
        _do(imap.setquota(name, f"({limit})"))


def set_password(site: Site, user: str, password: str) -> None:
    """Enter a user into the site's sasldb, in the realm of the server and of the default domain."""
    for realm in {HOST_NAME, site.option("defaultdomain", "internal")}:
        subprocess.run(
            [require_program("saslpasswd2"), "-f", site.place / "sasldb2", "-p", "-c", "-u", realm, user],
            input=password.encode(), check=True, capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
    site.own()


def _do(reply: tuple[str, Iterable[object]]) -> None:
    if reply[0] != "OK":
        raise RuntimeError(f"imapd: {reply}")
