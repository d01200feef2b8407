"""Next hops as an operator writes them."""

import pytest

from rcptd.schema import UNIX_PATH_OCTETS
from rcptd.stores.callahead.nexthop import NextHop, read


@pytest.mark.parametrize(
    ("text", "hop", "shown"),
    [
        ("lmtp:unix:/run/lmtp", NextHop("lmtp", path="/run/lmtp"), ""),
        ("lmtp:Backend.example.org:2003", NextHop("lmtp", host="backend.example.org", port=2003),
         "lmtp:backend.example.org:2003"),
        ("smtp:host.:25", NextHop("smtp", host="host", port=25), "smtp:host:25"),
        ("smtp:[2001:DB8::1]:25", NextHop("smtp", host="2001:db8::1", port=25), "smtp:[2001:db8::1]:25"),
        ("smtp:[host]:25", NextHop("smtp", host="host", port=25), "smtp:host:25"),
        ("smtp:192.0.2.1:65535", NextHop("smtp", host="192.0.2.1", port=65535), ""),
    ],
)  # fmt: skip
def test_a_next_hop_is_read_and_shown(text: str, hop: NextHop, shown: str) -> None:
    assert read(text) == hop
    assert str(hop) == (shown or text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is no next hop"),
        ("http:host:80", "is no next hop"),
        ("lmtp:host", "is no next hop"),
        ("smtp:2001:db8::1:25", "is no next hop"),
        ("lmtp:unix:run/lmtp", "beginning with /"),
        ("lmtp:unix:/run/\0", "beginning with /"),
        ("lmtp:unix:/" + "x" * UNIX_PATH_OCTETS, "too long"),
        ("smtp:a b:25", "neither a host name"),
        ("smtp:host:0", "from 1 to 65535"),
        ("smtp:host:65536", "from 1 to 65535"),
    ],
)
def test_what_is_none_is_told(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(text)
