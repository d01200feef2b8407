"""smmapd under a real cyrmaster: its counts are right, and its log has no complaint."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import record
from tests.rig.place import sheltered
from tests.rig.ports import LOOPBACK, free_port, wait_until
from tests.rig.require import require_cyrus
from tests.rig.smmapd import installed

pytestmark = [pytest.mark.cyrus, pytest.mark.timeout(300)]

PATIENCE = 30.0
NONE = b"NOTFOUND Mailbox does not exist"


class Site:
    """A real master with the real smmapd, and ours as further services."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.program = installed(place)
        self.config = place / "cyrus" / "site" / "imapd.conf"
        self.port = free_port()
        ours = f"{self.program} -C {self.config}"
        self.cyrus = Cyrus(
            place,
            imapd_conf={"auditlog": "yes"},
            services=[
                service("ours", ours, self.sock("ours")),
                service("single", ours, self.sock("single"), maxchild=1),
                service("lazy", ours, self.sock("lazy"), prefork=0),
                service("many", f"{ours} -U 100000", self.sock("many"), prefork=3),
                service("few", f"{ours} -U 3", self.sock("few")),
                service("short", f"{ours} -T 1", self.sock("short"), prefork=0),
                service("inet", ours, f"{LOOPBACK}:{self.port}", prefork=0),
            ],
        )
        site = self.cyrus.site
        site.place.mkdir()
        site.mailboxes = {b"user\x1ffoo": record(), b"user\x1ffull": record("full lrswipkxtecdan")}
        site.quotas = {"quota/f/user.full": b"10241\n10\n"}
        site.write()

    def sock(self, name: str) -> Path:
        """The socket of a service."""
        return self.place / f"{name}.sock"

    def hang_up(self) -> None:
        """Have master read its configuration again, which hangs up on every service."""
        master = (self.place / "cyrus" / "pid").read_text().strip()
        os.kill(int(master), signal.SIGHUP)

    def processes(self, name: str) -> list[int]:
        """The processes of a service, by what master put into their environment; not those of another run's master."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = os.fsencode(self.place) in environ.with_name("cmdline").read_bytes()
                if ours and f"CYRUS_SERVICE={name}\0".encode() in environ.read_bytes():
                    found.append(int(environ.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require_cyrus()
    with sheltered("cyrmaster") as place:
        here = Site(place)
        with here.cyrus:
            yield here


def test_it_says_what_the_real_one_says(site: Site) -> None:
    keys = [b"foo", b"nobody", b"full", b"foo+no", b"FOO@somewhere", b""]
    for name in ("ours", "single", "lazy", "many", "few", "short"):
        with Asker(site.cyrus.smmap) as real, Asker(site.sock(name)) as ours:
            assert ours.ask_all(keys) == real.ask_all(keys), name
    with Asker(site.port) as ours:
        assert ours.ask(b"foo") == b"OK foo"
    assert site.cyrus.complaints() == []


def test_the_audit_lines_are_those_of_the_real_one(site: Site) -> None:
    def audited(name: str, before: int) -> list[str]:
        form = re.compile(rf"^(?:cyrus/)?{name}\[\d+\]: (auditlog.*)", re.MULTILINE)
        lines: list[str] = form.findall(site.cyrus.log()[before:])
        return lines

    before = len(site.cyrus.log())
    for path in (site.cyrus.smmap, site.sock("ours")):
        with Asker(path) as asker:
            asker.ask_all([b"foo", b"nobody", b"full"])
    assert wait_until(lambda: len(audited("ours", before)) >= 3)
    assert audited("ours", before) == audited("smmap", before) != []


def test_one_process_serves_many_clients_at_once_where_master_allows_but_one(site: Site) -> None:
    with ExitStack() as open_ones:
        askers = []
        for _ in range(200):
            askers.append(open_ones.enter_context(Asker(site.sock("single"))))
            assert askers[-1].ask(b"foo") == b"OK foo"
        for asker in askers:
            assert asker.ask(b"nobody") == NONE
        assert len(site.processes("single")) == 1
    assert site.cyrus.complaints() == []


def test_ten_thousand_connections_to_several_workers(site: Site) -> None:
    def ask(number: int) -> bytes:
        with Asker(site.sock("many")) as asker:
            return asker.ask(b"foo" if number % 2 else b"nobody")

    before = set(site.processes("many"))
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(ask, range(10_000)))
    assert replies == [b"OK foo" if number % 2 else NONE for number in range(10_000)]
    assert set(site.processes("many")) == before
    assert site.cyrus.complaints() == []


def test_uses_come_to_an_end_and_master_starts_others(site: Site) -> None:
    seen: set[int] = set()
    for _ in range(30):
        with Asker(site.sock("few")) as asker:
            assert asker.ask(b"foo") == b"OK foo"
            seen |= set(site.processes("few"))
    assert len(seen) >= 8
    assert site.cyrus.complaints() == []


def test_a_client_of_a_process_that_takes_no_more_keeps_it_while_another_serves(site: Site) -> None:
    with Asker(site.sock("few")) as keeping:
        assert keeping.ask(b"foo") == b"OK foo"
        for _ in range(10):
            with Asker(site.sock("few")) as asker:
                assert asker.ask(b"foo") == b"OK foo"
        assert keeping.ask(b"foo") == b"OK foo"
    assert site.cyrus.complaints() == []


def test_an_idle_process_ends_and_the_next_client_has_a_new_one(site: Site) -> None:
    with Asker(site.sock("short")) as asker:
        assert asker.ask(b"foo") == b"OK foo"
    assert wait_until(lambda: not site.processes("short"), PATIENCE)
    with Asker(site.sock("short")) as asker:
        assert asker.ask(b"foo") == b"OK foo"
    assert site.cyrus.complaints() == []


def test_a_hang_up_brings_new_processes_and_no_client_is_lost(site: Site) -> None:
    before = {name: set(site.processes(name)) for name in ("ours", "many")}
    with Asker(site.sock("ours")) as idle:
        assert idle.ask(b"foo") == b"OK foo"
        site.hang_up()
        assert wait_until(lambda: not before["ours"] & set(site.processes("ours")), PATIENCE)
        with pytest.raises((EOFError, ConnectionError)):
            idle.ask(b"foo")
    for name, old in before.items():
        assert wait_until(lambda name=name, old=old: not old & set(site.processes(name)), PATIENCE)  # type: ignore[misc]
        with Asker(site.sock(name)) as asker:
            assert asker.ask(b"foo") == b"OK foo"
    assert site.cyrus.complaints() == []


def test_a_killed_process_is_replaced(site: Site) -> None:
    (child,) = site.processes("single")
    os.kill(child, signal.SIGTERM)
    assert wait_until(lambda: child not in site.processes("single"), PATIENCE)
    with Asker(site.sock("single")) as asker:
        assert asker.ask(b"foo") == b"OK foo"
    assert site.cyrus.complaints() == []


def test_swapping_back_on_the_same_listener(site: Site) -> None:
    """The listener stays open in master; the original has to cope with what we did to it."""
    conf = site.place / "cyrus" / "cyrus.conf"
    with Asker(site.sock("ours")) as asker:
        assert asker.ask(b"foo") == b"OK foo"
    text = conf.read_text()
    real = f"smmapd -C {site.config}"
    conf.write_text(text.replace(f'ours cmd="{site.program} -C {site.config}"', f'ours cmd="{real}"'))
    try:
        before = set(site.processes("ours"))
        site.hang_up()
        assert wait_until(lambda: bool(now := set(site.processes("ours"))) and not now & before, PATIENCE)
        for _ in range(20):
            with Asker(site.sock("ours")) as one, Asker(site.sock("ours")) as two:
                assert (one.ask(b"foo"), two.ask(b"nobody")) == (b"OK foo", NONE)
        commands = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in site.processes("ours")}
        assert not any(b"python" in command for command in commands)
    finally:
        conf.write_text(text)
        site.hang_up()
    assert site.cyrus.complaints() == []


