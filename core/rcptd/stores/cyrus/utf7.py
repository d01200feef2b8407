"""IMAP's modified UTF-7 (RFC 3501 5.1.3), in which Cyrus keeps the names of folders.

The detail of an address is UTF-8, the name of a folder is not: `été` is stored as `&AOk-t&AOk-`. An MTA may have
been given either. So a detail that looks encoded is left alone, as Cyrus does since 3.13.4: its first `&` is followed
by nothing but base64 up to a `-`. One look at one `&` decides for the whole detail, however odd the rest.
"""

import re
from base64 import b64encode

_ENCODED = re.compile(rb"&[A-Za-z0-9+,]*-")
_PLAIN = re.compile(rb"[\x20-\x25\x27-\x7e]*")
_SHIFTED = re.compile(r"[^\x20-\x7e]+")


def is_encoded(detail: bytes) -> bool:
    """Say whether Cyrus takes a detail for modified UTF-7."""
    shift = detail.find(b"&")
    return shift >= 0 and _ENCODED.match(detail, shift) is not None


def encode(text: bytes) -> bytes:
    """Encode UTF-8 as modified UTF-7; each ill-formed sequence becomes U+FFFD."""
    if _PLAIN.fullmatch(text):
        return text
    return _SHIFTED.sub(_shift, text.decode("utf-8", "replace").replace("&", "&-")).encode("ascii")


def _shift(run: re.Match[str]) -> str:
    base64 = b64encode(run[0].encode("utf-16-be")).rstrip(b"=").replace(b"/", b",")
    return f"&{base64.decode('ascii')}-"
