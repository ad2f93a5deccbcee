"""The ports that the server itself listens on, which must not be mapped.

One sock_diag(7) query looks up the socket that would receive a packet from anywhere: a TCP listener or an unconnected
UDP socket, of any process or of the kernel (WireGuard's), but not an outgoing connection from that port. Structures:
linux/inet_diag.h, linux/sock_diag.h.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from pyroute2.netlink import NETLINK_SOCK_DIAG, NLM_F_REQUEST, NLMSG_ERROR

from igd.core.mapping import TransportProtocol

log = logging.getLogger(__name__)

SOCK_DIAG_BY_FAMILY = 20

# struct nlmsghdr; struct inet_diag_req_v2: family, protocol, states; struct inet_diag_sockid: ports and addresses of
# source and destination, interface index, and the cookie of a known socket
_REQUEST = struct.Struct("=IHHII BBxxI HH16s16sIQ")
_RESPONSE = struct.Struct("=4xH10xi")  # the type; of NLMSG_ERROR, the negative error number
_ANY_STATE, _NO_COOKIE = 2**32 - 1, 2**64 - 1


class OwnPorts:
    """Looks up the receiver of packets that arrive on the interface that `external` returns."""

    def __init__(self, external: Callable[[], str]) -> None:
        self._external = external
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        if not all(map(self._supports, TransportProtocol)):
            log.warning("this kernel has no inet_diag: ports that the server itself listens on can be mapped")

    def in_use(self, protocol: TransportProtocol, address: IPv4Address, port: int) -> bool:
        """Return whether a socket of the server receives packets to this address and port; OSError."""
        try:
            interface = socket.if_nametoindex(self._external())
        except OSError:  # it does not exist now, so that sockets bound to it receive nothing
            interface = 0
        return self._receives(protocol, address, port, interface)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _receives(self, protocol: TransportProtocol, address: IPv4Address, port: int, interface: int) -> bool:
        # For UDP the kernel swaps source and destination, for historical reasons (net/ipv4/udp_diag.c).
        ends = [socket.htons(port), 0, address.packed, b""]
        if protocol is TransportProtocol.UDP:
            ends = [0, socket.htons(port), b"", address.packed]
        header = _REQUEST.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0
        self._netlink.send(_REQUEST.pack(*header, socket.AF_INET, protocol, _ANY_STATE, *ends, interface, _NO_COOKIE))
        kind, error = _RESPONSE.unpack_from(self._netlink.recv(4096))
        if kind != NLMSG_ERROR:
            return True
        if error != -errno.ENOENT:
            raise OSError(-error, f"sock_diag: {os.strerror(-error)}")
        return False

    def _supports(self, protocol: TransportProtocol) -> bool:
        """Look up a socket of our own: without support, the kernel finds none."""
        kind = socket.SOCK_STREAM if protocol is TransportProtocol.TCP else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as own:
            own.bind(("127.0.0.1", 0))
            if protocol is TransportProtocol.TCP:
                own.listen()
            address, port = own.getsockname()
            return self._receives(protocol, IPv4Address(address), port, 0)
