"""Random Cyrus sites: the options of a matrix, mailboxes that are there, quota roots above them,
questions about both.

    source = Random(seed)
    for options in matrix(source, 24):
        world = World(source, place, options)
        world.site.write()
        world.questions(500)

Each value of each option is in every matrix of twelve sites, and different ones meet in each. Most questions begin
as the address of a mailbox that exists, and are then bent: another case, another domain, another detail, an odd octet.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from tests.cyrus import values
from tests.cyrus.originals import is_comparable, is_comparable_quota, is_comparable_record
from tests.rig.cyrus_site import Site

# None leaves the option out.
_MATRIX: Mapping[str, tuple[str | None, ...]] = {
    "virtdomains": ("off", "userid", "on", "userid", "yes", None),
    "unixhierarchysep": ("yes", "no", None),
    "lmtp_downcase_rcpt": ("yes", "no", None),
    "postuser": ("bb", None, "bb@other.test", "BB", "bb", "b.b"),
    "defaultdomain": ("example.org", None, "Example.ORG", "example.org", "other.test", "example.org"),
    "mboxlist_db": ("twoskip", "skiplist", "flat", None),
    "quota_db": ("quotalegacy", "twoskip", None, "skiplist", "flat", None),
    "fulldirhash": (None, "yes"),
    "lmtp_over_quota_perm_failure": (None, "yes"),
    "deletedprefix": (None, None, None, "Gone"),
    "altnamespace": (None, "yes", "no"),
    "hashimapspool": (None, None, "yes"),
}

_DOMAINS = (
    b"other.test", b"example.org", b"Example.ORG", b"EXAMPLE.ORG", b"big.test", b"internal", b"OTHER.test", b"b",
    b"", b"1.net",
)  # fmt: skip
_USERS = (
    b"foo", b"bar", b"j.doe", b"Upper", b"a@b", b"sp ace", b'q"uoted"', b"bb", b"BB", b"1num",
    b"\xc3\xbcml\xc3\xa4ut", b"\xff\xfe",
    b"x%y", b"a!b", b"INBOX", b"user", b"DELETED", b"-", b"a,b", b"n" * 64, b"a/b", b"z&a", b"x^y",
    b"bb@other.test", b"b.b",
    b"foo.Trash", b"foo-bar", b"foobar", b"fo", b"\x01", b"{3}", b"it's", b"\\", b"=?x?=", b"*", b"anyone",
)  # fmt: skip
_FOLDERS = (
    b"Trash", b"a.b", b"Sub", b"Deep", b"UPPER", b"INBOX", b"sub", b"&AOk-t&AOk-", b"&-x", b"&,,0-", b"a&AAk-b",
    b"&2D3cSg-", b"x@y",
    b"+p", b"a b", b"foo", b"user", b"0", b"f" * 100, b"&//0-", b"&AAE-", b"5F000000", b"\xc3\xa9", b"~", b"Tr&-ash",
)  # fmt: skip
_SHARED = (b"sh", b"lists", b"pub", b"user", b"DELETED", b"other.test", b"Sh", b"9", b"s h", b"Gone", b"example.org")
_TIMES = (b"5F000000", b"1", b"FFFFFFFF", b"0", b"5f000000", b"zz", b"61A8C0DE")
_DETAILS = (
    b"nosuch", b"INBOX", b"inbox", b"\xc3\xa9t\xc3\xa9", b"\xff", b"\xf0\x9f\x91\x8a", b"a\tb", b"&", b"&x", b"&&",
    b"x&y-", b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"\xc3", b"\xe2\x82", b"/", b".", b"//", b"^", b"\x7f", b"\x01", b"user/foo", b"user.foo",
    b"DELETED/user/foo/5F000000",
    b"other.test!sh", b"other.test!user.foo", b"a/b/c", b"Sub//Deep/", b"/Sub/Deep", b"+p", b"+", b"x@y",
)  # fmt: skip
_OCTETS = b"\x1f\x1d!^.+@/%& \"'<>()\\*,;:{}[]~\x7f\x80\xff\x01\r\n\taA0"


def matrix(source: Random, number: int) -> list[dict[str, str]]:
    """The options of so many sites."""
    columns = {name: _shuffled(source, choices, number) for name, choices in _MATRIX.items()}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(number)]
    return [{name: choice for name, choice in row.items() if choice is not None} for row in rows]


def _shuffled(source: Random, choices: tuple[str | None, ...], number: int) -> list[str | None]:
    column = [choices[n % len(choices)] for n in range(number)]
    source.shuffle(column)
    return column


class World:
    """A site with random content, and the questions that it is worth being asked."""

    def __init__(self, source: Random, place: Path, options: Mapping[str, str]) -> None:
        self._source = source
        self.site = Site(place, options)
        self._separator = b"/" if self.site.option("unixhierarchysep", "yes") == "yes" else b"."
        self._postuser = self.site.option("postuser", "").encode()
        self._prefix = self.site.option("deletedprefix", "DELETED").encode()
        self._has_domains = self.site.option("virtdomains", "off") != "off"
        self._lowers = self.site.option("lmtp_downcase_rcpt", "yes") == "yes"
        self._known = [self._mailbox() for _ in range(90)]
        for name in self._known:
            value = values.mailbox(source, shared=not name.rpartition(b"\x1d")[2].startswith(b"user\x1f"))
            is_fit = is_comparable_record(self.site.option("mboxlist_db", "twoskip"), value)
            self.site.mailboxes[name] = value if is_fit else b"%(T e)"
        for _ in range(70):
            self._add_quota()

    def questions(self, number: int) -> Iterator[bytes]:
        """So many addresses that 3.6.1 and the newest take alike."""
        while number:
            address = self._address()
            if is_comparable(address):
                number -= 1
                yield address

    def _mailbox(self) -> bytes:
        pick = self._source
        chance = pick.random()
        pieces = [pick.choice(_FOLDERS) for _ in range(pick.choice((0, 0, 0, 1, 1, 2, 3)))]
        pieces = [b"user", pick.choice(_USERS), *pieces] if chance < 0.7 else [pick.choice(_SHARED), *pieces]
        if chance < 0.06 or chance > 0.97:
            pieces = [self._prefix, *pieces, pick.choice(_TIMES)]
        if self._lowers and pick.random() < 0.8 and pieces[0] == b"user":
            pieces[1:2] = [one.lower() for one in pieces[1:2]]  # or nobody finds it
        name = b"\x1f".join(pieces)
        # Few addresses reach a shared mailbox of another domain, and none a domain where there are none.
        if pick.random() < (0.25 if self._has_domains and pieces[0] == b"user" else 0.03):
            domain = pick.choice(_DOMAINS)
            name = (domain.lower() if pick.random() < 0.8 else domain) + b"\x1d" + name
        return name

    def _add_quota(self) -> None:
        pick = self._source
        domain, _, name = pick.choice(self._known).rpartition(b"\x1d")
        if pick.random() < 0.05:
            domain = pick.choice(_DOMAINS)
        pieces = [piece.replace(b".", b"^") for piece in name.split(b"\x1f")]
        root = b".".join(pieces[: pick.randint(1, len(pieces)) if pick.random() < 0.4 else max(2, len(pieces) - 1)])
        if domain:
            root = domain + b"!" + (b"" if pick.random() < 0.1 else root)
        value = values.quota(pick)
        backend = self.site.option("quota_db", "quotalegacy")
        if not is_comparable_quota(backend, root, value):
            return
        if backend != "quotalegacy":
            self.site.quotas[root.decode("latin-1")] = value.replace(b"\n", b" ")
        elif b"/" not in root and len(root) < 200:
            path = legacy_path(root, virtual=self._has_domains, full="fulldirhash" in self.site.options)
            self.site.quotas[path] = value + (b"" if pick.random() < 0.03 else b"\n")

    def _address(self) -> bytes:
        pick = self._source
        chance = pick.random()
        if chance < 0.03:
            return bytes(pick.choice(_OCTETS) for _ in range(pick.randrange(12)))
        if chance < 0.1:
            more = (b"", b"+" + pick.choice(_DETAILS), b"@" + pick.choice(_DOMAINS))
            address = pick.choice(_USERS) + pick.choice(more)
        else:
            address = self._address_of(pick.choice(self._known))
        while pick.random() < 0.25:
            address = pick.choice(_BENDS)(pick, address)
        return address

    def _address_of(self, name: bytes) -> bytes:
        """The address of a mailbox: that of its user, or of postuser where it is shared."""
        pick = self._source
        domain, _, path = name.rpartition(b"\x1d")
        pieces = path.split(b"\x1f")
        folders = [_decoded(one) if pick.random() < 0.95 else one for one in pieces]
        if pieces[0] == b"user" and len(pieces) > 1:
            user, folders = pieces[1], folders[2:]
        else:
            user, _, its_domain = self._postuser.partition(b"@")
            if domain and pick.random() < 0.5:
                folders[0] = domain + b"!" + folders[0]
                domain = b""
            domain = its_domain or domain
        if self._separator == b"." and pick.random() < 0.9:
            folders = [one.replace(b".", b"^") for one in folders]
        detail = self._separator.join(folders)
        if pick.random() < 0.06:
            detail = pick.choice(_DETAILS)
        elif pick.random() < 0.05:
            detail += pick.choice((b"/", b".", b"/x", b".x", b"//", b" "))
        local = user + (b"+" + detail if detail else b"")
        if domain:
            return local + b"@" + domain
        default = self.site.option("defaultdomain", "internal").encode()
        if pick.random() < 0.9:
            return local + pick.choice((b"", b"", b"", b"@" + default, b"@" + default, b"@" + default.swapcase()))
        return local + b"@" + pick.choice(_DOMAINS)


def _bend_case(pick: Random, address: bytes) -> bytes:
    start = pick.randrange(len(address) + 1)
    end = pick.randint(start, len(address))
    return address[:start] + address[start:end].swapcase() + address[end:]


def _bend_octet(pick: Random, address: bytes) -> bytes:
    at = pick.randrange(len(address) + 1)
    octet = bytes([pick.choice(_OCTETS) if pick.random() < 0.9 else pick.randrange(1, 256)])
    before, after = address[:at], address[at + 1 :]
    return pick.choice((before + octet + address[at:], before + octet + after, before + after))


def _bend_separator(pick: Random, address: bytes) -> bytes:
    pair = pick.choice((b".^", b"^.", b"/.", b"./", b"+\x1f", b"/\x1f", b".!"))
    return address.replace(pair[:1], pair[1:], pick.choice((1, 1, -1)))


def _bend_domain(pick: Random, address: bytes) -> bytes:
    local, at, _ = address.rpartition(b"@")
    return (local if at else address) + pick.choice((b"", b"@" + pick.choice(_DOMAINS), b"@" + pick.choice(_DOMAINS)))


def _bend_detail(pick: Random, address: bytes) -> bytes:
    local, at, domain = address.rpartition(b"@") if b"@" in address else (address, b"", b"")
    return local.partition(b"+")[0] + b"+" + pick.choice(_DETAILS) + at + domain


_BENDS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _bend_case, _bend_octet, _bend_separator, _bend_domain, _bend_detail,
)  # fmt: skip


def _decoded(folder: bytes) -> bytes:
    """What a folder of the tables above is called by people."""
    return {
        b"&AOk-t&AOk-": "été".encode(), b"&-x": b"&x", b"&,,0-": b"\xff", b"a&AAk-b": b"a\tb",
        b"&2D3cSg-": b"\xf0\x9f\x91\x8a",
        b"&AAE-": b"\x01", b"Tr&-ash": b"Tr&ash",
    }.get(folder, folder)  # fmt: skip


def legacy_path(root: bytes, *, virtual: bool, full: bool) -> str:
    """Where the backend quotalegacy keeps a root, below the configdirectory; the real one tells if it is wrong."""

    def letter(name: bytes) -> str:
        name = name.partition(b".")[2] or name
        if not full:
            first = name[:1].lower()
            return first.decode() if first.isalpha() else "q"
        number = 0
        for octet in name.partition(b".")[0]:
            number = (((number << 3) ^ (number >> 5)) ^ octet) & 0xFFFFFFFF
        return chr(ord("A") + number % 23)

    folder = ""
    domain, mark, name = root.partition(b"!")
    if virtual and mark:
        shown = domain.decode("utf-8", "surrogateescape")
        # Of a domain the whole is hashed, not what follows its first dot.
        folder, root = f"domain/{letter(b'.' + domain)}/{shown}/", name
        if not name:
            return folder + "quota/root"
    return f"{folder}quota/{letter(root)}/{root.decode('utf-8', 'surrogateescape')}"
