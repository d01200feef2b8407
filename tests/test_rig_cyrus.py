"""The private Cyrus of the tests: it starts, answers, logs to us, ends, and leaves the machine as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.cyrus import Asker, Cyrus, service
from tests.rig.cyrus_site import Site, record
from tests.rig.place import sheltered
from tests.rig.processes import members
from tests.rig.require import require_cyrus

pytestmark = pytest.mark.cyrus


@pytest.fixture
def place() -> Iterator[Path]:
    require_cyrus()
    with sheltered() as place:
        yield place


def test_a_mailbox_made_over_imap_is_found_by_the_real_smmapd(place: Path) -> None:
    with Cyrus(place, imapd_conf={"virtdomains": "userid", "defaultdomain": "example.org"}) as cyrus:
        with cyrus.imap() as imap, Asker(cyrus.smmap) as real:
            assert real.ask(b"foo@example.org") == b"NOTFOUND Mailbox does not exist"
            assert imap.create("user/foo")[0] == "OK"
            assert real.ask(b"foo@example.org") == b"OK foo@example.org"
            assert imap.setquota("user/foo", "(STORAGE 1)")[0] == "OK"
            assert imap.setacl("user/foo", "cyrus", "lrsip")[0] == "OK"
            assert imap.append("user/foo", "", "", b"Subject: x\r\n\r\n" + b"x" * 800)[0] == "OK"
            assert real.ask(b"foo") == b"OK foo"
            assert imap.setquota("user/foo", "(MESSAGE 1)")[0] == "OK"
            assert real.ask(b"foo") == b"TEMP Over quota"
        assert not cyrus.complaints()
        group = cyrus.pid
    assert "master[" in cyrus.log()
    assert "All children have exited" in cyrus.log()
    assert not members(group)


def test_one_master_runs_smmapds_of_several_sites(place: Path) -> None:
    kinds = ("twoskip", "skiplist", "flat")
    sites = [Site(place / kind, {"mboxlist_db": kind, "auditlog": "yes"}) for kind in kinds]
    for site in sites:
        site.mailboxes = {b"user\x1ffoo": record(), b"user\x1f" + site.place.name.encode(): record("x lr")}
        site.quotas = {"quota/f/user.foo": b"10241\n10\n"}
        site.write()
    lines = [service(f"smmap{n}", f"smmapd -C {one.config}", one.place / "s") for n, one in enumerate(sites)]
    with Cyrus(place, services=lines) as cyrus:
        for site in sites:
            with Asker(site.place / "s") as real:
                replies = real.ask_all([b"foo", *(kind.encode() for kind in kinds)] * 300)
            own = site.place.name
            mailboxes = [f"OK {one}" if one == own else "NOTFOUND Mailbox does not exist" for one in kinds]
            assert replies == [one.encode() for one in ["TEMP Over quota", *mailboxes]] * 300
        assert "cyrus/smmap2" in cyrus.log()
        assert "auditlog: overquota userid=<foo> client=<[unix socket]>" in cyrus.log()
        assert not cyrus.complaints()


def test_a_master_that_cannot_start_says_why(place: Path) -> None:
    with pytest.raises(RuntimeError, match="unable to find command"), Cyrus(place, services=["nonsense"]):
        pass
