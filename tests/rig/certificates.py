"""Certificates for servers of the tests: self-signed, each its own authority, made by the program openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.rig.require import require_program

PATIENCE = 30.0  # seconds for openssl


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a certificate and of its key, both PEM; whoever trusts the first verifies it."""

    file: Path
    key: Path


def certificate(folder: Path, *names: str, label: str = "server") -> Certificate:
    """Make a certificate for host names, and IP addresses as `IP:127.0.0.1`; it is valid for a day."""
    made = Certificate(folder / f"{label}.pem", folder / f"{label}.key")
    alternatives = ",".join(one if one.startswith("IP:") else f"DNS:{one}" for one in names)
    subprocess.run(
        [
            require_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "1", "-subj", f"/CN={names[0]}", "-keyout", made.key, "-out", made.file,
            "-addext", f"subjectAltName={alternatives}",
            # Python from 3.13 on looks for it.
            "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
        ],
        check=True, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    made.key.chmod(0o644)  # for servers that have another user by then; it is worth nothing
    return made
