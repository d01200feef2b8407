"""Whether hosts.allow or hosts.deny have a rule at all, so that libwrap is loaded only where one has."""

from pathlib import Path

FILES = (Path("/etc/hosts.allow"), Path("/etc/hosts.deny"))


def have_rules(files: tuple[Path, ...] = FILES) -> bool:
    """Say whether there is a line that is neither empty nor a comment."""
    for file in files:
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        if any(line.strip() and not line.lstrip().startswith(b"#") for line in lines):
            return True
    return False
