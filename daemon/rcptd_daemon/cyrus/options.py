"""The command line of `smmapd`: Cyrus' own letters, taken as Cyrus takes them, and -L of ours.

Cyrus wants every switch and value in a word of its own, and ends with 64 at a longer word that begins with a dash.
Numbers are read by atoi(3). What stands beside the switches is ignored. Made by hand, since argparse costs a
cold start more than all of this.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONF = Path("/etc/imapd.conf")
MASTER, SYSTEMD, STDIO, HAND = "master", "systemd", "stdio", "hand"
"""Who started us."""

USES, IDLE = 250, 60  # what Cyrus does where -U or -T is not given

USAGE = """\
usage: smmapd [-C FILE] [-U USES] [-T SECONDS] [-D] [-p] [-X] [-L ADDRESS]...
  -C FILE     the imapd.conf to read (default: /etc/imapd.conf)
  -U USES     end after so many connections (under Cyrus' master 250, else never)
  -T SECONDS  end after so long without a connection; 0 is never (under Cyrus' master 60, else never)
  -D          log what is asked, and run the debug_command of imapd.conf
  -p          ignore the folder in user+folder
  -X          serve one client on standard input and output
  -L ADDRESS  listen at unix:/path, inet:127.0.0.1:7850 or inet6:[::1]:7850; may be given again
Without -X and -L it serves whom it was started by: Cyrus' master, a systemd socket unit, inetd or Postfix' spawn(8).
"""

_INTEGER = re.compile(r"[ \t-\r]*([+-]?\d{1,9})", re.ASCII)


class Usage(Exception):
    """A command line that is not taken; `str` says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; None where it says nothing."""

    conf: Path = DEFAULT_CONF
    uses: int | None = None
    idle: int | None = None
    debug: bool = False
    drop_folder: bool = False
    stdio: bool = False
    listen: tuple[str, ...] = ()


def read(words: Sequence[str]) -> Options:
    """Read the words behind the program's name; raises `Usage`."""
    for word in words:
        if word.startswith("-") and len(word) > 2:
            raise Usage(f"{word}: every switch and every value must be a word of its own")
    given: dict[str, str] = {}
    listen = []
    for letter, value in _switches(words):
        if letter == "L":
            listen.append(value)
        given[letter] = value
    return Options(
        conf=Path(given.get("C", DEFAULT_CONF)),
        uses=max(1, _number(given["U"])) if "U" in given else None,
        idle=max(0, _number(given["T"])) if "T" in given else None,
        debug="D" in given,
        drop_folder="p" in given,
        stdio="X" in given,
        listen=tuple(listen),
    )


def _switches(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(words)
    for word in rest:
        if word == "--":
            return
        if len(word) < 2 or not word.startswith("-"):
            continue
        letter = word[1]
        if letter in "CUTL":
            value = next(rest, None)
            if value is None:
                raise Usage(f"{word} needs a value")
            yield letter, value
        elif letter in "DpX":
            yield letter, ""
        else:
            raise Usage(f"there is no switch {word}")


def _number(value: str) -> int:
    number = _INTEGER.match(value)
    return int(number[1]) if number else 0
