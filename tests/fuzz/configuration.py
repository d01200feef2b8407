"""Fuzz the configuration: `tools/fuzz SECONDS configuration`.

Invariants, for any octets in the file:
- a configuration comes out, or `FaultyConfiguration` with at least one fault, and nothing else;
- each fault is one line that begins `FILE:LINE: ` with a line that the file has (or `FILE: `, where it is no text);
- a key that stands alone on a line, `key = value`, is found on that line.
"""

import random
import re
import tempfile
import tomllib
from pathlib import Path

from rcptd.config import FaultyConfiguration, load
from rcptd.lines import Lines
from rcptd_daemon.sections import SECTIONS

PIECES = (
    "[daemon]", "[stores.local]", "[stores.'a.b']", "[[rules]]", "[[rules.when]]", "[socketmap]", "[milter]", "[log]",
    "[control]", "[rules]", "[socketmap.maps]", 'deadline = "6s"', "deadline = 1e400", 'default_domain = "a@b"',
    'type = "sqlite"', 'type = "memory"', 'type = "sqlitee"', "type = 5", 'path = "/x"', 'recipients = ["a@b.example"]',
    'listen = "unix:/x"', 'listen = ["inet:127.0.0.1:1", "fd:"]', 'verify = "local"', "verify = []", "accept = true",
    "accept = 0", 'reject = "550 5.7.1 x"', 'defer = "451 5.1.1 x"', 'when = { domain = "a.example" }',
    'when = { client = { not = ["192.0.2.7/24"] } }', "when = { authenticated = { not = { not = 1 } } }",
    'subaddress = { delimiters = "@" }', "shadow = true", 'name = "x"', '"²" = 1', "1 = 2", "x = [", "]", "x = {", "}",
    'x = """', '"""', "x = '''", "'''", '\\"""', '""""', "# x", "x.y.z = 1979-05-27T07:32:00Z", "x = 0x_1", "=", "x",
    '"a\\nb" = 1', "x = [[[[[[]]]]]]", "x = 123456789012345678901234567890", "\x00", "\ufeff", "\r",
)  # fmt: skip
_ALONE = re.compile(r'(?m)^([a-z]+) = ("[^"\\\n]*"|\d+|true)$')


def noise(source: random.Random) -> bytes:
    """Make a file out of what configurations are made of, now and then with octets changed."""
    lines = source.choices(PIECES, k=source.randrange(12))
    data = bytearray("".join(line + source.choice(("\n", "\n", "\n", "\n\n", " ")) for line in lines).encode())
    if source.random() < 0.2:
        for _ in range(source.choice((1, 3))):
            if data:
                data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def one(source: random.Random) -> None:
    """Try one input."""
    data = noise(source)
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        faults = faults_of(path)
    for fault in faults or ():
        where = re.match(re.escape(str(path)) + r":(\d+): \S", fault)
        assert where, (data, fault)
        assert 1 <= int(where[1]) <= data.count(b"\n") + 1, (data, fault)
        assert fault.isprintable(), (data, fault)
    assert faults != [], data
    keys(data)


def faults_of(path: Path) -> list[str] | None:
    """Give the faults of a file, None where it is sound."""
    try:
        load(path, SECTIONS)
    except FaultyConfiguration as faulty:
        return faulty.faults
    return None


def keys(data: bytes) -> None:
    """Try the lines of plain keys, where the text is TOML and has nothing in which they might be hidden."""
    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except ValueError:
        return
    lines = Lines(text)
    for number, line in enumerate(text.split("\n"), start=1):
        alone = _ALONE.fullmatch(line)
        if alone and "[" not in text and "'''" not in text and '"""' not in text:
            assert alone[1] in tables, data
            assert lines.of((alone[1],)) == number, data
