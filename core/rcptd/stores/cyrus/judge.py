"""The judge: what smmapd decides about an address, on one Cyrus installation.

The order is the original's: who is meant, whether the user is denied, whether the mailbox is there, what its record
says, who may post to a shared one, whether it is on another server, whether it is full. What was found on the way is
written down only where somebody asks for it (`steps`).

Whatever cannot be read makes the judgement UNKNOWN, for the questions that it touches. Faithful keeps two yeses of the
original's that are none: a quota file that cannot be read counts as no quota, and a deny database that cannot be
read denies nobody. Strict says UNKNOWN to both.

A writer's lock raises `Held`: ask again in a moment. Any thread may ask; nothing here waits or writes.
"""

import logging
from enum import Enum
from typing import NamedTuple

from rcptd.stores.cyrus import names, quotas, usage, userdeny
from rcptd.stores.cyrus.acl import rights
from rcptd.stores.cyrus.databases import Absent, Database, Held, Learning, Trouble, Watches, open_database
from rcptd.stores.cyrus.imapdconf import ImapdConf
from rcptd.stores.cyrus.malformed import Malformed
from rcptd.stores.cyrus.names import Resolved
from rcptd.stores.cyrus.quotas import QuotaFigures
from rcptd.stores.cyrus.records import MailboxRecord, is_plain, read_mailbox
from rcptd.stores.cyrus.server import server
from rcptd.stores.cyrus.swift import Swift

_log = logging.getLogger(__name__)


class Outcome(Enum):
    """What the judge comes to."""

    OK = "ok"
    NONEXISTENT = "nonexistent"
    DENIED = "denied"
    OVER_QUOTA = "over quota"
    RESERVED = "reserved"
    NOT_POSTABLE = "not postable"
    REMOTE = "remote"
    UNKNOWN = "unknown"


class Judgement(NamedTuple):
    """A judgement, and what goes with it.

    `text` is the message of a denial, or why nothing is known (never for the client); `final` says that being over
    quota is for good; `server` is where a remote mailbox is; `figures` are those of the quota that applies, if any.
    """

    outcome: Outcome
    text: bytes = b""
    final: bool = False
    server: bytes = b""
    figures: QuotaFigures | None = None


OK = Judgement(Outcome.OK)
NONEXISTENT = Judgement(Outcome.NONEXISTENT)
RESERVED = Judgement(Outcome.RESERVED)
NOT_POSTABLE = Judgement(Outcome.NOT_POSTABLE)

Steps = list[str] | None
"""Where the steps of a judgement are written down, None for nowhere."""


