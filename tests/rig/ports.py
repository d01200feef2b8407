"""Free ports on loopback, and waiting until somebody listens on one."""

import socket
import time
from collections.abc import Callable

LOOPBACK = "127.0.0.1"
READY = 15.0  # seconds: both MTAs start in two; a loaded machine gets more


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def is_open(port: int, host: str = LOOPBACK) -> bool:
    """Whether a connection to the port succeeds now."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = READY, every: float = 0.02) -> bool:
    """Wait until a condition holds; return whether it did within so many seconds."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(every)
    return True
