"""Which ports the server itself uses: a mapping must not take them, and would never get their packets.

The kernel is asked who would receive a packet from somewhere (sock_diag(7), one socket, not a dump): a listener or an
unconnected UDP socket, whoever's it is, the kernel's own (WireGuard's) included; not a connection that happens to leave
from that port. Structures: linux/inet_diag.h, linux/sock_diag.h.
"""

import errno
import logging
import os
import socket
import struct
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol

log = logging.getLogger(__name__)

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR = 2
NLM_F_REQUEST = 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBxxI")  # struct inet_diag_req_v2: family, protocol, states; then struct inet_diag_sockid
_ENDS = struct.Struct("!HH16s16s")  # ports and addresses of source and destination
_REST = struct.Struct("=III")  # interface, and the cookie of a socket that is known already: none is
_ANY_STATE = _NO_COOKIE = 0xFFFF_FFFF
_ANSWER_SIZE = 4096


class OwnPorts:
    """Asks about packets that come in by the interface `external`."""

    def __init__(self, external: str) -> None:
        self._external = external
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        if not all(map(self._sees, TransportProtocol)):
            log.warning("this kernel does not tell who listens where (inet_diag): the server's own ports can be mapped")

    def in_use(self, protocol: TransportProtocol, address: IPv4Address, port: int) -> bool:
        """Tell whether a socket of the server receives what comes to this address and port; OSError."""
        try:
            interface = socket.if_nametoindex(self._external)
        except OSError:  # it is not there now, and what is bound to it gets nothing
            interface = 0
        return self._receives(protocol, address, port, interface)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _receives(self, protocol: TransportProtocol, address: IPv4Address, port: int, interface: int) -> bool:
        here, anywhere = (port, address.packed), (0, b"")
        # With UDP the kernel takes the one for the other, for historical reasons as net/ipv4/udp_diag.c has it.
        (port1, address1), (port2, address2) = (
            (here, anywhere) if protocol is TransportProtocol.TCP else (anywhere, here)
        )
        ends = _ENDS.pack(port1, port2, address1, address2) + _REST.pack(interface, _NO_COOKIE, _NO_COOKIE)
        request = _REQUEST.pack(socket.AF_INET, protocol, _ANY_STATE) + ends
        self._netlink.send(
            _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + request
        )
        answer = self._netlink.recv(_ANSWER_SIZE)
        if _HEADER.unpack_from(answer)[1] != NLMSG_ERROR:
            return True
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number != errno.ENOENT:
            raise OSError(number, f"who listens where: {os.strerror(number)}")
        return False

    def _sees(self, protocol: TransportProtocol) -> bool:
        """Ask about a socket of our own: what the kernel does not tell of looks like nothing at all."""
        kind = socket.SOCK_STREAM if protocol is TransportProtocol.TCP else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as own:
            own.bind(("127.0.0.1", 0))
            if protocol is TransportProtocol.TCP:
                own.listen()
            address, port = own.getsockname()
            return self._receives(protocol, IPv4Address(address), port, 0)
