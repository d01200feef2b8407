"""What each map says: the table of verdicts written out cell by cell, and what must never go out."""

import logging
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd import schema, verdict
from rcptd.verdict import Action, Cause, Verdict, from_reply
from rcptd_socketmap.maps import Maps, Shape, maps, render
from rcptd_socketmap.settings import Settings

KEY = b"User+Tag@Example.ORG"
LATER = "Recipient cannot be verified now, please try again later"
TROUBLE = "Temporary failure, please try again later"

# One row a verdict: in `key`, `smmapd`, `access`, `error`.
TABLE: dict[str, tuple[Verdict | None, str, str, str, str]] = {
    "accept": (verdict.ACCEPTED, "OK User+Tag@Example.ORG", "OK User+Tag@Example.ORG", "OK DUNNO", "OK OK"),
    "no opinion": (None, "NOTFOUND", "NOTFOUND", "NOTFOUND", "NOTFOUND"),
    "no such mailbox": (
        verdict.NO_SUCH_MAILBOX,
        "NOTFOUND No such mailbox",
        "NOTFOUND No such mailbox",
        "OK 550 5.1.1 No such mailbox",
        'OK error:5.1.1:"550 No such mailbox"',
    ),
    "no such domain": (
        verdict.NO_SUCH_DOMAIN,
        "NOTFOUND No such domain",
        "NOTFOUND No such domain",
        "OK 550 5.1.2 No such domain",
        'OK error:5.1.2:"550 No such domain"',
    ),
    "moved": (
        verdict.MOVED,
        "NOTFOUND Mailbox has moved",
        "NOTFOUND Mailbox has moved",
        "OK 551 5.1.6 Mailbox has moved",
        'OK error:5.1.6:"551 Mailbox has moved"',
    ),
    "null MX": (
        verdict.NULL_MX,
        "NOTFOUND Domain takes no mail",
        "NOTFOUND Domain takes no mail",
        "OK 556 5.1.10 Domain takes no mail",
        'OK error:5.1.10:"556 Domain takes no mail"',
    ),
    "not allowed to post": (
        verdict.NOT_ALLOWED,
        "NOTFOUND Not allowed to post here",
        "PERM Not allowed to post here",
        "OK 550 5.7.1 Not allowed to post here",
        'OK error:5.7.1:"550 Not allowed to post here"',
    ),
    "denied or disabled": (
        verdict.DISABLED,
        "NOTFOUND Mailbox disabled",
        "NOTFOUND Mailbox disabled",
        "OK 550 5.2.1 Mailbox disabled",
        'OK error:5.2.1:"550 Mailbox disabled"',
    ),
    "disabled for now": (
        verdict.DISABLED_FOR_NOW,
        "TEMP Mailbox disabled for now",
        "TEMP Mailbox disabled for now",
        "OK 450 4.2.1 Mailbox disabled for now",
        'OK error:4.2.1:"450 Mailbox disabled for now"',
    ),
    "over quota, may recover": (
        verdict.FULL_FOR_NOW,
        "TEMP Mailbox full",
        "TEMP Mailbox full",
        "OK 452 4.2.2 Mailbox full",
        'OK error:4.2.2:"452 Mailbox full"',
    ),
    "over quota, final": (
        verdict.FULL,
        "TEMP Mailbox full",
        "PERM Mailbox full",
        "OK 552 5.2.2 Mailbox full",
        'OK error:5.2.2:"552 Mailbox full"',
    ),
    # No map knows a size, so this one cannot come; if it does, it is a fault of ours.
    "larger than the whole quota": (
        verdict.TOO_LARGE,
        f"TEMP {TROUBLE}",
        f"TEMP {TROUBLE}",
        f"OK 451 4.3.0 {TROUBLE}",
        f'OK error:4.3.0:"451 {TROUBLE}"',
    ),
    "bad syntax": (
        verdict.BAD_SYNTAX,
        "NOTFOUND Not a valid address",
        "NOTFOUND Not a valid address",
        "OK 553 5.1.3 Not a valid address",
        'OK error:5.1.3:"553 Not a valid address"',
    ),
    "needs SMTPUTF8": (
        verdict.NEEDS_SMTPUTF8,
        "NOTFOUND Address needs SMTPUTF8",
        "NOTFOUND Address needs SMTPUTF8",
        "OK 553 5.6.7 Address needs SMTPUTF8",
        'OK error:5.6.7:"553 Address needs SMTPUTF8"',
    ),
    "we do not know": (
        verdict.UNKNOWN,
        f"TEMP {LATER}",
        f"TEMP {LATER}",
        f"OK 451 4.4.3 {LATER}",
        f'OK error:4.4.3:"451 {LATER}"',
    ),
    "our fault": (
        verdict.OUR_FAULT,
        f"TEMP {TROUBLE}",
        f"TEMP {TROUBLE}",
        f"OK 451 4.3.0 {TROUBLE}",
        f'OK error:4.3.0:"451 {TROUBLE}"',
    ),
    "an operator's own reject": (
        from_reply("554 5.7.1 Ask (the) <desk>"),
        "NOTFOUND Ask (the) <desk>",
        "PERM Ask (the) <desk>",
        "OK 554 5.7.1 Ask (the) <desk>",
        'OK error:5.7.1:"554 Ask (the) <desk>"',
    ),
    "an operator's own defer": (
        from_reply("451 4.7.1 Come back on Monday"),
        "TEMP Come back on Monday",
        "TEMP Come back on Monday",
        "OK 451 4.7.1 Come back on Monday",
        'OK error:4.7.1:"451 Come back on Monday"',
    ),
}
CELLS = [
    pytest.param(shape, said, cell, id=f"{row}-{shape.value}")
    for row, (said, *cells) in TABLE.items()
    for shape, cell in zip((Shape.KEY, Shape.SMMAPD, Shape.ACCESS, Shape.ERROR), cells, strict=True)
]


