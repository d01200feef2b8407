"""contrib/callahead: each file loads beside a front end, and the one for Cyrus works against a real lmtpd."""

import re
from pathlib import Path

import pytest

from rcptd_daemon.reading import read_configuration
from tests.harness.deciding import Deciding, run
from tests.rig.lmtpd import VERDICTS, Lmtpd, codes
from tests.rig.place import sheltered
from tests.rig.require import ROOT, require_cyrus

CONTRIB = ROOT / "contrib" / "callahead"
FILES = sorted(CONTRIB.glob("*.toml"))
HEAD = '[socketmap]\nlisten = "inet:127.0.0.1:7850"\n[milter]\nlisten = "inet:127.0.0.1:7851"\n'


def test_the_files_are_those_of_the_readme_and_of_the_guide() -> None:
    named = re.findall(r"\[([\w-]+\.toml)\]\(\1\)", (CONTRIB / "README.md").read_text())
    assert sorted(named) == [file.name for file in FILES]
    assert "contrib/callahead" in (ROOT / "docs" / "callahead.md").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
@pytest.mark.parametrize("everything", [False, True], ids=["as it stands", "everything in force"])
def test_each_loads_beside_front_ends(tmp_path: Path, file: Path, everything: bool) -> None:
    text = file.read_text()
    if everything:
        text = re.sub(r"^#(next_hops.*)$", "", text, flags=re.MULTILINE)  # the other one stands there
        text = re.sub(r"^#(?=[a-z])", "", text, flags=re.MULTILINE)
    path = tmp_path / "rcptd.toml"
    path.write_text(HEAD + text)
    configuration = read_configuration(path)
    assert any(store.type == "callahead" and store.memo for store in configuration.stores.values())
    assert configuration.memo.path


@pytest.mark.cyrus
def test_the_one_for_cyrus_says_what_its_lmtpd_says() -> None:
    require_cyrus()
    asked = [address for address in VERDICTS if address.endswith("@example.org")]
    with sheltered("contrib") as place, Lmtpd(place) as lmtpd:
        text = (CONTRIB / "cyrus.toml").read_text().replace("/run/cyrus/socket/lmtp", str(lmtpd.unix))

        async def main() -> list[str]:
            async with Deciding(place, text) as ours:
                return await ours.ask_in_turn(asked)

        by_hand = [codes(reply) for reply in lmtpd.ask(lmtpd.unix, *asked)]
        wanted = [{"451 4.2.1": "451 4.4.3"}.get(one, one) for one in by_hand]
        said = run(main())
        # The postmaster of our own domain is accepted whatever the next hop says.
        ours, theirs = (dict(zip(asked, all_, strict=True)) for all_ in (said, wanted))
        ours.pop("postmaster@example.org", None)
        assert len(ours) > 3
        assert ours == {address: theirs[address] for address in ours}
