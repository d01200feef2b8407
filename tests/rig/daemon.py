"""The installed rcptd as a process: started on a configuration, reloaded, ended, its log at hand."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rcptd.question import Mailbox
from rcptd.stores.entries import subject
from rcptd.stores.sqlite_schema import COLUMNS, row_of
from rcptd_daemon import mailbox_database
from tests.harness.world import World
from tests.rig.ports import free_port, wait_until

RCPTD = Path(sys.executable).with_name("rcptd")
READY = 20.0
"""How long, in seconds, a start or a reload may take on a loaded machine."""


def rcptd(
    *words: str, stdin: str = "", timeout: float = 60, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the installed command; gives exit status, standard output and standard error."""
    done = subprocess.run(
        [str(RCPTD), *words],
        input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


class Daemon:
    """`rcptd serve` in a folder of its own.

    The configuration is TOML with `{folder}`, `{map_port}` and `{milter_port}` filled in. Unless told
    otherwise, leaving the context fails where the daemon logged an error that nobody expected.
    """

    def __init__(self, folder: Path, configuration: str, *, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.file = folder / "rcptd.toml"
        self.map_port = free_port()
        self.milter_port = free_port()
        self.prefix = tuple(prefix)
        self.expected_errors: list[str] = []
        self._log = folder / "rcptd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.write(configuration)

    def write(self, configuration: str) -> None:
        """Write the configuration file; `reload` puts it in force."""
        text = configuration
        for name in ("folder", "map_port", "milter_port"):
            text = text.replace(f"{{{name}}}", str(getattr(self, name)))
        self.file.write_text(text)

    def start(self, *, ready: bool = True) -> Self:
        """Start the process and wait until it says that it is ready."""
        after = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.prefix, str(RCPTD), "serve", "-c", str(self.file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if ready:
            self.wait_for("ready: rcptd", after)
        return self

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            unexpected = [
                line
                for line in self.log().splitlines()
                if re.search(r"level=(error|critical)|Traceback", line)
                and not any(re.search(pattern, line) for pattern in self.expected_errors)
            ]
            assert not unexpected, "\n".join(unexpected)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """All that was logged so far."""
        return self._log.read_text(errors="backslashreplace") if self._log.exists() else ""

    def wait_for(self, pattern: str, after: int = 0, seconds: float = READY) -> str:
        """Wait for a line in the log behind an offset, and give it; fails with the log."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = [one for one in [re.search(pattern, self.log()[after:])] if one]
            return bool(found) or not self.running

        wait_until(there, seconds)
        assert found, f"no {pattern!r} in the log:\n{self.log()}"
        return found[0][0]

    def reload(self, expected: str = "reload: .* is in force") -> None:
        """Send SIGHUP and wait for what the log says of it."""
        after = len(self.log())
        os.kill(self.pid, signal.SIGHUP)
        self.wait_for(expected, after)

    def stop(self, patience: float = 15.0) -> int | None:
        """Send SIGTERM and give the exit status; SIGKILL, and a failure, where it does not end."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise AssertionError(f"rcptd did not end within {patience} s of SIGTERM:\n{self.log()}") from None

    def kill(self) -> None:
        """End the process at once, as the kernel would; `start` begins a new one."""
        assert self._process
        self._process.kill()
        self._process.wait(5)

    def check(self, *words: str, live: bool = True) -> tuple[int, list[dict[str, Any]]]:
        """Run `rcptd check --json`; gives exit status and results."""
        code, out, err = rcptd("check", "-c", str(self.file), *(["--live"] if live else []), "--json", *words)
        assert not err, err
        return code, [json.loads(line) for line in out.splitlines()]


HEAD = """\
[socketmap]
listen = ["inet:127.0.0.1:{map_port}", "unix:{folder}/socketmap.sock"]
mode = "0666"

[socketmap.maps]
"*"      = "key"
smmapd   = "smmapd"
access   = "access"
sendmail = "error"

[milter]
listen = "inet:127.0.0.1:{milter_port}"

[control]
listen = "unix:{folder}/control.sock"
"""


def configuration_of(world: World, folder: Path, generation: int = 0) -> str:
    """Write the configuration of a world, and its stores as real databases."""
    parts = [HEAD]
    if world.daemon:
        parts.append(f"[daemon]\n{world.daemon}\n")
    for name, recipients in world.stores.items():
        path = folder / f"{name}-{generation}.db"
        if isinstance(recipients, dict):
            fill(path, recipients)
        else:
            path = folder / "nowhere" / f"{name}.db"  # which makes it Unavailable
        parts.append(f'[stores.{name}]\ntype = "sqlite"\npath = "{path}"\n')
    parts.append(world.rules)
    return "\n".join(parts)


def fill(path: Path, recipients: Mapping[str, Mailbox]) -> None:
    """Write recipients, by address as written, into a new database."""
    entries = [(subject(text), mailbox) for text, mailbox in recipients.items()]
    rows = ((of.domain, of.local, *row_of(mailbox)) for of, mailbox in entries)
    with mailbox_database.writing(path, create=True) as connection:
        mailbox_database.put_all(connection, COLUMNS, iter(rows))
