"""Certificates for a test, made by openssl in its own folder: each is its own CA."""

import subprocess
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext


def certificate(folder: Path, *names: str) -> Path:
    """Make a file with key and certificate for names, as "DNS:hop.example" or "IP:127.0.0.1"."""
    path = folder / f"{names[0].replace(':', '-')}.pem"
    key = folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", f"subjectAltName={','.join(names)}", "-keyout", key, "-out", path],
        check=True, capture_output=True, timeout=20,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())
    return path


def server_context(path: Path) -> SSLContext:
    """Give the context of a server with such a file."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
