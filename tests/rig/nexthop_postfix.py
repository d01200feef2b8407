"""A real Postfix as next hop: it knows its recipients, keeps its limits on errors, and refuses us in its own ways.

    with sheltered() as place, NextHopPostfix(place) as hop:
        assert hop.ask(hop.port, "user@example.org")[0].code == 250

At `port` it says of each recipient what VERDICTS has. Each of `ports` is the same Postfix with a setting or two more,
those that sites have: OPTIONS.

What Postfix 3.7 (Debian 12) does to one who asks on and on, all defaults; tests/test_rig_nexthop_postfix.py holds it:

- Ten refusals in a session, 4yz or 5yz, are free (`smtpd_soft_error_limit`). From then on every reply comes a second
  late, to RSET and QUIT as well, and after the twentieth refusal there is 421 (`smtpd_hard_error_limit`) in answer to
  whatever comes next. RSET resets nothing.
- RSET, NOOP, VRFY and EHLO are "junk commands". A hundred are free (`smtpd_junk_command_limit`), and each further one
  is an error like a refusal. So 110 transactions in a session are quick, then there is a pause in each, and after
  120 the session ends, even where every recipient was good.
- A transaction with a good recipient costs one of a hundred tokens that all of Postfix shares, and brings none back
  when nothing is sent: the queue manager does, when real mail comes or every five minutes. Without a token
  the first good recipient of a transaction waits a second (`in_flow_delay`). Only cleanup(8) reads that, so it is
  the same for all ports; it is off here unless `in_flow_delay` says otherwise, and should be off in a quiet next hop.
- Under stress, which Postfix sees by itself when its processes run short, the hard limit and that of junk commands are
  1, and a session ends after one refusal.
- What it holds against a client, its EHLO or the sender it says at RCPT only (`smtpd_delay_reject`): 554 5.7.1, to
  every recipient, known or not.
- One connection too many (`smtpd_client_connection_count_limit`, 50) gets 421 for a greeting, which EHLO never sees.
- Where TLS is required, MAIL gets 530 5.7.0, and so does everything after it.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.rig.certificates import certificate
from tests.rig.dialogue import Dialogue, Reply
from tests.rig.ports import LOOPBACK, free_port, is_open, wait_until
from tests.rig.postfix import HOST_NAME, Postfix

# Code and enhanced status code of its RCPT reply to the null sender.
VERDICTS: Mapping[str, str] = MappingProxyType({
    "user@example.org": "250 2.1.5",
    "USER@Example.ORG": "250 2.1.5",
    "postmaster@example.org": "250 2.1.5",
    "nobody@example.org": "550 5.1.1",
    "grey@example.org": "450 4.7.1",
    "off@example.org": "550 5.2.1",
    "full@example.org": "452 4.2.2",
    "final@example.org": "552 5.2.2",
    "moved@example.org": "551 5.1.6",
    "user@elsewhere.example": "454 4.7.1",  # no domain of this host
})  # fmt: skip

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "accepting": ("relay_recipient_maps=",),  # takes every local part
    "blocking": ("smtpd_client_restrictions=reject",),
    "choosy": ("smtpd_sender_restrictions=reject",),
    "formal": ("smtpd_helo_restrictions=check_helo_access,static:reject",),
    "stressed": ("smtpd_hard_error_limit=1", "smtpd_junk_command_limit=1"),
    "crowded": ("smtpd_client_connection_count_limit=2",),
    "encrypted": ("smtpd_tls_security_level=encrypt",),
})  # fmt: skip

_KNOWN = ("user", "postmaster", "grey", "off", "full", "final", "moved")
_ACCESS = {
    "grey@example.org": "450 4.7.1 Greylisted",
    "off@example.org": "550 5.2.1 Mailbox disabled",
    "full@example.org": "452 4.2.2 Mailbox full",
    "final@example.org": "552 5.2.2 Mailbox full",
    "moved@example.org": "551 5.1.6 Moved",
}
# The rig's Postfix bears any number of errors and knows its client; this one does not.
_MAIN_CF = """\
relay_recipient_maps = inline:{{{recipients}}}
smtpd_recipient_restrictions = check_recipient_access inline:{{{access}}}
smtpd_error_sleep_time = 1s
smtpd_soft_error_limit = 10
smtpd_hard_error_limit = 20
smtpd_junk_command_limit = 100
smtpd_client_event_limit_exceptions =
mynetworks =
in_flow_delay = {in_flow_delay}
"""


class NextHopPostfix:
    """One private Postfix with several ports; a context manager, or `start` and `stop`.

    `certificate` is that of the port `encrypted`; the others have no TLS.
    """

    def __init__(self, place: Path, *, in_flow_delay: str = "0s") -> None:
        self.ports = {name: free_port() for name in OPTIONS}
        self.certificate = certificate(place, HOST_NAME)
        files = (f"smtpd_tls_cert_file={self.certificate.file}", f"smtpd_tls_key_file={self.certificate.key}")
        settings = {**OPTIONS, "encrypted": OPTIONS["encrypted"] + files}
        self.postfix = Postfix(
            place,
            main_cf=_MAIN_CF.format(
                recipients=", ".join(f"{one}@example.org=ok" for one in _KNOWN),
                access=", ".join(f"{{{address} = {says}}}" for address, says in _ACCESS.items()),
                in_flow_delay=in_flow_delay,
            ),
            master_cf="".join(
                f"{LOOPBACK}:{self.ports[name]} inet n - n - 30 smtpd{''.join(f' -o {one}' for one in options)}\n"
                for name, options in settings.items()
            ),
        )
        self.port = self.postfix.port

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it; return when every port is open."""
        self.postfix.start()
        if not wait_until(lambda: all(map(is_open, self.ports.values()))):
            self.stop()
            raise RuntimeError(f"Postfix does not listen everywhere:\n{self.postfix.log()}")
        return self

    def stop(self) -> None:
        """End it."""
        self.postfix.stop()

    def ask(self, port: int, *recipients: str) -> list[Reply]:
        """Ask it by hand: its reply to RCPT for each recipient, from the null sender."""
        with Dialogue(port) as session:
            mail = session.mail("")
            if mail.code != 250:
                raise RuntimeError(f"MAIL: {mail}")
            return [session.rcpt(one) for one in recipients]
