"""Access lists, for somebody without a name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcptd.stores.cyrus.acl import rights

ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([b"anyone", b"anonymous", b"-anyone", b"-anonymous", b"foo", b"group:anyone", b"-"]),
        st.text("lrswipkxtecdan019lp", max_size=4).map(str.encode),
    ),
    max_size=6,
)


@pytest.mark.parametrize(
    ("acl", "postable", "visible"),
    [
        ([], False, False),
        ([(b"foo", b"lrswipkxtecdan")], False, False),
        ([(b"anyone", b"p")], True, False),
        ([(b"anonymous", b"p")], True, False),
        ([(b"anyone", b"lrs")], False, True),
        ([(b"anyone", b"lrsp"), (b"-anyone", b"p")], False, True),
        ([(b"-anyone", b"p"), (b"anyone", b"lrsp")], False, True),
        ([(b"anyone", b"lrsp"), (b"-anonymous", b"lp")], False, False),
        ([(b"Anyone", b"p"), (b"anyone ", b"p"), (b"group:anyone", b"p"), (b"--anyone", b"p")], False, False),
        ([(b"anyone", b"PL")], False, False),
        ([(b"anyone", b"cdZ!9")], False, False),
        ([(b"anyone", b"l"), (b"anonymous", b"p")], True, True),
    ],
)
def test_rights(acl: list[tuple[bytes, bytes]], postable: bool, visible: bool) -> None:
    assert rights(acl)[:2] == (postable, visible)


def test_the_entries_that_count_are_given() -> None:
    acl = [(b"foo", b"p"), (b"anyone", b"lrsp"), (b"-anonymous", b"l")]
    assert rights(acl).counted == tuple(acl[1:])


@given(ENTRIES, ENTRIES.flatmap(st.permutations))
def test_the_order_does_not_count_and_taking_away_always_does(
    acl: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]]
) -> None:
    assert rights(acl + more)[:2] == rights(more + acl)[:2]
    assert rights([*acl, (b"-anyone", b"p")]).postable is False
    assert rights([*acl, (b"-anyone", b"p")]).visible == rights(acl).visible
