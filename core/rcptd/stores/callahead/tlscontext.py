"""TLS contexts for a dialogue: made when first needed, and made anew when the file of CAs is another one."""

import ssl
from functools import lru_cache
from pathlib import Path

from rcptd.stores.callahead.dialogue import Dialogue


def context_for(options: Dialogue) -> ssl.SSLContext:
    """Give the context of a dialogue with TLS; raises `OSError`, of which `ssl.SSLError` is one, for a bad file."""
    if options.tls == "opportunistic":
        return _unverified()
    if not options.tls_ca:
        return _verified("", ())
    about = Path(options.tls_ca).stat()
    return _verified(options.tls_ca, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))


@lru_cache(maxsize=8)
def _verified(ca: str, _identity: tuple[int, ...]) -> ssl.SSLContext:
    # Reading the system's CAs takes some 20 ms, once; with a file of one CA it is nothing.
    return ssl.create_default_context(cafile=ca or None)


@lru_cache(maxsize=1)
def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # RFC 7435: a certificate that nobody can judge is better than no encryption.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
