"""Peers and the server's public address: reached from inside, and seen from outside."""

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, serving, upnpc
from tests.lab import PATIENCE, Host, Lab, answering, ask
from tests.lab.fixtures import requires_root
from tests.lab.talk import Protocol

pytestmark = requires_root

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")

BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])


@BACKENDS
def test_peers_reach_each_other_and_themselves_and_the_answer_comes_from_the_server(backend: str) -> None:
    with Lab(forward="drop") as lab, serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
        for protocol in PROTOCOLS:
            upnpc(lab.c1, "-a", C1, "8043", "8043", protocol, "300")
            with answering(lab.c1, 8043, protocol):
                assert ask(lab.c2, PUBLIC, 8043, protocol).source == GATEWAY
                assert ask(lab.c1, PUBLIC, 8043, protocol).source == GATEWAY
                assert ask(lab.net, PUBLIC, 8043, protocol).source == REMOTE


@BACKENDS
def test_who_does_not_want_it_keeps_peers_from_what_is_mapped(backend: str) -> None:
    with Lab(forward="drop") as lab, serving(lab, f'[firewall]\nbackend = "{backend}"\nhairpin = false\n'):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        with answering(lab.c1, 8043):
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
            for peer in (lab.c1, lab.c2):
                with pytest.raises(ConnectionRefusedError):
                    ask(peer, PUBLIC, 8043)


@BACKENDS
def test_a_mapped_port_is_the_source_of_what_is_sent_from_inside(backend: str) -> None:
    config = f'[firewall]\nbackend = "{backend}"\npreserve_source_port = true\n'
    with Lab(forward="drop") as lab, serving(lab, config), _sources(lab.net, 9000) as next_source:
        upnpc(lab.c1, "-a", C1, "3074", "50000", "udp", "300")
        for source_port, seen in ((3074, 50000), (3075, 3075)):
            ask(lab.c1, REMOTE, 9000, "udp", source_port=source_port)
            assert next_source() == (PUBLIC, seen)


@contextmanager
def _sources(host: Host, port: int) -> Iterator[Callable[[], tuple[str, int]]]:
    """Answer datagrams; yield a function that returns the source of the next one."""
    sources: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", port))

        def answer() -> None:
            while (received := listener.recvfrom(2048))[0]:
                sources.put(received[1])
                listener.sendto(f"{received[1][0]}\n".encode() + received[0], received[1])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield lambda: sources.get(timeout=PATIENCE)
        finally:
            with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.1", port))
            thread.join()
