"""Waiting for the server's kernel to change, without asking it again and again."""

import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.lab import Host

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_GROUPS = (3, 7)  # NFNLGRP_CONNTRACK_DESTROY, NFNLGRP_NFTABLES


class Happenings:
    """Hears of the ends of flows and of changes of nftables in a host, from its beginning on."""

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))  # the kernel tells nothing to a socket without an address
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def until(self, condition: Callable[[], object], timeout: float) -> None:
        """Return when the condition holds, which is asked for after each change; TimeoutError (seconds)."""
        deadline = time.monotonic() + timeout
        while not condition():
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.recv(65536)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
