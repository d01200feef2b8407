"""contrib/cyrus: each line is loaded by a real cyrmaster, and a client of it is answered."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.cyrus import Asker, Cyrus
from tests.rig.cyrus_site import record
from tests.rig.place import sheltered
from tests.rig.require import require_cyrus
from tests.rig.smmapd import installed

CONTRIB = Path(__file__).parents[1] / "contrib" / "cyrus"
FILES = sorted(CONTRIB.glob("*.conf"))
LINE = re.compile(r'^  (\w+)\s+cmd="(\S+)([^"]*)" listen="/run/cyrus/socket/(\w+)"(.*)$', re.MULTILINE)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with sheltered("contrib") as place:
        yield place


def test_the_files_are_those_of_the_readme() -> None:
    readme = (CONTRIB / "README.md").read_text()
    assert [file.name for file in FILES] == sorted(re.findall(r"`([\w-]+\.conf)`", readme))


@pytest.mark.cyrus
def test_every_line_is_loaded_and_answers(place: Path) -> None:
    require_cyrus()
    program = installed(place)
    config = place / "cyrus" / "site" / "imapd.conf"
    lines, sockets = [], []
    for number, file in enumerate(FILES):
        found = LINE.findall(file.read_text())
        assert len(found) == len(re.findall("cmd=", re.sub("(?m)^ *#.*$", "", file.read_text()))) > 0
        for name, command, words, socket, more in found:
            ours = command == "/opt/rcptd/bin/smmapd"
            assert ours or command == "smmapd"
            sockets.append(place / f"{socket}{number}")
            cmd = f"{program if ours else command}{words} -C {config}"
            lines.append(f'{name}{number} cmd="{cmd}" listen="{sockets[-1]}"{more}')
    cyrus = Cyrus(place, services=lines)
    cyrus.site.place.mkdir()
    cyrus.site.mailboxes = {b"user\x1ffoo": record()}
    cyrus.site.write()
    with cyrus:
        for path in sockets:
            with Asker(path) as asker:
                assert asker.ask(b"foo") == b"OK foo"
                assert asker.ask(b"nobody") == b"NOTFOUND Mailbox does not exist"
        assert cyrus.complaints() == []
