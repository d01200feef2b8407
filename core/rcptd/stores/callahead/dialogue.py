"""The options of a dialogue with a next hop: what we call ourselves, how far we trust the line, how much we ask."""

from dataclasses import dataclass, field
from typing import Literal

Tls = Literal["off", "opportunistic", "required"]
Proxy = Literal["off", "v1", "v2"]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What is the same for every connection of a store; raises `ValueError` for what could not be said on a line.

    `hello` is our name in EHLO and LHLO, `sender` the one in MAIL, "" for the null sender. `tls` is "off";
    "opportunistic", without a look at the certificate, where it is offered; or "required", with a certificate for
    `tls_name` (without one: for the hop's host name) by a CA in the file `tls_ca` (without one: of the system).
    `auth_user` is "" for no AUTH, and `auth_in_clear` lets a password go over TCP unencrypted.

    A transaction has at most `recipients_per_transaction`. After `refusals_per_connection` a connection is not used
    again, 0 for no such limit: a Postfix that is asked waits a second with each error after the 10th of a connection,
    RSET or not, and hangs up at the 20th (smtpd_soft_error_limit, smtpd_hard_error_limit).
    `bare_refusal` is what a refusal means that has no enhanced code, `also_no` are enhanced codes that the operator
    knows to mean "no such mailbox": see `meaning`. `reply_timeout` is how many seconds a whole reply may take.
    """

    hello: str
    sender: str = ""
    tls: Tls = "off"
    tls_ca: str = ""
    tls_name: str = ""
    auth_user: str = ""
    auth_password: str = field(default="", repr=False)
    auth_in_clear: bool = False
    proxy: Proxy = "off"
    recipients_per_transaction: int = 20
    refusals_per_connection: int = 8
    bare_refusal: Literal["no", "unknown"] = "no"
    also_no: frozenset[str] = frozenset()
    reply_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name, said in (("hello", self.hello), ("sender", self.sender)):
            if not (said.isascii() and said.isprintable()) or set(said) & set(" <>"):
                raise ValueError(f"{name}: {said!r} cannot stand in an SMTP command")
        if not self.hello:
            raise ValueError("hello: there must be a name")
        if "\0" in self.auth_user + self.auth_password:
            raise ValueError("auth_user and auth_password: no NUL")  # RFC 4616 2
