"""A first run: rcptd with both front ends on loopback, a few recipients, and an SMTP listener to try it with.

Everything is in .run/demo, made anew where it is missing, so that recipients added in one run are there in the
next. Ends with Ctrl-C, or when rcptd ends. RCPTD_SMTP_PORT and RCPTD_PORT move the ports.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.mta import HarnessMTA  # noqa: E402 - the root is on the path only now

DEMO = ROOT / ".run" / "demo"
RCPTD = str(Path(sys.executable).with_name("rcptd"))
SMTP_PORT = int(os.environ.get("RCPTD_SMTP_PORT", "2525"))
MAP_PORT = int(os.environ.get("RCPTD_PORT", "7850"))
MILTER_PORT = MAP_PORT + 1

CONFIGURATION = f"""\
[daemon]
default_domain = "example.org"

[socketmap]
listen = "inet:127.0.0.1:{MAP_PORT}"

[socketmap.maps]
"*"      = "key"
access   = "access"
sendmail = "error"

[milter]
listen = "inet:127.0.0.1:{MILTER_PORT}"

[control]
listen = "unix:{DEMO}/control.sock"

[log]
decisions = "all"

[stores.local]
type = "sqlite"
path = "{DEMO}/recipients.db"

[[rules]]
name   = "our mailboxes"
when   = {{ domain = "example.org" }}
verify = ["local"]
"""

RECIPIENTS = (
    ("add", "user@example.org"),
    ("add", "full@example.org"),
    ("quota", "full@example.org", "--limit", "10M", "--used", "10M"),
    ("add", "off@example.org"),
    ("deny", "off@example.org"),
    ("add", "staff@example.org", "--authenticated"),
    ("alias", "sales@example.org", "user@example.org"),
    ("add", "gone@example.org", "--moved-to", "gone@example.net"),
)

WHAT_NEXT = """
rcptd is running on recipients of example.org: user, full, off, staff, sales, gone. In another terminal, try

    tools/ask nobody@example.org                                  a recipient is refused at RCPT TO
    .venv/bin/rcptd check -c {file} --live --explain full@example.org
    .venv/bin/rcptd mailbox -c {file} add nobody@example.org      and ask again: no restart

SMTP listens on 127.0.0.1:{smtp}, wired to the milter at 127.0.0.1:{milter}; the socketmap is at 127.0.0.1:{map}.
Ctrl-C ends all of it. The log:
"""


def main() -> int:
    """Run until interrupted; gives the exit status."""
    DEMO.mkdir(parents=True, exist_ok=True)
    file = DEMO / "rcptd.toml"
    file.write_text(CONFIGURATION)
    if not (DEMO / "recipients.db").exists():
        for words in RECIPIENTS:
            subprocess.run([RCPTD, "mailbox", "-c", str(file), *words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_serve(file))
    return 0


async def _serve(file: Path) -> int:
    daemon = await asyncio.create_subprocess_exec(RCPTD, "serve", "-c", str(file))
    ended = asyncio.ensure_future(daemon.wait())
    mta = HarnessMTA(milter=f"inet:127.0.0.1:{MILTER_PORT}", domains=["example.org"], hostname="mx.example.org")
    try:
        await asyncio.wait_for(_until_ready(ended), 30)
        if ended.done():
            return ended.result()
        await mta.start("127.0.0.1", SMTP_PORT)
        shown = file.relative_to(ROOT)
        print(WHAT_NEXT.format(file=shown, smtp=SMTP_PORT, milter=MILTER_PORT, map=MAP_PORT), flush=True)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.send_signal, signal.SIGTERM)
        return await ended
    except OSError as error:
        print(f"the SMTP listener cannot start: {error}; RCPTD_SMTP_PORT moves it", file=sys.stderr)
        return 1
    finally:
        await mta.stop()
        if not ended.done():
            daemon.terminate()
            await ended


async def _until_ready(ended: "asyncio.Future[int]") -> None:
    """Wait until the milter takes connections, or the daemon has ended."""
    while not ended.done():
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", MILTER_PORT)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


if __name__ == "__main__":
    sys.exit(main())
