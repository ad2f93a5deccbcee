"""A server that gives every request the same answer: what connection, tunnel and client cost by themselves.

python -m benchmarks.fixed_answer ADDRESS PORT: HTTP by TCP, and by UDP what NAT-PMP answers to a request for a mapping.
"""

import selectors
import socket
import sys

from benchmarks.soap import receive
from igd.core.mapping import TransportProtocol
from igd.wire.pcp import natpmp

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: 300\r\n\r\n" + b" " * 300


_MAPPED = natpmp.encode_mapping(
    natpmp.MapRequest(TransportProtocol.UDP, 1, 1, 3600), natpmp.Result.SUCCESS, 0, external_port=1, lifetime=3600
)


def main() -> None:
    """Serve until killed."""
    address, port = sys.argv[1], int(sys.argv[2])
    with (
        socket.create_server((address, port), backlog=64) as listening,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing,
        selectors.DefaultSelector() as ready,
    ):
        hearing.bind((address, port))
        ready.register(listening, selectors.EVENT_READ, _answer_connection)
        ready.register(hearing, selectors.EVENT_READ, _answer_datagram)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            for key, _ in ready.select():
                key.data(key.fileobj)


def _answer_connection(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        receive(connection)
        connection.sendall(_ANSWER)


def _answer_datagram(hearing: socket.socket) -> None:
    _, source = hearing.recvfrom(2048)
    hearing.sendto(_MAPPED, source)


if __name__ == "__main__":
    main()