class _Unknown(Exception):
    """Ends a judgement for which something could not be read."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Judge:
    """Judges addresses by the databases that an imapd.conf names.

    `service` is the name in cyrus.conf's SERVICES, which deny patterns are held against; `drop_folder` is the
    program's option -p.
    """

    def __init__(self, conf: ImapdConf, *, strict: bool, service: bytes = b"smmap", drop_folder: bool = False) -> None:
        self.conf = conf
        self.strict = strict
        self._service = service
        self._drop_folder = drop_folder
        sql = server(conf)
        self._watches = Watches()
        self._learning = Learning()
        self._mailboxes = open_database(
            conf.mboxlist_db, conf.mboxlist_db_path, what="mboxlist_db", sql=sql,
            watches=self._watches, learning=self._learning, plain=is_plain,
        )  # fmt: skip
        self._quotas = quotas.open_quotas(conf, self._watches, self._learning)
        self._denied = open_database(
            conf.userdeny_db, conf.userdeny_db_path, what="userdeny_db", sql=sql,
            watches=self._watches, learning=self._learning,
        )  # fmt: skip
        self._swift = Swift(conf, self._watches, self._mailboxes, self._quotas, self._denied, strict=strict).exists
        self._complaints: set[str] = set()

    @property
    def databases(self) -> dict[str, Database]:
        """The databases that every judgement may ask, by the name of the option that names them."""
        return {"mboxlist_db": self._mailboxes, "quota_db": self._quotas, "userdeny_db": self._denied}

    def judge(self, address: bytes, *, size: int = 0, steps: Steps = None) -> Judgement:
        """Judge an address, for a message of `size` octets where that is known; raises `Held` only."""
        if steps is None and (there := self._swift(address)) is not None:
            return OK if there else NONEXISTENT
        try:
            return self._judge(address, size, steps)
        except _Unknown as unknown:
            _note(steps, f"cannot tell: {unknown.why}")
            return Judgement(Outcome.UNKNOWN, unknown.why.encode("utf-8", "replace"))

    def holds_anybody(self, address: bytes) -> bool:
        """Say whether there is any mailbox in the domain of an address; raises `Trouble`."""
        domain = names.resolve(self.conf, address, strict=self.strict).domain
        return self._mailboxes.begins(names.NAME if domain is None else names.NAME + domain + names.DOMAIN_END)

    def close(self) -> None:
        """Close the databases, after the last judgement."""
        self._learning.close()
        for database in self.databases.values():
            database.close()
        self._watches.close()

    def _judge(self, address: bytes, size: int, steps: Steps) -> Judgement:
        resolved = names.resolve(self.conf, address, drop_folder=self._drop_folder, strict=self.strict)
        if steps is not None:
            _note_resolved(steps, resolved)
        quiet = self._watches.quiet()
        if resolved.userid is not None and not self._denied.missing(quiet):
            denial = self._denial(resolved.userid, steps)
            if denial is not None:
                return Judgement(Outcome.DENIED, denial)
        record = self._record(resolved, steps, quiet)
        if record is None:
            return NONEXISTENT
        if record.flags and (there := _by_flags(record.flags)):
            return there
        if resolved.shared and (closed := _by_rights(record, steps)):
            return closed
        if "remote" in record.flags:
            _note(steps, f"the mailbox is on the server {_shown(record.server)}")
            return Judgement(Outcome.REMOTE, server=record.server)
        return self._full(resolved, size, steps, quiet)

    def _denial(self, userid: bytes, steps: Steps) -> bytes | None:
        """Give the message with which a user is denied, None for one who is not."""
        try:
            value = self._denied.fetch(userid)
        except Absent:
            return None  # nobody was ever denied
        except Held:
            raise
        except Trouble as trouble:
            if self.strict:
                raise _Unknown(trouble.why) from None
            self._complain(f"DENYDB_ERROR: {trouble.why}; nobody is denied")
            return None
        if value is None:
            return None
        try:
            denial = userdeny.denied(value, self._service, strict=self.strict)
        except Malformed as malformed:
            raise _Unknown(f"user_deny.db, {_shown(userid)}: {malformed.why}") from None
        if denial is None:
            _note(steps, f"user_deny.db has {_shown(userid)}, but not for {_shown(self._service)}")
            return None
        _note(steps, f"user_deny.db denies {_shown(userid)}: pattern {_shown(denial.pattern)}")
        return denial.message

    def _record(self, resolved: Resolved, steps: Steps, quiet: bool) -> MailboxRecord | None:
        if resolved.key is None:
            return None
        try:
            value = self._mailboxes.fetch(resolved.key, quiet)
        except Held:
            raise
        except Trouble as trouble:
            raise _Unknown(trouble.why) from None
        if steps is not None:
            steps.append("record: none" if value is None else f"record: {_shown(value)}")
        if value is None:
            return None
        try:
            return read_mailbox(value, rights=resolved.shared)
        except Malformed as malformed:
            raise _Unknown(f"the record of {_shown(resolved.key)}: {malformed.why}") from None

    def _full(self, resolved: Resolved, size: int, steps: Steps, quiet: bool) -> Judgement:
        """Judge by the quota of the nearest root above the mailbox."""
        fetch = self._quotas.fetch
        for root in quotas.roots(self.conf, resolved.internal):
            try:
                value = fetch(root, quiet)
            except Trouble as trouble:
                value = self._no_quota(root, trouble)
            if value is None:
                continue
            try:
                figures = quotas.read_quota(value, strict=self.strict)
            except Malformed as malformed:
                raise _Unknown(f"the quota of {_shown(root)}: {malformed.why}") from None
            if self.conf.quota_use_conversations and not resolved.shared:
                figures = self._counted(figures, resolved.userid or b"")
            _note(steps, f"quota root {_shown(root)}: {figures}")
            if quotas.over(figures, strict=self.strict, size=size):
                final = self.conf.lmtp_over_quota_perm_failure
                return Judgement(Outcome.OVER_QUOTA, final=final, figures=figures)
            return Judgement(Outcome.OK, figures=figures)
        _note(steps, "no quota root")
        return OK

    def _counted(self, figures: QuotaFigures, userid: bytes) -> QuotaFigures:
        """Give the figures with what conversations say is used, where that is how it is counted."""
        inbox = names.resolve(self.conf, userid, strict=self.strict).key
        try:
            record = self._mailboxes.fetch(inbox) if inbox else None
            used, messages = usage.used(self.conf, record or b"")
            return figures._replace(storage_used=used, messages_used=messages)
        except Held:
            raise
        except Trouble as trouble:
            raise _Unknown(trouble.why) from None
        except Malformed as malformed:
            raise _Unknown(malformed.why) from None

    def _no_quota(self, root: bytes, trouble: Trouble) -> bytes | None:
        """Judge by a quota root that cannot be read: give what is taken for its value, or raise."""
        if isinstance(trouble, Absent):
            return None
        if isinstance(trouble, Held):
            raise trouble
        if self.strict or self.conf.quota_db != "quotalegacy":
            raise _Unknown(trouble.why) from None
        # The original looks at the length that it has read before it looks at the error.
        self._complain(f"quota root {_shown(root)}: {trouble.why}; taken for no quota")
        return b""

    def _complain(self, what: str) -> None:
        """Log once what the original would let pass."""
        if what not in self._complaints and len(self._complaints) < MOST_COMPLAINTS:
            self._complaints.add(what)
            _log.warning("%s", what)


MOST_COMPLAINTS = 1000


def _by_flags(flags: frozenset[str]) -> Judgement | None:
    """Judge by what a record says of its mailbox; None where that is no obstacle."""
    if "reserve" in flags:
        return RESERVED
    return NONEXISTENT if flags & {"deleted", "intermediate"} else None


def _by_rights(record: MailboxRecord, steps: Steps) -> Judgement | None:
    """Judge by who may post to a shared mailbox, as nobody in particular; None where anybody may."""
    allowed = rights(record.acl)
    if steps is not None:
        counted = ", ".join(f"{_shown(who)} {_shown(letters)}" for who, letters in allowed.counted) or "none"
        steps.append(f"ACL entries that count for anybody: {counted}")
    if allowed.postable:
        return None
    return NOT_POSTABLE if allowed.visible else NONEXISTENT


def _note(steps: Steps, what: str) -> None:
    if steps is not None:
        steps.append(what)


def _note_resolved(steps: list[str], resolved: Resolved) -> None:
    who = "a shared mailbox" if resolved.userid is None else f"user {_shown(resolved.userid)}"
    steps.append(f"{who}, internal name {_shown(resolved.internal)}")
    steps.append("no key: there can be no such mailbox" if resolved.key is None else f"key {_shown(resolved.key)}")
    steps += resolved.notes


def _shown(octets: bytes) -> str:
    """Show octets as a person can read them, the separators of names among them."""
    return octets.decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")
