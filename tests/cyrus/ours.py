"""Our side of a comparison with Cyrus: the judge in this process, its judgements written as smmapd's replies.

    with judged(site) as answer:
        assert answer(b"foo") == b"OK foo"
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rcptd.stores.cyrus import imapdconf
from rcptd.stores.cyrus.databases.errors import Held
from rcptd.stores.cyrus.judge import Judge, Judgement, Outcome
from tests.rig.cyrus_site import Site

PATIENCE = 10.0  # seconds for a writer's lock
REFUSING = b"127.0.0.1"  # the server of every remote mailbox here: nobody answers at its port


@contextmanager
def judged(site: Site, *, strict: bool = False, drop_folder: bool = False) -> Iterator[Callable[[bytes], bytes]]:
    """Give what answers a key with a reply's payload, judged by the imapd.conf of a site."""
    with open_judge(site.config, strict=strict, drop_folder=drop_folder) as judge:
        yield lambda key: rendered(key, ask(judge, key), strict=strict)


@contextmanager
def open_judge(config: Path, *, strict: bool = False, drop_folder: bool = False) -> Iterator[Judge]:
    """Give a judge of an imapd.conf, as the service `smmap`; it is closed afterwards."""
    conf = imapdconf.read(config, service="smmap", environ={})
    judge = Judge(conf, strict=strict, service=b"smmap", drop_folder=drop_folder)
    try:
        yield judge
    finally:
        judge.close()


def ask(judge: Judge, key: bytes) -> Judgement:
    """Judge a key, again while a writer holds a lock; raises `TimeoutError` where it never lets go."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            return judge.judge(key)
        except Held:
            time.sleep(0.001)
    raise TimeoutError(f"a database stayed locked for {PATIENCE:g} s")


def rendered(key: bytes, judgement: Judgement, *, strict: bool) -> bytes:
    """A judgement as smmapd writes it."""
    match judgement.outcome:
        case Outcome.OK:
            return b"OK " + key
        case Outcome.NONEXISTENT:
            return b"NOTFOUND Mailbox does not exist"
        case Outcome.DENIED:
            return b"NOTFOUND " + judgement.text
        case Outcome.OVER_QUOTA:
            return b"PERM Over quota" if judgement.final else b"TEMP Over quota"
        case Outcome.RESERVED:
            return (b"TEMP" if strict else b"PERM") + b" Mailbox is currently reserved"
        case Outcome.NOT_POSTABLE:
            return b"PERM Permission denied"
        case Outcome.REMOTE:
            if strict or judgement.server not in {REFUSING, b"nosuch.invalid"}:
                return b"TEMP on another server"
            return b"OK " + key
        case Outcome.UNKNOWN:
            return b"TEMP cannot tell"
