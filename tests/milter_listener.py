"""A program for tests: the real listener on the real libmilter, with decisions that go by the local part.

    python -m tests.milter_listener '{"listen": "unix:/tmp/x/milter.sock"}' QUERIES [USER]

It opens its socket as USER. Each question is a line of JSON in the file QUERIES. SIGUSR1 prints a line of
JSON with what the listener counts; SIGTERM drains, for two seconds at most, and leaves as a daemon does.
"""

import json
import logging
import os
import pwd
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from rcptd import schema, verdict
from rcptd.query import UNKNOWN, Query
from rcptd.verdict import Action, Cause, Verdict
from rcptd_milter.libmilter import Listener
from rcptd_milter.settings import Settings

DRAIN_SECONDS = 2.0


class Decisions:
    """Decide, and write the questions down where a file is named."""

    def __init__(self, path: str) -> None:
        self._lines = Path(path).open("a", encoding="ascii", buffering=1) if path else None  # noqa: SIM115

    def __call__(self, query: Query) -> Verdict | None:
        if self._lines:
            facts = {name: getattr(query, name) for name in query.__slots__}
            known = {name: fact for name, fact in facts.items() if fact is not UNKNOWN}
            self._lines.write(json.dumps(known, default=str) + "\n")
        match query.recipient.strip("<>").partition("@")[0]:
            case "gone":
                return verdict.NO_SUCH_MAILBOX
            case "full":
                return verdict.FULL_FOR_NOW
            case "percent":
                return Verdict(Cause.OPERATOR, Action.DEFER, 452, "4.2.2", "100% full\r\n250 OK \u00e9")
            case "mixed":
                return Verdict(Cause.OPERATOR, Action.REJECT, 550, "4.2.2", "x")
            case "raise":
                raise RuntimeError("a decision that fails")
            case "exit":
                raise SystemExit(1)
            case "junk":
                return "no verdict at all"  # type: ignore[return-value]
            case "slow":
                time.sleep(2)
                return verdict.NO_SUCH_MAILBOX
        return None


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    faults: list[str] = []
    table = json.loads(sys.argv[1])
    settings = schema.read(Settings, table, lambda key, what: faults.append(f"{key}: {what}"))
    if not settings:
        sys.exit("\n".join(faults))
    listener = Listener(settings, Decisions(sys.argv[2]))
    if len(sys.argv) > 3:
        account = pwd.getpwnam(sys.argv[3])
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    over = threading.Event()

    def tell(*_: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        counts = {
            "sessions": listener.active_sessions,
            "transactions": listener.active_transactions,
            "faults": listener.faults,
            "rss": pages * resource.getpagesize(),
            "cpu": used.ru_utime + used.ru_stime,
        }
        print(json.dumps(counts), flush=True)

    signal.signal(signal.SIGUSR1, tell)
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    try:
        listener.open()
    except OSError as error:
        sys.exit(error.strerror or str(error))
    listener.start()
    print("ready", flush=True)
    while not over.wait(0.05):
        pass
    listener.stop()
    end = time.monotonic() + DRAIN_SECONDS
    while listener.active_transactions and time.monotonic() < end:
        time.sleep(0.02)
    listener.close()
    os._exit(0)


if __name__ == "__main__":
    main()
