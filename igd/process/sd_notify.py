"""What systemd is told (sd_notify(3)); nothing where it did not start us."""

import os
import socket


def notify(*states: str) -> None:
    """Send states such as `READY=1` to the service manager; OSError."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(states).encode(), address)
