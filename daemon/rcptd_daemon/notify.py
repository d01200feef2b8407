"""Tell systemd how we are: ready, reloading, stopping, alive (sd_notify(3)); else do nothing."""

import os
import socket
import time


def notify(**state: str) -> None:
    """Send state to the service manager, as in `notify(READY="1", STATUS="…")`; never raises, never waits."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    message = "\n".join(f"{name}={value}" for name, value in state.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
            connection.sendto(message.encode(), address)
    except OSError:
        pass  # a service manager that does not listen must not stop the mail


def reloading() -> None:
    """Say that a reload has begun; `notify(READY="1")` ends it."""
    notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))


def watchdog_interval() -> float | None:
    """Give the seconds after which to send `WATCHDOG=1` again, or None where nobody watches."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 else None
