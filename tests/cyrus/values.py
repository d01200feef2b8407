"""Random values of mailboxes.db and of quota roots: mostly sound, many at a border, some that nobody can read.

What a value means is not said here: the real Cyrus says it. Lines of cyr_dbtool carry them, so none holds NUL or LF,
and none is one at which 3.6.1 aborts in every case (see tests/cyrus/originals.py for those that may).
"""

from random import Random

_RIGHTS = ("p", "l", "lp", "p", "lrsp", "lrsp", "lrs", "lrswipkxtecdan", "", "0", "LP", "d", "c", "post", "lrswipcd")
_WHO = ("anyone",) * 5 + ("anonymous", "-anyone", "-anonymous", "foo", "Anyone", "group:staff", "-foo", "any")
NOTHING = '""'  # no right, in a dlist
_KINDS = ("e",) * 6 + ("a", "b", "c", "n", "p", "s", "")
_FLAGS = ("",) * 24 + ("d", "i", "z", "m", "l", "f", "dz", "zi", "ml", "id")
_ODD = (
    "%(T e)",
    "%()",
    "%(A %(anyone lp))",
    "%(T NIL A %(anyone lrsp))",
    '%(T "" A %(anyone p))',
    '%(T "e" I x P default A %("anyone" "lp"))',
    "%(T e I x P default A %(anyone lp) H (%(F 1 T ed)))",
    "%(T e I x P default H (%(F 1 T ed A %(anyone p)) %(T z)) A %(anyone l))",
    "%(T e X %(T ed) A %(anyone p))",
    "%(T e X (T ed) A %(anyone p))",
    "%(T ed X y T e A %(anyone p))",
    "%(T e A anyone P default)",
    "%(T e A (anyone lp))",
    "%(A %(anyone p) T ez)",
    "%(T e A %(anyone lp -anyone p anyone p))",
    "%(T e A %(anyone %(anyone p) foo l))",
    "(T e)",
    "(T ed I x) 0 default anyone\tlp\t",
    "(N 1 T ed) 128 default anyone\tlp\t",
    "hello world",
    "x",
    " ",
    "0",
    "0 ",
    "0 default",
    "4096 default anyone\tp\t",
    "-1 default anyone\tp\t",
    "160 default anyone\tp\t",
    "128default anyone\tp\t",
    "default anyone\tlp\t",
    "0 default anyone\tlp",
    "0 default anyone\tlp\t-anyone\tp\t",
    "%",
    "%x",
    "%(",
    "%(T",
    "%(T e",
    "%(T  e)",
    "%(T e )",
    "%(T e) ",
    "%(T e)x",
    "%(T e))",
    "%(T e I",
    "%(NIL e)",
    '%(T "e)',
    "%(T (e)",
    "",
)
_LIMITS = (-1, 0, 1, 5, 10, 1000, 10**6, 2**31, 2**32, 2**43, 2**53 - 1, 2**53, 2**54, 2**62, 2**63 - 1)
_ODD_TEXTS = (
    b"", b" ", b"0", b"0 ", b"junk", b"10241\n", b"10241\n10 junk", b"10241\n10 7", b"10241\n10 7 M 5",
    b"\n10241\n10", b"10241x\n10", b"10241\n10x", b"+10241\n+10", b"10241\n10\n\nM 5\n5", b"10241 10 M",
    b"10241 10 M 5", b"10241 10 M 5 5 9", b"10241\t10", b"0x99\n1", b"10241\r\n10\r",
    b"10241 10 M 5 -1 AS 1 1 NF 2 1", b"99999999999999999999 10", b"10241\n10 M 9 9 M 0 9",
)  # fmt: skip
_ODD_LISTS = (
    b"%(S (10241))", b"%(S (10241 -1))", b"%(S (+10241 10))", b"%(S (10241 +10))", b"%(S (10241 10x))",
    b"%(S (10241 NIL))", b"%(s (10241 10))", b"%(S (0 10) S (10241 10))", b"%(S (10241 10) S (0 10))",
    b"%(  S   (10241   10)  )", b"%(S 10241)", b"%(S ())", b"%()", b"%(S (10241 10)) x", b"%(S (10241 10", b"%x",
    b"%", b"%(M (5 5))", b'%(S ("10241" "10"))', b"%(S (10241 10) M)", b"%(X (1 0) S (10241 10))",
    b"%(S (10241 10 0))", b"%(S (99999999999999999999 10))", b"%(S (10241 99999999999999999999))",
)  # fmt: skip


