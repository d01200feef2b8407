"""Our smmapd in the place of Cyrus' own, under its master, behind the same lines of Postfix and Sendmail."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.rig.cyrus import Cyrus, service
from tests.rig.dialogue import FOREIGN, ask
from tests.rig.place import sheltered
from tests.rig.ports import free_port
from tests.rig.postfix import Postfix
from tests.rig.require import require_cyrus, require_postfix, require_sendmail
from tests.rig.sendmail import Sendmail
from tests.rig.smmapd import installed
from tests.rig.snippets import snippet
from tests.test_cyrus_store import site

pytestmark = [pytest.mark.cyrus, pytest.mark.mta, pytest.mark.timeout(300)]

ASKED = ("foo@example.org", "foo+sub@example.org", "nobody@example.org", "bb+sh@example.org", "bb+hidden@example.org")


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The original and ours, each with a port of its own, on one installation."""
    require_cyrus()
    with sheltered("swapped") as place:
        made = site(place / "site")
        found = {"theirs": free_port(), "ours": free_port()}
        programs = {"theirs": "smmapd", "ours": str(installed(place))}
        lines = [
            service(name, f"{programs[name]} -C {made.config}", f"127.0.0.1:{port}") for name, port in found.items()
        ]
        with Cyrus(place, services=lines) as cyrus:
            yield found
            assert cyrus.complaints() == []


def heard(port: int) -> list[str]:
    replies = ask(port, *ASKED, source=FOREIGN)
    return [f"{reply.code} {reply.enhanced}" for reply in replies]


def behind_postfix(place: Path, port: int, name: str) -> Any:
    require_postfix()
    replaced = {"127.0.0.1:7850": f"127.0.0.1:{port}"}
    text = snippet(f"postfix/{name}.cf", replaced).replace("lmtp:unix:/run/cyrus/socket/lmtp", "discard")
    return Postfix(place, main_cf=text + ("\nrelay_domains =\n" if name == "smmapd" else ""))


def behind_sendmail(place: Path, port: int) -> Any:
    require_sendmail()
    words = {"7850@": f"{port}@", "Ksendmail socket": "Ksendmail socket -a<OK>", "R$* $| OK\t": "R$* $| $* <OK>\t"}
    return Sendmail(place, mc_local=snippet("sendmail/socketmap-plain.mc", words))


@pytest.mark.parametrize("way", ["smmapd", "recipient-map", "sendmail"])
def test_an_mta_sees_no_difference(ports: dict[str, int], way: str) -> None:
    said = {}
    for name, port in ports.items():
        with ExitStack() as stack:
            place = stack.enter_context(sheltered(f"swapped-{name}"))
            mta = behind_sendmail(place, port) if way == "sendmail" else behind_postfix(place, port, way)
            said[name] = heard(stack.enter_context(mta).port)
    assert said["ours"] == said["theirs"]
    assert [reply[:3] for reply in said["ours"]] == ["250", "250", "550", "250", "550"]
