"""A real Cyrus that writes while its smmapd is asked: mailboxes created and deleted by imapd, and a repack.

After each change every server is asked about it: what Cyrus has said is done must be what all answer. Who answers
otherwise fails the run.
"""

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

from benchmarks.cyrus import SEED
from tests.rig.cyrus import ADMIN, Asker, Cyrus
from tests.rig.cyrus_site import GROUP, GROUPS, USER
from tests.rig.require import CYRUS_PROGRAMS

OPTIONS = {"delete_mode": "immediate"}
"""Of imapd.conf: a deleted mailbox is gone, and not renamed."""

NAME = "zzwriter"
PAUSE = 0.02  # seconds between two changes, so that the writer is not what the machine is busy with
REPACK = 600.0  # seconds; ten million mailboxes take their time


@contextmanager
def writing(cyrus: Cyrus, servers: Mapping[str, Path]) -> Iterator[list[str]]:
    """Have Cyrus write meanwhile; gives the changes so far. Raises `RuntimeError` for a wrong answer."""
    changes: list[str] = []
    wrong: list[str] = []
    done = threading.Event()
    writer = threading.Thread(target=_write, args=(cyrus, servers, done, changes, wrong), name="writer")
    writer.start()
    try:
        yield changes
    finally:
        done.set()
        writer.join()
    if wrong:
        raise RuntimeError(wrong[0])


def _write(
    cyrus: Cyrus, servers: Mapping[str, Path], done: threading.Event, changes: list[str], wrong: list[str]
) -> None:
    try:
        with ExitStack() as stack:
            imap = stack.enter_context(cyrus.imap())
            askers = {name: stack.enter_context(Asker(path)) for name, path in servers.items()}
            while True:
                _must(imap.create(f"user/{NAME}"))
                _see(askers, b"OK ", changes, "created")
                _must(imap.setacl(f"user/{NAME}", ADMIN, "lrswipkxtecda"))
                _must(imap.delete(f"user/{NAME}"))
                _see(askers, b"NOTFOUND ", changes, "deleted")
                if done.wait(PAUSE):
                    return
    except Exception as error:
        wrong.append(f"the writer: {error!r}")


def _must(reply: tuple[str, Sequence[object]]) -> None:
    if reply[0] != "OK":
        raise RuntimeError(f"imapd says {reply}")


def _see(askers: Mapping[str, Asker], wanted: bytes, changes: list[str], deed: str) -> None:
    for name, asker in askers.items():
        reply = asker.ask(f"{NAME}@example.org".encode())
        if not reply.startswith(wanted):
            raise RuntimeError(f"{name} says {reply!r} of a mailbox that was {deed}")
    changes.append(deed)


def longest_waits(cyrus: Cyrus, servers: Mapping[str, Path], known: Sequence[str]) -> dict[str, float]:
    """Repack mailboxes.db, and ask meanwhile; the longest wait of each server, in seconds."""
    file = cyrus.site.directory / "mailboxes.db"
    command: list[str | Path] = [
        CYRUS_PROGRAMS / "cyr_dbtool", "-C", cyrus.site.config, "-n", file, "twoskip", "repack"
    ]  # fmt: skip
    longest = dict.fromkeys(servers, 0.0)
    source = Random(SEED)
    with ExitStack() as stack:
        askers = {name: stack.enter_context(Asker(path)) for name, path in servers.items()}
        with subprocess.Popen(command, cwd=cyrus.site.place, user=USER, group=GROUP, extra_groups=GROUPS) as repack:
            end = time.monotonic() + REPACK
            going_on = True
            while going_on:  # and once more when it has ended: then there is a new file
                going_on = repack.poll() is None
                for name, asker in list(askers.items()):
                    begun = time.monotonic()
                    try:
                        reply = asker.ask(source.choice(known).encode())
                    except TimeoutError:  # it waits for the lock, which a repack of millions holds for long
                        reply = b"OK later"
                        asker.close()
                        askers[name] = stack.enter_context(Asker(servers[name]))
                    longest[name] = max(longest[name], time.monotonic() - begun)
                    if not reply.startswith(b"OK "):
                        repack.kill()
                        raise RuntimeError(f"{name} says {reply!r} during a repack")
                if time.monotonic() > end:
                    repack.kill()
                    raise RuntimeError("the repack takes too long")
        if repack.returncode:
            raise RuntimeError(f"cyr_dbtool repack: status {repack.returncode}")
    return longest
