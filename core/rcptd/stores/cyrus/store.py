"""The recipients of a Cyrus IMAP installation, read from its own databases, beside its own processes.

A question is judged as Cyrus' smmapd does it, in the strict way unless told otherwise: docs/cyrus.md has the
differences. What the judge found is told as facts, so that rules decide as for any store: a denied user is disabled,
a shared mailbox closed to anonymous senders may not be posted to by anybody, a quota is told in figures, so that the
SIZE of MAIL FROM counts.

A plus detail is a folder to Cyrus. Which of them count is the rule's `subaddress` to say: "ignored" falls back to the
INBOX as lmtpd does, "must_exist" asks for the folder.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from rcptd import schema
from rcptd.address import Recipient
from rcptd.question import EXISTS, NOT_FOUND, Answer, Busy, Disabled, Found, Mailbox, Posting, Quota, Unavailable
from rcptd.schema import option
from rcptd.stores.cyrus import imapdconf
from rcptd.stores.cyrus.databases import Held, Trouble
from rcptd.stores.cyrus.imapdconf import FaultyImapdConf, ImapdConf
from rcptd.stores.cyrus.judge import Judge, Judgement, Outcome
from rcptd.stores.cyrus.kick import Kicker, List

_log = logging.getLogger("rcptd.stores.cyrus")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a store of type `cyrus`."""

    imapd_conf: Path = option(schema.path, default="/etc/imapd.conf", doc="Cyrus' own configuration file.")
    service: str = option(
        schema.text,
        default="smmap",
        doc="The name of smmapd in cyrus.conf: its own options in imapd.conf count, and deny entries for it.",
    )
    mode: str = option(
        schema.choice("strict", "faithful"),
        default="strict",
        doc='"strict" mends the odd corners of Cyrus\' smmapd; "faithful" keeps them, for maps of shape smmapd alone.',
    )
    allow_empty: bool = option(
        schema.boolean,
        default=False,
        doc="Whether a domain of which no mailbox is here has nobody (else: cannot tell).",
    )


class CyrusMailboxes:
    """A table of the mailboxes of one Cyrus installation; any thread may ask.

    `on_smmapd` is asked in its place where the reply goes out in the words of Cyrus' smmapd.
    """

    def __init__(self, judge: Judge, *, allow_empty: bool = False, on_smmapd: "CyrusMailboxes | None" = None) -> None:
        self.on_smmapd = on_smmapd
        self._judge = judge
        self._allow_empty = allow_empty
        self._kicker = _kicker(judge.conf)

    def lookup(self, recipient: Recipient) -> Answer | Busy:
        """Say what Cyrus knows of the recipient."""
        address = _address(recipient)
        try:
            return self._answer(self._judge.judge(address), address)
        except Held as held:
            return Busy(held.why)
        except Trouble as trouble:
            return Unavailable(trouble.why)

    def explain(self, recipient: Recipient) -> list[str]:
        """Tell the steps that lead to the answer, for a person to read."""
        steps: list[str] = []
        try:
            self._judge.judge(_address(recipient), steps=steps)
        except Held as held:
            steps.append(f"cannot tell just now: {held.why}")
        return steps

    def close(self) -> None:
        """Close the databases."""
        self._judge.close()

    def _answer(self, judgement: Judgement, address: bytes) -> Answer | Busy:
        """Tell a judgement as facts; raises `Held` and `Trouble`."""
        match judgement.outcome:
            case Outcome.NONEXISTENT:
                return self._nobody(address)
            case Outcome.OK | Outcome.OVER_QUOTA:
                return self._found(judgement)
            case Outcome.DENIED:
                return Found(Mailbox(disabled=Disabled(text=judgement.text.decode("ascii", "replace"))))
            case Outcome.RESERVED:
                return Found(Mailbox(disabled=Disabled(temporary=True)))  # it is just being made or moved
            case Outcome.NOT_POSTABLE:
                return Found(Mailbox(posting=Posting()))
            case Outcome.REMOTE:
                return Found(Mailbox(server=judgement.server.decode("ascii", "backslashreplace")))
            case Outcome.UNKNOWN:
                return Unavailable(judgement.text.decode("utf-8", "replace"))
            case _:
                assert_never(judgement.outcome)

    def _found(self, judgement: Judgement) -> Found:
        figures = judgement.figures
        if figures is None:
            return EXISTS
        limit = figures.messages_limit
        if limit is not None and self._judge.strict:
            limit += 1  # lmtpd lets the message in with which the limit is reached, the rule does not
        return Found(
            Mailbox(
                quota=Quota(
                    bytes_limit=figures.storage_limit,
                    bytes_used=figures.storage_used,
                    messages_limit=limit,
                    messages_used=figures.messages_used,
                    unsized=0,
                    final=True if judgement.final else None,
                )
            )
        )

    def _nobody(self, address: bytes) -> Answer | Busy:
        if self._kicker:
            match self._kicker.state(address):
                case List.UNDER_WAY:
                    return Busy("the mailbox list of the Murder is being brought up to date")
                case List.CANNOT_TELL:
                    return Unavailable("the mailbox list of the Murder cannot be brought up to date")
                case _:  # up to date, and it may just have changed
                    if self._judge.judge(address).outcome is not Outcome.NONEXISTENT:
                        return Busy("the mailbox list of the Murder has just changed")
        if self._allow_empty or self._judge.holds_anybody(address):
            return NOT_FOUND
        return Unavailable("holds not one mailbox of that domain; allow_empty = true would make that a no")


def _kicker(conf: ImapdConf) -> Kicker | None:
    """Give what brings the mailbox list up to date; None where that is not this host's to do, as smmapd has it."""
    if not conf.mupdate_server or (conf.mupdate_config == "standard" and conf.proxyservers):
        return None
    return Kicker(conf.configdirectory / "socket" / "mupdate.target")


class _Faulty:
    """Stands for an installation whose imapd.conf cannot be used."""

    def __init__(self, why: str) -> None:
        self._why = why

    def lookup(self, recipient: Recipient) -> Answer | Busy:  # noqa: ARG002 - a table's signature
        """Say that nothing is known of anybody."""
        return Unavailable(self._why)

    def close(self) -> None:
        """Close nothing."""


def open_store(name: str, settings: Settings) -> CyrusMailboxes | _Faulty:
    """Open the store of a configuration; a faulty imapd.conf makes it Unavailable, and is logged."""
    try:
        conf = imapdconf.read(settings.imapd_conf, service=settings.service)
    except FaultyImapdConf as faulty:
        for fault in faulty.faults:
            _log.error("store %s: %s", name, fault)
        return _Faulty(faulty.faults[0])
    for warning in conf.warnings:
        _log.warning("store %s: %s", name, warning)
    service = settings.service.encode()

    def mailboxes(*, strict: bool, on_smmapd: CyrusMailboxes | None = None) -> CyrusMailboxes:
        judge = Judge(conf, strict=strict, service=service)
        return CyrusMailboxes(judge, allow_empty=settings.allow_empty, on_smmapd=on_smmapd)

    return mailboxes(strict=True, on_smmapd=mailboxes(strict=False) if settings.mode == "faithful" else None)


def _address(recipient: Recipient) -> bytes:
    """Give the address as Cyrus is asked: unquoted, the local part as it was typed, which is Cyrus' to fold."""
    text = f"{recipient.local}@{recipient.domain}" if recipient.domain else recipient.local
    return text.encode("utf-8", "surrogateescape")
