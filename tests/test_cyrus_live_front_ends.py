"""The running daemon beside a live writer: its milter and its maps are asked at once, and each answer was true.

What they say is put into smmapd's words, so that the writer and its account of what was true when are those of
tests/test_cyrus_live.py.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rcptd.verdict import NAMED
from tests.cyrus.history import History
from tests.harness.milterwire import Kind, MilterConnection
from tests.harness.socketmapwire import SocketmapConnection
from tests.rig.cyrus import Cyrus
from tests.rig.daemon import HEAD, Daemon
from tests.rig.place import sheltered
from tests.rig.require import require_cyrus
from tests.test_cyrus_live import CHANGING, ENOUGH, FULL, MISSING, REFUSED, Writer, ok, repack_until

pytestmark = [pytest.mark.cyrus, pytest.mark.daemon]

SEED = 20261120
PATIENCE = 10.0  # seconds for one answer

RULES = """
[stores.imap]
type = "cyrus"
imapd_conf = "{conf}"

[[rules]]
when = { domain = "example.org" }
verify = ["imap"]
subaddress = "must_exist"
"""

# What each verdict is in smmapd's words. A code that is not here fails the test.
REPLIES = {
    "550 5.1.1": MISSING, "550 5.7.1": REFUSED, "452 4.2.2": FULL, "451 4.4.3": b"TEMP cannot tell",
    "450 4.2.1": b"TEMP Mailbox is currently reserved",
}  # fmt: skip
WORDS = {MISSING: "NOTFOUND", REFUSED: "PERM"}
TEXTS = {
    f"{WORDS.get(reply, 'TEMP')} {verdict.text}": reply
    for code, reply in REPLIES.items()
    for verdict in NAMED
    if f"{verdict.code} {verdict.enhanced}" == code
}

Ask = Callable[[str], Awaitable[bytes | None]]


def test_each_answer_of_the_daemon_beside_a_live_writer_was_true() -> None:
    require_cyrus()
    options = {
        "virtdomains": "userid", "defaultdomain": "example.org", "postuser": "bb", "mboxlist_db": "twoskip",
        "delete_mode": "immediate",
    }  # fmt: skip
    with sheltered("live") as place, Cyrus(place, imapd_conf=options) as cyrus, cyrus.imap() as imap:
        writer = Writer(imap)
        folder = place / "rcptd"
        folder.mkdir()
        repacks: list[float] = []
        done = threading.Event()
        configuration = HEAD + RULES.replace("{conf}", str(cyrus.site.config))
        with Daemon(folder, configuration) as daemon, ThreadPoolExecutor(2) as threads:
            asking = threads.submit(asyncio.run, ask_all(daemon, writer.history, done))
            repacking = threads.submit(repack_until, done, cyrus, repacks)
            try:
                writer.go_on([asking, repacking], repacks)
            finally:
                done.set()
            seen = asking.result()
            repacking.result()
        assert writer.rounds > 5
        assert len(repacks) > 5
        assert not cyrus.complaints()
        for name, answered in seen.items():
            assert {ok(one) for one in CHANGING} | {MISSING, FULL, REFUSED} <= set(answered), name


async def ask_all(daemon: Daemon, history: History, done: threading.Event) -> dict[str, Counter[bytes]]:
    """Ask both front ends at once until the end; how often each gave which answer."""
    milters = [asyncio.create_task(ask_milter(daemon, history, done, number)) for number in range(2)]
    maps = {name: asyncio.create_task(ask_map(daemon, history, done, name)) for name in ("access", "smmapd")}
    try:
        async with asyncio.timeout(ENOUGH + 3 * PATIENCE):
            by_milter = await asyncio.gather(*milters)
            by_map = await asyncio.gather(*maps.values())
    finally:
        done.set()
    return {"milter": by_milter[0] + by_milter[1], **dict(zip(maps, by_map, strict=True))}


async def ask_milter(daemon: Daemon, history: History, done: threading.Event, number: int) -> Counter[bytes]:
    seen: Counter[bytes] = Counter()
    async with MilterConnection(f"inet:127.0.0.1:{daemon.milter_port}", patience=PATIENCE) as milter:
        await milter.connect("client.example", "192.0.2.7")
        await milter.helo("client.example")

        async def ask(address: str) -> bytes | None:
            reply = await milter.rcpt(f"<{address}>")
            return None if reply.kind is Kind.CONTINUE else REPLIES[f"{reply.code} {reply.enhanced}"]

        while not done.is_set():
            await milter.mail("<sender@example.net>")
            await ask_each(ask, history, seen, SEED + number + sum(seen.values()))
            await milter.abort()
    return seen


async def ask_map(daemon: Daemon, history: History, done: threading.Event, name: str) -> Counter[bytes]:
    seen: Counter[bytes] = Counter()
    async with SocketmapConnection(f"unix:{daemon.folder}/socketmap.sock", patience=PATIENCE) as connection:

        async def ask(address: str) -> bytes | None:
            reply = await connection.ask(name, address)
            if reply == ("OK DUNNO" if name == "access" else f"OK {address}"):
                return None
            return REPLIES[reply[3:12]] if name == "access" else TEXTS[reply]

        while not done.is_set():
            await ask_each(ask, history, seen, SEED + sum(seen.values()))
    return seen


async def ask_each(ask: Ask, history: History, seen: Counter[bytes], seed: int) -> None:
    """Ask about every address of the writer's once, in some order, and hold each answer against the truth."""
    for question in random.Random(seed).sample(sorted(history.questions()), len(history.questions())):
        asked = history.now()
        reply = await ask((question if b"@" in question else question + b"@example.org").decode())
        answer = ok(question) if reply is None else reply
        history.check(question, asked, answer)
        seen[answer] += 1
