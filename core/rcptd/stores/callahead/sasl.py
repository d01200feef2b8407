"""SASL for a client of SMTP and LMTP (RFC 4954): PLAIN, LOGIN and CRAM-MD5, which is what mail servers offer.

Over a line that nobody can listen to, PLAIN comes first: it does not make the server keep the password readable, as
CRAM-MD5 does (RFC 2195), and takes one exchange. Elsewhere only CRAM-MD5 will do, which does not send the password,
unless the operator lets it go in clear.
"""

import base64
import hmac
from collections.abc import Collection, Generator

PRIVATE: tuple[str, ...] = ("PLAIN", "LOGIN", "CRAM-MD5")
CLEAR: tuple[str, ...] = ("CRAM-MD5",)
CLEAR_ALLOWED: tuple[str, ...] = ("CRAM-MD5", "PLAIN", "LOGIN")


def choose(offered: Collection[str], *, private: bool, in_clear: bool) -> str:
    """Choose a mechanism among those that are offered, in capital letters; "" where none will do."""
    ours = PRIVATE if private else CLEAR_ALLOWED if in_clear else CLEAR
    return next((each for each in ours if each in offered), "")


def exchange(mechanism: str, user: str, password: str) -> Generator[str, str, None]:
    """Give the arguments of AUTH; then be sent the text of each 334, and give the line that answers it.

    Ends when there is no answer left to give. Raises `ValueError` for a challenge that is none.
    """
    if mechanism == "PLAIN":
        yield f"PLAIN {_encode(f'{chr(0)}{user}{chr(0)}{password}'.encode())}"  # RFC 4616
    elif mechanism == "LOGIN":
        yield "LOGIN"
        yield _encode(user.encode())
        yield _encode(password.encode())
    else:
        challenge = yield "CRAM-MD5"
        try:
            asked = base64.b64decode(challenge, validate=True)
        except ValueError:
            raise ValueError("a challenge that is no base64") from None
        digest = hmac.new(password.encode(), asked, "md5").hexdigest()
        yield _encode(f"{user} {digest}".encode())


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
