"""Ring 4: rcptd is killed under a real MTA: 4xx in every mode, and all is well when it is back."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import get_args

import pytest

from rcptd.question import Mailbox
from tests.harness.expect import MODES, Mode
from tests.rig.daemon import HEAD, Daemon, fill
from tests.rig.dialogue import FOREIGN, ask
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import require_postfix, require_sendmail
from tests.test_mta_cases import make_postfix, make_sendmail

pytestmark = [pytest.mark.daemon, pytest.mark.mta, pytest.mark.timeout(300)]

RULES = """
[stores.local]
type = "sqlite"
path = "{folder}/recipients.db"

[[rules]]
when = { domain = "example.org" }
verify = ["local"]

[[rules]]
name = "a rule that accepts opens no relay"
accept = true
"""

PLACES = [(mta, mode) for mta in ("postfix", "sendmail") for mode in MODES[mta]]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with sheltered("outage") as place, Daemon(place, HEAD + RULES) as running:
        fill(place / "recipients.db", {"user@example.org": Mailbox()})
        running.expected_errors.append('msg="store')
        yield running


@pytest.mark.parametrize(("mta", "mode"), PLACES, ids=["-".join(place) for place in PLACES])
def test_while_rcptd_is_down_recipients_are_deferred(daemon: Daemon, mta: str, mode: Mode) -> None:
    assert mode in get_args(Mode)
    with ExitStack() as stack:
        place = stack.enter_context(sheltered(f"outage-{mta}"))
        if mta == "postfix":
            require_postfix()
            port = stack.enter_context(make_postfix(place, daemon, mode)).port
        else:
            require_sendmail()
            port = stack.enter_context(make_sendmail(place, daemon, mode)).port

        def reply(address: str) -> str:
            (heard,) = ask(port, address, source=FOREIGN)
            return str(heard)

        assert wait_until(lambda: reply("user@example.org").startswith("250"), 10)
        assert reply("nobody@example.org").startswith("550 5.1.1")
        # Done when 2: no mode, and no rule that accepts, lets a foreign client relay.
        assert reply("someone@elsewhere.invalid")[0] == "5" or reply("someone@elsewhere.invalid").startswith("454")
        daemon.kill()
        for address in ("user@example.org", "nobody@example.org"):
            assert reply(address)[0] == "4", reply(address)
        daemon.start()
        assert wait_until(lambda: reply("user@example.org").startswith("250"), 10)
        assert reply("nobody@example.org").startswith("550 5.1.1")
