"""State notifications to systemd (sd_notify(3))."""

import logging
import os
import socket

_log = logging.getLogger(__name__)


def notify(*states: str) -> None:
    """Send states such as `READY=1`, if systemd started this process. A failure is logged: serving goes on."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(states).encode(errors="surrogateescape"), address)
    except OSError as error:
        _log.warning("NOTIFY_SOCKET %s: %s: systemd was not notified of %s", path, error, " ".join(states))
