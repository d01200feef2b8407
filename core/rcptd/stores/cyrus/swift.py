"""What nearly every question is, answered from what is known without a look: a plain name, a plain mailbox, no quota.

All of it is what the judge would come to by its own steps, which has the last word on everything else: an address with
a folder or with any octet that Cyrus might take for something, a mailbox whose record says more than that it is there,
a user who may be denied or has a quota root, and whatever is not known just now.
"""

from typing import NamedTuple

from rcptd.stores.cyrus import names, quotas
from rcptd.stores.cyrus.databases import Database, Watches
from rcptd.stores.cyrus.imapdconf import ImapdConf

_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
OCTETS_MOST = 300  # of an address; from 510 on names are cut
DOMAINS_MOST = 1000  # that are remembered: clients choose them


class _Domain(NamedTuple):
    """What a domain adds to a user: the end of the userid, the beginnings of key and root, and the roots of all."""

    userid: bytes
    key: bytes
    root: bytes
    above: tuple[bytes, ...]


class Swift:
    """Answers what it can; any thread."""

    def __init__(
        self, conf: ImapdConf, watches: Watches, mailboxes: Database, quota: Database, denied: Database, *, strict: bool
    ) -> None:
        self._conf = conf
        self._strict = strict
        self._quiet = watches.quiet
        self._place_of = mailboxes.known
        self._quota = quota.known
        self._nobody_denied = denied.missing
        self._denied = denied.known
        self._lowers = conf.lmtp_downcase_rcpt
        self._shared = {conf.postuser, conf.postuser.partition(b"@")[0]}
        self._domains: dict[bytes, _Domain | None] = {}

    def exists(self, address: bytes) -> bool | None:
        """Say whether mail for an address is taken (True) or there is no such mailbox (False); None for all else."""
        user, at, domain = address.partition(b"@")
        if user.translate(None, _PLAIN) or not user or len(address) > OCTETS_MOST or (at and not domain):
            return None
        try:
            ours = self._domains[domain]
        except KeyError:
            ours = self._learn(domain)
        if self._lowers:
            user = user.lower()
        if ours is None or user in self._shared or not self._quiet():
            return None
        if not self._nobody_denied(True) and self._denied(user + ours.userid):
            return None
        place = self._place_of(ours.key + user)
        if place <= 0 or not place & 1:
            return False if not place else None
        quota = self._quota
        if quota(ours.root + (user.replace(b".", b"^") if b"." in user else user)):
            return None
        for root in ours.above:
            if quota(root):
                return None
        return True

    def _learn(self, domain: bytes) -> _Domain | None:
        """Find out what a domain adds, by what the longer way makes of a user in it."""
        ours = None
        if not domain.translate(None, _PLAIN):
            meant = names.resolve(self._conf, b"x@" + domain if domain else b"x", strict=self._strict)
            end = b"" if meant.domain is None else b"@" + meant.domain
            if meant.userid == b"x" + end and meant.key and meant.key.endswith(b"user\x1fx"):
                roots = list(quotas.roots(self._conf, meant.internal))
                ours = _Domain(end, meant.key[:-1], roots[0][:-1], tuple(roots[1:]))
        if len(self._domains) < DOMAINS_MOST:
            self._domains[domain] = ours
        return ours