@pytest.mark.parametrize(("shape", "said", "cell"), CELLS)
def test_each_cell(shape: Shape, said: Verdict | None, cell: str) -> None:
    assert render(shape, said, KEY) == cell.encode("ascii")


def test_the_table_has_every_cause() -> None:
    assert {row[0].cause for row in TABLE.values() if row[0]} == set(Cause)


def test_the_key_is_echoed_exactly() -> None:
    assert render(Shape.KEY, verdict.ACCEPTED, b'"a b"@\xff\xc3\xbc, ') == b'OK "a b"@\xff\xc3\xbc, '


@pytest.mark.parametrize("key", [b"", b" ", b" a", b"\0", b"\0a", b"\t", b"\r\n"])
@pytest.mark.parametrize("shape", [Shape.KEY, Shape.SMMAPD])
def test_an_ok_never_has_a_value_that_may_be_read_as_empty(
    shape: Shape, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert render(shape, verdict.ACCEPTED, key) == f"TEMP {TROUBLE}".encode()
    assert "accepted, but as a value it is empty" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        replace(verdict.NO_SUCH_MAILBOX, enhanced="4.1.1"),
        replace(verdict.NO_SUCH_MAILBOX, code=450),
        replace(verdict.NO_SUCH_MAILBOX, code=560),
        replace(verdict.NO_SUCH_MAILBOX, enhanced="5.1.1 x"),
        replace(verdict.UNKNOWN, enhanced="5.4.3"),
        replace(verdict.UNKNOWN, code=421),
        replace(verdict.UNKNOWN, code=550),
        replace(verdict.UNKNOWN, action=Action.REJECT, code=551, enhanced="5.4.3"),
    ],
)
def test_what_is_no_verdict_of_the_table_is_our_fault_and_logged(
    wrong: Verdict, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert render(Shape.KEY, wrong, KEY) == f"TEMP {TROUBLE}".encode()
        assert render(Shape.ACCESS, wrong, KEY) == f"OK 451 4.3.0 {TROUBLE}".encode()
    assert "no map can tell" in caplog.text


def test_a_deferral_never_refuses_whatever_its_cause() -> None:
    """A policy may turn a refusal into a deferral; in a map it must not read as NOTFOUND again."""
    soft = Verdict(Cause.NO_SUCH_MAILBOX, Action.DEFER, 450, "4.1.1", "Not yet")
    assert render(Shape.KEY, soft, KEY) == b"TEMP Not yet"
    assert render(Shape.SMMAPD, soft, KEY) == b"TEMP Not yet"
    assert render(Shape.ERROR, soft, KEY) == b'OK error:4.1.1:"450 Not yet"'


SAFE = re.compile(rb"(?:NOTFOUND|TEMP|PERM|OK [45]\d\d [45][0-9.]+) [!-~](?:[ -!#$&-\[\]-~]{0,199})")
SAFE_ERROR = re.compile(rb'OK error:[45][0-9.]+:"[45]\d\d [!-~](?:[ -!#$&-\[\]-~]{0,199})"')


@given(st.text(max_size=400), st.sampled_from([v for v in verdict.NAMED if v.action is not Action.ACCEPT]))
def test_no_text_leaves_the_alphabet_that_is_safe_on_every_wire(text: str, named: Verdict) -> None:
    said = replace(named, text=text)
    for shape in (Shape.KEY, Shape.SMMAPD, Shape.ACCESS):
        assert SAFE.fullmatch(render(shape, said, KEY))
    assert SAFE_ERROR.fullmatch(render(Shape.ERROR, said, KEY))


def test_a_map_that_is_not_named_has_the_shape_of_every_other() -> None:
    some = maps({"*": "smmapd", "access": "access"})
    assert some.shape("access") is Shape.ACCESS
    assert some.shape("Access") is Shape.SMMAPD
    assert some.shape("") is Shape.SMMAPD
    assert maps({"access": "access"}).shape("x") is Shape.KEY
    assert Maps().shape("x") is Shape.KEY


def read(table: dict[str, object]) -> tuple[Settings | None, list[tuple[str, str]]]:
    faults: list[tuple[str, str]] = []
    settings = schema.read(Settings, table, lambda key, what: faults.append((key, what)))
    return settings, faults


def test_the_section_by_default() -> None:
    settings, faults = read({"listen": ["unix:/run/rcptd/socketmap.sock", "inet:127.0.0.1:7850"]})
    assert faults == []
    assert settings
    assert [str(each) for each in settings.listen] == ["unix:/run/rcptd/socketmap.sock", "inet:127.0.0.1:7850"]
    assert settings.maps.named == {"*": Shape.KEY}
    assert (settings.mode, settings.owner, settings.group) == (0o660, None, None)
    assert (settings.max_connections, settings.idle, settings.stall) == (4000, 7200, 60)


def test_every_fault_of_the_maps_is_told_with_what_is_right() -> None:
    named = {"a": "acess", "b": 1, "c d": "key", "": "key", "e" * 101: "key", "f": "postfix"}
    settings, faults = read({"listen": "inet:127.0.0.1:7850", "maps": named})
    assert settings is None
    [(key, what)] = faults
    assert key == "maps"
    said = what.split("; ")
    assert said[:2] == ["'a' has no shape 'acess'", "did you mean 'access'?"]
    assert said[2:4] == ["'b' has no shape 1", "write one of 'key', 'smmapd', 'access', 'error'"]
    assert said[4] == "'c d' is no map name"
    assert sum("is no map name" in each for each in said) == 3
    assert said[-2:] == ["'f' has no shape 'postfix'", "write one of 'key', 'smmapd', 'access', 'error'"]


@pytest.mark.parametrize("value", ["key", ["key"], 1])
def test_maps_that_are_no_table(value: object) -> None:
    _, faults = read({"listen": "inet:127.0.0.1:7850", "maps": value})
    assert faults == [("maps", 'write a table of map names and shapes, as in "*" = "key"')]
