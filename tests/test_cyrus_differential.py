"""Ours says what the real smmapd says, over a matrix of configurations with random mailboxes, ACLs, quotas,
questions.

`make campaign` asks a hundred thousand questions, from other seeds each time.
"""

import pytest

from tests.campaign.differential import Outcome, ask, one_round
from tests.cyrus.originals import ABORTED, comparable, wanted
from tests.cyrus.ours import judged
from tests.rig.cyrus import Cyrus, service
from tests.rig.cyrus_site import Site, record
from tests.rig.place import sheltered
from tests.rig.require import require_cyrus

pytestmark = pytest.mark.cyrus

# What a round must meet to be worth its time, at least so often.
WORTH = {
    b"OK": 500,
    b"NOTFOUND Mailbox does not exist": 1000,
    b"TEMP Over quota": 100,
    b"PERM Over quota": 100,
    b"PERM Mailbox is currently reserved": 20,
    b"PERM Permission denied": 5,
    b"PERM Mailbox has an invalid format": 10,
    b"PERM Invalid identifier": 10,
    b"PERM System I/O error": 2,
}


@pytest.fixture(scope="module", params=[(20261120, False), (3061, True)], ids=["judge", "program"])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    require_cyrus()
    seed, program = request.param
    return one_round(seed, program=program, questions=200)


def test_there_is_no_difference_to_the_real_smmapd(outcome: Outcome) -> None:
    assert not outcome.differences, "\n".join(outcome.differences[:10])


def test_a_round_meets_every_kind_of_reply_often(outcome: Outcome) -> None:
    assert {reply: outcome.replies[reply] for reply, least in WORTH.items() if outcome.replies[reply] < least} == {}
    assert outcome.replies[ABORTED] < 100


# Quotas that once made a difference, or that lie beside such a one.
QUOTAS = (
    b"%(\xc3S (10241 10))", b"%(S (10241 10) \xc3 (1))", b"%(S (10241 10) \xffM (1))", b"%(S (10241 10\xc3))",
    b"%(S (10241\xff 10))", b"%(S (1 10) X \xc3)", b"%(S (10241 \xff10))", b"%(S (10241 10) \xff)",
    b"%(S (10241 10)\xff)",
    b"%(S (10241 10)\xc3)", b"%(S (10241 10))\xff", b"%(S (10241 10))\xc3", b"%(S (10241 10) X (a \xc3))",
    b'%(S (10241 10) X "\xc3\xff")', b"%\xff", b"%\xc3", b"%(\xff",
)  # fmt: skip


def test_quotas_that_once_made_a_difference_make_none() -> None:
    require_cyrus()
    with sheltered() as place:
        site = Site(place / "site")
        site.mailboxes = {b"user\x1fu%d" % number: record() for number in range(len(QUOTAS))}
        site.quotas = {f"quota/u/user.u{number}": value + b"\n" for number, value in enumerate(QUOTAS)}
        site.write()
        keys = [b"u%d" % number for number in range(len(QUOTAS))]
        with Cyrus(place, services=[service("found", f"smmapd -C {site.config}", place / "s")]):
            originals = ask(place / "s", keys)
        assert len(set(originals)) > 3
        with judged(site) as answer:
            assert [comparable(answer(key)) for key in keys] == [wanted(one) for one in originals]
