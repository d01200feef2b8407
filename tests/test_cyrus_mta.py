"""A Cyrus installation asked about through real MTAs: by milter, in Cyrus' documented words, and as a recipient map."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness.expect import Mode
from tests.rig.cyrus_site import Site
from tests.rig.daemon import HEAD, Daemon
from tests.rig.dialogue import FOREIGN, ask
from tests.rig.place import sheltered
from tests.rig.require import require_cyrus, require_postfix, require_sendmail
from tests.test_cyrus_store import site
from tests.test_mta_cases import make_postfix, make_sendmail

pytestmark = [pytest.mark.cyrus, pytest.mark.daemon, pytest.mark.mta, pytest.mark.timeout(300)]

RULES = """
[stores.imap]
type = "cyrus"
imapd_conf = "{conf}"

[[rules]]
name = "mailboxes of Cyrus"
when = { domain = "example.org" }
verify = ["imap"]
"""

# What each mode of each MTA makes of a mailbox that is there, one that is not, one denied, one full, a shared one that
# is open and one that is closed, and one of which nothing is known.
ASKED = (
    "foo@example.org", "nobody@example.org", "denied@example.org", "full@example.org", "bb+sh@example.org",
    "bb+closed@example.org", "broken@example.org",
)  # fmt: skip
HEARD: dict[tuple[str, Mode], tuple[str, ...]] = {
    ("postfix", "milter"): ("250", "550 5.1.1", "550 5.2.1", "552 5.2.3", "250", "550 5.7.1", "451 4.4.3"),
    ("postfix", "access"): ("250", "550 5.1.1", "550 5.2.1", "250", "250", "550 5.7.1", "451 4.4.3"),
    ("postfix", "key"): ("250", "550 5.1.1", "550 5.1.1", "250", "250", "550 5.1.1", "451 4.3.0"),
    ("postfix", "smmapd"): ("250", "550 5.1.1", "550 5.1.1", "250", "250", "451 4.3.5", "451 4.3.0"),
    ("sendmail", "milter"): ("250", "550 5.1.1", "550 5.2.1", "552 5.2.3", "250", "550 5.7.1", "451 4.4.3"),
    ("sendmail", "error"): ("250", "550 5.1.1", "550 5.2.1", "250", "250", "550 5.7.1", "451 4.4.3"),
    ("sendmail", "smmapd"): ("250", "550 5.1.1", "550 5.1.1", "250", "250", "550 5.1.1", "451 4.4.3"),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    require_cyrus()
    with sheltered("cyrus-mta") as place:
        made: Site = site(place / "site")
        folder = place / "rcptd"
        folder.mkdir()
        with Daemon(folder, HEAD + RULES.replace("{conf}", str(made.config))) as running:
            yield running


@pytest.mark.parametrize(("mta", "mode"), HEARD, ids=["-".join(one) for one in HEARD])
def test_each_mailbox_gets_what_its_state_means_here(daemon: Daemon, mta: str, mode: Mode) -> None:
    with ExitStack() as stack:
        place = stack.enter_context(sheltered(f"cyrus-{mta}"))
        if mta == "postfix":
            require_postfix()
            port = stack.enter_context(make_postfix(place, daemon, mode)).port
        else:
            require_sendmail()
            port = stack.enter_context(make_sendmail(place, daemon, mode)).port
        # SIZE is more than the quota of the full one, which its database counts as just full.
        replies = ask(port, *ASKED, source=FOREIGN, parameters="SIZE=20000")
    heard = tuple("250" if reply.code == 250 else f"{reply.code} {reply.enhanced}" for reply in replies)
    assert heard == HEARD[mta, mode]
