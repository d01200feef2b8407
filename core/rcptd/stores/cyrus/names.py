"""Recipients: from an address to the userid, the internal name and the key in Cyrus' mailboxes.db.

    foo+Sub/Deep@example.org      the address, where example.org is the default domain
    foo                           the userid: what user_deny.db is asked
    user.foo.Sub.Deep             the internal name: where the search for a quota root starts
    Nuser|foo|Sub|Deep            the key, | being 0x1F, behind a domain 0x1D

Cyrus writes the internal name from the address, and reads the key's parts back out of it. What is special in an
internal name but may stand in an address (`!`, `^`, 0x1F) has an effect on the way back, so that an address can reach
a mailbox that it does not name, and a quota root or a deny entry can be sought under another name than the mailbox.
That is what faithful keeps and strict mends (each place says how).

Everything is bytes, since nothing else is known of an address in a Cyrus name. Nothing here waits, any thread may ask.
"""

import re
from typing import NamedTuple

from rcptd.stores.cyrus import utf7
from rcptd.stores.cyrus.imapdconf import ImapdConf

ADDRESS_OCTETS = 10_000  # what Postfix sends a socketmap at most; a Cyrus name ends at 510

NAME = b"N"  # the kind of key that holds a mailbox by its name
DOMAIN_END = b"\x1d"
HIERARCHY = b"\x1f"
_USER = b"user"

_MEANINGFUL = re.compile(rb"[\0\x1d\x1f!^]")
_HEX = re.compile(rb"[ \t-\r]*([+-]?)(?:0[xX](?=[0-9A-Fa-f]))?([0-9A-Fa-f]+)")
_PLAIN_HEX = re.compile(rb"[0-9A-Fa-f]{1,8}")
_ULONG = 1 << 64


class Resolved(NamedTuple):
    """What an address means to Cyrus.

    `userid` is None for a shared mailbox; `domain` is the one kept, None where it does not count; `boxes` are the
    folders of the detail in modified UTF-7; `key` is None where no mailbox can be meant, so none need be looked up;
    `notes` name what is odd about the address, for explanations.
    """

    userid: bytes | None
    shared: bool
    domain: bytes | None
    boxes: tuple[bytes, ...]
    internal: bytes
    key: bytes | None
    notes: tuple[str, ...] = ()


def resolve(conf: ImapdConf, address: bytes, *, drop_folder: bool = False, strict: bool = False) -> Resolved:
    """Find out what an address of at most 10,000 octets means; a longer one means nothing.

    `drop_folder` is the program's option -p. Never raises.
    """
    if len(address) > ADDRESS_OCTETS:
        return Resolved(None, False, None, (), b"", None, ("the address is longer than 10,000 bytes",))
    if not strict:
        address = address.partition(b"\0")[0]  # a string ends there in C
    local, domain = _split(conf, address, strict=strict)
    user, _, detail = local.partition(b"+")
    boxes, notes = _boxes(conf, detail) if detail else ((), ())
    if conf.lmtp_downcase_rcpt:
        user = user.lower()

    userid = user if domain is None else user + b"@" + domain
    if userid == conf.postuser:
        # The original throws the folder away before it looks who is asked for, and so knows no shared mailbox with -p.
        # Item 9: strict throws away the folders of users only.
        kept = boxes if strict or not drop_folder else ()
        return _shared(conf, None, kept, strict=strict, notes=notes)
    if strict and domain is not None and user == conf.postuser:
        # Item 10: the user alone decides, as in lmtpd, so that the shared mailboxes of every domain can be reached.
        return _shared(conf, domain, boxes, strict=strict, notes=notes)

    if drop_folder:
        boxes = ()
    internal = _internal(domain, (_USER, user, *boxes))
    if not strict:
        return Resolved(userid, False, domain, boxes, internal, key_of(conf, internal), notes)
    if not user or _means_more(user, domain, boxes):
        return Resolved(userid, False, domain, boxes, internal, None, (*notes, _NO_NAME))
    return Resolved(userid, False, domain, boxes, internal, _key(domain, (_USER, user, *boxes)), notes)


