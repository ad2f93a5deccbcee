"""State notifications to systemd (sd_notify(3))."""

import os
import socket


def notify(*states: str) -> None:
    """Send states such as `READY=1`, if systemd started this process; OSError."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(states).encode(), address)
