"""Talks through a mapping without a pause, to notice each packet that is lost while igd stops, dies or starts."""

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from tests.e2e.serving import C1, PUBLIC
from tests.lab import Lab, call, until
from tests.lab.talk import Protocol

log = logging.getLogger(__name__)

SECONDS = 0.01
"""The pause between two messages."""


class Through(NamedTuple):
    """A mapping of c1: what the internet sends to, and the address that listens on the same port."""

    protocol: Protocol
    port: int
    public: str = PUBLIC
    internal: str = C1


class LiveFlow:
    """A flow through a mapping: one message at a time, echoed by c1. `gap` is the longest wait for an echo."""

    def __init__(self, lab: Lab, through: Through) -> None:
        kind = socket.SOCK_STREAM if through.protocol == "tcp" else socket.SOCK_DGRAM
        family = socket.AF_INET6 if ipaddress.ip_address(through.internal).version == 6 else socket.AF_INET
        self._kind, self._family = kind, family
        self._listener = lab.c1.socket(family, kind)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        self._listener.bind((through.internal, through.port))
        self._is_stream = kind == socket.SOCK_STREAM
        self._lab, self._through = lab, through
        self._stop = threading.Event()
        self.exchanges, self.gap = 0, 0.0
        self.failure: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Exchange messages during the block."""
        if self._is_stream:
            self._listener.listen()
        threads = [threading.Thread(target=call_) for call_ in (self._echo, self._speak)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            threads[1].join()
            self._listener.shutdown(socket.SHUT_RDWR) if self._is_stream else self._wake()
            threads[0].join()
            self._listener.close()

    def _wake(self) -> None:
        with self._lab.c1.socket(self._family, self._kind) as sock:
            sock.sendto(b"", (self._through.internal, self._through.port))

    def _echo(self) -> None:
        if not self._is_stream:
            while not self._stop.is_set():
                message, source = self._listener.recvfrom(2048)
                self._listener.sendto(message, source)
            return
        connection, _ = self._listener.accept()
        with connection:
            while message := connection.recv(2048):
                connection.sendall(message)

    def _speak(self) -> None:
        protocol, port, public, _internal = self._through
        try:
            with call(self._lab.net, public, port, protocol) as remote:
                while not self._stop.wait(SECONDS):
                    message = b"%08d" % self.exchanges
                    began = time.monotonic()
                    remote.sendall(message)
                    received = b""
                    while len(received) < len(message):
                        received += (piece := remote.recv(2048))
                        assert piece, "closed"
                    assert received == message
                    self.gap = max(self.gap, time.monotonic() - began)
                    self.exchanges += 1
        except (OSError, AssertionError) as error:
            self.failure = error


@contextmanager
def live(lab: Lab, through: Sequence[Through]) -> Iterator[None]:
    """Run flows through these mappings, and assert that none of them has lost anything when the block ends."""
    found = [LiveFlow(lab, each) for each in through]
    with ExitStack() as stack:
        for flow in found:
            stack.enter_context(flow.running())
        for flow in found:
            _await_exchange(flow)
        yield
        for flow in found:
            _await_exchange(flow)
    assert [flow.failure for flow in found] == [None] * len(found)
    log.info("%s", "; ".join(f"{flow.exchanges} exchanges, the longest in {flow.gap:.3f} s" for flow in found))


def _await_exchange(flow: LiveFlow) -> None:
    """Wait until the flow has gone on."""
    before = flow.exchanges
    until(lambda: flow.failure is not None or flow.exchanges > before)