def key_of(conf: ImapdConf, internal: bytes) -> bytes | None:
    """Read an internal name as Cyrus does, and give its key; None for the empty name."""
    domain: bytes | None = None
    name = internal
    if b"!" in name:
        domain, _, name = name.partition(b"!")
        if domain == conf.defaultdomain:
            domain = None
    pieces = [piece.replace(b"^", b".") for piece in name.split(b".") if piece]
    if len(pieces) > 2 and pieces[0] == conf.deletedprefix:
        del pieces[0]
        deleted = _unsigned_hex(pieces.pop())
        if deleted:
            pieces = [conf.deletedprefix, *pieces, b"%X" % (deleted & 0xFFFFFFFF)]
    if domain is None and not pieces:
        return None
    return _key(domain, pieces)


_NO_NAME = "no mailbox can have this name"


def _split(conf: ImapdConf, address: bytes, *, strict: bool) -> tuple[bytes, bytes | None]:
    """Cut the domain off, and give None for one that does not count."""
    local, at, domain = address.rpartition(b"@")
    if not at:
        return domain, None
    if conf.virtdomains == "off" or domain == conf.defaultdomain:
        return local, None
    if conf.lmtp_downcase_rcpt:
        domain = domain.lower()
        # Item 8: the original drops the default domain as it was written only, so that user@EXAMPLE.ORG finds the
        # mailbox of user@example.org but neither its quota root nor its deny entry.
        if strict and domain == conf.defaultdomain:
            return local, None
    return local, domain


def _boxes(conf: ImapdConf, detail: bytes) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Give the folders that a detail names, and what is odd about it."""
    notes: tuple[str, ...] = ()
    if utf7.is_encoded(detail):
        notes = ("the detail is taken for modified UTF-7 already",)
    else:
        detail = utf7.encode(detail)
    return tuple(filter(None, detail.split(b"/" if conf.unixhierarchysep else b"."))), notes


def _shared(
    conf: ImapdConf, domain: bytes | None, boxes: tuple[bytes, ...], *, strict: bool, notes: tuple[str, ...]
) -> Resolved:
    internal = _internal(domain, boxes)
    if not strict:
        return Resolved(None, True, domain, boxes, internal, key_of(conf, internal), notes)
    if not boxes or _means_more(b"", domain, boxes) or not _deleted_is_sound(conf, boxes):
        return Resolved(None, True, domain, boxes, internal, None, (*notes, _NO_NAME))
    return Resolved(None, True, domain, boxes, internal, key_of(conf, internal), notes)


def _means_more(user: bytes, domain: bytes | None, boxes: tuple[bytes, ...]) -> bool:
    """Say whether a part holds what parts names.

    Item 14: in the original 0x1F, `!` and `^` typed in an address reach other mailboxes. No name of a mailbox can hold
    them, so in strict no mailbox is meant. (0x1D and NUL are of the same kind.)
    """
    return _MEANINGFUL.search(b"/".join((user, domain or b"", *boxes))) is not None


def _deleted_is_sound(conf: ImapdConf, boxes: tuple[bytes, ...]) -> bool:
    """Say whether a name below the deleted mailboxes ends in a time; item 14, as the original drops any other end."""
    return len(boxes) <= 2 or boxes[0] != conf.deletedprefix or bool(_PLAIN_HEX.fullmatch(boxes[-1]))


def _internal(domain: bytes | None, pieces: tuple[bytes, ...]) -> bytes:
    name = b".".join([piece.replace(b".", b"^") for piece in pieces])
    return name if domain is None else domain + b"!" + name


def _key(domain: bytes | None, pieces: tuple[bytes, ...] | list[bytes]) -> bytes:
    name = NAME + HIERARCHY.join(pieces)
    return name if domain is None else NAME + domain + DOMAIN_END + name[1:]


def _unsigned_hex(text: bytes) -> int:
    """Read as strtoul does: what is no number is 0, one that is too large is the largest, a negative one wraps."""
    number = _HEX.match(text)
    if number is None:
        return 0
    value = int(number[2], 16)
    if value >= _ULONG:
        return _ULONG - 1
    return -value % _ULONG if number[1] == b"-" else value
