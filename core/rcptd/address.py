"""Recipients: what stands in RCPT TO, read once and brought to one canonical form.

An address arrives in many spellings: in angle brackets, behind a source route, with a quoted
local part, with a domain in U-labels or A-labels, in any case, from Postfix already case-folded.
`parse` takes all of them and gives a `Recipient`, whose `key` is the one form that stores and
rules compare:

    key = local part, unquoted, NFC, case-folded  +  "@"  +  domain in lower-case A-labels

A bare local part is its own key, in quotes where it holds an @: `"a@example.org"` in no domain is not
a@example.org.

The local part as it was typed stays in `local`, because a store may care about its case (RFC 5321
2.4: only the receiving host may interpret it). Case folding takes a sharp s for "ss", as Postfix
does to every map key before we see it, so both front ends mean the same mailbox.

LIMITS. RFC 5321 4.5.3.1 bounds a local part at 64 octets, a domain at 255 and a path at 256
including its brackets. Addresses of other people's domains break these limits, and the dot rule,
every day (VERP, old Japanese carriers), so these faults are kept in `Recipient.fault` and judged
only where the domain is ours; everything else that is not an address raises `NotAnAddress`.
"""

import ipaddress
import re
from unicodedata import normalize

LOCAL_PART_OCTETS = 64  # RFC 5321 4.5.3.1.1
DOMAIN_OCTETS = 255  # RFC 5321 4.5.3.1.2
ADDRESS_OCTETS = 254  # RFC 5321 4.5.3.1.3: a path of 256, less its two brackets
LABEL_OCTETS = 63  # RFC 1035 2.3.4
KEY_OCTETS = 10_000  # what Postfix sends a socketmap at most; nothing longer is even looked at

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
# What nearly every recipient looks like: ASCII, a dot-atom, a host name, perhaps brackets.
_PLAIN = re.compile(
    rf"<?({_ATOM}+(?:\.{_ATOM}+)*)@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)>?"
)
_DOT_ATOM = re.compile(rf"{_ATOM}+(?:\.{_ATOM}+)*")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_ROUTE = re.compile(r"@[^\x00-\x20\x7f,:@\"<>\\]+(?:,@[^\x00-\x20\x7f,:@\"<>\\]+)*:")  # RFC 5321 4.1.2, A-d-l
_QUOTED = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*)"')
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f()<>\[\]:;@\\,\"]")
_ACE = "xn--"


# Plain domains as they were typed, with their canonical form: mail is for the same few all day. Whoever fills it with
# others costs the next address of each 2 us.
_plain_domains: dict[str, str] = {}
MOST_DOMAINS = 4096


class NotAnAddress(ValueError):
    """What was asked about is no address: 553 5.1.3, with the reason for the log."""


class Recipient:
    """One recipient, immutable and in canonical form.

    `local` is the unquoted local part as typed, `domain` lower-case A-labels (or a canonical
    address literal in brackets, or "" for a bare local part), `key` what stores compare. `ascii`
    says whether the command itself was ASCII (RFC 6531 asks for SMTPUTF8 where it was not), and
    `fault` names a breach that only the owner of the domain may judge ("" for none).
    """

    __slots__ = ("ascii", "domain", "fault", "key", "local")

    def __init__(self, local: str, domain: str, *, ascii_only: bool = True, fault: str = "") -> None:
        self.local = local
        self.domain = domain
        self.ascii = ascii_only
        self.fault = fault
        folded = local.lower() if local.isascii() else fold(local)
        if domain:
            self.key = f"{folded}@{domain}"
        else:
            self.key = f'"{folded}"' if "@" in folded else folded

    def __repr__(self) -> str:
        return f"Recipient({self.local!r}, {self.domain!r})"

    def __str__(self) -> str:
        """The address as a person would write it, quoted where it must be; for logs and traces."""
        plain = self.local and not _UNSAFE.search(self.local) and _dots(self.local)
        quoted = self.local.replace("\\", "\\\\").replace('"', '\\"')
        local = self.local if plain else f'"{quoted}"'
        return f"{local}@{self.domain}" if self.domain else local

    def without_detail(self, delimiters: str) -> "Recipient | None":
        """The recipient less its detail (RFC 5233), or None where it has none.

        The first of `delimiters` counts, as in Postfix; one that opens the local part does not.
        """
        local = self.local
        if len(delimiters) == 1:
            cut = local.find(delimiters)
        else:
            cut = min((at for at in map(local.find, delimiters) if at >= 0), default=0)
        if cut <= 0:
            return None
        return Recipient(local[:cut], self.domain, ascii_only=self.ascii)

    def with_domain(self, domain: str) -> "Recipient":
        """The same local part in another domain, which must be canonical."""
        return Recipient(self.local, domain, ascii_only=self.ascii, fault=self.fault)


def fold(local: str) -> str:
    """Give the canonical form of an unquoted local part: NFC of its case-folded form."""
    if local.isascii():
        return local.lower()
    return normalize("NFC", normalize("NFC", local).casefold())


def parse(text: str) -> Recipient:
    """Read an address as an MTA hands it over; any thread may call.

    Undecodable bytes are expected as surrogates (`errors="surrogateescape"`). Raises `NotAnAddress`.
    """
    if len(text) > KEY_OCTETS:
        raise NotAnAddress("far too long")
    typed, _, name = (text[1:-1] if text[:1] == "<" and text[-1:] == ">" else text).partition("@")
    known = _plain_domains.get(name)
    if known is not None and _DOT_ATOM.fullmatch(typed):
        return Recipient(typed, known, fault="" if len(typed) <= LOCAL_PART_OCTETS else _TOO_LONG)
    plain = _PLAIN.fullmatch(text)
    # "<a@b" and "a@b>" match too, which is cheaper than two patterns; junk like that goes the long way.
    if plain and (text[0] == "<") == (text[-1] == ">"):
        local, typed = plain.groups()
        domain = typed.lower()
        if _ACE not in domain and len(domain) < ADDRESS_OCTETS - LOCAL_PART_OCTETS and _labels(domain):
            if len(_plain_domains) >= MOST_DOMAINS:
                _plain_domains.clear()
            _plain_domains[typed] = domain
            return Recipient(local, domain, fault="" if len(local) <= LOCAL_PART_OCTETS else _TOO_LONG)
    return _parse_slowly(text)


