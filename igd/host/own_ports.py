"""Which ports the server itself uses: a mapping must not take them, and would never get their packets."""

import errno
import socket
from ipaddress import IPv4Address

from igd.core.mapping import Protocol


def in_use(protocol: Protocol, address: IPv4Address, port: int) -> bool:
    """Tell whether a socket of the server receives what comes to this address and port.

    Asked of the kernel by binding there for a moment, which costs the same however many sockets there are, and finds
    the kernel's own (WireGuard's) as well. False where it may not be tried: ports below 1024 take a capability.
    """
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if protocol is Protocol.TCP:
            # Only listeners count then, and a service that is just starting is not in our way, nor we in its.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