def acl(source: Random, *, shared: bool = False) -> str:
    """Entries `who rights who rights …` for a dlist; those of a shared mailbox often let anybody post."""
    if shared and source.random() < 0.5:
        return "anyone lrsp"
    number = source.choice((0, 1, 1, 2, 3))
    return " ".join(f"{source.choice(_WHO)} {source.choice(_RIGHTS) or NOTHING}" for _ in range(number))


def mailbox(source: Random, *, shared: bool) -> bytes:
    """The value of a mailbox."""
    kind = source.random()
    if kind < 0.1:
        return source.choice(_ODD).encode()
    if kind < 0.2:
        number = source.choice((0, 0, 0, 1, 2, 32, 64, 128, 256, 288, 416))
        entries = acl(source, shared=shared).replace(NOTHING, "").replace(" ", "\t")
        return f"{number} default {entries}\t".encode()
    if kind < 0.23:
        where = source.choice((" S 127.0.0.1", ' S "127.0.0.1"'))
        return f"%(T er I x P default{where} A %({acl(source, shared=shared)}))".encode()
    flags = source.choice(_KINDS) + source.choice(_FLAGS) or "NIL"
    sound = f"%(T {flags} I x P default V 1 C 1 F 1 M 1 A %({acl(source, shared=shared)}))".encode()
    return mutated(source, sound) if kind < 0.26 else sound


def mutated(source: Random, value: bytes) -> bytes:
    """A value with one octet changed, taken out or put in, or cut short."""
    at = source.randrange(len(value))
    likely = source.choice(b' ()%"\\NILedizT{}\t\x01\xff')
    octet = bytes([likely if source.random() < 0.8 else source.randrange(1, 256)])
    before, after = value[:at], value[at + 1 :]
    made = source.choice((before, before + after, before + octet + after, before + octet + value[at:]))
    return made.replace(b"\n", b" ").replace(b"\r", b" ")


def _figures(source: Random, unit: int) -> tuple[int, int]:
    """What is used and the limit: around the border, often."""
    limit = source.choice(_LIMITS)
    if source.random() < 0.75:
        return max(limit, 0) * unit + source.choice((-2, -1, -1, 0, 0, 1, 2)), limit
    return source.choice((0, 1, 10**6, 2**63 - 1, 2**63, 2**64, 10**25, -5)), limit


def quota(source: Random) -> bytes:
    """The content of a quota file, or a value of a quota database, without a final LF."""
    storage, messages = _figures(source, 1024), _figures(source, 1)
    form = source.random()
    if form < 0.3:
        return b"%d\n%d" % storage
    if form < 0.45:
        name = source.choice((b"M", b"m", b"M", b"AS", b"NF", b"S", b"XX", b"MM"))
        return b"%d\n%d %b %d %d" % (*storage, name, *messages)
    if form < 0.5:
        return source.choice(_ODD_TEXTS)
    if form < 0.85:
        more = source.choice((b"", b" AS (0) NF (1)", b" MODSEQ 7"))
        return b"%%(S (%d %d) M (%d %d)%b)" % (*storage, *messages, more)
    sound = b"%%(S (%d %d) M (%d) MODSEQ 7)" % (*storage, messages[0])
    return mutated(source, sound) if form < 0.93 else source.choice(_ODD_LISTS)