def domain(text: str) -> str:
    """Give the canonical form of a domain: lower-case A-labels, no final dot, or a literal.

    U-labels are mapped as UTS 46 says (non-transitional, so a sharp s stays one). Raises `NotAnAddress`.
    """
    if text.startswith("["):
        return _literal(text)
    # An A-label is never shorter than its U-label has characters, so this bounds what idna must read, too.
    if len(text) > DOMAIN_OCTETS + 1:
        raise NotAnAddress(_LONG_DOMAIN)
    name = text if text.isascii() else _mapped(text)
    name = name.lower().removesuffix(".")
    if not name.isascii() or _ACE in name:
        name = ".".join(map(_a_label, name.split(".")))
    if not _labels(name):
        raise NotAnAddress("the domain is not a host name")
    if len(name) > DOMAIN_OCTETS:
        raise NotAnAddress(_LONG_DOMAIN)
    return name


_TOO_LONG = "the local part is longer than 64 octets"
_LONG_PATH = "the address is longer than 254 octets"
_LONG_DOMAIN = "the domain is longer than 255 octets"
_DOTS = "the local part has a dot too many"


def _parse_slowly(text: str) -> Recipient:
    try:
        ascii_only = len(text.encode()) == len(text)
    except UnicodeEncodeError:
        raise NotAnAddress("not UTF-8") from None
    path = text.strip(" \t")
    if path.startswith("<") and path.endswith(">"):
        path = path[1:-1]
    if route := _ROUTE.match(path):
        path = path[route.end() :]  # RFC 5321 appendix C: a source route is dropped
    typed, domain_text = _split(path)
    name = domain(domain_text) if domain_text else ""
    local, fault = _local_part(typed)
    size = len(local.encode())
    if size > LOCAL_PART_OCTETS:
        fault = fault or _TOO_LONG
    elif size + 1 + len(name) > ADDRESS_OCTETS:
        fault = fault or _LONG_PATH
    return Recipient(local, name, ascii_only=ascii_only, fault=fault)


def _local_part(typed: str) -> tuple[str, str]:
    """Give the unquoted local part in NFC, and its fault."""
    fault = ""
    if typed.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", typed[1:-1])
    else:
        local = typed
        if _UNSAFE.search(local):
            raise NotAnAddress("the local part holds a character that must be quoted")
        if not _dots(local):
            fault = _DOTS
    if not local:
        raise NotAnAddress("the local part is empty")
    return (local if local.isascii() else normalize("NFC", local)), fault


def _split(path: str) -> tuple[str, str]:
    """Cut at the @ that parts local part and domain; a bare local part has no domain."""
    if path.startswith('"'):
        quoted = _QUOTED.match(path)
        if not quoted:
            raise NotAnAddress("the quoted local part is not closed, or holds a control character")
        rest = path[quoted.end() :]
        if not rest:
            return path, ""
        if not rest.startswith("@") or len(rest) == 1:
            raise NotAnAddress("something other than a domain follows the quoted local part")
        return quoted[0], rest[1:]
    local, at, name = path.partition("@")
    if at and not name:
        raise NotAnAddress("no domain after the @")
    return local, name


def _dots(local: str) -> bool:
    return not (local.startswith(".") or local.endswith(".") or ".." in local)


def _labels(name: str) -> bool:
    return all(map(_LABEL.fullmatch, name.split(".")))


def _literal(text: str) -> str:
    """Give the canonical form of an address literal (RFC 5321 4.1.3)."""
    if not text.endswith("]") or len(text) > DOMAIN_OCTETS:
        raise NotAnAddress("the address literal is not closed")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            if "%" in inner:
                raise NotAnAddress("the address literal names a zone")  # RFC 5321 4.1.3 has none
            return f"[ipv6:{ipaddress.IPv6Address(inner[5:])}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        raise NotAnAddress("the address literal is no IP address") from None


def _mapped(name: str) -> str:
    """Map a name as UTS 46 says: case, width, and the dots of other scripts."""
    # Imported only when a name needs it: its tables cost a cold start 10 ms.
    import idna  # noqa: PLC0415

    try:
        return idna.uts46_remap(name, std3_rules=False, transitional=False)
    except (idna.IDNAError, UnicodeError):
        raise NotAnAddress(_NO_IDN) from None


def _a_label(label: str) -> str:
    """Give the A-label of a mapped label; one that is plain ASCII stays."""
    if label.isascii() and not label.startswith(_ACE):
        return label
    if len(label) > LABEL_OCTETS:
        raise NotAnAddress(_NO_IDN)  # before idna reads it: it takes a time that grows faster than its input
    import idna  # noqa: PLC0415

    try:
        return idna.alabel(label).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        pass
    # Registries sold names that IDNA 2008 forbids (emoji). MTAs take them as UTS 46 does, which is
    # their Punycode and no more, so U-label and A-label are one domain here as well.
    if label.isascii():
        return label
    return _ACE + label.encode("punycode").decode("ascii")


_NO_IDN = "the domain is no internationalised host name"
