"""Accepts TCP connections: a connection that is refused costs one system call more, and no asyncio transport."""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable

from igd.core.peers import Address
from igd.endpoints.sockets import peer_address

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that wait to be accepted, and the kernel's limit of half-open ones, above which it sends SYN cookies.
They need no descriptor. Linux allows no more than net.core.somaxconn, 4096 by default."""

AT_ONCE = 64
"""Connections that are accepted before the event loop turns to everything else; a refused one takes microseconds."""

PAUSE_SECONDS = 1.0
"""How long a listener accepts nothing after a lack of descriptors or memory; connections wait in the backlog."""

_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Accepted = Callable[[socket.socket, Address], None]


class TcpListener:
    """Accepts connections to `sock`, which is bound, until it is closed; calls `accepted` with each and its source.

    asyncio's own server creates a task and a transport for each connection before it asks whether that is wanted. When
    descriptors run out, it logs a traceback for each place of the backlog (CPython 3.11).
    """

    def __init__(self, sock: socket.socket, accepted: Accepted, lacking: Callable[[OSError], None]) -> None:
        """Listen; `lacking` is called with the error before each pause."""
        self._sock = sock
        self._accepted = accepted
        self._lacking = lacking
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Stop listening; connections that wait in the backlog are reset."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _resume(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, source = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LACKS:
                    self._loop.remove_reader(self._sock)
                    self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
                    self._lacking(error)
                    return
                # the connection has failed before it was accepted (accept(2)), or a firewall forbids it
                log.debug("a connection was not accepted: %s", error)
            else:
                self._accepted(sock, peer_address(source))


def reset(sock: socket.socket) -> None:
    """Have the kernel reset the connection when its socket is closed, and drop what was not sent.

    An orderly close keeps the connection, and data that a client does not read, in the kernel for up to minutes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
